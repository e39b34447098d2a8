//! The most that one core can copy: what a data server that moves blocks by copying cannot exceed.
//!
//! The same bytes move as in the workload that the ceiling is for: blocks of the same length at
//! places of the same order in memory as large as the file, in pages like those of a store in
//! memory, to or from `depth` buffers in turn in pages like those of a host's arena. Nothing else is
//! done: no messages, no metadata, no other core. Every routine of the machine is tried and the best
//! stretch of the best one counts. Who has several reads outstanding knows which block comes next, so
//! random reads are also tried *ahead*: the next block's beginning is fetched during each copy.

use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::copy::{self, Copier};
use gannet_runtime::memory::Mapping;
use gannet_runtime::time::Time;
use serde::{Deserialize, Serialize};

use super::cpu::CpuWatch;
use crate::options::WorkloadKind;
use crate::random::Random;

/// Stretches of which the best counts, per routine.
const STRETCHES: u32 = 8;
/// Bytes copied between two readings of the clock.
const BATCH_BYTES: usize = 256 << 10;

/// What to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPlan {
    /// The workload that it is the ceiling of: decides direction and order.
    pub workload: WorkloadKind,
    /// Length of a block, bytes; a multiple of 4096.
    pub block_bytes: usize,
    /// Buffers on the host's side.
    pub depth: u32,
}

/// What was reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyCeiling {
    /// The workload that it is the ceiling of.
    pub workload: WorkloadKind,
    /// Length of a block, bytes.
    pub block_bytes: usize,
    /// Buffers on the host's side.
    pub depth: u32,
    /// The fastest routine's name.
    pub best: String,
    /// What it reached, bytes per second.
    pub bytes_per_second: f64,
    /// Share of the time in which the copying thread had its core.
    pub cpu_share: f64,
    /// What each routine reached.
    pub routines: Vec<RoutineRate>,
}

/// What one routine reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutineRate {
    /// The routine's name.
    pub routine: String,
    /// What it reached, bytes per second.
    pub bytes_per_second: f64,
}

impl CopyCeiling {
    /// Takes over whatever a second measurement of the same plan did better.
    pub(crate) fn merge(&mut self, other: &CopyCeiling) {
        for (mine, theirs) in self.routines.iter_mut().zip(&other.routines) {
            mine.bytes_per_second = mine.bytes_per_second.max(theirs.bytes_per_second);
        }
        if other.bytes_per_second > self.bytes_per_second {
            self.best.clone_from(&other.best);
            self.bytes_per_second = other.bytes_per_second;
            self.cpu_share = other.cpu_share;
        }
    }
}

/// Measures on the calling thread, every routine for `budget`. `region` plays the store.
///
/// # Errors
/// If there is no memory for the buffers.
pub fn measure(
    plan: CopyPlan,
    region: &Arc<Mapping>,
    budget: Duration,
) -> std::io::Result<CopyCeiling> {
    let buffers = Mapping::shareable(plan.block_bytes * plan.depth as usize)?;
    let mut run = CopyRun::new(plan, region, &buffers);
    run.touch();
    let watch = CpuWatch::start();
    let stretch = budget / STRETCHES;
    let ways = Copier::available().into_iter().flat_map(|copier| {
        let ahead = Way { copier, ahead: true };
        [Some(Way { copier, ahead: false }), plan.may_look_ahead().then_some(ahead)]
    });
    let rate = |way: Way| RoutineRate {
        routine: way.name(),
        bytes_per_second: (0..STRETCHES).map(|_| run.stretch(way, stretch)).fold(0.0, f64::max),
    };
    let routines: Vec<RoutineRate> = ways.flatten().map(rate).collect();
    let best = routines
        .iter()
        .max_by(|one, other| one.bytes_per_second.total_cmp(&other.bytes_per_second))
        .expect("every machine has memcpy");
    Ok(CopyCeiling {
        workload: plan.workload,
        block_bytes: plan.block_bytes,
        depth: plan.depth,
        best: best.routine.clone(),
        bytes_per_second: best.bytes_per_second,
        cpu_share: watch.share(),
        routines,
    })
}

impl CopyPlan {
    fn may_look_ahead(self) -> bool {
        self.workload == WorkloadKind::RandomRead && self.depth > 1
    }
}

/// A routine, and whether the next block is fetched meanwhile.
#[derive(Clone, Copy, Debug)]
struct Way {
    copier: Copier,
    ahead: bool,
}

impl Way {
    fn name(self) -> String {
        let ahead = if self.ahead { "-ahead" } else { "" };
        format!("{}{ahead}", self.copier.name())
    }
}

struct CopyRun<'a> {
    plan: CopyPlan,
    region: &'a Mapping,
    buffers: &'a Mapping,
    blocks: u64,
    random: Random,
    next_block: u64,
    next_buffer: usize,
}

impl<'a> CopyRun<'a> {
    fn new(plan: CopyPlan, region: &'a Mapping, buffers: &'a Mapping) -> CopyRun<'a> {
        let blocks = (region.len() / plan.block_bytes) as u64;
        assert!(blocks > 0, "a region holds at least one block");
        let mut random = Random::new(1);
        CopyRun {
            plan,
            region,
            buffers,
            blocks,
            next_block: if plan.workload.is_random() { random.below(blocks) } else { 0 },
            random,
            next_buffer: 0,
        }
    }

    /// Has every page of the buffers mapped before anything is measured.
    fn touch(&mut self) {
        for _ in 0..self.plan.depth {
            self.copy(Way { copier: Copier::MEMCPY, ahead: false });
        }
    }

    /// Copies for about `time`, at least one batch; bytes per second.
    fn stretch(&mut self, way: Way, time: Duration) -> f64 {
        let copies = (BATCH_BYTES / self.plan.block_bytes).max(1) as u64;
        let begin = Time::monotonic();
        let mut copied = 0;
        loop {
            for _ in 0..copies {
                self.copy(way);
            }
            copied += copies;
            let passed = Time::monotonic().since(begin);
            if passed >= time && !passed.is_zero() {
                return copied as f64 * self.plan.block_bytes as f64 / passed.as_secs_f64();
            }
        }
    }

    fn copy(&mut self, way: Way) {
        let (copier, CopyPlan { workload, block_bytes, .. }) = (way.copier, self.plan);
        let block = self.next_block;
        self.next_block = match block + 1 {
            _ if workload.is_random() => self.random.below(self.blocks),
            end if end == self.blocks => 0,
            next => next,
        };
        if way.ahead {
            copy::prefetch(self.region, self.next_block as usize * block_bytes, block_bytes);
        }
        let (place, buffer) = (block as usize * block_bytes, self.next_buffer);
        if workload.is_write() {
            copier.copy(self.buffers, buffer, self.region, place, block_bytes);
        } else {
            copier.copy(self.region, place, self.buffers, buffer, block_bytes);
        }
        self.next_buffer += block_bytes;
        if self.next_buffer == self.plan.depth as usize * block_bytes {
            self.next_buffer = 0;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_has_a_ceiling_and_the_best_routine_is_the_ceiling() {
        let region = Mapping::anonymous(4 << 20).unwrap();
        for workload in WorkloadKind::ALL {
            let block_bytes = workload.block_bytes_default() as usize;
            let plan = CopyPlan { workload, block_bytes, depth: 3 };
            let ceiling = measure(plan, &region, Duration::from_millis(8)).unwrap();
            let ways = if workload == WorkloadKind::RandomRead { 2 } else { 1 };
            assert_eq!(ceiling.routines.len(), ways * Copier::available().len());
            let rates = ceiling.routines.iter().map(|rate| rate.bytes_per_second);
            assert!(rates.clone().all(|rate| rate.is_finite() && rate > 0.0), "{ceiling:?}");
            assert_eq!(rates.fold(0.0, f64::max), ceiling.bytes_per_second);
            assert!(ceiling.routines.iter().any(|rate| rate.routine == ceiling.best));
        }
    }

    #[test]
    fn sequential_copies_walk_the_region_and_random_ones_leave_its_order() {
        let region = Mapping::anonymous(64 << 10).unwrap();
        let buffers = Mapping::shareable(8 << 10).unwrap();
        for (block, byte) in (0..16).zip(1_u8..) {
            region.copy_in(block * 4096, &[byte; 4096]);
        }
        let seen = |workload| {
            let plan = CopyPlan { workload, block_bytes: 4096, depth: 2 };
            let mut run = CopyRun::new(plan, &region, &buffers);
            let read = |turn: usize| {
                run.copy(Way { copier: Copier::MEMCPY, ahead: true });
                let mut byte = [0];
                buffers.copy_out(turn % 2 * 4096 + 4095, &mut byte);
                byte[0]
            };
            (0..18).map(read).collect::<Vec<u8>>()
        };
        let in_order: Vec<u8> = (1..=16).chain(1..=2).collect();
        assert_eq!(seen(WorkloadKind::Read), in_order);
        let random = seen(WorkloadKind::RandomRead);
        assert!(random != in_order && random.iter().all(|byte| in_order.contains(byte)));
    }

    #[test]
    fn a_second_measurement_only_raises_a_ceiling() {
        let rate = |name: &str, bytes_per_second| RoutineRate {
            routine: name.to_owned(),
            bytes_per_second,
        };
        let ceiling = |best: &str, one: f64, two: f64| CopyCeiling {
            workload: WorkloadKind::Read,
            block_bytes: 4096,
            depth: 1,
            best: best.to_owned(),
            bytes_per_second: one.max(two),
            cpu_share: 1.0,
            routines: vec![rate("one", one), rate("two", two)],
        };
        let mut merged = ceiling("one", 5.0, 4.0);
        merged.merge(&ceiling("two", 3.0, 6.0));
        assert_eq!(merged, ceiling("two", 5.0, 6.0));
        merged.merge(&ceiling("one", 1.0, 1.0));
        assert_eq!(merged, ceiling("two", 5.0, 6.0));
    }
}
