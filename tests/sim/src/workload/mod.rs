//! What hosts do in a simulated cluster, and whether what they got is right.

pub mod checker;
pub mod content;
pub mod history;
pub mod host;
pub mod names;
