//! Requests whose memory is guarded by windows.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_fabric::{Access, Event, Key};
use gannet_proto::handshake::features;
use gannet_proto::operations::{RequestHeader, Window, io_flags};
use gannet_proto::{SessionId, Status};
use gannet_runtime::counting_allocator::allocations_on_this_thread;

use super::fake::{Delivery, Opened};
use super::peer::{Asked, Cluster, META, file, header_of, options};
use crate::client::Client;
use crate::error::ErrorKind;
use crate::operation::{Operation, Outcome};
use crate::options::{ClientOptions, Protection};

const READABLE: Access = Access { remote_read: true, remote_write: false };
const WRITABLE: Access = Access { remote_read: false, remote_write: true };

fn by_windows() -> ClientOptions {
    ClientOptions { protection: Protection::Window, ..options() }
}

/// A client on a fabric with windows, with sessions to `targets`, which hold the file.
fn cluster(options: ClientOptions, targets: &[u32]) -> Cluster {
    let mut cluster = Cluster::with(options, true);
    cluster.fabric.world().capabilities.memory_windows = true;
    cluster.client = Client::new(cluster.client.options().clone(), cluster.fabric.clone());
    cluster.warm_up(targets);
    cluster
}

impl Cluster {
    fn named(&self, header: RequestHeader) -> Vec<Window> {
        let named = self.named.iter().rev().find(|(named, _)| *named == header);
        named.expect("it was sent").1.clone()
    }

    fn open_windows(&self) -> Vec<Opened> {
        self.fabric.world().windows.clone()
    }

    fn close(&self, window: &Opened) {
        self.fabric.world().closed(window.connection, window.key);
    }
}

#[test]
fn a_request_reaches_as_far_as_its_windows() {
    let mut cluster = cluster(by_windows(), &[7, 9]);
    assert_eq!(cluster.required, features::MEMORY_WINDOWS);
    assert!(cluster.told.is_empty(), "reactors are not told of regions");
    let made = cluster.fabric.world().accesses.clone();
    assert_eq!(made, [Access::WINDOWS_ONLY; 2], "one for each data server");
    assert!(cluster.open_windows().is_empty(), "those of the first read are gone");

    for is_read in [true, false] {
        let mut operation = match is_read {
            true => cluster.read(file(0), 8192, 3000),
            false => cluster.write(file(0), 8192, 3000),
        };
        let place = operation.buffer().map(|buffer| buffer.region_offset()).unwrap() + 1000;
        let first = operation.buffer().map(|buffer| buffer.as_ptr().addr()).unwrap() + 1000;
        if let Operation::Read { buffer_offset, .. } | Operation::Write { buffer_offset, .. } =
            &mut operation
        {
            *buffer_offset = 1000;
        }
        cluster.client.submit(operation, 1).unwrap();
        cluster.settle();
        let asked = cluster.next();
        let header = header_of(&asked);
        let (flags, count, region) = match &asked {
            Asked::Read(read) => (read.flags.get(), read.windows.get(), read.buffer.offset.get()),
            Asked::Write(write) => {
                (write.flags.get(), write.windows.get(), write.buffer.offset.get())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!((flags, count, region), (io_flags::WINDOWS, 2, 0));
        let open = cluster.open_windows();
        assert_eq!(open.len(), 2);
        for (named, target) in cluster.named(header).iter().zip([7, 9]) {
            assert_eq!(named.target.get(), target);
            assert_eq!(named.address.get(), first as u64, "where the request's bytes are");
            let window = open.iter().find(|open| open.key.0 == named.key.get()).unwrap();
            assert_eq!(window.connection, cluster.target(target));
            assert_eq!((window.offset, window.len_bytes), (place, 3000));
            assert_eq!(window.access, if is_read { WRITABLE } else { READABLE });
        }
        let epochs: Vec<u64> =
            cluster.named(header).iter().map(|window| window.epoch.get()).collect();
        assert_eq!(epochs, [1, 2], "of the sessions that the keys belong to");

        // The answer alone does not complete it: its windows have to be gone.
        cluster.fabric.world().closes = false;
        match is_read {
            true => cluster.arrive(9, header, (0, 1), 3000),
            false => cluster.answer_io(header, Status::OK, 3000),
        }
        cluster.settle();
        cluster.close(&open[1]);
        cluster.settle();
        assert!(cluster.completions.is_empty(), "one window is not gone yet");
        assert_eq!(cluster.client.outstanding(), 1);
        cluster.close(&open[0]);
        cluster.settle();
        let done = cluster.completions.pop().unwrap();
        match (is_read, done.result) {
            (true, Ok(Outcome::Read { bytes: 3000, .. })) => {}
            (false, Ok(Outcome::Write { bytes: 3000, .. })) => {}
            other => panic!("{other:?}"),
        }
        assert!(done.buffer.is_some() && cluster.open_windows().is_empty());
        cluster.fabric.world().closes = true;
    }
    let counters = cluster.client.counters();
    assert_eq!((counters.windows, counters.window_waits, counters.cuts), (6, 0, 0));
}

#[test]
fn a_request_is_sent_when_all_its_windows_are_open() {
    let mut cluster = cluster(by_windows(), &[7, 9]);
    cluster.fabric.world().opens = false;
    let before = cluster.fabric.world().flushes;
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    assert!(cluster.client.deadline() <= cluster.now, "the windows are to be flushed");
    cluster.settle();
    assert!(cluster.fabric.world().flushes > before);
    let open = cluster.open_windows();
    for window in &open {
        assert!(cluster.try_next().is_none(), "a window is not open yet");
        let Opened { connection, key, .. } = *window;
        let event = Event::Registered { connection, key };
        cluster.fabric.world().inbox.push_back(Delivery::Event(event));
        cluster.settle();
    }
    let header = header_of(&cluster.next());

    // One that is cancelled before that leaves nothing behind, and never reached the server.
    let write = cluster.write(file(0), 0, 100);
    let id = cluster.client.submit(write, 2).unwrap();
    cluster.settle();
    assert_eq!(cluster.open_windows().len(), 4);
    cluster.client.cancel(id);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    let kind = done.result.unwrap_err().kind;
    assert_eq!(kind, ErrorKind::Cancelled { maybe_applied: false });
    assert_eq!(cluster.open_windows(), open, "those of the other request");
    cluster.arrive(7, header, (0, 1), 100);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
    assert!(cluster.try_next().is_none() && cluster.open_windows().is_empty());
}

#[test]
fn a_lost_session_means_a_new_attempt_with_new_windows() {
    let mut cluster = cluster(by_windows(), &[7, 9]);
    let write = cluster.write(file(0), 0, 100);
    cluster.client.submit(write, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    let first = cluster.named(header);
    let others = cluster.target(9);
    cluster.break_off(cluster.target(7));
    cluster.pass_stepwise(Duration::from_millis(100));
    let again = header_of(&cluster.next());
    assert_eq!((again.attempt.get(), again.sequence), (2, header.sequence));
    assert_ne!(cluster.target(9), others, "grants of the first attempt end with its session");
    let second = cluster.named(again);
    assert_eq!(second.len(), 2);
    for window in &second {
        assert!(first.iter().all(|old| old.key != window.key && old.epoch != window.epoch));
    }
    let keys: Vec<u32> = cluster.open_windows().iter().map(|open| open.key.0).collect();
    assert_eq!(keys.len(), 2);
    assert!(second.iter().all(|window| keys.contains(&window.key.get())));
    cluster.answer_io(again, Status::OK, 100);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
    assert!(cluster.open_windows().is_empty());
}

#[test]
fn a_time_out_takes_the_sessions_of_the_windows_along() {
    let timeout = Some(Duration::from_millis(10));
    let options = ClientOptions { request_timeout: timeout, ..by_windows() };
    let mut cluster = cluster(options, &[7, 9]);
    cluster.fabric.world().disconnects = false;
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    let sessions = [cluster.target(7), cluster.target(9)];
    cluster.pass_stepwise(Duration::from_millis(20));
    let Asked::Cancel(cancel) = cluster.next() else { panic!("a cancel first") };
    assert_eq!(cancel.header, header);
    cluster.pass_stepwise(Duration::from_secs(2));
    assert!(cluster.completions.is_empty(), "the sessions have not ended yet");
    cluster.break_off(sessions[0]);
    cluster.pass_stepwise(Duration::from_millis(1));
    assert!(cluster.completions.is_empty());
    cluster.break_off(sessions[1]);
    cluster.pass_stepwise(Duration::from_millis(1));
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result.unwrap_err().kind, ErrorKind::TimedOut { maybe_applied: false });
    assert!(done.buffer.is_some() && cluster.open_windows().is_empty());
}

#[test]
fn windows_that_do_not_go_are_ended_with_their_session() {
    let options = ClientOptions { cancel_timeout: Duration::from_millis(50), ..by_windows() };
    let mut cluster = cluster(options, &[7]);
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.fabric.world().closes = false;
    cluster.arrive(7, header, (0, 1), 100);
    cluster.pass_stepwise(Duration::from_millis(40));
    assert!(cluster.completions.is_empty());
    let disconnects = cluster.client.counters().disconnects;
    cluster.pass_stepwise(Duration::from_millis(100));
    assert!(cluster.completions.pop().unwrap().result.is_ok(), "in bounded time, and done");
    assert_eq!(cluster.client.counters().disconnects, disconnects + 1);
    assert!(cluster.open_windows().is_empty());
}

#[test]
fn who_finds_no_window_free_waits_in_line() {
    let mut cluster = cluster(by_windows(), &[7, 9]);
    // Enough for one request and a half.
    cluster.fabric.world().windows_max = 3;
    for token in 0..5 {
        let write = cluster.write(file(0), 0, 100);
        cluster.client.submit(write, token).unwrap();
    }
    for token in 0..5 {
        cluster.settle();
        assert!(cluster.open_windows().len() <= 3);
        let header = header_of(&cluster.next());
        assert!(cluster.try_next().is_none(), "one at a time");
        if token < 4 {
            assert!(cluster.client.deadline() > cluster.now, "those who wait do not spin");
        }
        cluster.answer_io(header, Status::OK, 100);
        cluster.settle();
        let done = cluster.completions.pop().unwrap();
        assert_eq!((done.token, done.result.is_ok()), (token, true), "in the order of asking");
    }
    assert!(cluster.open_windows().is_empty());
    assert!(cluster.client.counters().window_waits >= 4);
}

#[test]
fn too_few_windows_for_a_request_fail_it_in_bounded_time() {
    let options = ClientOptions { reconnect_timeout: Duration::from_millis(300), ..by_windows() };
    let mut cluster = cluster(options, &[7, 9]);
    cluster.fabric.world().windows_max = 1;
    for token in 0..2 {
        let write = cluster.write(file(0), 0, 100);
        cluster.client.submit(write, token).unwrap();
    }
    cluster.pass_stepwise(Duration::from_millis(200));
    assert!(cluster.completions.is_empty());
    let polls = cluster.fabric.world().polls;
    assert!(polls < 2000, "{polls} polls");
    cluster.pass_stepwise(Duration::from_millis(600));
    assert_eq!(cluster.completions.len(), 2);
    for done in cluster.completions.drain(..) {
        let text = done.result.unwrap_err().to_string();
        assert!(text.contains("too few memory windows"), "{text}");
        assert!(done.buffer.is_some());
    }
    assert!(cluster.open_windows().is_empty());
}

#[test]
fn a_window_is_not_mixed_up_with_the_next_one_of_the_same_key() {
    let mut cluster = cluster(by_windows(), &[7]);
    let mut headers = Vec::new();
    for token in [1, 2] {
        let write = cluster.write(file(0), 0, 100);
        cluster.client.submit(write, token).unwrap();
        cluster.settle();
        headers.push(header_of(&cluster.next()));
    }
    // A session more, so that a stale set is no surprise.
    let other = cluster.read(file(1), 0, 100);
    cluster.client.submit(other, 3).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.stale_set(header, &[9]);
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.arrive(9, header, (0, 1), 100);
    cluster.settle();
    assert_eq!(cluster.completions.pop().unwrap().token, 3);

    // The first is answered, the second has to be sent anew; the windows of both are closed.
    cluster.fabric.world().closes = false;
    cluster.answer_io(headers[0], Status::OK, 100);
    cluster.stale_set(headers[1], &[7]);
    cluster.settle();
    assert!(cluster.completions.is_empty() && cluster.try_next().is_none());
    let (first, second) = (cluster.named(headers[0])[0], cluster.named(headers[1])[0]);
    // Both ends come in one batch. The second request can have its new window then, and the fabric
    // gives it the key of the first one's, which it has told the end of.
    let connection = cluster.target(7);
    cluster.fabric.world().windows_made = (first.key.get() & 0xf_ffff) - 1;
    for window in [second, first] {
        cluster.fabric.world().closed(connection, Key(window.key.get()));
    }
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!((done.token, done.result.is_ok()), (1, true));
    let again = header_of(&cluster.next());
    let named = cluster.named(again);
    assert_eq!(named[0].key, first.key, "the key came back");
    let open: Vec<u32> = cluster.open_windows().iter().map(|open| open.key.0).collect();
    assert_eq!(open, [first.key.get()], "what was sent is what is open");
}

#[test]
fn without_windows_no_memory_is_registered() {
    let mut cluster = Cluster::with(by_windows(), true);
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.stale_set(header, &[1]);
    cluster.settle();
    let error = cluster.completions.pop().unwrap().result.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoWindows, "at once: time changes nothing about it");
    let text = error.to_string();
    assert!(text.contains("memory windows") && text.contains("protection \"region\""), "{text}");
    assert_eq!(error.errno(), 95);
    assert!(cluster.fabric.world().registered.is_empty());
    // What needs no data server needs no window.
    cluster.client.submit(Operation::Stat { handle: file(0) }, 2).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_entry(header, Status::OK);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
}

#[test]
fn a_server_that_knows_no_windows_refuses_the_session() {
    let mut cluster = Cluster::with(by_windows(), true);
    cluster.fabric.world().capabilities.memory_windows = true;
    let address = META[0].parse().unwrap();
    let fresh = ClientOptions::new(address, SessionId(78), 99);
    let options = ClientOptions { protection: Protection::Window, ..fresh };
    cluster.client = Client::new(options, cluster.fabric.clone());
    cluster.refusal = Some(Status::FEATURE);
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let kind = cluster.completions.pop().unwrap().result.unwrap_err().kind;
    assert!(matches!(kind, ErrorKind::Refused { status: Status::FEATURE, .. }), "{kind:?}");

    // One that says nothing of them is not believed.
    cluster.refusal = None;
    cluster.features = 0;
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 2).unwrap();
    cluster.pass_stepwise(Duration::from_secs(1));
    assert!(cluster.try_next().is_none());
    assert!(cluster.client.counters().protocol_errors > 0);
    cluster.features = features::MEMORY_WINDOWS;
    cluster.pass_stepwise(Duration::from_secs(3));
    assert!(matches!(cluster.next(), Asked::Read(_)));
}

#[test]
fn memory_that_may_not_be_pinned_is_told_with_the_remedy() {
    for options in [options(), by_windows()] {
        let mut cluster = Cluster::with(options.clone(), true);
        cluster.fabric.world().capabilities.memory_windows = true;
        cluster.client = Client::new(options, cluster.fabric.clone());
        cluster.fabric.world().pinned_max = 65536;
        let read = cluster.read(file(0), 0, 100);
        cluster.client.submit(read, 1).unwrap();
        cluster.settle();
        let header = header_of(&cluster.next());
        cluster.stale_set(header, &[7]);
        cluster.settle();
        let done = cluster.completions.pop().unwrap();
        let error = done.result.unwrap_err();
        assert!(matches!(error.kind, ErrorKind::LockedMemory { limit_bytes: 65536, .. }));
        let text = error.to_string();
        assert!(text.contains("RLIMIT_MEMLOCK") && text.contains("ulimit -l unlimited"), "{text}");
        assert!(done.buffer.is_some());
    }
}

#[test]
fn reads_and_writes_by_windows_allocate_nothing_in_steady_state() {
    let mut cluster = cluster(by_windows(), &[1]);
    let mut buffer = Some(cluster.buffer());
    let mut counted = 0;
    for round in 0..300_u64 {
        let (offset, length, buffer_offset) = (round * 4096, 4096, 0);
        let taken = buffer.take().unwrap();
        let operation = if round % 2 == 0 {
            Operation::Read { file: file(0), offset, length, buffer: taken, buffer_offset }
        } else {
            let append = false;
            Operation::Write { file: file(0), offset, length, buffer: taken, buffer_offset, append }
        };
        let before = allocations_on_this_thread();
        cluster.client.submit(operation, round).unwrap();
        // The windows open, then the request leaves.
        cluster.client.poll(cluster.now, &mut cluster.completions);
        let own = allocations_on_this_thread() - before;
        // The fake fabric copies each packet into a vector of its own.
        counted += own.saturating_sub(cluster.fabric.world().sent.len() as u64);
        cluster.turn();
        let header = header_of(&cluster.next());
        if round % 2 == 0 {
            cluster.arrive(1, header, (0, 1), 4096);
        } else {
            cluster.answer_io(header, Status::OK, 4096);
        }
        cluster.fabric.world().deregistered.clear();
        let before = allocations_on_this_thread();
        // The answer comes, the window closes.
        cluster.client.poll(cluster.now, &mut cluster.completions);
        cluster.client.poll(cluster.now, &mut cluster.completions);
        if round < 50 {
            counted = 0;
        } else {
            counted += allocations_on_this_thread() - before;
        }
        let done = cluster.completions.pop().unwrap();
        assert!(done.result.is_ok() && done.token == round, "{done:?}");
        buffer = done.buffer;
    }
    assert_eq!(cluster.client.counters().windows, 301);
    assert_eq!(counted, 0);
}
