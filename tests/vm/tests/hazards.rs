//! What can go wrong when a data server reaches a host's memory, caused on a real device: the rules
//! are H2, H3, H4, H8 and H9 of the design's list of hazards.

#[path = "hazards/broken.rs"]
mod broken;
#[path = "hazards/keys.rs"]
mod keys;
#[path = "hazards/killed.rs"]
mod killed;
#[path = "hazards/requests.rs"]
mod requests;
#[path = "hazards/stalls.rs"]
mod stalls;
