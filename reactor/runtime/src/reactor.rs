//! The loop that drives pollers on one thread.
//!
//! A reactor polls each of its pollers turn after turn. The clock is read once per turn; the end of
//! a turn is the beginning of the next. A turn in which any poller had work is busy time, any other
//! is idle time, blocking is sleep: the three add up to the reactor's life. When it has been idle for
//! as long as its [`IdlePolicy`] says it sleeps: every poller is armed, all are polled once more, and
//! the thread blocks until a descriptor is readable, the earliest deadline has come, or a stop is
//! asked for. Without deadlines nothing ever wakes it periodically.
//!
//! A reactor belongs to the thread that runs it. If a poller panics the panic unwinds through
//! [`Reactor::run`], which sets the stop flag on the way, so that the other reactors of the process
//! end instead of serving on without one of their number.

use std::sync::Arc;
use std::time::Duration;

use crate::idle::{Idle, IdlePolicy, IdleStep};
use crate::poller::{Now, Poller};
use crate::sleep::Sleeper;
use crate::stats::ReactorStats;
use crate::stop::StopFlag;
use crate::time::{Time, WallTime};

/// How often the wall clock is read; between, it follows the monotonic one.
const WALL_CLOCK_READ_INTERVAL: Duration = Duration::from_millis(1);
/// A deadline as near as this is waited for by polling: a sleep and its wake-up take about as long.
const SLEEP_MIN: Duration = Duration::from_micros(50);
/// How long pollers may take for an orderly end unless the options say otherwise.
pub const STOP_GRACE_DEFAULT: Duration = Duration::from_secs(5);

/// The pollers of one reactor with their names, in the order in which they are polled.
pub type NamedPollers = Vec<(String, Box<dyn Poller>)>;

/// What can be chosen about a reactor.
#[derive(Clone, Debug)]
pub struct ReactorOptions {
    /// Names the thread, the counters and errors.
    pub name: String,
    /// The core to pin the thread to; `None` leaves it to the scheduler.
    pub core: Option<usize>,
    /// How to wait for work.
    pub idle: IdlePolicy,
    /// How long pollers may take for an orderly end.
    pub stop_grace: Duration,
}

impl ReactorOptions {
    /// Adaptive, not pinned, with the default grace.
    #[must_use]
    pub fn new(name: impl Into<String>) -> ReactorOptions {
        ReactorOptions {
            name: name.into(),
            core: None,
            idle: IdlePolicy::default(),
            stop_grace: STOP_GRACE_DEFAULT,
        }
    }
}

/// How a reactor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct StopReport {
    /// Whether every poller came to an orderly end in time.
    pub clean: bool,
    /// The pollers that did not.
    pub unfinished: Vec<String>,
}

/// The core that a reactor was to be pinned to cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot run on core {core}: it does not exist, is offline, or is not this process's to use"
)]
pub struct CoreUnavailable {
    /// The core that was asked for.
    pub core: usize,
}

/// Pins the calling thread to a core.
///
/// # Errors
/// [`CoreUnavailable`] if the system refuses.
pub fn pin_to_core(core: usize) -> Result<(), CoreUnavailable> {
    /// Size of the kernel interface's set of cores, beyond which `core_affinity` panics.
    const CORES_MAX: usize = 1024;
    let id = core_affinity::CoreId { id: core };
    if core < CORES_MAX && core_affinity::set_for_current(id) {
        Ok(())
    } else {
        Err(CoreUnavailable { core })
    }
}

/// Pollers, and the loop that drives them. See the module's documentation.
pub struct Reactor {
    pollers: NamedPollers,
    idle: IdlePolicy,
    stop_grace: Duration,
    stop: StopFlag,
    stats: Arc<ReactorStats>,
    sleeper: Sleeper,
    clock: Clock,
}

impl Reactor {
    /// Makes a reactor on the calling thread and pins the thread if the options name a core. Memory
    /// that pollers should have near that core is best touched after [`pin_to_core`];
    /// [`crate::spawn::spawn`] sees to that.
    ///
    /// # Errors
    /// [`CoreUnavailable`] if the thread cannot run on the core.
    pub fn new(
        options: ReactorOptions,
        pollers: NamedPollers,
        stop: StopFlag,
    ) -> Result<Reactor, CoreUnavailable> {
        if let Some(core) = options.core {
            pin_to_core(core)?;
        }
        let names = pollers.iter().map(|(name, _)| name.clone());
        let stats = Arc::new(ReactorStats::new(options.name, names));
        Ok(Reactor {
            pollers,
            idle: options.idle,
            stop_grace: options.stop_grace,
            stop,
            stats,
            sleeper: Sleeper::new(),
            clock: Clock::start(),
        })
    }

    /// The reactor's counters, for any thread to read while it runs.
    #[must_use]
    pub fn stats(&self) -> Arc<ReactorStats> {
        Arc::clone(&self.stats)
    }

    /// Runs until a stop is asked for and every poller has ended or the grace is over.
    pub fn run(mut self) -> StopReport {
        let _guard = StopOnPanic(self.stop.clone());
        self.clock = Clock::start();
        let mut idle = Idle::new(self.idle, self.clock.time);
        while !self.stop.is_stopped() {
            let mut work = self.turn();
            if work == 0 {
                work = match idle.step(self.clock.time) {
                    IdleStep::Spin => {
                        std::hint::spin_loop();
                        0
                    }
                    IdleStep::Yield => {
                        self.yield_core();
                        0
                    }
                    IdleStep::Sleep => self.sleep(&mut idle),
                };
            }
            if work > 0 {
                idle.worked(self.clock.time);
            }
        }
        self.finish()
    }

    /// Polls every poller once. Returns the work they had.
    fn turn(&mut self) -> u64 {
        let now = self.clock.now();
        let mut work = 0;
        for (index, (_, poller)) in self.pollers.iter_mut().enumerate() {
            let handled = poller.poll(now) as u64;
            if handled > 0 {
                self.stats.add_poller_work(index, handled);
                work += handled;
            }
        }
        self.stats.add_turn(self.clock.advance(), work);
        work
    }

    /// Offers the core to other threads. The clock is read again so that their time counts as idle,
    /// not as part of a turn that may turn out to be busy.
    fn yield_core(&mut self) {
        rustix::thread::sched_yield();
        self.stats.add_idle(self.clock.advance());
    }

    /// Arms every poller, polls once more, and blocks if there was no work. Returns the work.
    fn sleep(&mut self, idle: &mut Idle) -> u64 {
        if self.time_to_deadline().is_some_and(|time| time < SLEEP_MIN) {
            self.yield_core();
            return 0;
        }
        for (_, poller) in &mut self.pollers {
            poller.arm();
        }
        let work = self.turn();
        if work == 0 {
            let timeout = self.time_to_deadline();
            if timeout.is_none_or(|time| time >= SLEEP_MIN) {
                self.block(timeout);
                idle.slept(self.clock.time);
            }
        }
        for (_, poller) in &mut self.pollers {
            poller.disarm();
        }
        work
    }

    /// Time until the earliest deadline of a poller, `None` if there is none.
    fn time_to_deadline(&self) -> Option<Duration> {
        let deadlines = self.pollers.iter().map(|(_, poller)| poller.deadline());
        let earliest = deadlines.min().filter(|deadline| *deadline != Time::NEVER)?;
        Some(earliest.since(self.clock.time))
    }

    fn block(&mut self, timeout: Option<Duration>) {
        self.stats.begin_sleep();
        let (pollers, stop) = (&self.pollers, &self.stop);
        self.sleeper.sleep(
            |visit| {
                visit(stop.wake_descriptor());
                pollers.iter().for_each(|(_, poller)| poller.wake_descriptors(visit));
            },
            timeout,
        );
        self.stats.end_sleep(self.clock.advance());
    }

    /// Ends every poller. Never blocks: an end that waits for nothing but the next turn must not
    /// depend on a descriptor, and it lasts no longer than the grace.
    fn finish(mut self) -> StopReport {
        let grace_end = self.clock.time + self.stop_grace;
        let mut is_done = vec![false; self.pollers.len()];
        loop {
            self.turn();
            let now = self.clock.now();
            for ((_, poller), is_done) in self.pollers.iter_mut().zip(&mut is_done) {
                *is_done = poller.shutdown(now);
            }
            let clean = is_done.iter().all(|is_done| *is_done);
            if clean || now.time >= grace_end {
                let names = self.pollers.into_iter().map(|(name, _)| name).zip(is_done);
                let unfinished = names.filter(|(_, is_done)| !is_done).map(|(name, _)| name);
                return StopReport { clean, unfinished: unfinished.collect() };
            }
            self.yield_core();
        }
    }
}

/// Sets the stop flag while a panic unwinds.
struct StopOnPanic(StopFlag);

impl Drop for StopOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// The time of the current turn.
struct Clock {
    time: Time,
    wall: WallTime,
    wall_read_at: Time,
}

impl Clock {
    fn start() -> Clock {
        let time = Time::monotonic();
        Clock { time, wall: WallTime::realtime(), wall_read_at: time }
    }

    /// Reads the clock; returns the time since it was last read.
    fn advance(&mut self) -> Duration {
        let time = Time::monotonic();
        let passed = time.since(self.time);
        self.time = time;
        if time.since(self.wall_read_at) >= WALL_CLOCK_READ_INTERVAL {
            self.wall = WallTime::realtime();
            self.wall_read_at = time;
        }
        passed
    }

    fn now(&self) -> Now {
        let since_read_ns = self.time.0.saturating_sub(self.wall_read_at.0);
        Now { time: self.time, wall: WallTime(self.wall.0.saturating_add(since_read_ns)) }
    }
}
