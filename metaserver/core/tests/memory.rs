//! What a file costs in memory, as the system counts it.
//!
//! `GANNET_FILES=5000000 cargo test --release -p gannet-meta-core --test memory -- --nocapture`
//! prints it for as many files.

#[allow(dead_code)]
mod support;

use std::fs;

use gannet_proto::Inode;
use gannet_proto::operations::name_operation;
use support::bench;

/// Files per directory.
const DIRECTORY_FILES: u32 = 10_000;
/// Most that a file with one extent and a name of 16 bytes may take.
const BYTES_PER_FILE_MAX: u64 = 250;
const PAGE_BYTES: u64 = 4096;

fn resident_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").expect("procfs is mounted");
    let pages = text.split_whitespace().nth(1).expect("the second field");
    pages.parse::<u64>().expect("a number") * PAGE_BYTES
}

#[test]
fn a_file_with_one_extent_takes_little() {
    let files: u32 = match std::env::var("GANNET_FILES") {
        Ok(text) => text.parse().expect("GANNET_FILES is a number"),
        // Just beyond where a table of inodes has doubled: the worst for the share of each.
        Err(_) => 120_000,
    };
    let mut bench = bench();
    bench.write(0, 0, 1);
    let before = resident_bytes();
    let mut directory = Inode::ROOT;
    for number in 0..files {
        if number % DIRECTORY_FILES == 0 {
            let name = format!("directory {number}");
            directory = bench.make(name_operation::MKDIR, Inode::ROOT, name.as_bytes());
        }
        // In no order, as users name files.
        let name = format!("{:016x}", u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        bench.file = bench.make(name_operation::CREATE, directory, name.as_bytes());
        bench.write(1, 0, 1);
    }
    let bytes = (resident_bytes() - before) / u64::from(files);
    println!("{files} files with one extent and names of 16 bytes: {bytes} bytes each");
    assert!(bytes <= BYTES_PER_FILE_MAX, "{bytes} bytes");
    assert_eq!(bench.core.space().inodes, u64::from(files + files.div_ceil(DIRECTORY_FILES)) + 2);
    bench.core.check_invariants().expect("the state is sound");
}
