//! SIGTERM and SIGINT end a process in order, a second signal at once. Signals belong to a whole
//! process, so the test runs itself as a child per case; it needs a `main` of its own for that.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::io::{BufRead, BufReader};
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::reactor::ReactorOptions;
use gannet_runtime::spawn::spawn;
use gannet_runtime::stop::StopFlag;
use gannet_runtime::time::Time;
use rustix::process::{Pid, Signal};

/// Set for the child, to whether its poller comes to an end.
const CHILD_ENDS: &str = "GANNET_TEST_CHILD_ENDS";

struct IdlePoller {
    ends: bool,
    announced: bool,
}

impl Poller for IdlePoller {
    fn poll(&mut self, _: Now) -> usize {
        0
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
    fn arm(&mut self) {}
    fn disarm(&mut self) {}
    fn wake_descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {}
    fn shutdown(&mut self, _: Now) -> bool {
        if !std::mem::replace(&mut self.announced, true) {
            println!("stopping");
        }
        self.ends
    }
}

fn child(ends: bool) {
    let stop = StopFlag::new().unwrap();
    stop.stop_on_signals().unwrap();
    let mut options = ReactorOptions::new("signalled");
    options.stop_grace = Duration::from_secs(60);
    let reactor = spawn(options, stop, move || {
        let poller: Box<dyn Poller> = Box::new(IdlePoller { ends, announced: false });
        Ok::<_, Infallible>(vec![("idle".to_owned(), poller)])
    })
    .unwrap();
    while reactor.stats().sample().sleeps == 0 {
        std::thread::yield_now();
    }
    println!("asleep");
    assert!(reactor.join().unwrap().clean);
    println!("clean");
}

/// A child that is killed if the test fails before its end.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

/// Starts a child, sends it the signals, each after the child has said the word that comes with it.
/// Returns what the child said afterwards and its exit status.
fn run(ends: bool, script: &[(&str, Signal)]) -> (Vec<String>, Option<i32>) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(CHILD_ENDS, ends.to_string()).stdout(Stdio::piped());
    let mut child = Reaped(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    for (word, signal) in script {
        assert_eq!(lines.next().expect("the child ended early").unwrap(), *word);
        rustix::process::kill_process(Pid::from_child(&child.0), *signal).unwrap();
    }
    let rest = lines.collect::<Result<_, _>>().unwrap();
    (rest, child.0.wait().unwrap().code())
}

fn main() {
    if let Ok(ends) = std::env::var(CHILD_ENDS) {
        return child(ends == "true");
    }
    for signal in [Signal::TERM, Signal::INT] {
        let (said, status) = run(true, &[("asleep", signal)]);
        assert_eq!(said, ["stopping", "clean"], "{signal:?}");
        assert_eq!(status, Some(0), "{signal:?}");
    }
    for (first, second, expected) in
        [(Signal::TERM, Signal::TERM, 143), (Signal::TERM, Signal::INT, 130)]
    {
        let (said, status) = run(false, &[("asleep", first), ("stopping", second)]);
        assert_eq!(said, [""; 0]);
        assert_eq!(status, Some(expected), "{first:?} then {second:?}");
    }
    println!("signals: 4 cases passed");
}
