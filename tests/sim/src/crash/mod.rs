//! A crash at every moment at which a disk does something.
//!
//! A [`scene::Scene`] is a cluster and a few hosts, each with a list of [`script::Step`]s that it does
//! one after the other on names of its own, in directories that they share and that lie on different
//! shards. The scene is played once to count what happens on the disks; then it is played again up to
//! each of these events, right before or right behind it servers crash ([`play::Crash`]), start again,
//! and everything is judged:
//!
//! - the logs as the crash left them pass the check of `gannet fsck`;
//! - a host that lives on notices nothing: no step fails, each takes effect once, and at the end
//!   everything is as its script says;
//! - when the hosts die too, everything that was acknowledged is there, and the one step of each host
//!   that was not is there as a whole or not at all, data included ([`judge`]);
//! - at the end, after a further loss of power, the logs pass the check without any finding.

pub mod auditor;
pub mod judge;
pub mod play;
pub mod player;
pub mod scene;
pub mod script;
pub mod tree;
