//! A server without work uses no processor to speak of, and is awake at once when work comes.

use std::process::Command;
use std::time::{Duration, Instant};

use gannet_client::Ownership;
use gannet_fabric::Address;
use gannet_integration::load::open;
use gannet_integration::process::{Server, gannet};
use gannet_integration::{one_at_a_time, procfs};

/// How long processor time is counted.
const WATCHED: Duration = Duration::from_secs(10);
/// How long the servers have nothing to do before a request, and how often.
const IDLE: Duration = Duration::from_secs(1);
const IDLES: u32 = 8;
/// Until when the first request after that has its answer.
const ANSWER_MAX: Duration = Duration::from_millis(1);

#[test]
fn an_idle_server_sleeps_and_wakes_at_once() {
    let _turn = one_at_a_time();
    let directory = tempfile::Builder::new().prefix("gannet-").tempdir().expect("a directory");
    let place = directory.path().canonicalize().expect("it was just made");
    let mut command = Command::new(gannet());
    command.args(["dev", "--reactors", "2", "--store-size", "64M", "--dir"]).arg(&place);
    let mut server = Server::start("dev", command, &place.join("dev.log"));
    server.wait_ready();

    let before = procfs::processor_time(server.pid());
    std::thread::sleep(WATCHED);
    let used = procfs::processor_time(server.pid()) - before;
    println!("without a client: {used:?} of processor time in {WATCHED:?}");
    assert!(used < WATCHED / 100, "{used:?} in {WATCHED:?}");

    let address = Address::shm(place.join("meta.sock")).expect("a short path");
    let mut session = open(&address);
    let file = session.create("/file", Ownership::default(), true).expect("created").handle;
    let mut block = vec![7; 4096];
    session.write_at(file, 0, &block).expect("written");
    session.read_at(file, 0, &mut block).expect("read");
    // The machine may be busy with something else at one of the moments, but not at all of them.
    let (mut stat, mut read) = (Duration::MAX, Duration::MAX);
    let before = procfs::processor_time(server.pid());
    for _ in 0..IDLES {
        std::thread::sleep(IDLE / 2);
        let begun = Instant::now();
        session.stat_handle(file).expect("answered");
        stat = stat.min(begun.elapsed());
        std::thread::sleep(IDLE / 2);
        let begun = Instant::now();
        session.read_at(file, 0, &mut block).expect("read");
        read = read.min(begun.elapsed());
    }
    let used = procfs::processor_time(server.pid()) - before;
    println!(
        "first request after idling: stat {stat:?}, read of a block {read:?} (best of {IDLES})"
    );
    println!("with an idle client: {used:?} of processor time in {:?}", IDLE * IDLES);
    assert!(stat <= ANSWER_MAX, "{stat:?}");
    assert!(read <= ANSWER_MAX, "{read:?}");
    assert!(used < IDLE * IDLES / 50, "{used:?} with a client that has nothing to ask");
    drop(session);
    server.stop();
}
