//! Reads and writes as a closed loop: as many requests outstanding as the depth says, the next
//! submitted as one ends.
//!
//! The thread polls and never waits otherwise. Buffers, slots and histograms are made before the loop.

use std::time::Duration;

use gannet_client::Completion;
use gannet_fabric::Fabric;
use gannet_fabric::arena::HostBuffer;
use gannet_runtime::time::Time;

use crate::ceilings::cpu::CpuWatch;
use crate::closed_loop::{self, Load, Window};
use crate::content::Content;
use crate::error::PerfError;
use crate::host::{self, Host, WorkFile};
use crate::latency::LatencySummary;
use crate::options::{PerfOptions, WorkloadKind};
use crate::random::Random;

/// One workload at one depth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: WorkloadKind,
    pub(crate) block_bytes: u32,
    pub(crate) depth: u32,
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
    pub(crate) verify: bool,
    pub(crate) seed: u64,
}

/// What the client saw of it.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) elapsed: Duration,
    pub(crate) latency: LatencySummary,
    pub(crate) operations: u64,
    pub(crate) verified_units: u64,
    pub(crate) busy: Duration,
    pub(crate) cpu_share: f64,
}

/// A request under way, named by its index as token.
#[derive(Clone, Copy, Debug, Default)]
struct Flight {
    submitted: Time,
    offset: u64,
}

impl Workload {
    /// The workload of the options.
    pub(crate) fn new(options: &PerfOptions, kind: WorkloadKind, depth: u32) -> Workload {
        Workload {
            kind,
            block_bytes: options.block_bytes(kind),
            depth,
            warm_up: options.warm_up,
            time: options.time,
            verify: options.verify,
            seed: options.seed,
        }
    }

    /// Runs to its end, with nothing outstanding before or after. `measuring` is called when the
    /// warm-up is over and when the measurement is.
    pub(crate) fn run<F: Fabric>(
        &self,
        host: &mut Host<F>,
        file: &WorkFile,
        content: &mut Content,
        mut measuring: impl FnMut(),
    ) -> Result<Observed, PerfError> {
        let arena = host.arena(self.block_bytes as usize, self.depth)?;
        let mut state = Loop {
            workload: self,
            host,
            file,
            content,
            blocks: Blocks::new(self, file.size_bytes),
            flights: vec![Flight::default(); self.depth as usize],
            verified_units: 0,
        };
        let mut window = Window::default();
        let mut now = Time::monotonic();
        for index in 0..self.depth as usize {
            let buffer = arena.take().expect("the arena has a buffer for each request");
            state.submit(index, buffer, now)?;
        }
        let warm = now + self.warm_up;
        while now < warm {
            now = closed_loop::turn(&mut state, now, None)?;
        }
        measuring();
        let watch = CpuWatch::start();
        let begin = Time::monotonic();
        now = begin;
        while now < begin + self.time {
            now = closed_loop::turn(&mut state, now, Some(&mut window))?;
        }
        let cpu_share = watch.share();
        measuring();
        state.drain()?;
        let mut verified_units = state.verified_units;
        if self.verify && self.kind.is_write() {
            verified_units = host.check(file, content)?;
        }
        Ok(Observed {
            elapsed: now.since(begin),
            latency: window.latencies.summary(),
            operations: window.latencies.count(),
            verified_units,
            busy: window.busy,
            cpu_share,
        })
    }
}

/// Which block comes next.
struct Blocks {
    random: Option<Random>,
    count: u64,
    next: u64,
    block_bytes: u64,
}

impl Blocks {
    fn new(workload: &Workload, size_bytes: u64) -> Blocks {
        let block_bytes = u64::from(workload.block_bytes);
        Blocks {
            random: workload.kind.is_random().then(|| Random::new(workload.seed)),
            count: size_bytes / block_bytes,
            next: 0,
            block_bytes,
        }
    }

    fn next_offset(&mut self) -> u64 {
        let block = match &mut self.random {
            Some(random) => random.below(self.count),
            None => {
                let after = if self.next + 1 == self.count { 0 } else { self.next + 1 };
                std::mem::replace(&mut self.next, after)
            }
        };
        block * self.block_bytes
    }
}

struct Loop<'a, F: Fabric> {
    workload: &'a Workload,
    host: &'a mut Host<F>,
    file: &'a WorkFile,
    content: &'a mut Content,
    blocks: Blocks,
    flights: Vec<Flight>,
    verified_units: u64,
}

impl<F: Fabric> Load<F> for Loop<'_, F> {
    fn host(&mut self) -> &mut Host<F> {
        self.host
    }

    fn completed(
        &mut self,
        completion: Completion,
        now: Time,
        window: Option<&mut Window>,
    ) -> Result<(), PerfError> {
        let index = completion.token as usize;
        let flight = self.flights[index];
        if let Some(window) = window {
            window.latencies.record(now.since(flight.submitted));
        }
        let buffer = self.finish(flight, completion)?;
        self.submit(index, buffer, now)
    }
}

impl<F: Fabric> Loop<'_, F> {
    fn submit(&mut self, index: usize, mut buffer: HostBuffer, now: Time) -> Result<(), PerfError> {
        let offset = self.blocks.next_offset();
        self.flights[index] = Flight { submitted: now, offset };
        let (file, length) = (self.file, self.workload.block_bytes);
        let operation = if self.workload.kind.is_write() {
            if self.workload.verify {
                self.content.rewrite(&mut buffer[..length as usize], offset);
            }
            host::write(file, offset, length, buffer)
        } else {
            host::read(file, offset, length, buffer)
        };
        self.host.submit(operation, index as u64, &file.path)
    }

    /// Checks a completed request and returns its buffer.
    fn finish(&mut self, flight: Flight, completion: Completion) -> Result<HostBuffer, PerfError> {
        let is_write = self.workload.kind.is_write();
        let what = if is_write { "writing" } else { "reading" };
        let length = self.workload.block_bytes;
        let buffer = host::take_buffer(what, self.file, flight.offset, length, completion)?;
        if self.workload.verify && !is_write {
            let bytes = &buffer[..length as usize];
            self.verified_units +=
                host::check_content(self.content, self.file, bytes, flight.offset)?;
        }
        Ok(buffer)
    }

    /// Waits for all that is outstanding.
    fn drain(&mut self) -> Result<(), PerfError> {
        let mut outstanding = self.flights.len();
        while outstanding > 0 {
            self.host.poll(Time::monotonic())?;
            while let Some(completion) = self.host.completions.pop() {
                let flight = self.flights[completion.token as usize];
                let _buffer = self.finish(flight, completion)?;
                outstanding -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(kind: WorkloadKind) -> Workload {
        Workload {
            kind,
            block_bytes: 4096,
            depth: 1,
            warm_up: Duration::ZERO,
            time: Duration::ZERO,
            verify: false,
            seed: 3,
        }
    }

    #[test]
    fn sequential_blocks_wrap_around_and_random_ones_cover_the_file() {
        let mut blocks = Blocks::new(&workload(WorkloadKind::Read), 3 * 4096);
        let offsets: Vec<u64> = (0..5).map(|_| blocks.next_offset()).collect();
        assert_eq!(offsets, [0, 4096, 8192, 0, 4096]);

        let mut blocks = Blocks::new(&workload(WorkloadKind::RandomWrite), 8 * 4096);
        let mut seen: Vec<u64> = (0..200).map(|_| blocks.next_offset()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, (0..8).map(|block| block * 4096).collect::<Vec<u64>>());
    }
}
