//! What makes the figures of a run doubtful, in words.

use crate::report::Build;

/// A thread that never waits and yet ran less than this was disturbed.
const CPU_SHARE_MIN: f64 = 0.95;

/// Doubts about an unoptimized build.
pub(crate) fn build(build: &Build) -> Option<String> {
    build.debug.then(|| "built without optimization: measure with --release".to_owned())
}

/// Doubts about a client that was given a network's address and may use shared memory, too.
pub(crate) fn fabric(server: Option<&str>, fabric: &str) -> Option<String> {
    let doubtful = server.is_some_and(|it| it.starts_with("tcp:")) && fabric.contains("shm");
    doubtful.then(|| {
        "where the servers offer shared memory, it may have been used rather than TCP: give \
         --fabric tcp"
            .to_owned()
    })
}

/// Doubts about what a thread that never waits did while it had its core only in part.
pub(crate) fn core(what: &str, share: f64) -> Option<String> {
    let percent = share * 100.0;
    (share < CPU_SHARE_MIN)
        .then(|| format!("{what}: its thread had its core {percent:.0} % of the time"))
}
