//! A server without work uses no processor to speak of, and is awake at once when work comes.

use std::process::Command;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use gannet_client::Ownership;
use gannet_fabric::Address;
use gannet_integration::load::open;
use gannet_integration::process::{Server, gannet};
use gannet_integration::{one_at_a_time, procfs};
use tempfile::TempDir;

/// How long processor time is counted.
const WATCHED: Duration = Duration::from_secs(10);
/// How long the servers have nothing to do before a request.
const IDLE: Duration = Duration::from_millis(250);
/// How often. The machine may be busy with something else at one of the moments, or at some of
/// them; the best is what the servers need.
const IDLES: u32 = 20;
/// Until when the first request after that has its answer.
const ANSWER_MAX: Duration = Duration::from_millis(1);

/// `gannet dev` in a directory of its own.
struct Dev {
    // First: it ends before its files go.
    server: Server,
    address: Address,
    _directory: TempDir,
}

fn start(store_size: &str) -> Dev {
    // Paths of sockets have at most 107 bytes.
    let directory = tempfile::Builder::new().prefix("gannet-").tempdir().expect("a directory");
    let place = directory.path().canonicalize().expect("it was just made");
    let mut command = Command::new(gannet());
    command.args(["dev", "--reactors", "2", "--store-size", store_size, "--dir"]).arg(&place);
    let mut server = Server::start("dev", command, &place.join("dev.log"));
    server.wait_ready();
    let address = Address::shm(place.join("meta.sock")).expect("a short path");
    Dev { server, address, _directory: directory }
}

/// A thread that sleeps until it is asked, and answers.
struct Echo {
    ask: Sender<()>,
    answers: Receiver<()>,
}

impl Echo {
    fn start() -> Echo {
        let (ask, asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        std::thread::spawn(move || asked.into_iter().try_for_each(|()| answer.send(())));
        Echo { ask, answers }
    }

    fn ask(&self) {
        self.ask.send(()).expect("it listens");
        self.answers.recv().expect("it answers");
    }
}

/// The best latency of a request of `ask` after the servers had nothing to do for a while; and beside
/// it, for whoever reads a failure, that of a thread of this machine which slept as long.
fn latency_after_idling(mut ask: impl FnMut()) -> (Duration, Duration) {
    fn after_idling(ask: impl FnOnce()) -> Duration {
        std::thread::sleep(IDLE);
        let begun = Instant::now();
        ask();
        begun.elapsed()
    }
    let echo = Echo::start();
    let once = |_| (after_idling(|| echo.ask()), after_idling(&mut ask));
    let (own, latencies): (Vec<_>, Vec<_>) = (0..IDLES).map(once).unzip();
    let best = |latencies: Vec<Duration>| latencies.into_iter().min().expect("at least one");
    (best(latencies), best(own))
}

#[test]
fn an_idle_server_uses_no_processor() {
    let _turn = one_at_a_time();
    let dev = start("64M");
    let before = procfs::processor_time(dev.server.pid());
    std::thread::sleep(WATCHED);
    let used = procfs::processor_time(dev.server.pid()) - before;
    println!("without a client: {used:?} of processor time in {WATCHED:?}");
    assert!(used < WATCHED / 100, "{used:?} in {WATCHED:?}");

    // A host that is connected but has nothing to ask changes little.
    let mut session = open(&dev.address);
    session.stat("/").expect("answered");
    let before = procfs::processor_time(dev.server.pid());
    std::thread::sleep(WATCHED / 2);
    let used = procfs::processor_time(dev.server.pid()) - before;
    println!("with an idle client: {used:?} of processor time in {:?}", WATCHED / 2);
    assert!(used < WATCHED / 200, "{used:?} in {:?}", WATCHED / 2);
    drop(session);
    dev.server.stop();
}

/// The store is in memory, so that a read is answered as fast as its servers wake up, not as fast as
/// this machine's disk is.
#[test]
fn an_idle_server_wakes_at_once() {
    let _turn = one_at_a_time();
    let dev = start("ram:64M");
    let mut session = open(&dev.address);
    let file = session.create("/file", Ownership::default(), true).expect("created").handle;
    let mut block = vec![7; 4096];
    session.write_at(file, 0, &block).expect("written");
    session.read_at(file, 0, &mut block).expect("read");
    let stat = latency_after_idling(|| {
        session.stat_handle(file).expect("answered");
    });
    let read = latency_after_idling(|| {
        assert_eq!(session.read_at(file, 0, &mut block).expect("read"), block.len());
    });
    println!(
        "after {IDLE:?} without work: stat {:?} (a thread's echo {:?}), read of a block {:?} ({:?})",
        stat.0, stat.1, read.0, read.1
    );
    assert!(stat.0 <= ANSWER_MAX && read.0 <= ANSWER_MAX);
    drop(session);
    dev.server.stop();
}
