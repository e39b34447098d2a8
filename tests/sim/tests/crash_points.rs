//! A crash right before and right behind everything that happens on any disk.
//!
//! `GANNET_CRASH_DRAWS=n` tries each moment with n ways of chance instead of the usual number, and
//! `GANNET_CRASH_POINT='SCENE INDEX'` only one crash of a scene's list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

#[cfg(feature = "defects")]
use gannet_sim::cluster::Defect;
use gannet_sim::crash::play::{Crash, Loss, Played, Victims, play};
use gannet_sim::crash::scene::{self, Scene};
use gannet_sim::disk::{DiskEvent, EventKind, Moment, PowerLoss};

/// Of the events, one in so many is tried without optimisation.
const STRIDE: usize = if cfg!(debug_assertions) { 16 } else { 1 };
/// Ways of chance for each moment.
const DRAWS: u64 = 1;
/// Events after the first crash, of which one gets a second crash.
const AGAIN_MAX: u64 = 6;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|text| text.parse().ok())
}

/// What the crashes of a scene came to.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    runs: u64,
    crashes: u64,
    /// Outstanding steps that are there.
    whole: u64,
    /// Outstanding steps that are not.
    absent: u64,
    /// Hosts that were told of a doubt.
    in_doubt: u64,
}

/// All crashes to try at one event.
fn crashes_at(event: u64, draws: u64) -> Vec<Crash> {
    use PowerLoss::{AllKept, AllLost, Drawn};
    let mut crashes = Vec::new();
    for moment in [Moment::Before(event), Moment::After(event)] {
        let mut add = |victims, loss, again, salt| {
            crashes.push(Crash { moment, victims, loss, again, salt });
        };
        for power in [AllLost, AllKept] {
            add(Victims::Everything, Loss::Power(power), None, event);
        }
        add(Victims::Servers, Loss::Power(AllLost), None, event);
        for draw in 0..draws {
            let salt = event * 1000 + draw;
            add(Victims::Everything, Loss::Power(Drawn), None, salt);
            add(Victims::Metaserver, Loss::Power(Drawn), Some(salt % AGAIN_MAX), salt);
            add(Victims::Metaserver, Loss::Process, None, salt);
            add(Victims::Target, Loss::Power(Drawn), None, salt);
            add(Victims::Target, Loss::Process, Some(salt % AGAIN_MAX), salt);
            add(Victims::Servers, Loss::Process, None, salt);
        }
    }
    crashes
}

/// Plays a scene to its end, to know its events.
fn rehearse(scene: &Scene) -> Played {
    let played = play(scene, None).unwrap_or_else(|text| panic!("{}: {text}", scene.name));
    assert!(played.hosts.iter().all(|host| host.is_complete() && host.violations.is_empty()));
    played
}

/// Runs a check of every item on all cores, and collects what each says.
fn on_all_cores<T: Sync, R: Send>(items: &[T], check: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(4);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = check(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// One crash; a role that panics fails its crash, not the search.
fn attempt(scene: &Scene, crash: Crash) -> Result<Played, String> {
    let ran = std::panic::catch_unwind(|| play(scene, Some(crash)));
    ran.unwrap_or_else(|_| Err("a role panicked".to_owned()))
}

/// Tries every crash of a scene. Demands that it has at least `events_min` events.
fn survives(scene: &Scene, events_min: usize) {
    let begun = Instant::now();
    let events = rehearse(scene).events;
    assert!(
        events.len() >= events_min,
        "{}: {} events, at least {events_min} are expected: has the test shrunk?",
        scene.name,
        events.len()
    );
    check_variety(scene, &events);
    let draws = number("GANNET_CRASH_DRAWS").unwrap_or(DRAWS);
    let mut crashes: Vec<(usize, Crash)> = (0..events.len() as u64)
        .step_by(STRIDE)
        .flat_map(|event| crashes_at(event, draws))
        .enumerate()
        .collect();
    let points = events.len().div_ceil(STRIDE) * 2;
    if let Some((name, index)) =
        std::env::var("GANNET_CRASH_POINT").ok().as_deref().and_then(|text| text.split_once(' '))
    {
        crashes.retain(|(at, _)| name == scene.name && Ok(*at) == index.parse());
    }
    let results = on_all_cores(&crashes, |(index, crash)| {
        attempt(scene, *crash).map_err(|text| (*index, *crash, text))
    });
    let mut totals = Totals::default();
    let mut failures = Vec::new();
    for result in results {
        totals.runs += 1;
        match result {
            Ok(played) => {
                totals.crashes += u64::from(played.crashes);
                totals.whole += u64::from(played.fates.whole);
                totals.absent += u64::from(played.fates.absent);
                totals.in_doubt += u64::from(played.in_doubt);
            }
            Err(failure) => failures.push(failure),
        }
    }
    failures.sort_by_key(|(index, ..)| *index);
    println!(
        "{}: {} events on disks, {points} moments, {} runs with {} crashes, outstanding steps: {} \
         whole, {} absent, {} first changes in doubt; {:.1} s",
        scene.name,
        events.len(),
        totals.runs,
        totals.crashes,
        totals.whole,
        totals.absent,
        totals.in_doubt,
        begun.elapsed().as_secs_f64()
    );
    for (index, crash, text) in
        failures.iter().take(number("GANNET_CRASH_SHOWN").unwrap_or(10) as usize)
    {
        println!("  {crash:?} at {:?}: {text}", event_of(&events, crash.moment));
        println!(
            "    GANNET_CRASH_POINT='{} {index}' cargo test -p gannet-sim --release --test crash_points",
            scene.name
        );
    }
    assert!(failures.is_empty(), "{} of {} crashes, see above", failures.len(), totals.runs);
    let is_single = std::env::var_os("GANNET_CRASH_POINT").is_some();
    assert!(is_single || (totals.whole > 0 && totals.absent > 0), "crashes come at all stages");
}

fn event_of(events: &[DiskEvent], moment: Moment) -> DiskEvent {
    let (Moment::Before(number) | Moment::After(number)) = moment;
    events[number as usize]
}

/// Every log and every store has its part in a scene.
fn check_variety(scene: &Scene, events: &[DiskEvent]) {
    let mut counts = BTreeMap::new();
    for event in events {
        *counts.entry((event.disk, event.file, event.kind)).or_insert(0) += 1;
    }
    println!("{}: {counts:?}", scene.name);
    let places: BTreeSet<(usize, u32)> =
        events.iter().map(|event| (event.disk, event.file)).collect();
    let logs = (0..scene.shape.reactors as u32).map(|reactor| (0, reactor));
    let stores = (1..=scene.shape.targets).map(|target| (target, 0));
    for place in logs.chain(stores) {
        assert!(places.contains(&place), "{}: nothing happens on {place:?}", scene.name);
    }
    assert!(events.iter().any(|event| event.kind == EventKind::WriteInPart));
}

#[test]
fn renames_over_shards_are_whole_or_absent() {
    survives(&scene::renames(None), 110);
}

#[test]
fn links_are_whole_or_absent() {
    survives(&scene::links(None), 110);
}

#[test]
fn open_files_without_a_name_stay() {
    survives(&scene::opens(None), 120);
}

#[test]
fn written_data_is_old_or_new() {
    survives(&scene::writes(None), 140);
}

/// Tries crashes of a scene in which a rule is broken, until one shows it.
fn is_caught(what: &str, scene: &Scene, crashes: impl Fn(u64) -> Vec<Crash>) {
    let events = rehearse(scene).events.len() as u64;
    let mut runs = 0;
    for crash in (0..events).flat_map(&crashes) {
        runs += 1;
        if let Err(text) = attempt(scene, crash) {
            println!("{what} is caught by run {runs}, {crash:?}: {text}");
            return;
        }
    }
    panic!("{what} is not caught by any of {runs} crashes");
}

fn all_crashes(event: u64) -> Vec<Crash> {
    crashes_at(event, DRAWS)
}

/// A disk that says that something is durable when it is not.
#[test]
fn lost_data_is_noticed() {
    let mut scene = scene::writes(None);
    scene.shape.target_disk.lies = true;
    is_caught("a store's disk that lies", &scene, all_crashes);
    let mut scene = scene::renames(None);
    scene.shape.metaserver_disk.lies = true;
    is_caught("a log's disk that lies", &scene, all_crashes);
}

#[cfg(feature = "defects")]
#[test]
fn broken_rules_are_noticed() {
    let scenes: [fn(Option<Defect>) -> Scene; 2] = [scene::renames, scene::links];
    for scene in scenes {
        for defect in [Defect::OutputGate, Defect::Decisions] {
            let scene = scene(Some(defect));
            is_caught(&format!("{defect:?} in {}", scene.name), &scene, all_crashes);
        }
    }
}
