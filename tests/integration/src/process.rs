//! Processes of the `gannet` command: servers that are started, stopped and killed, and commands
//! that come to an end.
//!
//! Every wait has a bound, so that nothing that hangs can make a test hang. Processes are killed
//! by their own handle when the value that stands for them is dropped.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// How long a server may take until it serves. A killed predecessor's I/O may take seconds.
pub const START_MAX: Duration = Duration::from_secs(60);
/// How long a server may take to end in order.
pub const STOP_MAX: Duration = Duration::from_secs(30);
/// How long a command may take.
pub const COMMAND_MAX: Duration = Duration::from_secs(180);
/// Lines of a server's log that a failing test shows.
const LOG_LINES: usize = 60;

/// The `gannet` command that was built beside the running test.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn gannet() -> PathBuf {
    let test = std::env::current_exe().expect("a test program has a path");
    // Where tests are taken elsewhere, all programs lie together.
    let path = [test.with_file_name("gannet"), build_directory().join("gannet")]
        .into_iter()
        .find(|path| path.is_file())
        .unwrap_or_else(|| build_directory().join("gannet"));
    assert!(
        path.is_file(),
        "{} is missing: run `cargo build -p gannet` with the same profile and target directory \
         first, or `./tests/run integration`, which does so",
        path.display()
    );
    path
}

/// Where cargo put this profile's binaries: the test itself is in its `deps`.
///
/// # Panics
/// If the test program does not know its own path.
#[must_use]
pub fn build_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test program has a path");
    let directory = test.parent().and_then(Path::parent).expect("cargo runs tests from deps/");
    directory.to_path_buf()
}

/// A server process.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    /// When the ready line came; ends with the process's output.
    ready: Receiver<Instant>,
    reader: Option<JoinHandle<()>>,
    log: PathBuf,
}

impl Server {
    /// Starts a server that prints a line beginning with `ready:` when it serves. What it prints
    /// is appended to `log`.
    ///
    /// # Panics
    /// If the process cannot be started.
    #[must_use]
    pub fn start(name: &str, mut command: Command, log: &Path) -> Server {
        let file = File::options().create(true).append(true).open(log).expect("the log opens");
        let mut copy = file.try_clone().expect("a descriptor");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let output = child.stdout.take().expect("stdout is a pipe");
        let (tell, ready) = channel();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.starts_with("ready:") {
                    // Nobody may be waiting any more.
                    let _told = tell.send(Instant::now());
                }
                let _logged = writeln!(copy, "{line}");
            }
        });
        let (name, log) = (name.to_owned(), log.to_path_buf());
        Server { name, child, ready, reader: Some(reader), log }
    }

    /// Waits until the server serves, and says since when.
    ///
    /// # Panics
    /// If it ends, or takes longer than [`START_MAX`].
    pub fn wait_ready(&mut self) -> Instant {
        match self.ready.recv_timeout(START_MAX) {
            Ok(since) => since,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not get ready", self.name),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{} ended: {:?}", self.name, self.child.wait())
            }
        }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process is our child");
    }

    /// Whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the server to end (SIGTERM) and waits until it has, in order.
    ///
    /// # Panics
    /// If it takes longer than [`STOP_MAX`], or does not exit with 0.
    pub fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = wait_exit(&mut self.child, STOP_MAX)
            .unwrap_or_else(|| panic!("{} does not end on SIGTERM", self.name));
        assert!(status.success(), "{} ended with {status}", self.name);
        self.drain();
    }

    /// Waits until the process ends by itself, in order.
    ///
    /// # Panics
    /// If it takes longer than [`STOP_MAX`], or does not exit with 0.
    pub fn wait_end(mut self) {
        let status = wait_exit(&mut self.child, STOP_MAX)
            .unwrap_or_else(|| panic!("{} does not end", self.name));
        assert!(status.success(), "{} ended with {status}", self.name);
        self.drain();
    }

    /// Kills the server (SIGKILL) and waits until it is gone.
    ///
    /// # Panics
    /// If it had ended before: the test is about a server that runs.
    pub fn kill(self) {
        self.kill_and(|| ());
    }

    /// Kills the server, and runs `meanwhile` before waiting until it is gone.
    ///
    /// # Panics
    /// As [`Server::kill`].
    pub fn kill_and(mut self, meanwhile: impl FnOnce()) {
        assert!(self.is_running(), "{} ended before it was killed", self.name);
        self.child.kill().expect("the process is our child");
        meanwhile();
        self.child.wait().expect("the process is our child");
        self.drain();
    }

    fn drain(&mut self) {
        if let Some(reader) = self.reader.take() {
            // It ends with the pipe, which has ended with the process.
            let _ended = reader.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let running = self.is_running();
        if running {
            // Neither can fail for a child that was not waited for.
            let _killed = self.child.kill();
            let _gone = self.child.wait();
        }
        self.drain();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let state = if running { "running" } else { "ended" };
            eprintln!("---- {} ({state}), last lines:", self.name);
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                eprintln!("{line}");
            }
        }
    }
}

/// What a command left.
#[derive(Debug)]
pub struct Finished {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// What the command printed.
    ///
    /// # Panics
    /// If it did not succeed.
    #[must_use]
    pub fn success(self) -> String {
        let Finished { command, status, stdout, stderr } = self;
        assert!(status.success(), "{command}: {status}\n{stdout}\n{stderr}");
        stdout
    }

    /// What the command printed, as JSON.
    ///
    /// # Panics
    /// If it did not succeed, or printed something else.
    #[must_use]
    pub fn json(self) -> serde_json::Value {
        let command = self.command.clone();
        let text = self.success();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started, or takes longer than [`COMMAND_MAX`].
#[must_use]
pub fn run(mut command: Command) -> Finished {
    let name = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
    let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
    let ended = wait_exit(&mut child, COMMAND_MAX);
    if ended.is_none() {
        let _killed = child.kill();
        let _gone = child.wait();
    }
    let (stdout, stderr) = (text(stdout), text(stderr));
    let status = ended.unwrap_or_else(|| panic!("{name} hangs\n{stdout}\n{stderr}"));
    Finished { command: name, status, stdout, stderr }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is worth showing.
        let _read = from.read_to_end(&mut bytes);
        bytes
    })
}

fn text(collected: JoinHandle<Vec<u8>>) -> String {
    let bytes = collected.join().expect("reading does not panic");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for the end of a child; `None` if it does not come in time.
///
/// # Panics
/// If the operating system refuses to wait.
pub fn wait_exit(child: &mut Child, at_most: Duration) -> Option<ExitStatus> {
    let descriptor = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).expect("a pidfd");
    let end = Instant::now() + at_most;
    loop {
        if let Some(status) = child.try_wait().expect("the process is our child") {
            return Some(status);
        }
        let left = end.checked_duration_since(Instant::now())?;
        let left =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // Interrupted or not: the loop looks again.
        let _woken =
            rustix::event::poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&left));
    }
}
