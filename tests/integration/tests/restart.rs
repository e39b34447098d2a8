//! A tree goes into a cluster of separate processes, all of them are stopped and started again, and
//! the tree comes out byte for byte; the payload took the way that it should, as the counters and
//! the kernel tell.

use std::path::Path;
use std::process::Command;

use gannet_client::Ownership;
use gannet_integration::cluster::{Cluster, ClusterOptions, Stats};
use gannet_integration::load::open;
use gannet_integration::process::run;
use gannet_integration::tree::{self, Content, SIZES};
use gannet_integration::{one_at_a_time, pattern, procfs};

const BLOCK_BYTES: u64 = 4096;
/// Room for the tree over two data servers.
const STORE_SIZE: &str = "1G";
/// What `/proc` shows for memory of hosts' buffers, and for the messages of a connection.
const ARENA: &str = "memfd:gannet-memory";
const CONNECTION: &str = "memfd:gannet-connection";

#[test]
fn a_tree_survives_a_restart_of_all_servers_byte_for_byte() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::new(ClusterOptions { store_size: STORE_SIZE, ..Default::default() });
    let (source, copy) = (cluster.directory().join("source"), cluster.directory().join("copy"));
    tree::make(&source);

    let put = cluster.run(&["put", "--json", "-T", text(&source), "/tree"]).json();
    let written = cluster.stats();
    let metaserver_io = procfs::io_bytes(cluster.metaserver_pid());
    cluster.stop();
    cluster.start();
    let get = cluster.run(&["get", "--json", "-T", "/tree", text(&copy)]).json();
    let read = cluster.stats();

    let content = tree::compare(&source, &copy, BLOCK_BYTES);
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference"]).args([&source, &copy]);
    assert_eq!(run(diff).success(), "", "diff -r finds nothing");
    for side in [&put, &get] {
        assert_eq!(side["files"], content.files);
        assert_eq!(side["bytes"], content.bytes);
        assert_eq!(side["failures"], 0);
    }
    assert!(content.files as usize > SIZES.len() && content.bytes > SIZES.iter().sum());
    let buffered: Vec<bool> = (0..2).map(|index| cluster.is_buffered(index)).collect();
    println!(
        "{} files, {} directories and {} bytes compared; stores through the page cache: {buffered:?}",
        content.files, content.directories, content.bytes
    );

    check_ways(&written, &content, buffered[0], "put");
    check_ways(&read, &content, buffered[0], "get");
    let payload = content.bytes;
    assert!(metaserver_io < payload / 16, "{metaserver_io} bytes through the metadata server");
    let metaserver_io = procfs::io_bytes(cluster.metaserver_pid());
    assert!(metaserver_io < payload / 16, "{metaserver_io} bytes through the metadata server");

    // Messages and log are all that the metadata server's file system needs.
    let used = cluster.used_bytes();
    let blocks = content.whole_block_bytes + BLOCK_BYTES * content.files;
    assert!(used >= content.bytes && used <= blocks, "{used} bytes in use, at most {blocks}");
    let _said = cluster.run(&["rm", "-r", "/tree"]).success();
    assert_eq!(cluster.used_bytes(), 0, "everything is free again");
    cluster.stop();
}

/// Checks by which ways the bytes of all files went, once.
fn check_ways(stats: &Stats, content: &Content, buffered: bool, what: &str) {
    assert_eq!(stats.metaserver("payload_bytes"), 0, "{what}");
    let messages = stats.metaserver("message_bytes_received");
    assert!(messages < content.bytes / 100, "{what}: {messages} bytes of messages");
    // Whole blocks go between store and host without a copy by a processor; where the store's file
    // system knows the page cache only they are counted apart.
    let (whole, none) = (content.whole_block_bytes, 0);
    let (direct, copied) = if buffered { (none, whole) } else { (whole, none) };
    assert_eq!(stats.targets("bytes_direct"), direct, "{what}: whole blocks, without a copy");
    assert_eq!(stats.targets("bytes_copied"), copied, "{what}: whole blocks, with a copy");
    // Tails alone go through a data server's buffer.
    assert_eq!(stats.targets("bytes_bounced"), content.tail_bytes(), "{what}: tails");
    assert_eq!(stats.targets("bytes_ram"), 0, "{what}: no store is in memory");
}

/// While a host reads and writes, the data servers map its memory and have their stores open; the
/// metadata server does neither.
#[test]
fn the_metadata_server_maps_no_arena_and_opens_no_store() {
    let _turn = one_at_a_time();
    let mut cluster = Cluster::new(ClusterOptions::default());
    let mut session = open(&cluster.address());
    let owner = Ownership { mode: 0o600, ..Ownership::default() };
    let file = session.create("/file", owner, true).expect("created").handle;
    let (mut bytes, mut again) = (vec![0; 16 << 20], vec![0; 16 << 20]);
    pattern::fill(&mut bytes, 1, 0);
    session.write_at(file, 0, &bytes).expect("written");
    assert_eq!(session.read_at(file, 0, &mut again).expect("read"), bytes.len());
    assert!(bytes == again, "what was written is read");

    let stores: Vec<_> = (0..2).map(|index| cluster.store_directory(index)).collect();
    let opens =
        |pid: u32, under: &Path| procfs::open_files(pid).iter().any(|path| path.starts_with(under));
    let maps = |pid: u32, name: &str| {
        let in_files = |path: &std::path::PathBuf| path.to_string_lossy().contains(name);
        procfs::mapped(pid).iter().any(|mapped| mapped.contains(name))
            || procfs::open_files(pid).iter().any(in_files)
    };
    for (index, store) in stores.iter().enumerate() {
        let pid = cluster.target_pid(index);
        assert!(maps(pid, ARENA), "data server {index} reaches the host's memory");
        assert!(opens(pid, store), "data server {index} has its store open");
    }
    let pid = cluster.metaserver_pid();
    assert!(maps(pid, CONNECTION), "the metadata server talks with the host");
    assert!(!maps(pid, ARENA), "{:?} {:?}", procfs::mapped(pid), procfs::open_files(pid));
    for store in &stores {
        assert!(!opens(pid, store), "{:?}", procfs::open_files(pid));
    }
    assert!(cluster.is_running());
    drop(session);
    cluster.stop();
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the build directory's path is text")
}
