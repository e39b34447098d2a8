//! Trees of files that go from both hosts at once into a cluster, and out at the other host.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gannet_integration::cluster::Cluster;
use gannet_integration::process::{Finished, run};
use gannet_integration::tree::{self, Content};
use serde_json::Value;

use crate::fabrics;
use crate::site::{HOSTS, Site};

const BLOCK_BYTES: u64 = 4096;

/// What was exchanged, and how long it took.
#[derive(Clone, Copy, Debug)]
pub struct Exchanged {
    /// What one of the trees has.
    pub content: Content,
    /// How long both hosts took to put theirs.
    pub put: Duration,
    /// How long both took to get the other's.
    pub got: Duration,
}

/// One host's tree.
struct Tree {
    source: PathBuf,
    copy: PathBuf,
}

/// Lets both hosts put trees with files of these sizes and as many small ones, all at once, and
/// then get each other's; compares them byte for byte.
///
/// # Panics
/// If a command fails, something differs, a data server had nothing to do, or something went by
/// another fabric.
#[must_use]
pub fn exchange(site: &Site, cluster: &Cluster, sizes: &[u64], small_files: u64) -> Exchanged {
    let make = |host| {
        let source = cluster.directory().join(format!("source-{host}"));
        tree::make_with(&source, sizes, small_files + host as u64);
        Tree { source, copy: cluster.directory().join(format!("copy-{host}")) }
    };
    let trees: Vec<Tree> = (0..HOSTS).map(make).collect();
    let begun = Instant::now();
    at_once(site, |host| {
        let source = text(&trees[host].source);
        vec!["put".to_owned(), "-T".to_owned(), source, format!("/tree-{host}")]
    });
    let put = begun.elapsed();
    at_once(site, |host| {
        let other = (host + 1) % HOSTS;
        let copy = text(&trees[other].copy);
        vec!["get".to_owned(), "-T".to_owned(), format!("/tree-{other}"), copy]
    });
    let got = begun.elapsed() - put;
    let compare = |tree: &Tree| tree::compare(&tree.source, &tree.copy, BLOCK_BYTES);
    let contents: Vec<Content> = trees.iter().map(compare).collect();
    for content in &contents {
        assert!(content.files > small_files && content.bytes > sizes.iter().sum());
    }
    check_ways(site, cluster, contents.iter().map(|content| 2 * content.bytes).sum());
    Exchanged { content: contents[0], put, got }
}

/// Runs a command on each host at the same time.
fn at_once(site: &Site, arguments: impl Fn(usize) -> Vec<String>) {
    let finished: Vec<Finished> = std::thread::scope(|scope| {
        let begin = |host| {
            let arguments = arguments(host);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let command = site.command(host, &arguments);
            scope.spawn(move || run(command))
        };
        let running: Vec<_> = (0..HOSTS).map(begin).collect();
        running.into_iter().map(|command| command.join().expect("it ends")).collect()
    });
    for command in finished {
        let _said = command.success();
    }
}

/// Everything went over TCP, and all payload passed the data servers, each of which had some, and none the metadata server.
fn check_ways(site: &Site, cluster: &Cluster, payload_bytes: u64) {
    let stats = cluster.stats();
    fabrics::check(site, &stats);
    assert_eq!(stats.metaserver("payload_bytes"), 0, "through the metadata server");
    let moved = |target: &Value| -> u64 {
        let ways = ["bytes_direct", "bytes_copied", "bytes_bounced", "bytes_ram"];
        ways.iter().map(|way| target[way].as_u64().expect("a number")).sum()
    };
    let targets = stats.0["targets"].as_array().expect("a list");
    let moved: Vec<u64> = targets.iter().map(moved).collect();
    assert!(moved.iter().all(|bytes| *bytes > 0), "a data server had nothing to do: {moved:?}");
    assert!(moved.iter().sum::<u64>() >= payload_bytes, "{moved:?} of {payload_bytes} bytes");
}

fn text(path: &Path) -> String {
    path.to_str().expect("the build directory's path is text").to_owned()
}
