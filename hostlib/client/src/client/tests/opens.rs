//! Opens: which file they name, for whom they are declared, and files that are opened as they are made.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use gannet_proto::Status;
use gannet_proto::operations::{Attributes, inode_operation, name_flags};
use zerocopy::little_endian::U32;

use super::peer::{Asked, Cluster, file};
use crate::identities::{Identity, IdentityId};
use crate::opens::{OpenAccess, OpenId};
use crate::operation::{Operation, Outcome, Ownership};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn opens_are_declared_anew_on_each_new_channel_until_they_are_closed() {
    let mut cluster = Cluster::new();
    let (id, who) = (IdentityId(3), Identity { uid: 5, ..Identity::default() });
    cluster.client.set_identity(id, &who).unwrap();
    let opens: Vec<OpenId> = (0..3).map(|_| cluster.client.new_open()).collect();
    for (open, status) in opens.iter().zip([Status::OK, Status::OK, Status::ACCESS]) {
        let (file, access) = (file(0), OpenAccess::ReadWrite);
        let operation = Operation::OpenFile { file, access, open: *open };
        cluster.client.submit_as(operation, 1, None, id).unwrap();
        cluster.settle();
        let header = loop {
            match cluster.next() {
                Asked::Inode(request) => {
                    assert_eq!(request.operation.get(), inode_operation::OPEN_READ_WRITE);
                    assert_eq!(request.open.get(), open.0);
                    break request.header;
                }
                Asked::Identity(..) => {}
                other => panic!("{other:?}"),
            }
        };
        cluster.answer_entry(header, status);
        cluster.settle();
    }
    for resumed in [true, false] {
        cluster.resumed = resumed;
        cluster.break_off(cluster.meta(0));
        // Nobody has asked for anything.
        cluster.pass_stepwise(SECOND);
        let Asked::Identity(message, _) = cluster.next() else { panic!("an identity") };
        assert_eq!((message.identity.get(), message.uid.get()), (3, 5));
        for open in &opens[..2] {
            let Asked::Declare(message) = cluster.next() else { panic!("a declaration") };
            assert_eq!((message.handle, message.open.get()), (file(0), open.0));
            assert_eq!(message.operation.get(), inode_operation::OPEN_READ_WRITE);
            assert_eq!(message.identity.get(), 3);
        }
        assert!(cluster.try_next().is_none(), "what was refused is not open");
        assert!(
            cluster.complete.contains(&cluster.meta(0)),
            "the server is told that this was all"
        );
    }
    let close = Operation::CloseFile { file: file(0), open: opens[0] };
    cluster.client.submit(close, 2).unwrap();
    cluster.settle();
    let Asked::Inode(request) = cluster.next() else { panic!("a close") };
    assert_eq!(request.operation.get(), inode_operation::CLOSE);
    cluster.answer_entry(request.header, Status::OK);
    cluster.settle();
    cluster.break_off(cluster.meta(0));
    cluster.pass_stepwise(SECOND);
    let Asked::Identity(..) = cluster.next() else { panic!("an identity") };
    let Asked::Declare(message) = cluster.next() else { panic!("a declaration") };
    assert_eq!(message.open.get(), opens[1].0);
    assert!(cluster.try_next().is_none());
}

/// The program gives an identity's number to somebody else: what was opened before is declared in the
/// name of whom it was opened for, and requests go on in the name of the new one.
#[test]
fn an_open_is_declared_for_whom_it_was_opened() {
    let mut cluster = Cluster::new();
    let id = IdentityId(3);
    let who = |uid| Identity { uid, ..Identity::default() };
    cluster.client.set_identity(id, &who(5)).unwrap();
    let open = cluster.client.new_open();
    let operation = Operation::OpenFile { file: file(0), access: OpenAccess::Read, open };
    cluster.client.submit_as(operation, 1, None, id).unwrap();
    cluster.settle();
    let Asked::Identity(..) = cluster.next() else { panic!("an identity") };
    let Asked::Inode(request) = cluster.next() else { panic!("an open") };
    // While it is under way, the number becomes somebody else's.
    cluster.client.set_identity(id, &who(6)).unwrap();
    cluster.answer_entry(request.header, Status::OK);
    cluster.settle();
    for _ in 0..2 {
        cluster.break_off(cluster.meta(0));
        cluster.pass_stepwise(SECOND);
        let Asked::Identity(message, _) = cluster.next() else { panic!("an identity") };
        assert_eq!((message.identity.get(), message.uid.get()), (3, 5));
        let Asked::Declare(message) = cluster.next() else { panic!("a declaration") };
        assert_eq!((message.identity.get(), message.open.get()), (3, open.0));
        assert!(cluster.try_next().is_none());
        cluster.client.submit_as(Operation::Stat { handle: file(0) }, 2, None, id).unwrap();
        cluster.settle();
        let Asked::Identity(message, _) = cluster.next() else { panic!("an identity") };
        assert_eq!((message.identity.get(), message.uid.get()), (3, 6));
        let Asked::Inode(request) = cluster.next() else { panic!("a stat") };
        cluster.answer_entry(request.header, Status::OK);
        cluster.settle();
    }
}

#[test]
fn a_file_is_made_and_opened_by_one_request() {
    let mut cluster = Cluster::new();
    let create = |open| Operation::CreateOpen {
        parent: file(0),
        name: b"new".to_vec(),
        ownership: Ownership { mode: 0o444, ..Ownership::default() },
        exclusive: true,
        access: OpenAccess::ReadWrite,
        open,
    };
    let open = cluster.client.new_open();
    cluster.client.submit(create(open), 1).unwrap();
    cluster.settle();
    let Asked::Name(request, ..) = cluster.next() else { panic!("a create") };
    let flags = name_flags::EXCLUSIVE | name_flags::OPEN_READ | name_flags::OPEN_WRITE;
    assert_eq!((request.flags.get(), request.open.get()), (flags, open.0));
    let made = Attributes { handle: file(9), mode: U32::new(0o100_444), ..Attributes::default() };
    cluster.answer_attributes(request.header, made);
    cluster.settle();
    let done = cluster.completions.pop().expect("completed");
    assert_eq!(done.result, Ok(Outcome::Entry(made)));
    cluster.break_off(cluster.meta(0));
    cluster.pass_stepwise(SECOND);
    let Asked::Declare(message) = cluster.next() else { panic!("a declaration") };
    assert_eq!((message.handle, message.open.get()), (file(9), open.0));
    assert_eq!(message.operation.get(), inode_operation::OPEN_READ_WRITE);

    // What is found on another shard is opened there.
    let open = cluster.client.new_open();
    cluster.client.submit(create(open), 2).unwrap();
    cluster.settle();
    let Asked::Name(request, ..) = cluster.next() else { panic!("a create") };
    let elsewhere = Attributes { handle: file(8), ..Attributes::default() };
    cluster.answer_attributes(request.header, elsewhere);
    cluster.settle();
    assert!(cluster.completions.is_empty());
    let Asked::Inode(request) = cluster.next() else { panic!("an open") };
    assert_eq!(request.operation.get(), inode_operation::OPEN_READ_WRITE);
    assert_eq!((request.handle, request.open.get()), (file(8), open.0));
    let found = Attributes { handle: file(8), ..made };
    cluster.answer_attributes(request.header, found);
    cluster.settle();
    let done = cluster.completions.pop().expect("completed");
    assert_eq!(done.result, Ok(Outcome::Entry(found)));
}
