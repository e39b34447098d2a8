//! Virtual time, and whose turn it is.
//!
//! The scheduler polls all living roles again and again, in an order drawn anew each round, and
//! leaves some out now and then, as cores that are busy elsewhere do. A round in which anybody had
//! work takes a little time; when all are idle, time jumps to the next thing that a device or a
//! role's deadline has in store. Devices are moved before each round, so that roles never see an
//! effect from their future.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::{Time, WallTime};

use crate::agenda::Device;
use crate::network::Endpoint;
use crate::random::{Chance, Delay, Random};
use crate::trace::Trace;

/// Wall time at the start of a simulation: some day in 2026.
const WALL_START: WallTime = WallTime(1_780_000_000_000_000_000);

/// A role of a scheduler; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoleId(usize);

/// The knobs of a scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerOptions {
    /// How long a round takes in which somebody had work.
    pub round: Delay,
    /// How often a role is left out of a round.
    pub skip: Chance,
    /// How often in a row a role may be idle although its deadline has passed.
    pub overdue_rounds_max: u32,
    /// Rounds after which a run is given up.
    pub rounds_max: u64,
}

impl Default for SchedulerOptions {
    fn default() -> SchedulerOptions {
        SchedulerOptions {
            round: Delay::between(Duration::from_nanos(100), Duration::from_micros(2)),
            skip: Chance::percent(10),
            overdue_rounds_max: 1000,
            rounds_max: 50_000_000,
        }
    }
}

/// Why a run ended before its condition held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// Nothing will ever happen again.
    Quiescent {
        /// Since when.
        at: Time,
    },
    /// The time given is over.
    TimeLimit,
    /// The rounds given are over.
    RoundLimit,
    /// Something asked for everything to stand still, see [`Scheduler::stand_still_on`].
    StandsStill,
    /// A role asks to be polled at once for ever, and has nothing to do then.
    Spins {
        /// Its name.
        role: String,
    },
}

impl std::fmt::Display for Stuck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stuck::Quiescent { at } => {
                write!(f, "nothing is left to happen after {} ns", at.0)
            }
            Stuck::TimeLimit => f.write_str("the virtual time given is over"),
            Stuck::StandsStill => f.write_str("everything was made to stand still"),
            Stuck::RoundLimit => f.write_str("the rounds given are over"),
            Stuck::Spins { role } => {
                write!(f, "{role} has a deadline in the past and does nothing when polled")
            }
        }
    }
}

impl std::error::Error for Stuck {}

struct Role {
    name: String,
    poller: Rc<RefCell<dyn Poller>>,
    endpoints: Vec<Endpoint>,
    /// Until when it stands still.
    stalled_until: Time,
    stops: bool,
    overdue_rounds: u32,
}

#[derive(Hash, Debug)]
enum Step<'a> {
    Add { role: &'a str },
    Remove { role: &'a str },
    Stopped { role: &'a str },
    Worked { role: usize, amount: usize },
}

/// Runs roles in virtual time.
pub struct Scheduler {
    now: Time,
    options: SchedulerOptions,
    random: Random,
    trace: Trace,
    devices: Vec<Rc<dyn Device>>,
    roles: Vec<Option<Role>>,
    rounds: u64,
    stands_still: Rc<Cell<bool>>,
}

impl Scheduler {
    /// A scheduler without roles at time 0, whose randomness is a stream of `random`.
    #[must_use]
    pub fn new(options: SchedulerOptions, random: &Random, trace: &Trace) -> Scheduler {
        Scheduler {
            now: Time::ZERO,
            options,
            random: random.stream("scheduler"),
            trace: trace.clone(),
            devices: Vec::new(),
            roles: Vec::new(),
            rounds: 0,
            stands_still: Rc::default(),
        }
    }

    /// Ends a run with [`Stuck::StandsStill`] as soon as `flag` is set: no role gets its turn after
    /// the one, or the device, that sets it.
    pub fn stand_still_on(&mut self, flag: Rc<Cell<bool>>) {
        self.stands_still = flag;
    }

    /// Adds a device. Devices are moved in the order in which they were added.
    pub fn add_device(&mut self, device: Rc<dyn Device>) {
        device.advance(self.now);
        self.devices.push(device);
    }

    /// Adds a role with the end points of its process, which stand still when it does.
    pub fn add_role(
        &mut self,
        name: &str,
        poller: Rc<RefCell<dyn Poller>>,
        endpoints: Vec<Endpoint>,
    ) -> RoleId {
        self.trace.record(self.now, Step::Add { role: name });
        self.roles.push(Some(Role {
            name: name.to_owned(),
            poller,
            endpoints,
            stalled_until: Time::ZERO,
            stops: false,
            overdue_rounds: 0,
        }));
        RoleId(self.roles.len() - 1)
    }

    /// Kills a role: its end points die, then its value is dropped, if the caller keeps no other
    /// handle. Killing its medium is the caller's part. No-op when it is gone.
    pub fn kill(&mut self, role: RoleId) {
        if let Some(role) = self.roles[role.0].take() {
            self.trace.record(self.now, Step::Remove { role: &role.name });
            role.endpoints.iter().for_each(Endpoint::kill);
        }
    }

    /// Asks a role for an orderly end; it is removed when it says that nothing is left to do.
    pub fn stop(&mut self, role: RoleId) {
        if let Some(role) = &mut self.roles[role.0] {
            role.stops = true;
        }
    }

    /// Whether a role is still there.
    #[must_use]
    pub fn is_running(&self, role: RoleId) -> bool {
        self.roles[role.0].is_some()
    }

    /// Makes a role stand still for a while, with its end points.
    pub fn stall(&mut self, role: RoleId, how_long: Duration) {
        if let Some(role) = &mut self.roles[role.0] {
            role.stalled_until = self.now + how_long;
            role.endpoints.iter().for_each(Endpoint::stall);
        }
    }

    /// The virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.now
    }

    /// Rounds so far.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds
    }

    /// Runs until `done`, which is asked before each round.
    ///
    /// # Errors
    /// [`Stuck`] when it will not come to that, or not in `limit` of virtual time.
    pub fn run_until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(Time) -> bool,
    ) -> Result<(), Stuck> {
        let end = self.now + limit;
        let last_round = self.rounds.saturating_add(self.options.rounds_max);
        loop {
            if done(self.now) {
                return Ok(());
            }
            if self.now >= end {
                return Err(Stuck::TimeLimit);
            }
            if self.rounds >= last_round {
                return Err(Stuck::RoundLimit);
            }
            self.round(end)?;
        }
    }

    /// Runs for some time, however much or little happens.
    ///
    /// # Errors
    /// [`Stuck`], but not for want of things to happen or for the time being over.
    pub fn run_for(&mut self, how_long: Duration) -> Result<(), Stuck> {
        let end = self.now + how_long;
        match self.run_until(how_long, |now| now >= end) {
            Err(Stuck::Quiescent { .. }) => {
                self.now = end;
                self.advance_devices();
                Ok(())
            }
            other => other,
        }
    }

    /// Runs until nothing is left to happen.
    ///
    /// # Errors
    /// [`Stuck`] when that is not so within `limit`.
    pub fn run_to_quiescence(&mut self, limit: Duration) -> Result<(), Stuck> {
        match self.run_until(limit, |_| false) {
            Err(Stuck::Quiescent { .. }) => Ok(()),
            other => other,
        }
    }

    fn advance_devices(&self) {
        for device in &self.devices {
            device.advance(self.now);
        }
    }

    /// One round; time does not go beyond `end` in it by more than the round itself takes.
    fn round(&mut self, end: Time) -> Result<(), Stuck> {
        self.rounds += 1;
        self.advance_devices();
        let mut order: Vec<usize> = (0..self.roles.len()).collect();
        self.random.shuffle(&mut order);
        let mut is_busy = false;
        for index in order {
            if self.stands_still.get() {
                return Err(Stuck::StandsStill);
            }
            is_busy |= self.run_role(index)?;
        }
        if self.stands_still.get() {
            return Err(Stuck::StandsStill);
        }
        if is_busy {
            self.now = self.now + self.random.delay(self.options.round);
            return Ok(());
        }
        let next = self.next_event();
        if next == Time::NEVER {
            return Err(Stuck::Quiescent { at: self.now });
        }
        // A deadline that has passed already does not hold time up.
        let soonest = self.now + self.random.delay(self.options.round);
        self.now = if next <= self.now { soonest } else { next.min(end) };
        Ok(())
    }

    /// Gives one role its turn. True: it worked, or might have.
    fn run_role(&mut self, index: usize) -> Result<bool, Stuck> {
        let now = Now { time: self.now, wall: WallTime(WALL_START.0 + self.now.0) };
        let Some(role) = &mut self.roles[index] else { return Ok(false) };
        if role.stalled_until > Time::ZERO {
            if role.stalled_until > self.now {
                return Ok(false);
            }
            role.stalled_until = Time::ZERO;
            role.endpoints.iter().for_each(Endpoint::resume);
        }
        if self.random.happens(self.options.skip) {
            return Ok(true);
        }
        let mut poller = role.poller.borrow_mut();
        let amount = poller.poll(now);
        let is_over = role.stops && poller.shutdown(now);
        let is_overdue = amount == 0 && poller.deadline() <= self.now;
        drop(poller);
        role.overdue_rounds = if is_overdue { role.overdue_rounds + 1 } else { 0 };
        if role.overdue_rounds > self.options.overdue_rounds_max {
            return Err(Stuck::Spins { role: role.name.clone() });
        }
        if amount > 0 {
            self.trace.record(self.now, Step::Worked { role: index, amount });
        }
        if is_over {
            self.trace.record(self.now, Step::Stopped { role: &role.name });
            self.roles[index] = None;
        }
        Ok(amount > 0 || is_over)
    }

    fn next_event(&self) -> Time {
        let devices = self.devices.iter().map(|device| device.next_event());
        let roles = self.roles.iter().flatten().map(|role| {
            if role.stalled_until > self.now {
                role.stalled_until
            } else {
                role.poller.borrow().deadline()
            }
        });
        devices.chain(roles).min().unwrap_or(Time::NEVER)
    }
}

#[cfg(test)]
mod tests;
