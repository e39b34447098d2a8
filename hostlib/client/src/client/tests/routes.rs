//! Servers that listen at several addresses: which one is used, and what is tried after it.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_fabric::{Address, Capabilities};
use gannet_proto::{Status, TargetId};

use super::peer::{Asked, Cluster, META, file, header_of, options, target_address};
use crate::counters::Role;
use crate::error::ErrorKind;
use crate::operation::Operation;
use crate::options::{ClientOptions, Protection};

const SECOND: Duration = Duration::from_secs(1);
const RDMA: &str = "rdma://10.0.0.1:7480";
const TCP: &str = "tcp://10.0.0.1:7480";
/// What the tcp fabric can do.
const REVOKES: Capabilities = Capabilities {
    maps_remote_memory: false,
    disconnect_revokes_access: true,
    memory_windows: true,
    streams: false,
};

/// A data server at an address of each fabric, named worst first.
fn cluster() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.further = vec![TCP, RDMA];
    cluster.fabric.world().capabilities_of.insert("tcp", REVOKES);
    cluster.fabric.world().capabilities_of.insert("rdma", REVOKES);
    cluster
}

/// Submits a read of a file on data server 1 and lets the client go after it, without time passing.
/// Returns what it connected to.
fn ask(cluster: &mut Cluster) -> Vec<String> {
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 1).unwrap();
    cluster.settle();
    let from = cluster.fabric.world().connections.len();
    let header = header_of(&cluster.next());
    cluster.stale_set(header, &[1]);
    cluster.settle();
    cluster.fabric.world().tried(from)
}

/// Completes the read whose sessions are in place.
fn complete(cluster: &mut Cluster, address: &str) {
    let header = header_of(&cluster.next());
    let session = *cluster.fabric.world().open_to(address).last().unwrap();
    let arrival = super::peer::arrival(header, (0, 1), 100, Status::OK);
    cluster.send(session, &arrival, &[]);
    cluster.settle();
    assert!(cluster.completions.pop().unwrap().result.is_ok());
    let found = cluster.client.connections().find(|one| one.server == Role::Target(1)).unwrap();
    assert_eq!(found.address.to_string(), address);
}

fn error_of(cluster: &mut Cluster) -> ErrorKind {
    cluster.completions.pop().unwrap().result.unwrap_err().kind
}

fn tickets(cluster: &Cluster) -> usize {
    cluster.asked.iter().filter(|(_, asked)| matches!(asked, Asked::Target(_))).count()
}

#[test]
fn the_best_address_is_the_first_that_is_tried() {
    let mut cluster = cluster();
    assert_eq!(ask(&mut cluster), [target_address(1)]);
    complete(&mut cluster, &target_address(1));
    let channel = cluster.client.connections().next().unwrap();
    let boot: Address = META[0].parse().unwrap();
    assert_eq!((channel.server, channel.address), (Role::Metaserver(0), boot));
}

#[test]
fn a_dead_address_and_a_missing_fabric_lead_to_the_next_at_once_with_the_same_ticket() {
    let mut cluster = cluster();
    cluster.fabric.world().dead.insert(target_address(1));
    cluster.fabric.world().missing.insert("rdma");
    assert_eq!(ask(&mut cluster), [target_address(1), TCP.to_owned()]);
    assert_eq!(tickets(&cluster), 1);
    let hellos: Vec<_> = cluster
        .asked
        .iter()
        .filter_map(|(_, asked)| match asked {
            Asked::DataHello(hello, ticket) => Some((hello.epoch.get(), ticket.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(hellos, [(1, b"ticket".to_vec())]);
    complete(&mut cluster, TCP);
    assert_eq!(cluster.client.counters().protocol_errors, 0);
}

#[test]
fn a_stranger_behind_an_address_refuses_the_ticket_and_the_next_one_takes_it() {
    let mut cluster = cluster();
    cluster.strangers.insert(target_address(1));
    assert_eq!(ask(&mut cluster), [target_address(1), RDMA.to_owned()]);
    assert_eq!(tickets(&cluster), 1, "nobody has used it");
    complete(&mut cluster, RDMA);
}

#[test]
fn a_silent_address_costs_its_time_and_no_more() {
    let mut cluster = cluster();
    cluster.silent.insert(target_address(1));
    let patience = cluster.client.options().handshake_timeout;
    assert_eq!(ask(&mut cluster), [target_address(1)]);
    let from = cluster.fabric.world().connections.len();
    cluster.pass_stepwise(patience);
    assert_eq!(cluster.fabric.world().tried(from), [RDMA]);
    complete(&mut cluster, RDMA);
}

#[test]
fn when_no_address_leads_there_each_round_begins_with_the_best_and_a_new_ticket() {
    let mut cluster = cluster();
    let all = [target_address(1), RDMA.to_owned(), TCP.to_owned()];
    cluster.fabric.world().dead.extend(all.clone());
    assert_eq!(ask(&mut cluster), all);
    for _ in 0..3 {
        cluster.asked.clear();
        let from = cluster.fabric.world().connections.len();
        let due = cluster.client.deadline();
        cluster.now = due;
        cluster.settle();
        assert_eq!(cluster.fabric.world().tried(from), all);
        assert_eq!(tickets(&cluster), 1);
    }
    cluster.pass_stepwise(cluster.client.options().reconnect_timeout + SECOND);
    assert_eq!(error_of(&mut cluster), ErrorKind::TargetLost { target: TargetId(1) });
}

#[test]
fn a_lost_session_is_sought_at_the_best_address_again() {
    let mut cluster = cluster();
    cluster.fabric.world().dead.insert(target_address(1));
    ask(&mut cluster);
    complete(&mut cluster, RDMA);
    cluster.fabric.world().dead.clear();
    let session = *cluster.fabric.world().open_to(RDMA).last().unwrap();
    let from = cluster.fabric.world().connections.len();
    cluster.break_off(session);
    cluster.settle();
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit(read, 2).unwrap();
    cluster.pass_stepwise(SECOND);
    assert_eq!(cluster.fabric.world().tried(from), [target_address(1)]);
    complete(&mut cluster, &target_address(1));
}

#[test]
fn windows_are_sought_where_the_fabric_has_them() {
    let mut cluster =
        Cluster::with(ClientOptions { protection: Protection::Window, ..options() }, false);
    cluster.further = vec![TCP];
    cluster.fabric.world().capabilities_of.insert("tcp", REVOKES);
    assert_eq!(ask(&mut cluster), [target_address(1), TCP.to_owned()]);
    complete(&mut cluster, TCP);
    assert_eq!(cluster.client.counters().windows, 1);
    // Where the only fabric with windows is out of order for good, the reason is named.
    let mut cluster = Cluster::with(cluster.client.options().clone(), false);
    cluster.further = vec![TCP];
    cluster.fabric.world().dead.insert(TCP.to_owned());
    ask(&mut cluster);
    assert!(cluster.completions.is_empty(), "it may come back");
    cluster.pass_stepwise(cluster.client.options().reconnect_timeout + SECOND);
    assert_eq!(error_of(&mut cluster), ErrorKind::NoWindows);
}

#[test]
fn fabrics_that_may_not_be_used_are_not() {
    let options = ClientOptions { fabrics: "tcp".parse().unwrap(), ..options() };
    let mut cluster = Cluster::with(options, false);
    cluster.further = vec![TCP, RDMA];
    assert_eq!(ask(&mut cluster), [TCP]);
    complete(&mut cluster, TCP);
    let mut cluster = Cluster::with(cluster.client.options().clone(), false);
    assert!(ask(&mut cluster).is_empty());
    let kind = error_of(&mut cluster);
    assert_eq!(kind, ErrorKind::NoFabric { target: TargetId(1) });
}

/// A metadata server with two reactors, the second one at several addresses.
fn two_reactors() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.reactors = 2;
    cluster.meta_further = vec![(1, TCP), (0, "tcp://10.0.0.1:1")];
    cluster
}

/// Lets the client ask reactor 1 for something; returns what it connected to.
fn ask_reactor(cluster: &mut Cluster) -> Vec<String> {
    cluster.client.submit(Operation::Stat { handle: file(0) }, 1).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.answer_entry(header, Status::OK);
    cluster.settle();
    cluster.completions.clear();
    let from = cluster.fabric.world().connections.len();
    cluster.client.submit(Operation::Stat { handle: file(1) }, 2).unwrap();
    cluster.settle();
    cluster.fabric.world().tried(from)
}

#[test]
fn reactors_are_sought_at_their_best_address_and_then_at_the_others() {
    let mut cluster = two_reactors();
    assert_eq!(ask_reactor(&mut cluster), [META[1]]);
    assert!(matches!(cluster.next(), Asked::Inode(_)));
    for kind in ["dead", "stranger", "foreign"] {
        let mut cluster = two_reactors();
        match kind {
            "dead" => drop(cluster.fabric.world().dead.insert(META[1].to_owned())),
            "stranger" => drop(cluster.strangers.insert(META[1].to_owned())),
            _ => drop(cluster.foreign.insert(META[1].to_owned())),
        }
        assert_eq!(ask_reactor(&mut cluster), [META[1], TCP], "{kind}");
        let (connection, asked) = cluster.next_on();
        assert!(matches!(asked, Asked::Inode(_)), "{kind}: {asked:?}");
        assert_eq!(cluster.fabric.world().address(connection), TCP);
        assert!(cluster.completions.is_empty(), "{kind}");
    }
}

#[test]
fn a_reactor_that_refuses_everywhere_is_an_error_at_once() {
    let mut cluster = two_reactors();
    cluster.strangers.extend([META[1].to_owned(), TCP.to_owned()]);
    assert_eq!(ask_reactor(&mut cluster), [META[1], TCP]);
    let kind = error_of(&mut cluster);
    assert!(matches!(kind, ErrorKind::Refused { status: Status::VERSION, .. }), "{kind:?}");
}

#[test]
fn the_bootstrap_reactor_is_found_at_its_other_addresses_when_its_first_is_dead() {
    let mut cluster = two_reactors();
    ask_reactor(&mut cluster);
    cluster.next();
    cluster.fabric.world().dead.insert(META[0].to_owned());
    let from = cluster.fabric.world().connections.len();
    cluster.break_off(cluster.meta(0));
    cluster.client.submit(Operation::Stat { handle: file(0) }, 3).unwrap();
    cluster.pass_stepwise(SECOND);
    assert_eq!(cluster.fabric.world().tried(from), [META[0], "tcp://10.0.0.1:1"]);
    assert!(matches!(cluster.next(), Asked::Inode(_)));
    // The foreign server at the user's own address is the user's business; at a learned one not.
    cluster.foreign.insert("tcp://10.0.0.1:1".to_owned());
    let channel = *cluster.fabric.world().open_to("tcp://10.0.0.1:1").last().unwrap();
    let from = cluster.fabric.world().connections.len();
    cluster.break_off(channel);
    cluster.pass_stepwise(SECOND);
    let tried = cluster.fabric.world().tried(from);
    assert!(tried.len() >= 4 && tried.iter().step_by(2).all(|text| text == META[0]), "{tried:?}");
    assert!(cluster.try_next().is_none(), "nothing is asked of it");
}

/// Memory that two data servers reach, one over shm and one over tcp, is out of reach of both when
/// a request is given up: by other pages, and by the end of the session.
#[test]
fn a_request_over_two_fabrics_is_cut_off_from_both() {
    let mut cluster = Cluster::new();
    cluster.fabric.world().capabilities_of.insert("tcp", REVOKES);
    cluster.warm_up(&[2]);
    // Data server 1 is reached over tcp alone.
    cluster.further = vec![TCP];
    cluster.fabric.world().dead.insert(target_address(1));
    let read = cluster.read(file(0), 0, 100);
    cluster.client.submit_with(read, 1, Some(SECOND)).unwrap();
    cluster.settle();
    let header = header_of(&cluster.next());
    cluster.stale_set(header, &[1, 2]);
    cluster.settle();
    let Asked::Read(sent) = cluster.next() else { panic!("a read") };
    let stalled = {
        let told: Vec<_> =
            cluster.told.iter().filter(|told| told.region == sent.buffer.region).collect();
        assert_eq!(told.len(), 2, "both data servers can reach it");
        cluster.view(sent.buffer)
    };
    let over_shm = cluster.target(2);
    let over_tcp = *cluster.fabric.world().open_to(TCP).last().unwrap();
    cluster.fabric.world().disconnects = false;
    cluster.pass_stepwise(Duration::from_millis(1100));
    assert!(matches!(cluster.next(), Asked::Cancel(_)));
    cluster.pass_stepwise(SECOND);
    assert!(cluster.completions.is_empty(), "the one over tcp may still write");
    cluster.break_off(over_tcp);
    cluster.settle();
    let done = cluster.completions.pop().unwrap();
    assert_eq!(done.result.unwrap_err().kind, ErrorKind::TimedOut { maybe_applied: false });
    assert_eq!(cluster.target(2), over_shm, "its pages are replaced, the session stays");
    let mut canary = done.buffer.unwrap();
    canary.fill(0xca);
    stalled.copy_in(0, &vec![0xee; stalled.len()]);
    assert!(canary.iter().all(|byte| *byte == 0xca));
}
