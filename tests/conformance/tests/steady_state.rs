//! No allocation on the data path after start: host, metadata server and data server in one thread,
//! over shm, counted.

#![allow(clippy::unwrap_used)]

use gannet_client::{Completion, Operation, Outcome};
use gannet_conformance::cluster::{Cluster, Shape};
use gannet_fabric::arena::HostBuffer;
use gannet_proto::Handle;
use gannet_runtime::counting_allocator::{CountingAllocator, allocations_on_this_thread};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const FILE_BYTES: u32 = 256 << 10;
const BLOCK: u32 = 4096;

/// Reads (or writes) every block of the file in an order that jumps about, four at a time.
fn pass(cluster: &mut Cluster, file: Handle, write: bool, buffers: &mut Vec<HostBuffer>) {
    let blocks = u64::from(FILE_BYTES / BLOCK);
    let mut requests = [None; 4];
    for start in (0..blocks).step_by(requests.len()) {
        for (index, request) in requests.iter_mut().enumerate() {
            let offset = (start + index as u64) * 37 % blocks * u64::from(BLOCK);
            let (buffer, buffer_offset, length) = (buffers.pop().unwrap(), 0, BLOCK);
            let operation = if write {
                Operation::Write { file, offset, length, buffer, buffer_offset, append: false }
            } else {
                Operation::Read { file, offset, length, buffer, buffer_offset }
            };
            *request = Some(cluster.submit(operation));
        }
        for request in requests.iter_mut().filter_map(Option::take) {
            let mut done: Option<Completion> = None;
            cluster.until("a request completes", |cluster| {
                done = cluster.completed(request);
                done.is_some()
            });
            let done = done.unwrap();
            match done.result.unwrap() {
                Outcome::Read { bytes, .. } | Outcome::Write { bytes, .. } => {
                    assert_eq!(bytes, BLOCK);
                }
                other => panic!("{other:?}"),
            }
            buffers.push(done.buffer.unwrap());
        }
    }
}

#[test]
fn reads_and_writes_allocate_nothing_once_everything_is_warm() {
    allocate_nothing(true);
}

#[test]
fn nor_do_they_where_one_sided_transfers_move_the_bytes() {
    allocate_nothing(false);
}

fn allocate_nothing(maps: bool) {
    let mut cluster = Cluster::new(Shape { reactors: 1, targets: 2, maps, ..Shape::default() });
    let file = cluster.make_file("file", FILE_BYTES, 1);
    cluster.pause_notes();
    let mut buffers: Vec<HostBuffer> = (0..8).map(|_| cluster.arena.take().unwrap()).collect();
    for write in [true, false, true, false, true, false] {
        pass(&mut cluster, file, write, &mut buffers);
    }
    let before = allocations_on_this_thread();
    drop(std::hint::black_box(Box::new(1)));
    assert!(allocations_on_this_thread() > before, "allocations are counted");
    for (write, what) in [(false, "reads"), (true, "writes")] {
        let before = allocations_on_this_thread();
        for _ in 0..10 {
            pass(&mut cluster, file, write, &mut buffers);
        }
        let count = allocations_on_this_thread() - before;
        assert_eq!(count, 0, "allocations of 640 {what}");
    }
}
