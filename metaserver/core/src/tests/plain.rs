//! The plain way against the general one: two worlds get the same inputs, one of them with the plain
//! way closed, and have to stay the same.

use gannet_proto::operations::{
    InodeRequest, Read, RequestHeader, Window, inode_operation, io_flags,
};
use gannet_proto::slots::Slot;
use gannet_proto::{Handle, Inode, RegionId, ShardId, Status};
use zerocopy::little_endian::{U16, U32, U64};

use super::world::{ADDRESS, BLOCK, REGION, Random, SLOT_BYTES, SLOTS, World, pattern};
use crate::Core;

/// Slots that the requests use, and one that is out of bounds.
const SLOTS_USED: u64 = 6;

/// What is not durable, as text: slots, operations and where they are linked, grants, counters.
fn live_state(core: &Core) -> String {
    let operations = core.operations.iter().map(|(id, operation)| {
        let kind = std::mem::discriminant(&operation.request);
        let links = (operation.live, operation.start, operation.previous, operation.next);
        let grants = (operation.outstanding, operation.lost, operation.direct);
        let ends = (operation.failure, operation.silent, operation.severed, operation.cancelled);
        let what = (operation.inode, operation.offset, operation.length, operation.end_of_file);
        let held = (operation.dead, operation.holding, operation.pinned.len());
        let whose = (operation.session, operation.header, operation.state);
        format!("{id:?} {kind:?} {whose:?} {links:?} {grants:?} {ends:?} {what:?} {held:?}\n")
    });
    let files = core.nodes.values().filter_map(|node| node.file());
    let files: Vec<(u32, u32)> = files.map(|file| (file.live, file.holds)).collect();
    let targets = core.targets.iter().map(|(id, target)| {
        let grants: Vec<_> =
            core.operations.iter().flat_map(|(id, _)| target.grants_of(id)).collect();
        let (outstanding, lost, waiting) = (target.outstanding(), &target.lost, &target.waiting);
        format!("{id:?} {} {outstanding} {lost:?} {waiting:?} {grants:?}\n", target.up)
    });
    format!(
        "{}{}{files:?}\n{:?}\n{:?}\n{:?}",
        operations.collect::<String>(),
        targets.collect::<String>(),
        core.sessions,
        core.counters(),
        core.waiting,
    )
}

struct Twins {
    worlds: [World; 2],
    random: Random,
    files: Vec<Inode>,
    /// The last request of each slot.
    last: Vec<RequestHeader>,
}

impl Twins {
    fn new(seed: u64, grants: u32) -> Twins {
        let mut files = Vec::new();
        let worlds = [false, true].map(|closed| {
            let mut world = World::new(1, 2, 4096);
            world.cores[0].plain_way.closed = closed;
            files = ["whole", "scattered", "short"]
                .map(|name| world.create(Inode::ROOT, name).unwrap())
                .to_vec();
            world.write(files[0], 0, &pattern(seed, 24 * BLOCK + 77), 0).unwrap();
            for block in [9, 3, 5, 4, 0, 12] {
                world.write(files[1], block * BLOCK as u64, &pattern(block, BLOCK), 0).unwrap();
            }
            world.write(files[2], 0, &pattern(seed, 100), 0).unwrap();
            world.cores[0].config.grants_max = grants;
            world.cores[0].parts_max = 8;
            world.answers.clear();
            world
        });
        let last = vec![RequestHeader::default(); SLOTS + 1];
        Twins { worlds, random: Random(seed), files, last }
    }

    fn both(&mut self, step: impl Fn(&mut World)) {
        self.worlds.iter_mut().for_each(step);
    }

    /// The header of a request: mostly the next of a slot, else one that is somehow out of order.
    fn header(&mut self, inode: Inode) -> RequestHeader {
        let shard = inode.shard().unwrap_or(ShardId(0));
        let slot = self.random.below(SLOTS_USED) as u16;
        let [(sequence, is_busy), twin] = self.worlds.each_mut().map(|world| {
            let session = world.cores[0].sessions.find(world.indexes[0]).unwrap();
            match session.slot(shard, slot).slot {
                Slot::Fresh => (0, false),
                Slot::Busy { sequence, .. } => (sequence, true),
                Slot::Delegated { sequence, .. } | Slot::Answered { sequence, .. } => {
                    (sequence, false)
                }
            }
        });
        assert_eq!((sequence, is_busy), twin);
        let last = self.last[usize::from(slot)];
        let next = RequestHeader {
            shard: U16::new(shard.0),
            slot: U16::new(slot),
            attempt: U32::new(1),
            sequence: U64::new(sequence + 1),
        };
        let header = match self.random.below(40) {
            // A repetition, or the next attempt, of the last one.
            what if last.sequence.get() != 0 && (what < 3 || is_busy) => {
                let attempt = last.attempt.get() + u32::from(what % 3 == 1);
                RequestHeader { attempt: U32::new(attempt), ..last }
            }
            3 => return RequestHeader { sequence: U64::new(sequence + 2), ..next },
            4 => return RequestHeader { slot: U16::new(SLOTS as u16), ..next },
            5 => return RequestHeader { shard: U16::new((shard.0 + 1) % 64), ..next },
            _ => next,
        };
        self.last[usize::from(slot)] = header;
        header
    }

    fn handle(&mut self) -> Handle {
        let inode = match self.random.below(40) {
            0 => Inode::ROOT,
            1 => Inode::new(ShardId(0), 4_000),
            2 => Inode(self.files[0].0 | 77 << 48),
            place => self.files[place as usize % self.files.len()],
        };
        let mut handle = Handle::new(inode);
        match self.random.below(60) {
            0 => handle.file_system = U32::new(1),
            1 => handle.generation = U32::new(1),
            _ => {}
        }
        handle
    }

    fn read(&mut self) {
        let handle = self.handle();
        let header = self.header(handle.inode());
        let random = &mut self.random;
        let unit = if random.chance(60) { BLOCK as u64 } else { 1 };
        let offset = random.below(30 * BLOCK as u64 / unit) * unit;
        let length = (1 + random.below(4 * BLOCK as u64 / unit)) * unit;
        let offset = if random.chance(1) { u64::MAX - 1 } else { offset };
        let mut read = Read {
            header,
            handle,
            offset: U64::new(offset),
            length: U32::new(length as u32),
            buffers: U16::new(1),
            ..Read::default()
        };
        let start = u64::from(header.slot.get()) % SLOTS as u64 * SLOT_BYTES as u64;
        read.buffer.region = U32::new(if random.chance(2) { 99 } else { REGION });
        let beyond = if random.chance(2) { u64::MAX - 4 } else { 0 };
        read.buffer.offset = U64::new(start.max(beyond));
        let mut flags = 0;
        if random.chance(20) {
            flags |= io_flags::COMPLETE_BY_METASERVER;
        }
        let mut windows = Vec::new();
        if random.chance(15) {
            flags |= io_flags::WINDOWS;
            let named = 1 + random.below(2) as usize;
            windows.extend(self.worlds[0].servers[..named].iter().map(|server| Window {
                target: U32::new(server.id.0),
                key: U32::new(9),
                epoch: U64::new(1),
                address: U64::new(ADDRESS + start),
            }));
        }
        read.flags = U16::new(flags);
        self.both(|world| {
            let (now, session) = (world.now(), world.indexes[0]);
            world.cores[0].read(now, session, &read, &windows, &mut world.sinks[0]);
            world.collect();
        });
    }

    fn stat(&mut self) {
        let handle = self.handle();
        let header = self.header(handle.inode());
        let operation = match self.random.below(20) {
            0 => 999,
            1..=3 => inode_operation::OPEN,
            4..=6 => inode_operation::FSYNC,
            _ => inode_operation::STAT,
        };
        let request = InodeRequest {
            header,
            handle,
            operation: U16::new(operation),
            ..InodeRequest::default()
        };
        self.both(|world| {
            let (now, session) = (world.now(), world.indexes[0]);
            world.cores[0].inode_request(now, session, &request, &mut world.sinks[0]);
            world.collect();
        });
    }

    fn change(&mut self) {
        let slot = SLOTS_USED as u16 + self.random.below(4) as u16;
        let file = self.files[self.random.below(3) as usize];
        let (offset, length) = (
            self.random.below(20 * BLOCK as u64),
            1 + self.random.below(3 * BLOCK as u64) as usize,
        );
        let (truncates, seed) = (self.random.chance(10), self.random.next());
        self.both(|world| {
            if truncates {
                let request = world.attributes_message(file, offset, slot);
                world.send_attributes(&request);
            } else {
                let request = world.write_message(file, offset, &pattern(seed, length), slot, 0);
                world.send_write(&request);
            }
        });
    }

    /// A data server ends a grant, well or not.
    fn end_grant(&mut self) {
        let pending = self.worlds[0].pending.len() as u64;
        if pending == 0 {
            return;
        }
        let place = self.random.below(pending) as usize;
        let status = match self.random.below(30) {
            0 => Some(Status::IO),
            1 => Some(Status::SESSION_GONE),
            _ => None,
        };
        self.both(|world| match status {
            Some(status) => {
                let pending = world.pending.remove(place);
                world.notice(&pending, status);
            }
            None => world.execute(place),
        });
    }

    /// Something that happens now and then.
    fn disturb(&mut self) {
        let server = self.random.below(2) as usize;
        let slot = self.random.below(SLOTS_USED) as usize;
        let last = self.last[slot];
        match self.random.below(8) {
            0 => self.both(|world| world.down(0, server)),
            1 | 2 => self.both(|world| world.up(0, server)),
            3 => self.both(|world| {
                world.cores[0].unregister(world.indexes[0], RegionId(REGION));
            }),
            4 | 5 => {
                let epoch = 1 + self.random.below(3);
                self.both(|world| world.register(world.servers[server].id, epoch));
            }
            6 => self.both(|world| world.send_cancel(&last)),
            _ => self.both(|world| {
                let now = world.now();
                world.cores[0].session_disconnected(now, world.indexes[0]);
                let opened = world.cores[0].session_open(now, world.session, world.instance);
                assert_eq!(opened, Ok((world.indexes[0], true)));
            }),
        }
    }

    fn compare(&mut self, step: u64) {
        let texts = self.worlds.each_mut().map(|world| {
            let answers = std::mem::take(&mut world.answers);
            format!("{answers:?}{:?}", world.pending)
        });
        assert_eq!(texts[0], texts[1], "step {step}");
        if step.is_multiple_of(20) {
            let [plain, general] = self.worlds.each_ref().map(|world| live_state(&world.cores[0]));
            assert!(plain == general, "step {step}\n{plain}\n\n{general}");
        }
        if step.is_multiple_of(500) {
            let [plain, general] = self.worlds.each_ref().map(|world| world.cores[0].dump());
            assert_eq!(plain, general, "step {step}");
            self.worlds[0].check();
        }
    }
}

#[test]
fn both_ways_do_the_same() {
    let mut went = [0; 3];
    for seed in 1..=40u64 {
        // With room for all, and with little.
        let mut twins = Twins::new(seed * 0x0123_4567_89ab, if seed % 3 == 0 { 5 } else { 1024 });
        for step in 1..=3_000 {
            twins.both(|world| world.now_ns += 5);
            match twins.random.below(100) {
                0..=39 => twins.read(),
                40..=54 => twins.stat(),
                55..=59 => twins.change(),
                60..=61 => twins.disturb(),
                _ => twins.end_grant(),
            }
            twins.compare(step);
        }
        assert_eq!(twins.worlds[1].cores[0].plain_way.went, [0; 3]);
        let of_seed = twins.worlds[0].cores[0].plain_way.went;
        went.iter_mut().zip(of_seed).for_each(|(sum, count)| *sum += count);
    }
    assert!(went.iter().all(|count| *count > 500), "not many went the plain way: {went:?}");
}
