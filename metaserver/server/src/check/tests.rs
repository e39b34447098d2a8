//! Logs of real cores, whole and damaged.
#![allow(clippy::unwrap_used)]

use gannet_disk::ram::RamDisk;
use gannet_disk::{Completion, Disk, FileId};
use gannet_meta_core::{CoreConfig, Enrollment, Lsn, Nanos, Now, PeerMessage, SessionIndex, Sink};
use gannet_proto::control::{Grant, StoreInfo};
use gannet_proto::operations::{NameRequest, Names, RequestHeader, name_operation};
use gannet_proto::packet::Message;
use gannet_proto::{GrantNumber, Handle, Inode, SessionId, TargetId};
use gannet_runtime::poller::Poller;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::*;
use crate::config::MetaServerConfig;
use crate::format;
use crate::log::frame::{FRAME_ALIGNMENT, Position};
use crate::log::superblock::SUPERBLOCK_BYTES;
use crate::log::writer::LogWriter;
use crate::startup::core_config;

const UUID: [u8; 16] = [9; 16];
const REACTORS: usize = 2;
/// Records of a frame.
const FRAME_RECORDS: usize = 3;

/// What a core of the test puts out.
#[derive(Default)]
struct Out {
    records: Vec<Vec<u8>>,
    messages: Vec<(u16, PeerMessage)>,
}

impl Sink for Out {
    fn record(&mut self, record: &[u8]) -> Lsn {
        self.records.push(record.to_vec());
        Lsn(self.records.len() as u64)
    }
    fn reply<T: Message>(&mut self, _: SessionIndex, _: Lsn, _: &T, _: &[&[u8]]) {}
    fn grant(&mut self, _: TargetId, _: Lsn, _: &Grant) {}
    fn revoke(&mut self, _: TargetId, _: GrantNumber) {}
    fn peer(&mut self, reactor: u16, _: Lsn, message: PeerMessage) {
        self.messages.push((reactor, message));
    }
    fn enrolled(&mut self, _: Lsn, _: Enrollment) {}
}

/// Carries messages between cores until there are none.
fn settle(cores: &mut [Core], outs: &mut [Out]) {
    while let Some(from) = outs.iter().position(|out| !out.messages.is_empty()) {
        let (to, message) = outs[from].messages.remove(0);
        let to = usize::from(to);
        cores[to].peer(Now::default(), from as u16, message, &mut outs[to]);
    }
}

/// The records of a file system with 20 directories in the root, each with a file.
fn records() -> Vec<Vec<Vec<u8>>> {
    let mut outs: Vec<Out> = (0..REACTORS).map(|_| Out::default()).collect();
    let now = Now { monotonic: Nanos(1), wall_ns: 1 };
    let config = |reactor: usize| -> CoreConfig {
        let superblock = format::superblock(UUID, reactor as u16, REACTORS as u16);
        core_config(&MetaServerConfig::new(reactor as u16, Vec::new(), [0; 32]), &superblock)
    };
    let mut cores: Vec<Core> = (0..REACTORS).map(|reactor| Core::new(config(reactor))).collect();
    let map = config(0).shard_map;
    for (core, out) in cores.iter_mut().zip(&mut outs) {
        core.finish_replay(now, out);
    }
    settle(&mut cores, &mut outs);
    let info = StoreInfo {
        uuid: [5; 16],
        generation: U32::new(1),
        block_bytes: U32::new(4096),
        blocks: U64::new(10_000),
    };
    cores[0].enroll(now, [4; 16], &[info], &mut outs[0]);
    settle(&mut cores, &mut outs);
    let sessions: Vec<SessionIndex> =
        cores.iter_mut().map(|core| core.session_open(now, SessionId(7), 1).unwrap().0).collect();
    let mut sequences = [0; 64];
    let mut make = |parent: Inode, operation: u16, name: &str| {
        let shard = parent.shard().unwrap();
        let sequence = &mut sequences[usize::from(shard.0)];
        *sequence += 1;
        let header = RequestHeader {
            shard: U16::new(shard.0),
            slot: U16::ZERO,
            attempt: U32::new(1),
            sequence: U64::new(*sequence),
        };
        let request = NameRequest {
            header,
            parent: Handle::new(parent),
            operation: U16::new(operation),
            mode: U32::new(0o755),
            ..NameRequest::default()
        };
        let at = usize::from(map[usize::from(shard.0)]);
        let names = Names { name: name.as_bytes(), to_name: b"" };
        cores[at].name_request(now, sessions[at], &request, names, &mut outs[at]);
        settle(&mut cores, &mut outs);
    };
    for number in 0..20 {
        make(Inode::ROOT, name_operation::MKDIR, &format!("directory {number}"));
    }
    // Number 2 of a shard is the first directory that was made there.
    for shard in (0..64).filter(|shard| *shard % 2 == 1) {
        let parent = Inode::new(gannet_proto::ShardId(shard), 2);
        make(parent, name_operation::CREATE, "file");
    }
    outs.into_iter().map(|out| out.records).collect()
}

/// Logs in memory, and the disk that holds them.
struct Logs {
    disk: RamDisk,
    logs: Vec<LogFile>,
    /// Where each frame of each log begins.
    frames: Vec<Vec<u64>>,
}

fn polled(disk: &mut RamDisk) -> Vec<Completion> {
    let mut completions = Vec::new();
    disk.flush();
    disk.poll(gannet_runtime::time::Time::ZERO, &mut completions);
    completions
}

impl Logs {
    fn new(records: &[Vec<Vec<u8>>]) -> Logs {
        let mut logs =
            Logs { disk: RamDisk::new(64).unwrap(), logs: Vec::new(), frames: Vec::new() };
        for (reactor, records) in records.iter().enumerate() {
            logs.add(UUID, reactor as u16, records);
        }
        logs
    }

    /// A further log; its name ends with its place.
    fn add(&mut self, uuid: [u8; 16], reactor: u16, records: &[Vec<u8>]) {
        let file = self.disk.create(4 << 20, 256 << 20).unwrap();
        let view = self.disk.resident(file, 0, SUPERBLOCK_BYTES).unwrap();
        format::format_resident(&view, uuid, reactor, REACTORS as u16);
        let start = SUPERBLOCK_BYTES as u64;
        let mut writer = LogWriter::new(file, uuid, 1, Position::default(), start).unwrap();
        let mut frames = Vec::new();
        for records in records.chunks(FRAME_RECORDS) {
            records.iter().for_each(|record| {
                writer.append(record);
            });
            frames.push(start + writer.written().1);
            self.commit(&mut writer);
        }
        self.logs.push(LogFile { file, name: format!("log.{}", self.logs.len()) });
        self.frames.push(frames);
    }

    fn commit(&mut self, writer: &mut LogWriter) {
        writer.commit(&mut self.disk, true);
        for completion in polled(&mut self.disk) {
            writer.complete(completion.token, completion.result);
        }
        assert!(writer.is_idle() && writer.failure().is_none());
    }

    fn check(&mut self) -> Result<CheckReport, CheckError> {
        check_logs(&mut self.disk, &self.logs, CheckOptions { kept_max: 5, in_order: true })
    }

    /// What is found, each with its kind.
    fn found(&mut self) -> (CheckReport, Vec<(FindingKind, String)>) {
        let report = self.check().unwrap();
        let all = report.findings.iter().map(|one| (one.kind, one.to_string())).collect();
        (report, all)
    }

    fn refused(&mut self) -> String {
        self.check().unwrap_err().to_string()
    }

    /// Changes bytes of a log.
    fn change(&self, log: usize, offset: u64, change: impl FnOnce(&mut [u8; 8])) {
        let file: FileId = self.logs[log].file;
        let view = self.disk.resident(file, offset, 8).unwrap();
        let mut bytes = [0; 8];
        view.copy_out(0, &mut bytes);
        change(&mut bytes);
        view.copy_in(0, &bytes);
    }

    fn zero(&self, log: usize, offset: u64, len_bytes: usize) {
        self.disk.resident(self.logs[log].file, offset, len_bytes).unwrap().zero(0, len_bytes);
    }

    /// Replaces a superblock.
    fn reformat(&self, log: usize, change: impl FnOnce(&mut Superblock)) {
        let mut superblock = format::superblock(UUID, log as u16, REACTORS as u16);
        change(&mut superblock);
        superblock.seal();
        let view = self.disk.resident(self.logs[log].file, 0, SUPERBLOCK_BYTES).unwrap();
        view.copy_in(0, superblock.as_bytes());
    }
}

#[test]
fn whole_logs_are_clean_and_described() {
    let records = records();
    let mut logs = Logs::new(&records);
    let (report, found) = logs.found();
    assert_eq!(found, []);
    for (reactor, log) in report.logs.iter().enumerate() {
        let count = records[reactor].len();
        assert_eq!((log.records, log.frames), (count as u64, count.div_ceil(FRAME_RECORDS) as u64));
        assert_eq!((log.end, log.term), (Some(LogEnd::Clean), 1));
        assert_eq!(log.superblock.unwrap().reactor.get(), reactor as u16);
        let last = *logs.frames[reactor].last().unwrap();
        assert!(log.end_bytes > last && log.end_bytes <= last + 4 * FRAME_ALIGNMENT as u64);
    }
    let state = report.state.unwrap();
    assert_eq!(state.directories, 21);
    assert!(state.files > 0 && state.files < 20, "{state:?}");
    assert_eq!((state.stores.len(), state.stores[0].blocks), (1, 10_000));
    // Nothing was written by the check.
    let (again, _) = logs.found();
    assert_eq!(again.logs, report.logs);
}

#[test]
fn torn_ends_are_told_apart_from_damage() {
    let records = records();
    let mut logs = Logs::new(&records);
    let frames = logs.frames[1].clone();
    let last = *frames.last().unwrap();
    // The payload of the last frame was not written whole. What it held is missing: in this log
    // nothing else depends on it.
    logs.change(1, last + 100, |bytes| bytes[0] ^= 1);
    let (report, found) = logs.found();
    assert_eq!(report.logs[1].end, Some(LogEnd::TornFrame));
    assert_eq!((report.logs[1].end_bytes, report.logs[0].end), (last, Some(LogEnd::Clean)));
    assert_eq!(found, []);
    logs.change(1, last, |bytes| bytes[0] ^= 1);
    let (report, found) = logs.found();
    assert_eq!((report.logs[1].end, found.len()), (Some(LogEnd::Remains), 0));

    // The same in the middle is damage, and the state is not judged.
    for (place, at) in [(100, frames[2] + 100), (0, frames[3])] {
        let mut logs = Logs::new(&records);
        logs.change(1, at, |bytes| bytes[0] ^= 1);
        let (report, found) = logs.found();
        let [(FindingKind::LogDamaged, text)] = &found[..] else { panic!("{found:?}") };
        let (number, start) = if place == 0 { (4, frames[3]) } else { (3, frames[2]) };
        let words = format!("error: reactor 1, log byte {start}: log.1: frame {number} is not");
        assert!(text.starts_with(&words), "{text}");
        assert_eq!((report.logs[1].end, report.logs[1].frames), (None, number - 1));
        assert_eq!(report.logs[0].end, Some(LogEnd::Clean));
        assert!(report.state.is_none());
    }
}

#[test]
fn damage_longer_than_a_window_is_found() {
    let records = records();
    let mut logs = Logs::new(&records);
    let start = SUPERBLOCK_BYTES as u64;
    let file = logs.logs[1].file;
    // 1200 empty frames of a block each; 800 in the middle are lost.
    let mut writer = LogWriter::new(file, UUID, 1, Position::default(), start).unwrap();
    (0..1200).for_each(|_| logs.commit(&mut writer));
    let lost = start + 200 * FRAME_ALIGNMENT as u64;
    logs.zero(1, lost, 800 * FRAME_ALIGNMENT);
    let (report, found) = logs.found();
    let [(FindingKind::LogDamaged, text)] = &found[..] else { panic!("{found:?}") };
    let behind = start + 1000 * FRAME_ALIGNMENT as u64;
    let words = format!(
        "error: reactor 1, log byte {lost}: log.1: frame 201 is not readable, but frame 1001 lies at \
         byte {behind}"
    );
    assert_eq!(*text, words);
    assert_eq!((report.logs[1].end, report.state.is_none()), (None, true));
}

#[test]
fn a_record_that_is_missing_or_repeated_is_found() {
    let all = records();
    // The first record of reactor 0 makes the root.
    let mut records = all.clone();
    records[0].remove(0);
    let mut logs = Logs::new(&records);
    let (report, found) = logs.found();
    let [(FindingKind::Record, text)] = &found[..] else { panic!("{found:?}") };
    assert!(text.contains("log.0: a record of frame 1 cannot be applied"), "{text}");
    assert!(text.contains("contradicts the log before it"), "{text}");
    assert!(report.state.is_none());
    let mut records = all.clone();
    let last = records[1].last().unwrap().clone();
    records[1].push(last);
    let (_, found) = Logs::new(&records).found();
    assert!(matches!(&found[..], [(FindingKind::Record, _)]), "{found:?}");
    // One that nothing else in its log depends on: the other reactor's entry leads to what never was.
    let mut records = all;
    // Of a shard where no other directory was made, by a record of kind 20 that prepares it and one of
    // kind 22 that applies it, of one operation. Behind header and body, of 72 bytes, is the effect:
    // the inode, and as its kind at 24 that it is made. A file's record has its parent at 56.
    let word =
        |record: &[u8], at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
    let is_made = |record: &&Vec<u8>| record[4] == 20 && record[96] == 3;
    let made: Vec<(Inode, u64)> = records[1]
        .iter()
        .filter(is_made)
        .map(|record| (Inode(word(record, 72)), word(record, 8)))
        .collect();
    let alone = |(inode, _): &&(Inode, u64)| {
        made.iter().filter(|(other, _)| other.shard() == inode.shard()).count() == 1
    };
    let (inode, operation) = *made.iter().find(alone).unwrap();
    records[1].retain(|record| {
        let of_operation = matches!(record[4], 20 | 22) && word(record, 8) == operation;
        let of_file = record[4] == 1 && word(record, 56) == inode.0;
        !of_operation && !of_file
    });
    let (report, found) = Logs::new(&records).found();
    assert!(matches!(&found[..], [(FindingKind::EntryNumber, _)]), "{found:?}");
    assert!(
        found[0].1.contains("reactor 0, shard 0, inode 0x1 /: its entry directory"),
        "{found:?}"
    );
    assert_eq!(report.state.unwrap().directories, 20);
}

#[test]
fn superblocks_are_judged() {
    let records = records();
    let mut logs = Logs::new(&records);
    logs.change(1, 200, |bytes| bytes[0] ^= 1);
    let (report, found) = logs.found();
    assert!(matches!(&found[..], [(FindingKind::Superblock, _)]), "{found:?}");
    assert!(found[0].1.contains("log.1: its superblock is damaged"), "{found:?}");
    assert!(report.logs[1].superblock.is_none() && report.logs[1].end.is_none());
    assert!(report.logs[0].records > 0 && report.state.is_none());
    let mut logs = Logs::new(&records);
    logs.reformat(1, |superblock| superblock.stripe_blocks = U32::ZERO);
    assert!(matches!(&logs.found().1[..], [(FindingKind::Superblock, _)]));

    let mut logs = Logs::new(&records);
    logs.reformat(1, |superblock| superblock.stripe_blocks = U32::new(7));
    let (report, found) = logs.found();
    assert!(matches!(&found[..], [(FindingKind::LogsDiffer, _)]), "{found:?}");
    assert!(report.state.is_none());

    for (change, words) in [
        (
            Box::new(|s: &mut Superblock| s.version = U32::new(2)) as Box<dyn Fn(&mut Superblock)>,
            "version 2",
        ),
        (Box::new(|s: &mut Superblock| s.features_incompatible = U64::new(4)), "features 0x4"),
        (Box::new(|s: &mut Superblock| s.magic = *b"SOMEFILE"), "not a Gannet log"),
        (
            Box::new(|s: &mut Superblock| s.file_system_uuid = [1; 16]),
            "log.0 and log.1 are logs of",
        ),
        (Box::new(|s: &mut Superblock| s.reactor = U16::ZERO), "both the log of reactor 0"),
    ] {
        let mut logs = Logs::new(&records);
        logs.reformat(1, change);
        let refused = logs.refused();
        assert!(refused.contains(words), "{words}: {refused}");
    }
}

#[test]
fn the_logs_of_all_reactors_are_wanted_once() {
    let records = records();
    let mut logs = Logs::new(&records);
    let second = logs.logs.remove(0);
    assert!(logs.refused().contains("the log of reactor 0 is not among those named"));
    logs.logs.push(second);
    let (report, found) = logs.found();
    let kinds: Vec<FindingKind> = found.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [FindingKind::LogsDiffer; 2], "they are in the wrong order: {found:?}");
    assert!(report.state.is_some());
    let options = CheckOptions { kept_max: 5, in_order: false };
    let report = check_logs(&mut logs.disk, &logs.logs, options).unwrap();
    assert_eq!(report.findings.iter().count(), 0);
    logs.logs.clear();
    assert!(logs.refused().contains("0 logs"));
    let file = logs.disk.create(0, 256 << 20).unwrap();
    logs.logs.push(LogFile { file, name: "empty".to_owned() });
    assert!(logs.refused().contains("empty: it is not a Gannet log"));
}

/// A record of the log: its header, of which only kind and operation count here, and the rest.
fn record_of(kind: u16, rest: &[u8]) -> Vec<u8> {
    let mut record = vec![0; 56];
    record[..4].copy_from_slice(&(56 + rest.len() as u32).to_le_bytes());
    record[4..6].copy_from_slice(&kind.to_le_bytes());
    record[6..8].copy_from_slice(&u16::MAX.to_le_bytes());
    record.extend_from_slice(rest);
    record
}

/// A write of the block 7 of store 1 to the beginning of a file.
fn write_of(inode: Inode) -> Vec<u8> {
    let mut rest = Vec::new();
    for word in [inode.0, 4096] {
        rest.extend_from_slice(&word.to_le_bytes());
    }
    rest.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    for word in [0, 1, 4096_u64] {
        rest.extend_from_slice(&word.to_le_bytes());
    }
    rest.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    rest.extend_from_slice(&7_u64.to_le_bytes());
    rest.extend_from_slice(&[1, 0, 0, 0, 1, 0, 0, 0]);
    record_of(10, &rest)
}

/// Starts both reactors of a file system and returns what keeps each from serving, if something does.
fn start(logs: Logs) -> Vec<Option<String>> {
    let directory = tempfile::tempdir().unwrap();
    let address = |reactor: usize| {
        gannet_fabric::Address::shm(directory.path().join(format!("meta.{reactor}"))).unwrap()
    };
    let addresses: Vec<_> = (0..REACTORS).map(|reactor| vec![address(reactor)]).collect();
    // Each reactor has a disk of its own.
    let links = crate::peers::link(REACTORS).unwrap();
    let mut servers = Vec::new();
    for (reactor, link) in links.into_iter().enumerate() {
        let source = logs.logs[reactor].file;
        let mut image = vec![0; 4 << 20];
        logs.disk.resident(source, 0, image.len()).unwrap().copy_out(0, &mut image);
        let mut disk = RamDisk::new(64).unwrap();
        let file = disk.create(4 << 20, 256 << 20).unwrap();
        disk.resident(file, 0, image.len()).unwrap().copy_in(0, &image);
        let fabric = gannet_fabric::shm::ShmFabric::new(Default::default()).unwrap();
        let config = MetaServerConfig::new(reactor as u16, addresses.clone(), [1; 32]);
        let name = format!("log.{reactor}");
        servers.push(crate::MetaServer::new(config, fabric, disk, file, name, link).unwrap());
    }
    for _ in 0..1000 {
        for server in &mut servers {
            let time = gannet_runtime::time::Time::monotonic();
            let wall = gannet_runtime::time::WallTime::realtime();
            server.poll(gannet_runtime::poller::Now { time, wall });
        }
    }
    let outcome = |server: &crate::MetaServer<_, _>| {
        let failure = server.failure().map(str::to_owned);
        assert_ne!(failure.is_some(), server.is_serving());
        failure
    };
    servers.iter().map(outcome).collect()
}

#[test]
fn a_start_refuses_files_that_share_a_block_and_names_them() {
    let records = records();
    assert_eq!(start(Logs::new(&records)), [None, None]);
    let word =
        |record: &[u8], at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap());
    let files: Vec<Inode> = records[1]
        .iter()
        .filter(|record| record[4] == 1)
        .map(|record| Inode(word(record, 64)))
        .collect();
    let (one, other) = (files[0], files[1]);
    // The first zone of the store belongs to the first file's shard.
    let mut zone = vec![1, 0, 0, 0, 0, 0, 0, 0];
    zone.extend_from_slice(&one.shard().unwrap().0.to_le_bytes());
    zone.extend_from_slice(&[0; 6]);
    let mut bad = records.clone();
    bad[0].push(record_of(14, &zone));
    bad[1].push(write_of(one));
    assert_eq!(start(Logs::new(&bad)), [None, None], "one file maps the block");
    bad[1].push(write_of(other));
    let mut logs = Logs::new(&bad);
    let (_, found) = logs.found();
    assert!(!found.is_empty());
    let refused = start(logs);
    assert_eq!(refused[0], None, "reactor 0 has none of the files");
    let text = refused[1].as_ref().unwrap();
    for inode in [one, other] {
        assert!(text.contains(&format!("inode {:#x} (\"file\")", inode.0)), "{text}");
    }
    assert!(text.contains("log.1") && text.contains("gannet fsck"), "{text}");
}
