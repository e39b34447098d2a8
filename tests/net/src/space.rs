//! Network namespaces, by names that tell which process they belong to.
//!
//! A namespace goes when its [`Space`] is dropped. Should the process be killed before that, the
//! next one that makes a namespace finds what it has left: the name says whose it was, and nobody
//! else's is touched.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::program::{run, try_run};

/// What all names begin with; the process, when it began, and a number follow.
const PREFIX: &str = "gannet-net";
/// Where `ip` keeps namespaces.
const DIRECTORY: &str = "/run/netns";

/// A network namespace with nothing but a loopback device that is up.
#[derive(Debug)]
pub struct Space {
    name: String,
}

impl Space {
    /// Makes a namespace. `purpose` is part of its name.
    ///
    /// # Panics
    /// If the machine refuses; the message says what it takes.
    #[must_use]
    pub fn new(purpose: &str) -> Space {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        static LEFTOVERS: Once = Once::new();
        LEFTOVERS.call_once(remove_leftovers);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let began = began(pid).expect("this process runs");
        let name = format!("{PREFIX}-{pid}-{began}-{number}-{purpose}");
        if let Err(what) = try_run("ip", &["netns", "add", &name]) {
            panic!(
                "no network namespace can be made here ({what}): these tests need root with the \
                 right to make namespaces (CAP_SYS_ADMIN and CAP_NET_ADMIN)"
            );
        }
        let space = Space { name };
        space.ip(&["link", "set", "lo", "up"]);
        space
    }

    /// The name by which `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on the namespace.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn ip(&self, arguments: &[&str]) -> String {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs a program in the namespace to its end; returns what it printed.
    ///
    /// # Panics
    /// If that fails.
    #[track_caller]
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.name, program], arguments].concat())
    }

    /// What goes in front of a command's words so that it runs in the namespace. The process
    /// itself becomes the command, so its number stays.
    #[must_use]
    pub fn prefix(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.name].map(str::to_owned).to_vec()
    }

    /// Runs `action` on a thread that is in the namespace, with all threads that it starts.
    ///
    /// # Panics
    /// If `action` does, or the namespace cannot be entered.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            let path = PathBuf::from(DIRECTORY).join(&self.name);
            let space = File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("who made the namespace may enter it");
            action()
        };
        let done = std::thread::scope(|scope| scope.spawn(inside).join());
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // Devices go with it, once the last process in it has ended.
        if let Err(what) = try_run("ip", &["netns", "del", &self.name]) {
            eprintln!("{what}");
        }
    }
}

/// When a process began, in ticks since the machine did; `None` if there is no such process.
fn began(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may itself have spaces and parentheses; state is the third field.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    // A process that has ended and was not waited for owns nothing any more.
    (state != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

/// The process that a namespace belongs to, by its name, and when that began.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.strip_prefix('-')?.splitn(4, '-');
    let (pid, began) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next()?.parse::<u32>().ok()?;
    parts.next()?;
    Some((pid, began))
}

/// Removes namespaces of processes that are gone, with the processes that were started in them.
fn remove_leftovers() {
    let Ok(entries) = std::fs::read_dir(DIRECTORY) else { return };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    for name in names {
        let is_left = owner(&name).is_some_and(|(pid, since)| began(pid) != Some(since));
        if !is_left {
            continue;
        }
        eprintln!("removing {name}, whose process is gone");
        // Another test may be doing the same.
        let inside = try_run("ip", &["netns", "pids", &name]).unwrap_or_default();
        for pid in inside.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()) {
            if let Some(pid) = Pid::from_raw(pid) {
                let _gone = kill_process(pid, Signal::KILL);
            }
        }
        let _removed = try_run("ip", &["netns", "del", &name]);
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn names_tell_whose_they_are() {
        assert_eq!(owner("gannet-net-12-3456-0-host-0"), Some((12, 3456)));
        for other in ["gannet-net-x-1-0-a", "gannet-net-12-3456", "gannet-network-1-2-3-a", "web"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_is_told_from_a_later_one_with_its_number() {
        let own = began(std::process::id()).expect("this process runs");
        assert!(own > began(1).expect("the first process runs"));
        let mut child = Command::new("true").spawn().expect("started");
        let pid = child.id();
        child.wait().expect("our child");
        assert_ne!(began(pid), Some(own));
    }

    #[test]
    #[ignore = "needs root and network namespaces: run tests/run net"]
    fn leftovers_go_and_namespaces_in_use_stay() {
        let kept = Space::new("kept");
        let mut gone = Command::new("true").spawn().expect("started");
        let left = format!("{PREFIX}-{}-1-0-left", gone.id());
        gone.wait().expect("our child");
        run("ip", &["netns", "add", &left]);
        let mut inside = Command::new("ip");
        let mut inside =
            inside.args(["netns", "exec", &left, "sleep", "600"]).spawn().expect("started");
        let is_inside = || {
            let pids = run("ip", &["netns", "pids", &left]);
            pids.split_ascii_whitespace().any(|pid| pid == inside.id().to_string())
        };
        while !is_inside() {
            std::thread::yield_now();
        }
        remove_leftovers();
        let list = run("ip", &["netns", "list"]);
        assert!(list.contains(kept.name()) && !list.contains(&left), "{list}");
        let ended = inside.wait().expect("our child");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended), Some(9));
    }

    #[test]
    #[ignore = "needs root and network namespaces: run tests/run net"]
    fn threads_inside_see_the_namespaces_devices_only() {
        let space = Space::new("inside");
        space.ip(&["link", "add", "probe0", "type", "bridge"]);
        let devices =
            || std::fs::read_to_string("/proc/thread-self/net/dev").expect("a list of devices");
        let inside = space.enter(|| {
            let started = std::thread::spawn(devices).join().expect("it does not panic");
            (devices(), started)
        });
        assert!(inside.0.contains("probe0") && inside.1.contains("probe0"), "{inside:?}");
        assert!(!devices().contains("probe0"));
    }
}
