//! Reactors as their users see them: accounting, sleep and wake-up, stop, spawning.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use gannet_runtime::idle::IdlePolicy;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::reactor::{NamedPollers, Reactor, ReactorOptions};
use gannet_runtime::ring::{Receiver, Sender, channel};
use gannet_runtime::spawn::{ReactorHandle, SpawnError, spawn};
use gannet_runtime::stop::StopFlag;
use gannet_runtime::time::{Time, WallTime};

/// Far beyond what any condition here takes, so that a failure is told from a slow machine.
const LIMIT: Duration = Duration::from_secs(30);
const SLEEP_AT_ONCE: IdlePolicy =
    IdlePolicy::Adaptive { spin: Duration::ZERO, yields: Duration::ZERO };

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what} did not come about");
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// A poller made of closures; whatever is not said has nothing to do.
struct Scripted {
    poll: Box<dyn FnMut(Now) -> usize>,
    deadline: Time,
    shutdown: Box<dyn FnMut(Now) -> bool>,
}

impl Scripted {
    fn new(poll: impl FnMut(Now) -> usize + 'static) -> Scripted {
        Scripted { poll: Box::new(poll), deadline: Time::NEVER, shutdown: Box::new(|_| true) }
    }
}

impl Poller for Scripted {
    fn poll(&mut self, now: Now) -> usize {
        (self.poll)(now)
    }
    fn deadline(&self) -> Time {
        self.deadline
    }
    fn arm(&mut self) {}
    fn disarm(&mut self) {}
    fn wake_descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {}
    fn shutdown(&mut self, now: Now) -> bool {
        (self.shutdown)(now)
    }
}

fn named(name: &str, poller: impl Poller + 'static) -> (String, Box<dyn Poller>) {
    (name.to_owned(), Box::new(poller))
}

fn start(
    idle: IdlePolicy,
    stop: &StopFlag,
    build: impl FnOnce() -> NamedPollers + Send + 'static,
) -> ReactorHandle {
    let options = ReactorOptions { idle, ..ReactorOptions::new("tested") };
    spawn(options, stop.clone(), move || Ok::<_, Infallible>(build())).unwrap()
}

#[test]
fn an_idle_reactor_reports_no_busy_time() {
    let stop = StopFlag::new().unwrap();
    let reactor = start(IdlePolicy::Spin, &stop, || vec![named("idle", Scripted::new(|_| 0))]);
    wait_until("turns", || reactor.stats().sample().turns > 100_000);
    stop.stop();
    let stats = Arc::clone(reactor.stats());
    assert!(reactor.join().unwrap().clean);
    let sample = stats.sample();
    assert_eq!((sample.busy_ns, sample.work, sample.sleeps, sample.sleep_ns), (0, 0, 0, 0));
    assert!(sample.idle_ns > 0);
}

#[test]
fn a_turn_is_busy_if_any_poller_had_work() {
    let stop = StopFlag::new().unwrap();
    let reactor = start(IdlePolicy::ADAPTIVE, &stop, || {
        vec![named("idle", Scripted::new(|_| 0)), named("busy", Scripted::new(|_| 3))]
    });
    wait_until("turns", || reactor.stats().sample().turns > 10_000);
    let earlier = reactor.stats().sample();
    assert!(earlier.busy_ns > 0);
    stop.stop();
    let stats = Arc::clone(reactor.stats());
    assert!(reactor.join().unwrap().clean);
    let sample = stats.sample();
    assert_eq!((sample.idle_ns, sample.sleeps), (0, 0));
    assert_eq!(sample.work, 3 * sample.turns);
    let pollers: Vec<_> = stats.pollers().collect();
    assert_eq!(pollers, [("idle", 0), ("busy", sample.work)]);
    assert_eq!(sample.since(earlier).turns, sample.turns - earlier.turns);
}

#[test]
fn busy_idle_and_sleep_add_up_to_the_reactors_life() {
    let stop = StopFlag::new().unwrap();
    let (first, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (tell_first, tell_last) = (Arc::clone(&first), Arc::clone(&last));
    let before = Time::monotonic();
    let reactor = start(IdlePolicy::ADAPTIVE, &stop, move || {
        let mut turns = 0;
        vec![named(
            "mixed",
            Scripted::new(move |now| {
                turns += 1;
                if turns == 1 {
                    tell_first.store(now.time.0, Ordering::Relaxed);
                }
                tell_last.store(now.time.0, Ordering::Relaxed);
                usize::from(turns < 1000 && turns % 3 == 0)
            }),
        )]
    });
    wait_until("sleep", || reactor.stats().sample().sleeps > 0);
    stop.stop();
    let stats = Arc::clone(reactor.stats());
    assert!(reactor.join().unwrap().clean);
    let life_at_most = Time::monotonic().since(before).as_nanos() as u64;
    let life_at_least = last.load(Ordering::Relaxed) - first.load(Ordering::Relaxed);
    let sample = stats.sample();
    assert!(sample.busy_ns > 0 && sample.idle_ns > 0 && sample.sleep_ns > 0, "{sample:?}");
    let sum = sample.busy_ns + sample.idle_ns + sample.sleep_ns;
    assert!(sum >= life_at_least && sum <= life_at_most, "{sample:?} of {life_at_least} ns");
}

#[test]
fn an_idle_adaptive_reactor_uses_no_cpu_and_is_never_woken() {
    let stop = StopFlag::new().unwrap();
    let cpu_ns = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&cpu_ns);
    let reactor = start(IdlePolicy::ADAPTIVE, &stop, move || {
        vec![named(
            "idle",
            Scripted::new(move |_| {
                let id = rustix::time::ClockId::ThreadCPUTime;
                let used = rustix::time::clock_gettime(id);
                let used_ns = used.tv_sec as u64 * 1_000_000_000 + used.tv_nsec as u64;
                tell.store(used_ns, Ordering::Relaxed);
                0
            }),
        )]
    });
    wait_until("sleep", || reactor.stats().sample().sleeps == 1);
    let (asleep, cpu_before_ns) = (reactor.stats().sample(), cpu_ns.load(Ordering::Relaxed));
    std::thread::sleep(Duration::from_secs(1)); // the span that is measured
    assert_eq!(reactor.stats().sample(), asleep, "something woke the reactor");
    stop.stop();
    assert!(reactor.join().unwrap().clean);
    let used = Duration::from_nanos(cpu_ns.load(Ordering::Relaxed) - cpu_before_ns);
    assert!(used < Duration::from_millis(10), "{used:?} in a second");
}

/// Sends back what it receives, adding one, up to a limit.
struct Player {
    receiver: Receiver<u64>,
    sender: Sender<u64>,
    limit: u64,
    highest: Arc<AtomicU64>,
}

impl Poller for Player {
    fn poll(&mut self, _: Now) -> usize {
        let mut work = 0;
        while let Some(number) = self.receiver.pop() {
            self.highest.fetch_max(number, Ordering::Relaxed);
            if number < self.limit {
                self.sender.push(number + 1).unwrap();
            }
            work += 1;
        }
        self.sender.flush();
        work
    }
    fn deadline(&self) -> Time {
        Time::NEVER
    }
    fn arm(&mut self) {
        self.receiver.arm();
    }
    fn disarm(&mut self) {
        self.receiver.disarm();
    }
    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        visit(self.receiver.wake_descriptor());
    }
    fn shutdown(&mut self, _: Now) -> bool {
        true
    }
}

/// Two reactors that sleep whenever they can exchange messages: each is woken by the other alone.
#[test]
fn sleeping_reactors_wake_each_other_by_ring_messages() {
    const MESSAGES: u64 = 4000;
    let stop = StopFlag::new().unwrap();
    let highest = Arc::new(AtomicU64::new(0));
    let (mut to_first, from_second) = channel(4).unwrap();
    let (to_second, from_first) = channel(4).unwrap();
    to_first.push(1).unwrap();
    let reactors = [(from_second, to_second), (from_first, to_first)].map(|(receiver, sender)| {
        let highest = Arc::clone(&highest);
        start(SLEEP_AT_ONCE, &stop, move || {
            vec![named("player", Player { receiver, sender, limit: MESSAGES, highest })]
        })
    });
    wait_until("the last message", || highest.load(Ordering::Relaxed) == MESSAGES);
    stop.stop();
    for reactor in reactors {
        let stats = Arc::clone(reactor.stats());
        assert!(reactor.join().unwrap().clean);
        let sample = stats.sample();
        assert_eq!(sample.work, MESSAGES / 2);
        assert!(sample.sleeps > 0, "{sample:?}");
    }
}

#[test]
fn a_deadline_wakes_a_sleeping_reactor() {
    let stop = StopFlag::new().unwrap();
    let polled_at = Arc::new(AtomicU64::new(0));
    let tell = Arc::clone(&polled_at);
    let deadline = Time::monotonic() + Duration::from_millis(100);
    let reactor = start(SLEEP_AT_ONCE, &stop, move || {
        let poll = move |now: Now| {
            if now.time >= deadline && tell.load(Ordering::Relaxed) == 0 {
                tell.store(now.time.0, Ordering::Relaxed);
                return 1;
            }
            0
        };
        vec![named("timer", Scripted { deadline, ..Scripted::new(poll) })]
    });
    wait_until("the deadline", || polled_at.load(Ordering::Relaxed) != 0);
    let late = Time(polled_at.load(Ordering::Relaxed)).since(deadline);
    assert!(late < Duration::from_secs(1), "{late:?} late");
    stop.stop();
    let stats = Arc::clone(reactor.stats());
    assert!(reactor.join().unwrap().clean);
    assert!((1..=3).contains(&stats.sample().sleeps), "{:?}", stats.sample());
}

#[test]
fn a_deadline_in_the_past_means_poll_again() {
    let stop = StopFlag::new().unwrap();
    let reactor = start(SLEEP_AT_ONCE, &stop, || {
        vec![named("hurried", Scripted { deadline: Time::ZERO, ..Scripted::new(|_| 0) })]
    });
    wait_until("turns", || reactor.stats().sample().turns > 1000);
    assert_eq!(reactor.stats().sample().sleeps, 0);
    stop.stop();
    assert!(reactor.join().unwrap().clean);
}

#[test]
fn a_poller_is_told_the_time() {
    const TURNS: u64 = 200_000;
    let stop = StopFlag::new().unwrap();
    let (turns, far_off) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (count, count_far_off) = (Arc::clone(&turns), Arc::clone(&far_off));
    let reactor = start(IdlePolicy::Spin, &stop, move || {
        let mut last = Time::ZERO;
        let poll = move |now: Now| {
            assert!(now.time >= last, "the clock went back");
            last = now.time;
            let age_ns = Time::monotonic().since(now.time).as_nanos() as i128;
            let behind_ns = i128::from(WallTime::realtime().0) - i128::from(now.wall.0);
            // Being preempted between two readings makes few turns differ; a wall clock that did
            // not follow the monotonic one would make most.
            if (behind_ns - age_ns).abs() > 20_000 {
                count_far_off.fetch_add(1, Ordering::Relaxed);
            }
            count.fetch_add(1, Ordering::Relaxed);
            0
        };
        vec![named("watch", Scripted::new(poll))]
    });
    wait_until("turns", || turns.load(Ordering::Relaxed) >= TURNS || reactor.is_finished());
    stop.stop();
    assert!(reactor.join().unwrap().clean);
    let far_off = far_off.load(Ordering::Relaxed);
    assert!(far_off < TURNS / 4, "{far_off} of {TURNS} turns were told a wrong wall time");
}

#[test]
fn a_stop_asks_every_poller_until_all_are_done() {
    let stop = StopFlag::new().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    let reactor = start(IdlePolicy::ADAPTIVE, &stop, move || {
        let shutdown = move |_| count.fetch_add(1, Ordering::Relaxed) == 9;
        let slow = Scripted { shutdown: Box::new(shutdown), ..Scripted::new(|_| 0) };
        vec![named("quick", Scripted::new(|_| 0)), named("slow", slow)]
    });
    stop.stop();
    let report = reactor.join().unwrap();
    assert!(report.clean && report.unfinished.is_empty(), "{report:?}");
    assert_eq!(asked.load(Ordering::Relaxed), 10);
}

#[test]
fn a_poller_that_does_not_end_is_named_when_the_grace_is_over() {
    let stop = StopFlag::new().unwrap();
    let stuck = Scripted { shutdown: Box::new(|_| false), ..Scripted::new(|_| 0) };
    let pollers = vec![named("quick", Scripted::new(|_| 0)), named("stuck", stuck)];
    let grace = Duration::from_millis(30);
    let options = ReactorOptions { stop_grace: grace, ..ReactorOptions::new("tested") };
    let reactor = Reactor::new(options, pollers, stop.clone()).unwrap();
    stop.stop();
    let start = Instant::now();
    let report = reactor.run();
    assert!(start.elapsed() >= grace);
    assert!(!report.clean);
    assert_eq!(report.unfinished, ["stuck"]);
}

#[test]
fn a_panic_names_its_reactor_and_stops_the_others() {
    let stop = StopFlag::new().unwrap();
    let healthy = start(IdlePolicy::ADAPTIVE, &stop, || vec![named("idle", Scripted::new(|_| 0))]);
    wait_until("sleep", || healthy.stats().sample().sleeps > 0);
    let broken = spawn(ReactorOptions::new("broken"), stop.clone(), || {
        let mut turns = 0;
        let poll = move |_| {
            turns += 1;
            assert!(turns < 100, "the hundredth turn");
            0
        };
        Ok::<_, Infallible>(vec![named("bug", Scripted::new(poll))])
    })
    .unwrap();
    let error = broken.join().unwrap_err();
    assert_eq!(error.name, "broken");
    assert!(error.to_string().contains("the hundredth turn"), "{error}");
    assert!(healthy.join().unwrap().clean);
}

#[test]
fn the_spawner_learns_why_a_reactor_did_not_start() {
    let stop = StopFlag::new().unwrap();
    let refused = std::io::Error::other("no such device");
    let error = spawn(ReactorOptions::new("refused"), stop.clone(), || Err(refused)).unwrap_err();
    assert!(matches!(error, SpawnError::Build { .. }), "{error:?}");
    assert_eq!(error.to_string(), "reactor refused: no such device");

    fn fail() -> Result<NamedPollers, Infallible> {
        panic!("while building")
    }
    let error = spawn(ReactorOptions::new("broken"), stop.clone(), fail).unwrap_err();
    assert_eq!(error.to_string(), "reactor broken panicked: while building");

    let options = ReactorOptions { core: Some(1_000_000), ..ReactorOptions::new("nowhere") };
    let error = spawn(options, stop.clone(), fail).unwrap_err();
    assert!(matches!(error, SpawnError::Core { .. }), "{error:?}");
    assert!(error.to_string().contains("core 1000000"), "{error}");
    assert!(!stop.is_stopped(), "a reactor that never ran stops nobody");
}

/// What a poller holds need not be `Send`, since it is built where it is used: on a pinned thread.
#[test]
fn pollers_are_built_on_the_pinned_thread_that_runs_them() {
    let core = core_affinity::get_core_ids().unwrap()[0].id;
    let stop = StopFlag::new().unwrap();
    let options = ReactorOptions { core: Some(core), ..ReactorOptions::new("pinned") };
    let reactor = spawn(options, stop.clone(), move || {
        let cores_here = || core_affinity::get_core_ids().unwrap();
        assert_eq!(cores_here().len(), 1, "not pinned while building");
        let builder = Rc::new(std::thread::current().id());
        let poll = move |_| {
            assert_eq!(*builder, std::thread::current().id());
            assert_eq!(cores_here()[0].id, core);
            0
        };
        Ok::<_, Infallible>(vec![named("local", Scripted::new(poll))])
    })
    .unwrap();
    wait_until("turns", || reactor.stats().sample().turns > 0 || reactor.is_finished());
    stop.stop();
    assert!(reactor.join().unwrap().clean);
}
