//! What operations cost the metadata server, in instructions: from the packet that the fabric hands
//! over to the packet that it is given, with everything that the server does in such a turn.
//!
//! `cargo test --release -p gannet-metaserver --test instructions -- --nocapture` prints it. The
//! test starts itself under valgrind's `callgrind`, which counts; where that is not installed it says
//! so. Counts are the same in every run of one build, so bounds hold on a loaded machine too.

mod driver;
mod wire;

use std::env;
use std::process::Command;

use driver::{Driver, SLOTS, Turn};

/// Tells the process under valgrind what to do.
const TASK: &str = "GANNET_INSTRUCTIONS_TASK";
/// Rounds of the shorter run. The longer one has twice as many: the difference is what they cost.
const ROUNDS: u64 = 256;

/// Of what is printed alone.
const UNBOUNDED: u64 = u64::MAX;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Reads of a file in one extent.
    Read,
    /// Reads of a file whose blocks lie scattered.
    ReadScattered,
    Stat,
    Write,
    Create,
}

const KINDS: [Kind; 5] = [Kind::Read, Kind::ReadScattered, Kind::Stat, Kind::Write, Kind::Create];

/// One measurement: so many requests in a packet, turns of one kind.
struct Case {
    kind: Kind,
    count: u16,
    turn: Turn,
    /// Most instructions per request, for what is bounded.
    bound: u64,
}

const fn case(kind: Kind, count: u16, turn: Turn, bound: u64) -> Case {
    Case { kind, count, turn, bound }
}

const CASES: [Case; 18] = [
    case(Kind::Read, 1, Turn::Requests, UNBOUNDED),
    case(Kind::Read, 1, Turn::Endings, UNBOUNDED),
    case(Kind::Read, SLOTS, Turn::Requests, 690),
    case(Kind::Read, SLOTS, Turn::Endings, 195),
    case(Kind::ReadScattered, 1, Turn::Requests, UNBOUNDED),
    case(Kind::ReadScattered, 1, Turn::Endings, UNBOUNDED),
    case(Kind::ReadScattered, SLOTS, Turn::Requests, 900),
    case(Kind::ReadScattered, SLOTS, Turn::Endings, 195),
    case(Kind::Stat, 1, Turn::Requests, UNBOUNDED),
    case(Kind::Stat, SLOTS, Turn::Requests, 440),
    case(Kind::Write, 1, Turn::Requests, UNBOUNDED),
    case(Kind::Write, 1, Turn::Endings, UNBOUNDED),
    case(Kind::Write, SLOTS, Turn::Requests, UNBOUNDED),
    case(Kind::Write, SLOTS, Turn::Endings, UNBOUNDED),
    case(Kind::Create, 1, Turn::Requests, UNBOUNDED),
    case(Kind::Create, 1, Turn::Endings, UNBOUNDED),
    case(Kind::Create, SLOTS, Turn::Requests, UNBOUNDED),
    case(Kind::Create, SLOTS, Turn::Endings, UNBOUNDED),
];

/// Does what was asked for, and checks that the server did.
fn drive(kind: Kind, count: u16, rounds: u64) {
    let mut driver = Driver::new();
    driver.fill(kind != Kind::ReadScattered);
    let before = (driver.grants, driver.replies);
    let requests = rounds * u64::from(count);
    let expected = match kind {
        Kind::Read | Kind::ReadScattered => {
            driver.reads(rounds, count);
            (requests, 0)
        }
        Kind::Stat => {
            driver.stats(rounds, count);
            (0, requests)
        }
        Kind::Write => {
            driver.writes(rounds, count);
            (requests, requests)
        }
        Kind::Create => {
            driver.creates(rounds, count);
            (0, requests)
        }
    };
    assert_eq!((driver.grants - before.0, driver.replies - before.1), expected, "{kind:?}");
}

#[test]
fn the_server_serves_what_is_measured() {
    if let Ok(task) = env::var(TASK) {
        let mut words = task.split(' ');
        let mut number =
            || words.next().and_then(|word| word.parse::<u64>().ok()).expect("a number");
        let (kind, count, rounds) = (number(), number(), number());
        return drive(KINDS[kind as usize], count as u16, rounds);
    }
    for kind in KINDS {
        drive(kind, 1, 40);
        drive(kind, SLOTS, 40);
    }
}

/// Instructions in turns of one kind, of one run.
fn collected(kind: Kind, count: u16, turn: Turn, rounds: u64) -> u64 {
    let function = match turn {
        Turn::Requests => "*turn_with_requests*",
        Turn::Endings => "*turn_with_endings*",
        Turn::Other => "*turn_of_another_kind*",
    };
    let place = KINDS.iter().position(|other| *other == kind).expect("it is one of them");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={function}"))
        .arg(env::current_exe().expect("the test knows itself"))
        .args(["--exact", "the_server_serves_what_is_measured", "--test-threads=1"])
        .env(TASK, format!("{place} {count} {rounds}"))
        .output()
        .expect("valgrind runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stdout));
    let line = text.lines().find_map(|line| line.split_once("Collected : "));
    let (_, number) = line.expect("valgrind says what it counted");
    number.trim().parse().expect("valgrind counts in numbers")
}

#[test]
fn operations_cost_at_most_so_many_instructions() {
    if env::var(TASK).is_ok() {
        return;
    }
    if cfg!(debug_assertions) {
        println!("instructions are counted in release builds only");
        return;
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("valgrind is not installed: no instruction is counted");
        return;
    }
    let mut too_many = Vec::new();
    println!("{:24} {:>8} {:>10} {:>12}", "instructions per", "at once", "turns", "instructions");
    for case in &CASES {
        let count = |rounds| collected(case.kind, case.count, case.turn, rounds);
        let requests = ROUNDS * u64::from(case.count);
        let each = (count(2 * ROUNDS) - count(ROUNDS)) / requests;
        let line = format!(
            "{:24} {:>8} {:>10} {:>12}",
            format!("{:?}", case.kind),
            case.count,
            format!("{:?}", case.turn),
            each
        );
        println!("{line}");
        if each > case.bound {
            too_many.push(format!("{line}, at most {}", case.bound));
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n"));
}
