//! Processes of a test: started, listened to, waited for and killed.
//!
//! Every wait has a bound. What a process started ends with it: when it was waited for, was killed,
//! or when its [`Process`] is dropped, which shows what it printed if a test fails. Two threads per
//! process read its output.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};

/// Lines of a process's output that a failing test shows.
const SHOWN_LINES: usize = 60;

/// Lines that a process printed, on either of its outputs, in the order in which they came.
#[derive(Debug, Default)]
struct Output {
    lines: Vec<String>,
    /// Readers that have not come to an end yet.
    open: usize,
}

#[derive(Debug, Default)]
struct Shared {
    output: Mutex<Output>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Output> {
        // A reader cannot leave it half changed.
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process that runs, or has ended and not been waited for.
///
/// Its entry in the process table stays until [`Process::reap`], and so do its number and that of its
/// group: signals cannot reach anybody else.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    /// Readable once the process has ended.
    ended: OwnedFd,
    shared: Arc<Shared>,
    /// None are left once it was waited for.
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a process in a process group of its own, without input. `name` is for messages.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn start(name: &str, mut command: Command) -> Process {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {command:?}: {error}"));
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).expect("a pidfd");
        let shared = Arc::new(Shared::default());
        shared.lock().open = 2;
        let readers = vec![
            read(child.stdout.take().expect("stdout is a pipe"), Arc::clone(&shared)),
            read(child.stderr.take().expect("stderr is a pipe"), Arc::clone(&shared)),
        ];
        Process { name: name.to_owned(), child, ended, shared, readers }
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO)
    }

    /// What the process printed until now.
    #[must_use]
    pub fn output(&self) -> String {
        self.shared.lock().lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    /// Waits until the process has printed a line that `wanted` accepts, and returns the first one.
    ///
    /// # Panics
    /// If it does not within `at_most`, or ends its output without it.
    #[must_use]
    pub fn wait_line(&self, at_most: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + at_most;
        let mut seen = 0;
        let mut output = self.shared.lock();
        loop {
            if let Some(line) = output.lines[seen..].iter().find(|line| wanted(line)) {
                return line.clone();
            }
            seen = output.lines.len();
            assert!(output.open > 0, "{} ended without the line waited for", self.name);
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{}: waited {at_most:?} for a line", self.name);
            (output, _) = self
                .shared
                .changed
                .wait_timeout(output, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the process ends, and kills what it has started and left.
    ///
    /// # Panics
    /// If it does not within `at_most`; it is killed then.
    #[must_use]
    pub fn wait(mut self, at_most: Duration) -> Finished {
        assert!(self.ends_within(at_most), "{} did not end in {at_most:?}", self.name);
        self.reap()
    }

    /// Sends a signal to the process itself, not to those that it started.
    ///
    /// # Panics
    /// If it has ended: the test is about a process that runs.
    pub fn signal(&self, signal: Signal) {
        assert!(self.is_running(), "{} ended before it got {signal:?}", self.name);
        kill_process(Pid::from_child(&self.child), signal).expect("the process is our child");
    }

    /// Kills the process and all that it started (SIGKILL), and waits until it is gone.
    ///
    /// # Panics
    /// If it had ended before: the test is about a process that runs.
    pub fn kill(mut self) -> Finished {
        assert!(self.is_running(), "{} ended before it was killed", self.name);
        self.reap()
    }

    fn ends_within(&self, at_most: Duration) -> bool {
        let end = Instant::now() + at_most;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::new(&self.ended, PollFlags::IN)], Some(&timeout)) {
                Ok(0) if left.is_zero() => return false,
                // Interrupted, or a little early: the loop looks again.
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return true,
                Err(error) => panic!("{}: waiting for its end: {error}", self.name),
            }
        }
    }

    /// Kills what is left of the process's group, and takes its status and the rest of its output.
    fn reap(&mut self) -> Finished {
        let group = Pid::from_child(&self.child);
        kill_process_group(group, Signal::KILL).expect("the group has our child");
        let status = self.child.wait().expect("the process is our child");
        for reader in self.readers.drain(..) {
            // It comes to its end with the last process that has the pipe.
            let _ended = reader.join();
        }
        Finished { name: self.name.clone(), status, output: self.output() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.readers.is_empty() {
            // It was waited for, and its output is with who did so.
            return;
        }
        let state = if self.is_running() { "killed here" } else { "had ended" };
        let Finished { name, status, output } = self.reap();
        if std::thread::panicking() {
            eprintln!("---- {name} ({state}: {status}), last lines:\n{}", last_lines(&output));
        }
    }
}

fn last_lines(output: &str) -> String {
    let lines: Vec<&str> = output.lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn read(from: impl Read + Send + 'static, shared: Arc<Shared>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut bytes = Vec::new();
        // What came before an error is worth showing; the error itself is an end like another.
        while from.read_until(b'\n', &mut bytes).is_ok_and(|read| read > 0) {
            let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned();
            shared.lock().lines.push(line);
            shared.changed.notify_all();
            bytes.clear();
        }
        shared.lock().open -= 1;
        shared.changed.notify_all();
    })
}

/// What a process left.
#[derive(Debug)]
pub struct Finished {
    /// Its name, for messages.
    pub name: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed, on either of its outputs.
    pub output: String,
}

impl Finished {
    /// What the process printed.
    ///
    /// # Panics
    /// If it did not succeed.
    #[must_use]
    pub fn success(self) -> String {
        let Finished { name, status, output } = self;
        assert!(status.success(), "{name}: {status}\n{}", last_lines(&output));
        output
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started, or takes longer than `at_most`.
#[must_use]
pub fn run(command: Command, at_most: Duration) -> Finished {
    Process::start(&format!("{command:?}"), command).wait(at_most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(script, command)
    }

    #[test]
    fn output_and_status_are_kept() {
        let finished = shell("echo one; echo two >&2; exit 3").wait(LONG);
        assert_eq!(finished.status.code(), Some(3));
        let mut lines: Vec<&str> = finished.output.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn a_line_is_waited_for() {
        let process = shell("echo first; echo ready 7; exec sleep 600");
        assert_eq!(process.wait_line(LONG, |line| line.starts_with("ready")), "ready 7");
        assert_eq!(process.wait_line(LONG, |line| line.starts_with("first")), "first");
        assert!(!process.kill().status.success());
    }

    #[test]
    fn a_line_that_never_comes_is_an_end() {
        let process = shell("echo other");
        assert!(catch_unwind(AssertUnwindSafe(|| process.wait_line(LONG, |_| false))).is_err());
    }

    #[test]
    fn what_a_process_leaves_behind_does_not_hold_its_output() {
        let finished = shell("sleep 600 & echo left").wait(LONG);
        assert_eq!(finished.success(), "left\n");
    }

    #[test]
    fn what_takes_too_long_is_killed_with_all_that_it_started() {
        let process = shell("sleep 600 & echo $!; wait");
        let grandchild = process.wait_line(LONG, |_| true);
        let waited = catch_unwind(AssertUnwindSafe(|| process.wait(Duration::from_millis(50))));
        assert!(waited.is_err(), "it cannot have ended");
        // Whoever inherits it decides when its entry goes; its command line goes with its memory.
        crate::wait::until("the grandchild's end", LONG, || {
            std::fs::read(format!("/proc/{grandchild}/cmdline"))
                .map_or(true, |line| line.is_empty())
        });
    }
}
