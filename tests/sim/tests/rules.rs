//! For each safety rule: a world in which it matters, where the real roles do right, and where roles
//! that break the rule on purpose are caught.
//!
//! The worlds are run in any case. The breakage is compiled in with `--features defects` only.

use std::time::Duration;

use gannet_client::Protection;
use gannet_sim::cluster::{Defect, Faults, Shape};
use gannet_sim::disk::DiskOptions;
use gannet_sim::network::{Model, NetworkOptions};
use gannet_sim::random::{Chance, Delay, Random};
use gannet_sim::run::run;

/// Seeds on which the real roles have to do right.
const SEEDS_RIGHT: u64 = if cfg!(debug_assertions) { 3 } else { 10 };
/// Seeds among which one at least has to catch a broken rule.
#[cfg(feature = "defects")]
const SEEDS_CAUGHT: u64 = 20;

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Demands that a world is fine, and that it is not once the rule is broken.
fn rule(defect: Defect, world: fn(&mut Random) -> Shape) {
    for seed in 1..=SEEDS_RIGHT {
        if let Err(failure) = run(seed, 0, world) {
            panic!("with all rules kept, {failure}");
        }
    }
    caught(defect, world);
}

#[cfg(not(feature = "defects"))]
fn caught(_defect: Defect, _world: fn(&mut Random) -> Shape) {}

#[cfg(feature = "defects")]
fn caught(defect: Defect, world: fn(&mut Random) -> Shape) {
    let broken = |random: &mut Random| Shape { defect: Some(defect), ..world(random) };
    let mut caught = Vec::new();
    for seed in 1..=SEEDS_CAUGHT {
        if let Err(failure) = run(seed, 0, broken) {
            caught.push((seed, failure.violations[0].clone()));
        }
    }
    let Some((seed, how)) = caught.first() else {
        panic!("{defect:?} is not caught by any of {SEEDS_CAUGHT} seeds");
    };
    println!("{defect:?} is caught by {} of {SEEDS_CAUGHT} seeds, by {seed}: {how}", caught.len());
}

/// Few hosts, few files, and large requests over several data servers.
fn contended(random: &mut Random) -> Shape {
    let model = if random.coin() { Model::Shm } else { Model::Verbs };
    let calm = Shape::calm(model);
    let mut load = calm.load.clone();
    load.weights = [45, 50, 0, 0, 0, 0];
    load.shared_files = 2;
    load.file_bytes_max = 64 << 10;
    load.request_bytes_max = 64 << 10;
    load.operations = 120;
    load.think = Delay::between(Duration::ZERO, millis(1));
    let by_windows = model == Model::Verbs && random.coin();
    let protection = if by_windows { Protection::Window } else { Protection::Region };
    Shape { reactors: 1, targets: 2, hosts: 2, load, stripe_blocks: 1, protection, ..calm }
}

#[test]
fn h1_a_read_completes_when_all_of_its_data_is_there() {
    rule(Defect::Arrivals, |random| {
        let shape = contended(random);
        let target_disk =
            DiskOptions { read_delay: Delay::between(millis(0), millis(3)), ..DiskOptions::calm() };
        Shape { target_disk, ..shape }
    });
}

/// Data servers stand still, and hosts do not wait for them.
fn impatient(random: &mut Random) -> Shape {
    let shape = contended(random);
    let mut load = shape.load.clone();
    load.operations = 200;
    load.depth = 6;
    load.buffers = 7;
    load.cancel = Chance::percent(5);
    let faults = Faults {
        pause: Delay::between(millis(1), millis(10)),
        until: millis(400),
        lasting: Delay::between(millis(5), millis(40)),
        target_stall: 4,
        stall: 1,
        breaks: 1,
        ..Faults::none()
    };
    let target_disk = DiskOptions {
        read_delay: Delay::between(Duration::ZERO, millis(2))
            .with_tail(Chance::percent(10), millis(20)),
        write_delay: Delay::between(Duration::ZERO, millis(2))
            .with_tail(Chance::percent(10), millis(20)),
        ..DiskOptions::calm()
    };
    let request_timeout = Some(millis(4));
    let (cancel_timeout, network) = (
        millis(3),
        NetworkOptions {
            split_transfer: Chance::percent(30),
            reuse_key: Chance::percent(50),
            ghost_write: Chance::percent(50),
            ..shape.network.clone()
        },
    );
    Shape {
        load,
        faults,
        target_disk,
        request_timeout,
        cancel_timeout,
        network,
        slots: 64,
        ..shape
    }
}

#[test]
fn h2_memory_comes_back_when_no_data_server_can_reach_it() {
    rule(Defect::Cuts, impatient);
}

#[test]
fn h2_memory_comes_back_when_its_windows_are_closed() {
    rule(Defect::Windows, |random| {
        let shape = impatient(random);
        let model = Model::Verbs;
        let network = NetworkOptions { model, windows_max: 5, ..shape.network.clone() };
        Shape { network, protection: Protection::Window, ..shape }
    });
}

/// A key is no proof: a grant that was stalled names the key of a window that is long closed, and
/// the next window may have it.
#[test]
fn h2_the_keys_of_closed_windows_come_back() {
    rule(Defect::Sessions, |random| {
        let shape = impatient(random);
        let network = NetworkOptions {
            model: Model::Verbs,
            reuse_key: Chance::percent(100),
            ..shape.network.clone()
        };
        let mut load = shape.load.clone();
        (load.depth, load.buffers) = (2, 2);
        load.operations = 400;
        Shape { network, protection: Protection::Window, targets: 1, load, ..shape }
    });
}

#[test]
fn h3_a_write_is_committed_by_a_live_attempt_only() {
    rule(Defect::Attempts, |random| {
        // Where memory stays within reach, former attempts can come to a good end.
        let shape = Shape {
            network: NetworkOptions::calm(Model::Shm),
            protection: Protection::Region,
            ..contended(random)
        };
        let mut load = shape.load.clone();
        load.weights = [30, 70, 0, 0, 0, 0];
        load.operations = 250;
        load.depth = 6;
        load.aligned = Chance::percent(100);
        load.file_bytes_max = 32 << 10;
        let faults = Faults {
            pause: Delay::between(millis(1), millis(8)),
            until: millis(400),
            channel_breaks: 1,
            ..Faults::none()
        };
        let target_disk = DiskOptions {
            write_delay: Delay::between(Duration::ZERO, millis(2))
                .with_tail(Chance::percent(20), millis(40)),
            ..DiskOptions::calm()
        };
        Shape { load, faults, target_disk, ..shape }
    });
}

#[test]
fn h5_grants_are_looked_at_right_before_what_they_allow_is_done() {
    rule(Defect::LiveChecks, |random| {
        let shape = contended(random);
        let mut load = shape.load.clone();
        load.weights = [20, 75, 0, 0, 0, 0];
        load.operations = 250;
        load.depth = 8;
        load.buffers = 10;
        load.may_be_full = true;
        let faults = Faults {
            pause: Delay::between(millis(1), millis(15)),
            until: millis(600),
            down: Delay::between(millis(1), millis(5)),
            lasting: Delay::between(millis(1), millis(10)),
            metaserver_crash: 2,
            breaks: 6,
            ..Faults::none()
        };
        let target_disk = DiskOptions {
            write_delay: Delay::between(Duration::ZERO, millis(2))
                .with_tail(Chance::percent(20), millis(60)),
            entries: 4,
            ..DiskOptions::calm()
        };
        Shape { load, faults, target_disk, store_blocks: 96, targets: 1, ..shape }
    });
}

#[test]
fn h7_freed_blocks_are_not_reused_under_a_transfer() {
    rule(Defect::Pins, |random| {
        let shape = contended(random);
        let mut load = shape.load.clone();
        load.weights = [30, 70, 0, 0, 0, 0];
        load.operations = 250;
        load.depth = 8;
        load.buffers = 10;
        load.aligned = Chance::percent(70);
        load.may_be_full = true;
        let target_disk = DiskOptions {
            read_delay: Delay::between(Duration::ZERO, millis(1))
                .with_tail(Chance::percent(20), millis(40)),
            split: Chance::percent(50),
            ..DiskOptions::calm()
        };
        Shape { load, target_disk, store_blocks: 96, targets: 1, ..shape }
    });
}

#[test]
fn h14_nothing_is_seen_that_a_crash_can_take_back() {
    rule(Defect::OutputGate, |random| {
        let shape = contended(random);
        let mut load = shape.load.clone();
        load.weights = [30, 50, 5, 5, 0, 20];
        load.operations = 150;
        let faults = Faults {
            pause: Delay::between(millis(1), millis(30)),
            until: millis(500),
            down: Delay::between(millis(1), millis(10)),
            metaserver_crash: 1,
            metaserver_power: 3,
            ..Faults::none()
        };
        let metaserver_disk = DiskOptions {
            write_delay: Delay::between(millis(1), millis(6)),
            ..DiskOptions::calm()
        };
        Shape { load, faults, metaserver_disk, ..shape }
    });
}
