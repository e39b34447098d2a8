//! The Wireshark dissector of `tools/wireshark` reads what Gannet says over TCP.
//!
//! tshark reads captures that are made of the bytes of the real encoders, and of recorded sessions of
//! the real fabric; its reading is compared with what was sent, field for field. The list of messages
//! comes from the protocol's source: a message, field, operation, flag or status that the dissector
//! does not know fails a test.

mod capture;
mod damage;
mod meanings;
mod messages;
mod reading;
mod recorded;
mod samples;
mod source;
mod stream;
