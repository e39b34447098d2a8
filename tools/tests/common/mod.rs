//! Running the command as its users do: as a process.

#![allow(dead_code)]

pub(crate) mod table;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal};

/// Longer than any command here takes on a slow machine; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// The command, with an environment that says nothing to it.
pub(crate) fn gannet() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gannet"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("GANNET_") {
            command.env_remove(variable);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn run(mut command: Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command can be started");
    let pid = Pid::from_child(&child);
    let (done, ended) = channel();
    std::thread::spawn(move || done.send(child.wait_with_output()));
    match ended.recv_timeout(PATIENCE) {
        Ok(output) => output.expect("the command can be waited for"),
        Err(_) => {
            // Started above and not waited for yet, so the number is still its own.
            let _killed = rustix::process::kill_process(pid, Signal::KILL);
            panic!("{command:?} does not end");
        }
    }
}

/// Runs `gannet` with arguments against a server.
pub(crate) fn gannet_at<S: AsRef<OsStr>>(server: &str, arguments: &[S]) -> Output {
    let mut command = gannet();
    command.env("GANNET_SERVER", server).args(arguments);
    run(command)
}

/// As [`gannet_at`], and it has to succeed. Returns its standard output.
pub(crate) fn must<S: AsRef<OsStr> + std::fmt::Debug>(server: &str, arguments: &[S]) -> Vec<u8> {
    let output = gannet_at(server, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    output.stdout
}

/// A server process that is killed, if need be, when the test ends.
pub(crate) struct Server {
    child: Child,
    output: BufReader<ChildStdout>,
    /// What it said when it was ready, without the word.
    pub(crate) ready: String,
    /// What it said before.
    pub(crate) said: Vec<String>,
}

impl Server {
    /// Starts a server and waits until it says that it is ready.
    pub(crate) fn start(mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the server can be started");
        let mut output = BufReader::new(child.stdout.take().expect("it was piped"));
        let mut said = Vec::new();
        loop {
            let mut line = String::new();
            let bytes = output.read_line(&mut line).expect("its output can be read");
            if bytes == 0 {
                let status = child.wait();
                panic!("{command:?} ended before it was ready: {status:?}, said {said:?}");
            }
            match line.trim_end().strip_prefix("ready: ") {
                Some(ready) => {
                    let ready = ready.trim_start_matches("GANNET_SERVER=").to_owned();
                    return Server { child, output, ready, said };
                }
                None => said.push(line),
            }
        }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        rustix::process::kill_process(self.pid(), Signal::TERM).expect("it runs");
        self.wait()
    }

    fn wait(&mut self) -> ExitStatus {
        let descriptor = rustix::process::pidfd_open(self.pid(), PidfdFlags::empty())
            .expect("a process that was not waited for has a descriptor");
        let mut entries = [rustix::event::PollFd::from_borrowed_fd(
            descriptor.as_fd(),
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        let ended = rustix::event::poll(&mut entries, Some(&limit)).expect("poll");
        assert_eq!(ended, 1, "the server does not end");
        self.child.wait().expect("it ended")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ended = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Writes a file of the test's own.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).expect("the test's directory can be written");
}
