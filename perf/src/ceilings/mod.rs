//! What the machine itself can do, measured in the same run: figures of a file server mean something
//! beside these.
//!
//! Measured before the workloads and again after them, and the better of both counts, so that a
//! neighbour's moment of activity does not make a server look better than it is.

pub mod copy;
pub(crate) mod cpu;
pub mod round_trip;
mod tcp;
pub mod tcp_echo;
pub mod tcp_round_trip;

use std::sync::Arc;
use std::time::Duration;

use gannet_runtime::memory::{Mapping, PAGE_BYTES};
use gannet_runtime::reactor::pin_to_core;
use serde::{Deserialize, Serialize};

use crate::error::PerfError;
use crate::options::{PerfOptions, WorkloadKind};
use copy::{CopyCeiling, CopyPlan};
use round_trip::RoundTrip;
use tcp_echo::{EchoCeiling, EchoPlan};

/// How long round trips between the cores are measured.
const ROUND_TRIP_TIME: Duration = Duration::from_millis(200);
/// How long each copy routine is measured per workload.
const COPY_TIME: Duration = Duration::from_millis(32);
/// How long a plain service over TCP is measured per workload.
const ECHO_TIME: Duration = Duration::from_millis(200);

/// All ceilings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ceilings {
    /// Between the client's and the server's core; absent where they are one.
    pub round_trip: Option<RoundTrip>,
    /// The longer of the two medians, nanoseconds. A virtual machine whose processors the host
    /// moves has very different ones.
    pub round_trip_slowest_ns: Option<f64>,
    /// By workload, block length and depth.
    pub copies: Vec<CopyCeiling>,
    /// Over TCP between the client's and the server's core; absent where they are one, and where the
    /// server is not reached over TCP.
    pub tcp_round_trip: Option<RoundTrip>,
    /// The longer of the two medians, nanoseconds, as of the round trip above.
    pub tcp_round_trip_slowest_ns: Option<f64>,
    /// By workload, block length and depth; empty where the server is not reached over TCP.
    pub tcp_echoes: Vec<EchoCeiling>,
}

impl Ceilings {
    /// Measures what the options ask for.
    ///
    /// # Errors
    /// If a core or memory cannot be had.
    pub fn measure(options: &PerfOptions) -> Result<Ceilings, PerfError> {
        let cores = [options.core, options.server_core];
        let round_trip = round_trip::measure(cores, ROUND_TRIP_TIME)?;
        // A thread of its own, so that the caller's is not left on the server's core.
        let copying = std::thread::scope(|scope| {
            let thread = scope.spawn(|| copies(options));
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let round_trip_slowest_ns = round_trip.map(|round_trip| round_trip.median_ns);
        let mut ceilings =
            Ceilings { round_trip, round_trip_slowest_ns, copies: copying?, ..Ceilings::default() };
        if options.reaches_over_tcp() {
            let round_trip = tcp_round_trip::measure(cores, ROUND_TRIP_TIME)?;
            ceilings.tcp_round_trip = round_trip;
            ceilings.tcp_round_trip_slowest_ns = round_trip.map(|round_trip| round_trip.median_ns);
            ceilings.tcp_echoes = echoes(options)?;
        }
        Ok(ceilings)
    }

    /// Takes over whatever a second measurement with the same options did better.
    pub fn merge(&mut self, other: &Ceilings) {
        self.round_trip = shorter(self.round_trip, other.round_trip);
        self.tcp_round_trip = shorter(self.tcp_round_trip, other.tcp_round_trip);
        self.round_trip_slowest_ns =
            longer(self.round_trip_slowest_ns, other.round_trip_slowest_ns);
        self.tcp_round_trip_slowest_ns =
            longer(self.tcp_round_trip_slowest_ns, other.tcp_round_trip_slowest_ns);
        for (mine, theirs) in self.copies.iter_mut().zip(&other.copies) {
            mine.merge(theirs);
        }
        for theirs in &other.tcp_echoes {
            let mine = self.tcp_echoes.iter_mut().find(|mine| {
                (mine.workload, mine.block_bytes, mine.depth)
                    == (theirs.workload, theirs.block_bytes, theirs.depth)
            });
            match mine {
                Some(mine) => mine.merge(theirs),
                None => self.tcp_echoes.push(theirs.clone()),
            }
        }
    }

    /// The plain service over TCP that belongs to a measurement.
    #[must_use]
    pub fn tcp_echo(
        &self,
        workload: WorkloadKind,
        block_bytes: usize,
        depth: u32,
    ) -> Option<&EchoCeiling> {
        self.tcp_echoes.iter().find(|echo| {
            echo.workload == workload && echo.block_bytes == block_bytes && echo.depth == depth
        })
    }

    /// The copy ceiling of a measurement.
    #[must_use]
    pub fn copy(
        &self,
        workload: WorkloadKind,
        block_bytes: usize,
        depth: u32,
    ) -> Option<&CopyCeiling> {
        self.copies.iter().find(|ceiling| {
            ceiling.workload == workload
                && ceiling.block_bytes == block_bytes
                && ceiling.depth == depth
        })
    }

    /// The least time in which a server on the other core can answer with a block: one round trip,
    /// and one copy in between. Nanoseconds.
    #[must_use]
    pub fn latency_floor_ns(&self, workload: WorkloadKind, block_bytes: usize) -> Option<f64> {
        let copy = self.copy(workload, block_bytes, 1)?;
        let copy_ns = block_bytes as f64 / copy.bytes_per_second * 1e9;
        Some(self.round_trip?.median_ns + copy_ns)
    }
}

fn copies(options: &PerfOptions) -> Result<Vec<CopyCeiling>, PerfError> {
    if let Some(core) = options.server_core {
        pin_to_core(core)?;
    }
    let region = memory_of_file_size(options, 0)?;
    let mut ceilings = Vec::new();
    for workload in &options.workloads {
        for depth in depths(options) {
            let block_bytes = options.block_bytes(*workload) as usize;
            let plan = CopyPlan { workload: *workload, block_bytes, depth };
            let ceiling = copy::measure(plan, &region, COPY_TIME);
            ceilings.push(ceiling.map_err(PerfError::system("mapping memory for buffers"))?);
        }
    }
    Ok(ceilings)
}

fn shorter(one: Option<RoundTrip>, two: Option<RoundTrip>) -> Option<RoundTrip> {
    match (one, two) {
        (Some(one), Some(two)) if two.median_ns < one.median_ns => Some(two),
        (one, two) => one.or(two),
    }
}

fn longer(one: Option<f64>, two: Option<f64>) -> Option<f64> {
    match (one, two) {
        (Some(one), Some(two)) => Some(one.max(two)),
        (one, two) => one.or(two),
    }
}

fn echoes(options: &PerfOptions) -> Result<Vec<EchoCeiling>, PerfError> {
    let store = memory_of_file_size(options, tcp_echo::MESSAGE_MEMORY_BYTES)?;
    let mut ceilings = Vec::new();
    for workload in &options.workloads {
        for depth in &options.depths {
            let block_bytes = options.block_bytes(*workload) as usize;
            let plan = EchoPlan { workload: *workload, block_bytes, depth: *depth };
            let cores = [options.core, options.server_core];
            ceilings.extend(tcp_echo::measure(plan, cores, &store, ECHO_TIME)?);
        }
    }
    Ok(ceilings)
}

/// Memory as long as the file and `more`, with every page mapped.
fn memory_of_file_size(options: &PerfOptions, more: usize) -> Result<Arc<Mapping>, PerfError> {
    let no_memory = PerfError::system("mapping as much memory as the file is long");
    let len_bytes = usize::try_from(options.size_bytes).unwrap_or(usize::MAX);
    let memory = Mapping::anonymous(len_bytes.saturating_add(more)).map_err(no_memory)?;
    touch(&memory);
    Ok(memory)
}

/// The depths that are measured, and 1 for the latency floor.
fn depths(options: &PerfOptions) -> impl Iterator<Item = u32> {
    let one = (!options.depths.contains(&1)).then_some(1);
    one.into_iter().chain(options.depths.iter().copied())
}

/// Has every page mapped, each with bytes of its own: the kernel serves pages that were only read
/// from one page of zeros, which would stay in the cache.
fn touch(region: &Arc<Mapping>) {
    for page in 0..region.len() / PAGE_BYTES {
        region.copy_in(page * PAGE_BYTES, &(page as u64).to_le_bytes());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::options::{EmbeddedOptions, Server};

    #[test]
    fn ceilings_are_found_by_what_was_measured() {
        let mut options = PerfOptions::new(Server::Embedded(EmbeddedOptions::default()));
        (options.core, options.server_core) = (None, None);
        options.size_bytes = 4 << 20;
        options.workloads = vec![WorkloadKind::RandomRead];
        options.depths = vec![4];
        let mut ceilings = Ceilings::measure(&options).unwrap();
        let measured = ceilings.copy(WorkloadKind::RandomRead, 4096, 4).unwrap();
        assert!(measured.bytes_per_second > 0.0);
        assert!(ceilings.copy(WorkloadKind::RandomRead, 4096, 2).is_none());
        assert!(ceilings.copy(WorkloadKind::Read, 4096, 4).is_none());
        if let Some(round_trip) = ceilings.round_trip {
            let floor_ns = ceilings.latency_floor_ns(WorkloadKind::RandomRead, 4096).unwrap();
            assert!(floor_ns > round_trip.median_ns);
        }

        let mut faster = ceilings.clone();
        faster.copies[0].bytes_per_second *= 2.0;
        if let Some(round_trip) = &mut faster.round_trip {
            round_trip.median_ns /= 2.0;
            faster.round_trip_slowest_ns = Some(round_trip.median_ns);
        }
        let slowest_ns = ceilings.round_trip_slowest_ns;
        ceilings.merge(&faster);
        faster.round_trip_slowest_ns = slowest_ns;
        assert_eq!(ceilings, faster);
        ceilings.merge(&Ceilings::default());
        assert_eq!(ceilings, faster);
    }
}
