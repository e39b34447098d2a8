//! The record format: its bytes, and what is refused.

use gannet_proto::operations::file_type;
use gannet_proto::{Block, Inode, ShardId, StoreId};
use proptest::prelude::*;

use crate::extents::Extent;
use crate::record::{
    self, Action, Change, Effect, Effects, ExtentList, IoKept, Origin, RecordError, Reply,
    ShardList, StoreList,
};

fn origin(reply: Reply) -> Origin {
    Origin {
        shard: Some(ShardId(3)),
        operation: 0x0102_0304_0506_0708,
        session: 0x1112_1314_1516_1718,
        instance: 0x2122_2324_2526_2728,
        sequence: 0x31,
        slot: 7,
        time_ns: 0x4142_4344,
        reply,
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn golden_bytes_of_a_file_made() {
    let stores = [5u32.into(), 6u32.into()];
    let change = Change::NodeCreated {
        parent: Inode::new(ShardId(3), 1),
        inode: Inode::new(ShardId(3), 9),
        mode: file_type::REGULAR | 0o644,
        uid: 1,
        gid: 2,
        name: b"name",
        set: StoreList::new(&stores),
    };
    let mut bytes = Vec::new();
    record::encode(&mut bytes, &origin(Reply::Node), &change);
    let expected = concat!(
        "6c000000",
        "0100",
        "0300",
        "0807060504030201",
        "1817161514131211",
        "2827262524232221",
        "3100000000000000",
        "0700",
        "0100",
        "00000000",
        "4443424100000000",
        "0100000000000300",
        "0900000000000300",
        "a4810000",
        "01000000",
        "02000000",
        "00000000",
        "0400",
        "0200",
        "00000000",
        "6e616d65",
        "05000000",
        "06000000",
    );
    assert_eq!(hex(&bytes), expected);
    assert_eq!(record::decode(&bytes), Ok((origin(Reply::Node), change)));
}

fn written(bytes: &mut Vec<u8>) {
    let extent = Extent {
        file_block: 2,
        blocks: 3,
        store: StoreId(4),
        block: Block(5),
        generation: 6,
        tail_valid: 100,
        birth: 7,
    };
    let mut extents = Vec::new();
    record::push_extent(&mut extents, &extent);
    let io =
        IoKept { offset: 8192.into(), size: 16484.into(), length: 8292.into(), reserved: 0.into() };
    let change = Change::WriteCommitted {
        inode: Inode::new(ShardId(3), 9),
        size: 16484,
        extents: ExtentList::new(&extents, 1),
    };
    record::encode(bytes, &origin(Reply::Io(io)), &change);
    assert_eq!(record::decode(bytes), Ok((origin(Reply::Io(io)), change)));
}

#[test]
fn golden_bytes_of_a_write() {
    let mut bytes = Vec::new();
    written(&mut bytes);
    let expected = concat!(
        "98000000",
        "0a00",
        "0300",
        "0807060504030201",
        "1817161514131211",
        "2827262524232221",
        "3100000000000000",
        "0700",
        "0400",
        "00000000",
        "4443424100000000",
        "0020000000000000",
        "6440000000000000",
        "64200000",
        "00000000",
        "0900000000000300",
        "6440000000000000",
        "0100",
        "000000000000",
        "0200000000000000",
        "0700000000000000",
        "6420000000000000",
        "03000000",
        "0100",
        "0000",
        "0500000000000000",
        "04000000",
        "06000000",
    );
    assert_eq!(hex(&bytes), expected);
}

fn prepared(bytes: &mut Vec<u8>) {
    let mut effects = Effects::default();
    let inode = Inode::new(ShardId(3), 9);
    let (entry, file_type) = (Inode::new(ShardId(4), 2), file_type::REGULAR);
    let action = Action::Enter { entry, file_type, name: b"name" };
    effects.push(&Effect { inode, time_ns: 0x51, action });
    effects.push(&Effect { inode, time_ns: 0x52, action: Action::Unlink });
    let (coordinator, effects) = (ShardId(5), effects.list());
    let change = Change::Prepared { coordinator, order: 0x61, effects };
    record::encode(bytes, &origin(Reply::None), &change);
    assert_eq!(record::decode(bytes), Ok((origin(Reply::None), change)));
}

#[test]
fn golden_bytes_of_what_is_prepared() {
    let mut bytes = Vec::new();
    prepared(&mut bytes);
    let expected = concat!(
        "6100000000000000",
        "0500",
        "0200",
        "00000000",
        "0900000000000300",
        "0200000000000400",
        "5100000000000000",
        "0100",
        "0400",
        "00800000",
        "00000000",
        "00000000",
        "6e616d65",
        "0900000000000300",
        "0000000000000000",
        "5200000000000000",
        "0600",
        "0000",
        "00000000",
        "00000000",
        "00000000",
    );
    assert_eq!((hex(&bytes[..6]), hex(&bytes[56..])), ("9c0000001400".into(), expected.into()));
    // (place, byte, field)
    for (place, byte, field) in [
        (56 + 8, 64, "coordinator"),
        (56 + 10, 9, "effects"),
        (56 + 16 + 7, 1, "inode"),
        (56 + 16 + 15, 1, "other"),
        (56 + 16 + 24, 99, "name_bytes"),
        (56 + 16 + 26, 0, "name_bytes"),
        (56 + 16 + 28, 1, "mode"),
        (56 + 60 + 24, 99, "effect"),
        (56 + 60 + 24, 1, "name_bytes"),
    ] {
        let mut bad = bytes.clone();
        bad[place] = byte;
        match record::decode(&bad) {
            Err(RecordError::Field { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    for length in 56..bytes.len() {
        assert!(record::decode(&bytes[..length]).is_err());
    }
}

#[test]
fn golden_bytes_of_a_decision_and_its_end() {
    let shards = [5u16.into(), 6u16.into()];
    let mut effects = Effects::default();
    let inode = Inode::new(ShardId(3), 9);
    let parent = Inode::new(ShardId(3), 1);
    let mode = file_type::DIRECTORY | 0o700;
    effects.push(&Effect { inode, time_ns: 0x51, action: Action::Remove { name: b"ab" } });
    let action = Action::Make { parent, mode, uid: 1, gid: 2 };
    effects.push(&Effect { inode, time_ns: 0x52, action });
    let participants = ShardList::new(&shards);
    let decided = Change::Decided { participants, effects: effects.list() };
    let body = concat!(
        "0200",
        "0200",
        "00000000",
        "0500",
        "0600",
        "0900000000000300",
        "0000000000000000",
        "5100000000000000",
        "0200",
        "0200",
        "00000000",
        "00000000",
        "00000000",
        "6162",
        "0900000000000300",
        "0100000000000300",
        "5200000000000000",
        "0300",
        "0000",
        "c0410000",
        "01000000",
        "02000000",
    );
    let coordinator = ShardId(5);
    for (change, kind, body) in [
        (decided, "1500", body),
        (Change::Applied { coordinator }, "1600", "0500000000000000"),
        (Change::Aborted { coordinator }, "1700", "0500000000000000"),
        (
            Change::SessionKnown { session: 0x0102, instance: 0x0304 },
            "1100",
            "02010000000000000403000000000000",
        ),
        (Change::Forgotten, "1800", ""),
    ] {
        let mut bytes = Vec::new();
        record::encode(&mut bytes, &origin(Reply::Empty), &change);
        assert_eq!((hex(&bytes[4..6]), hex(&bytes[56..])), (kind.into(), body.into()));
        assert_eq!(record::decode(&bytes), Ok((origin(Reply::Empty), change)));
    }
    for actions in [Action::Drop, Action::Link, Action::Touch, Action::Reparent { parent }] {
        let mut effects = Effects::default();
        effects.push(&Effect { inode, time_ns: 1, action: actions });
        assert_eq!(effects.list().iter().next().unwrap().action, actions);
    }
}

#[test]
fn golden_bytes_of_a_file_that_stays() {
    let mut bytes = Vec::new();
    let change = Change::OpenKept { inode: Inode::new(ShardId(3), 9) };
    record::encode(&mut bytes, &origin(Reply::None), &change);
    let expected = concat!(
        "48000000",
        "2800",
        "0300",
        "0807060504030201",
        "1817161514131211",
        "2827262524232221",
        "3100000000000000",
        "0700",
        "0000",
        "00000000",
        "4443424100000000",
        "0900000000000300",
        "0000000000000000",
    );
    assert_eq!(hex(&bytes), expected);
    assert_eq!(record::decode(&bytes), Ok((origin(Reply::None), change)));
}

#[test]
fn golden_bytes_of_extended_attributes() {
    let head = concat!(
        "0300",
        "0807060504030201",
        "1817161514131211",
        "2827262524232221",
        "3100000000000000",
        "0700",
        "0500",
        "00000000",
        "4443424100000000",
        "0900000000000300",
    );
    let inode = Inode::new(ShardId(3), 9);
    let set = Change::XattrSet { inode, name: b"user.x", value: &[7, 8] };
    let removed = Change::XattrRemoved { inode, name: b"user.x" };
    let name = "757365722e78";
    for (change, start, end) in [
        (set, "500000002900", format!("0600020000000000{name}0708")),
        (removed, "4e0000002a00", format!("0600000000000000{name}")),
    ] {
        let mut bytes = Vec::new();
        record::encode(&mut bytes, &origin(Reply::Xattr), &change);
        assert_eq!(hex(&bytes), format!("{start}{head}{end}"));
        assert_eq!(record::decode(&bytes), Ok((origin(Reply::Xattr), change)));
        for length in 0..bytes.len() {
            assert!(record::decode(&bytes[..length]).is_err());
        }
    }
}

#[test]
fn a_later_versions_tail_is_skipped() {
    let mut bytes = Vec::new();
    written(&mut bytes);
    let known: Vec<u8> = bytes.clone();
    bytes.extend_from_slice(&[0xaa; 24]);
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    assert_eq!(record::decode(&bytes), record::decode(&known));
}

#[test]
fn what_is_out_of_bounds_is_refused_by_field() {
    let mut good = Vec::new();
    written(&mut good);
    // (place, byte, field)
    let table = [
        (0, 0xff, "length"),
        (4, 0x63, "kind"),
        (6, 0x40, "shard"),
        (48 - 7, 0xff, "slot"),
        (42, 9, "reply"),
    ];
    for (place, byte, field) in table {
        let mut bytes = good.clone();
        bytes[place] = byte;
        let refused = record::decode(&bytes);
        match (field, &refused) {
            ("kind", Err(RecordError::UnknownKind { kind: 0x63 })) => {}
            (_, Err(RecordError::Field { field: named, .. })) => assert_eq!(*named, field),
            _ => panic!("{field}: {refused:?}"),
        }
    }
    for (place, byte, field) in [
        (80 + 16, 2, "extents"),
        (104 + 17, 0, "valid_bytes"),
        (104 + 24, 0, "file_block"),
        (104 + 28, 2, "locations"),
    ] {
        let mut bytes = good.clone();
        bytes[place] = byte;
        match record::decode(&bytes) {
            Err(RecordError::Field { field: named, .. }) => assert_eq!(named, field),
            Err(RecordError::TooShort { .. }) if field == "extents" => {}
            other => panic!("{field}: {other:?}"),
        }
    }
    for length in 0..good.len() {
        assert!(record::decode(&good[..length]).is_err());
    }
}

proptest! {
    #[test]
    fn noise_is_refused_or_read_but_never_panics(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        kind in 0..50u16,
        reply in 0..6u16,
    ) {
        let mut bytes = bytes;
        let _ = record::decode(&bytes);
        if bytes.len() >= 56 {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&length.to_le_bytes());
            bytes[4..6].copy_from_slice(&kind.to_le_bytes());
            bytes[6..8].copy_from_slice(&3u16.to_le_bytes());
            bytes[40..42].copy_from_slice(&1u16.to_le_bytes());
            bytes[42..44].copy_from_slice(&reply.to_le_bytes());
            let _ = record::decode(&bytes);
            let mut core = crate::Core::new(super::world::config(1));
            let _ = core.replay(&bytes);
        }
    }

    #[test]
    fn a_damaged_preparation_never_panics(place in 0..156usize, byte in any::<u8>()) {
        let mut bytes = Vec::new();
        prepared(&mut bytes);
        bytes[place] = byte;
        let _ = record::decode(&bytes);
        let mut core = crate::Core::new(super::world::config(1));
        let _ = core.replay(&bytes);
    }

    #[test]
    fn a_damaged_record_never_panics(place in 0..152usize, byte in any::<u8>()) {
        let mut bytes = Vec::new();
        written(&mut bytes);
        bytes[place] = byte;
        let _ = record::decode(&bytes);
    }
}
