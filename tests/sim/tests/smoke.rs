//! Many whole runs of clusters of all shapes, with everything going wrong that may.
//!
//! `GANNET_SIM_SEEDS=n` runs n seeds instead of the usual number, `GANNET_SIM_FIRST=n` begins with
//! another one than 1, and `GANNET_SIM_SEED=n` runs only one, with the text of its steps if it fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use gannet_client::Protection;
use gannet_sim::cluster::Shape;
use gannet_sim::network::Model;
use gannet_sim::run::{Failure, Report, run};

/// Seeds of a usual run.
const SEEDS: u64 = if cfg!(debug_assertions) { 10 } else { 100 };
/// Steps whose text a single seed keeps.
const LINES: usize = 1 << 20;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

fn smoke(seed: u64, lines: usize) -> Result<Report, Box<Failure>> {
    run(seed, lines, Shape::drawn)
}

fn panicked(seed: u64) -> Failure {
    let violations = vec!["a role panicked".to_owned()];
    let (shape, state, steps) = (String::new(), String::new(), String::new());
    Failure { seed, violations, shape, state, steps }
}

#[test]
fn clusters_of_all_shapes_keep_their_promises() {
    if let Some(seed) = number("GANNET_SIM_SEED") {
        match smoke(seed, LINES) {
            Ok(report) => println!("seed {seed}: {report:#?}"),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let seeds = number("GANNET_SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("GANNET_SIM_FIRST").unwrap_or(1);
    let start = Instant::now();
    let (next, failures) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let totals = Mutex::new((0, 0, [0; 3], 0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    // A role that panics fails its seed, not the search.
                    let ran = std::panic::catch_unwind(|| smoke(seed, 0));
                    match ran.unwrap_or_else(|_| Err(Box::new(panicked(seed)))) {
                        Ok(report) => {
                            let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                            totals.0 += report.faults;
                            totals.1 += report.network.messages;
                            totals.3 += report.network.windows;
                            totals.2.iter_mut().zip(report.ends).for_each(|(sum, n)| *sum += n);
                        }
                        Err(failure) => {
                            let mut all = failures.lock().unwrap_or_else(PoisonError::into_inner);
                            all.push(failure);
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    let (faults, messages, ends, windows) =
        totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds in {seconds:.1} s ({:.1} per second): {faults} faults, {messages} messages, \
         {windows} windows, operations on files: {} done, {} in doubt, {} without effect",
        seeds as f64 / seconds,
        ends[0],
        ends[1],
        ends[2],
    );
    for failure in &failures {
        println!(
            "seed {}: {}\n  GANNET_SIM_SEED={} cargo test -p gannet-sim --release --test smoke",
            failure.seed, failure.violations[0], failure.seed
        );
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed, see above", failures.len());
    assert!(windows > 0 || seeds < SEEDS, "a quarter of all hosts guard their memory by windows");
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in [1, 2, 3] {
        let once = smoke(seed, 0).map(|report| report.hash).map_err(|failure| failure.violations);
        let again = smoke(seed, 0).map(|report| report.hash).map_err(|failure| failure.violations);
        assert_eq!(once, again, "seed {seed}");
    }
}

#[test]
fn a_calm_cluster_does_everything_it_is_asked() {
    let windows = (Model::Verbs, Protection::Window);
    let regions = [Model::Shm, Model::Verbs].map(|model| (model, Protection::Region));
    for (model, protection) in regions.into_iter().chain([windows]) {
        for seed in 1..=4 {
            let shape = Shape { protection, ..Shape::calm(model) };
            let report = run(seed, 200, |_| shape);
            let report = report.unwrap_or_else(|failure| panic!("{model:?} {failure}"));
            assert_eq!(report.network.windows > 100, protection == Protection::Window);
            let usual = ["mkdir: file exists", "lookup: no such file or directory"];
            let surprising = report.errors.iter().find(|(text, _)| !usual.contains(&text.as_str()));
            assert_eq!(surprising, None, "nothing was in the way");
            assert!(report.ends[0] > 100, "{report:?}");
        }
    }
}
