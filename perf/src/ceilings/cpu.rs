//! How much of a stretch of time the calling thread really ran.

use gannet_runtime::time::Time;
use rustix::time::ClockId;

/// A stretch of the calling thread's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuWatch {
    time: Time,
    cpu: Time,
}

impl CpuWatch {
    /// Starts a stretch.
    pub(crate) fn start() -> CpuWatch {
        CpuWatch { time: Time::monotonic(), cpu: thread_cpu_time() }
    }

    /// The share of the time since the start in which this thread had a core, 0 to 1. Well below 1
    /// for a thread that never waits means that others used its core.
    pub(crate) fn share(self) -> f64 {
        let passed = Time::monotonic().since(self.time).as_secs_f64();
        let ran = thread_cpu_time().since(self.cpu).as_secs_f64();
        if passed > 0.0 { (ran / passed).clamp(0.0, 1.0) } else { 0.0 }
    }
}

fn thread_cpu_time() -> Time {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Time(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_sleeps_did_not_run() {
        let watch = CpuWatch::start();
        std::thread::sleep(Duration::from_millis(50));
        assert!(watch.share() < 0.5, "slept, yet ran {}", watch.share());
    }
}
