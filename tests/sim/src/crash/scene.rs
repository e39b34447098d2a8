//! Clusters and scripts in which crashes are tried.

use std::time::Duration;

use super::script::Step;
use crate::cluster::{Defect, Shape};
use crate::disk::DiskOptions;
use crate::network::Model;
use crate::random::Chance;

/// A cluster and what its hosts do. Host 0 builds the stage, then the others play at the same time,
/// each on names that begin with its number.
#[derive(Clone, Debug)]
pub struct Scene {
    /// For messages.
    pub name: &'static str,
    /// What chance is drawn from.
    pub seed: u64,
    /// The cluster.
    pub shape: Shape,
    /// What the stage is built by.
    pub stage: Vec<Step>,
    /// What the hosts do, from host 1 on.
    pub hosts: Vec<Vec<Step>>,
}

/// Directories of different shards, of both reactors.
const STAGE: [Step; 3] = [Step::Mkdir("a"), Step::Mkdir("b"), Step::Mkdir("c")];

const fn write(file: &'static str, offset: u32, len_bytes: u32) -> Step {
    Step::Write { file, offset, len_bytes }
}

const fn append(file: &'static str, len_bytes: u32) -> Step {
    Step::Append { file, len_bytes }
}

const fn truncate(file: &'static str, size: u32) -> Step {
    Step::Truncate { file, size }
}

fn shape(model: Model, defect: Option<Defect>) -> Shape {
    let disk = DiskOptions { split: Chance::percent(25), ..DiskOptions::calm() };
    Shape {
        lease: Duration::from_secs(3),
        store_blocks: 1 << 10,
        stripe_blocks: 1,
        target_disk: disk.clone(),
        metaserver_disk: disk,
        defect,
        ..Shape::calm(model)
    }
}

/// Names move between shards: to free names, over files and directories, and in exchange.
#[must_use]
pub fn renames(defect: Option<Defect>) -> Scene {
    use Step::{Create, Exchange, Mkdir, Rename, Rmdir, Unlink};
    let one = vec![
        Create("a/1f"),
        write("a/1f", 0, 5000),
        Rename("a/1f", "b/1f"),
        Create("a/1g"),
        Rename("a/1g", "b/1f"),
        Mkdir("a/1d"),
        Create("a/1d/x"),
        Mkdir("b/1e"),
        Rename("a/1d", "b/1e"),
        Create("c/1h"),
        Exchange("c/1h", "b/1e"),
        Exchange("c/1h/x", "b/1e"),
        Rename("c/1h", "a/1d"),
    ];
    let two = vec![
        Mkdir("c/2d"),
        Mkdir("a/2e"),
        Create("c/2d/y"),
        Exchange("c/2d", "a/2e"),
        Create("b/2f"),
        write("b/2f", 100, 300),
        Rename("b/2f", "c/2d/z"),
        Rename("c/2d", "b/2d"),
        Rename("a/2e", "c/2e"),
        Mkdir("2r"),
        Rename("2r", "c/2r"),
        Unlink("b/2d/z"),
        Rmdir("b/2d"),
    ];
    let (name, seed) = ("renames", 1);
    let shape = shape(Model::Shm, defect);
    Scene { name, seed, shape, stage: STAGE.to_vec(), hosts: vec![one, two] }
}

/// Files with several names, over several shards.
#[must_use]
pub fn links(defect: Option<Defect>) -> Scene {
    use Step::{Create, Exchange, Link, Read, Rename, Unlink};
    let one = vec![
        Create("a/1f"),
        write("a/1f", 0, 8200),
        Link("a/1f", "b/1g"),
        Link("a/1f", "c/1h"),
        Unlink("a/1f"),
        Create("a/1k"),
        Rename("a/1k", "b/1g"),
        Rename("c/1h", "b/1g"),
        Link("b/1g", "a/1m"),
        Rename("a/1m", "b/1g"),
        Unlink("a/1m"),
        Unlink("b/1g"),
    ];
    let two = vec![
        Create("c/2f"),
        Link("c/2f", "b/2f"),
        append("b/2f", 5000),
        Link("b/2f", "2f"),
        Create("a/2g"),
        write("a/2g", 10, 20),
        Exchange("a/2g", "2f"),
        Rename("a/2g", "c/2f"),
        Unlink("a/2g"),
        append("c/2f", 100),
        Unlink("c/2f"),
        Read("b/2f"),
        Rename("2f", "b/2f"),
    ];
    let (name, seed) = ("links", 2);
    let shape = shape(Model::Verbs, defect);
    Scene { name, seed, shape, stage: STAGE.to_vec(), hosts: vec![one, two] }
}

/// Files that are open and lose their names: by removal, in steps and over shards, and under what is
/// moved over them.
#[must_use]
pub fn opens(defect: Option<Defect>) -> Scene {
    use Step::{Close, Create, Exchange, Link, Open, Read, Rename, Unlink};
    let one = vec![
        Create("a/1f"),
        write("a/1f", 0, 6000),
        Open("a/1f", 1),
        Unlink("a/1f"),
        write("#1", 5000, 3000),
        Create("c/1g"),
        Rename("c/1g", "b/1g"),
        Open("b/1g", 2),
        append("#2", 300),
        Create("a/1h"),
        Exchange("a/1h", "b/1g"),
        Read("#1"),
        append("#2", 300),
        Read("#2"),
        Close(1),
        Unlink("a/1h"),
        append("#2", 10),
        Read("#2"),
        Close(2),
    ];
    let two = vec![
        Create("b/2f"),
        Open("b/2f", 1),
        append("#1", 5000),
        Link("b/2f", "a/2g"),
        Unlink("b/2f"),
        Unlink("a/2g"),
        write("#1", 4000, 300),
        Read("#1"),
        truncate("#1", 100),
        Create("c/2h"),
        Open("c/2h", 2),
        Create("a/2i"),
        Rename("a/2i", "c/2h"),
        write("#2", 0, 9000),
        Read("#1"),
        Read("#2"),
        Close(2),
        Close(1),
    ];
    let (name, seed) = ("opens", 4);
    let shape = shape(Model::Verbs, defect);
    Scene { name, seed, shape, stage: STAGE.to_vec(), hosts: vec![one, two] }
}

/// Writes over both data servers, with edges inside blocks, over old data and holes, at the end, and
/// cuts.
#[must_use]
pub fn writes(defect: Option<Defect>) -> Scene {
    use Step::{Create, Read};
    let one = vec![
        Create("a/1f"),
        write("a/1f", 0, 20_000),
        write("a/1f", 4090, 5000),
        Read("a/1f"),
        append("a/1f", 7000),
        truncate("a/1f", 9001),
        write("a/1f", 30_000, 100),
        Read("a/1f"),
        write("a/1f", 0, 40_000),
        append("a/1f", 1),
        truncate("a/1f", 0),
        write("a/1f", 100, 50),
        Read("a/1f"),
    ];
    let two = vec![
        Create("b/2f"),
        append("b/2f", 3000),
        append("b/2f", 3000),
        append("b/2f", 10_000),
        write("b/2f", 2999, 2),
        truncate("b/2f", 4096),
        append("b/2f", 5000),
        Read("b/2f"),
        write("b/2f", 0, 16_384),
        write("b/2f", 16_384, 8192),
        Read("b/2f"),
    ];
    let (name, seed) = ("writes", 3);
    let shape = shape(Model::Verbs, defect);
    Scene { name, seed, shape, stage: STAGE.to_vec(), hosts: vec![one, two] }
}
