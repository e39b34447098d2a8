//! A process of [`gannet_integration::worker`], for tests that kill it.
//!
//! `gannet_worker ADDRESS REACTORS DIRECTORY WORKER`; it ends with its parent.

#![forbid(unsafe_code)]

use std::path::PathBuf;

use gannet_integration::worker::{Workplace, work};
use rustix::process::{Signal, set_parent_process_death_signal};

fn main() {
    // A test that is killed leaves nothing behind.
    set_parent_process_death_signal(Some(Signal::KILL)).expect("the kernel knows the call");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [metaserver, reactors, directory, worker] = &arguments[..] else {
        panic!("usage: gannet_worker ADDRESS REACTORS DIRECTORY WORKER, not {arguments:?}");
    };
    work(&Workplace {
        metaserver: metaserver.parse().expect("an address"),
        reactors: reactors.parse().expect("a number"),
        directory: PathBuf::from(directory),
        worker: worker.parse().expect("a number"),
    });
}
