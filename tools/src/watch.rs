//! How the main thread learns what becomes of the roles that it started on reactors.
//!
//! A [`Watched`] poller looks at its role after each turn and reports two things, each once: that the
//! role serves, and that it cannot go on. Reports go through a mutex and an eventfd; neither is
//! touched in a turn without a report.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use gannet_runtime::eventfd::EventFd;
use gannet_runtime::poller::{Now, Poller};
use gannet_runtime::time::Time;

/// What a role tells about itself.
pub(crate) trait Role: Poller {
    /// Whether it serves what it is there for.
    fn is_ready(&self) -> bool;

    /// Why it cannot go on, if it cannot.
    fn failure(&self) -> Option<&str>;
}

/// A report of a role.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// The role serves.
    Ready {
        /// Which role.
        role: String,
    },
    /// The role cannot go on.
    Failed {
        /// Which role.
        role: String,
        /// Why.
        reason: String,
    },
}

/// Where reports go. Clones are the same place.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    reports: Mutex<Vec<Report>>,
    event: EventFd,
}

impl Watch {
    /// A place without reports.
    ///
    /// # Errors
    /// What making an eventfd returns.
    pub(crate) fn new() -> io::Result<Watch> {
        let shared = Shared { reports: Mutex::new(Vec::new()), event: EventFd::new()? };
        Ok(Watch { shared: Arc::new(shared) })
    }

    fn report(&self, report: Report) {
        self.shared.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report);
        self.shared.event.signal();
    }

    /// Takes what was reported since the last call.
    pub(crate) fn take(&self) -> Vec<Report> {
        self.shared.event.drain();
        let mut reports = self.shared.reports.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *reports)
    }

    /// Readable when there are reports.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

/// A role whose state is reported.
pub(crate) struct Watched<R> {
    role: R,
    name: String,
    watch: Watch,
    told_ready: bool,
    told_failure: bool,
}

impl<R: Role> Watched<R> {
    pub(crate) fn new(role: R, name: String, watch: Watch) -> Watched<R> {
        Watched { role, name, watch, told_ready: false, told_failure: false }
    }

    fn observe(&mut self) {
        if !self.told_ready && self.role.is_ready() {
            self.told_ready = true;
            self.watch.report(Report::Ready { role: self.name.clone() });
        }
        if !self.told_failure
            && let Some(reason) = self.role.failure()
        {
            self.told_failure = true;
            let (role, reason) = (self.name.clone(), reason.to_owned());
            self.watch.report(Report::Failed { role, reason });
        }
    }
}

impl<R: Role> Poller for Watched<R> {
    fn poll(&mut self, now: Now) -> usize {
        let work = self.role.poll(now);
        self.observe();
        work
    }

    fn deadline(&self) -> Time {
        self.role.deadline()
    }

    fn arm(&mut self) {
        self.role.arm();
    }

    fn disarm(&mut self) {
        self.role.disarm();
    }

    fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.role.wake_descriptors(visit);
    }

    fn shutdown(&mut self, now: Now) -> bool {
        self.role.shutdown(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use gannet_runtime::time::WallTime;

    use super::*;

    /// Ready after two turns, broken after four.
    struct Ageing(u32);

    impl Poller for Ageing {
        fn poll(&mut self, _now: Now) -> usize {
            self.0 += 1;
            0
        }
        fn deadline(&self) -> Time {
            Time::NEVER
        }
        fn arm(&mut self) {}
        fn disarm(&mut self) {}
        fn wake_descriptors(&self, _visit: &mut dyn FnMut(BorrowedFd<'_>)) {}
        fn shutdown(&mut self, _now: Now) -> bool {
            true
        }
    }

    impl Role for Ageing {
        fn is_ready(&self) -> bool {
            self.0 >= 2
        }
        fn failure(&self) -> Option<&str> {
            (self.0 >= 4).then_some("worn out")
        }
    }

    #[test]
    fn each_report_comes_once_and_in_its_turn() {
        let watch = Watch::new().unwrap();
        let mut watched = Watched::new(Ageing(0), "old".to_owned(), watch.clone());
        let now = Now { time: Time(0), wall: WallTime(0) };
        let mut reports = Vec::new();
        for _ in 0..6 {
            watched.poll(now);
            reports.push(watch.take());
        }
        let ready = Report::Ready { role: "old".to_owned() };
        let failed = Report::Failed { role: "old".to_owned(), reason: "worn out".to_owned() };
        assert_eq!(reports, [vec![], vec![ready], vec![], vec![failed], vec![], vec![]]);
    }
}
