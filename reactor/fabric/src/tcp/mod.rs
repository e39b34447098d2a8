//! The tcp provider: any network, over stream sockets that io_uring drives from the reactor's loop.
//!
//! One-sided operations are done by the providers of the two ends: a write travels with its key and
//! range, and the provider at the memory's end checks them and lets the kernel put the payload
//! straight to its place; a read is answered by that provider, straight from memory. So the end that
//! registered memory has to be polled for its peer's transfers to make progress.
//!
//! What is posted on a connection is collected in frames ([`wire`]) and leaves with
//! [`Fabric::flush`], all of it in one request to the kernel, payload straight from where it lies
//! ([`outgoing`]). A frame tells first where all of its payload belongs, so that the receiver takes it
//! from the socket to its places with one request, too ([`incoming`]). A poll in which nothing
//! happened reads a few words of memory and makes no system call, but for busy connections: where the
//! last two arrivals were at most 100 us apart, up to four sockets are asked at each poll without the
//! ring, for as long. That saves the sender a wake-up and the receiver a request: about a seventh of
//! a small message's round trip.
//!
//! The acknowledgement of a write says that it is placed. Acknowledgements and credits travel with
//! whatever is sent anyway, or by themselves when many are owed, when a little time has passed
//! without anything to send, and before the reactor sleeps.
//!
//! **Revocation.** A key is checked when the frame that uses it has arrived. Taking it back is told
//! only when nothing that the kernel was asked for can touch its memory: answers to reads that are
//! being sent are waited for, and a write that is being received ends the connection. The end of a
//! connection takes everything back from the kernel before it is told.
//!
//! **Order.** Everything takes effect in the order of posting. An answer to a read leaves later than
//! the read is handled, so a write behind the read into the same bytes is not sent before the answer
//! is there, nor is anything behind it ([`held`]). Whatever arrives is taken at once, so two ends that
//! have much to say to each other never wait for each other.
//!
//! **Ends.** A connection ends in order with a goodbye behind everything that was posted. Who hears it
//! still sends what it owes: acknowledgements and answers. Memory is given back within
//! [`TcpOptions::linger`]; messages that the peer takes slowly are delivered without the connection
//! ([`leaving`]).
//!
//! **Dead peers.** The kernel probes idle connections and gives up those whose peer acknowledges
//! nothing for [`TcpOptions::peer_timeout`]; an idle fabric makes no wake-ups of its own. A stream
//! that ends without a goodbye is a lost peer.

mod connection;
mod ending;
mod fabric;
mod held;
mod incoming;
mod leaving;
mod listeners;
mod memory;
mod options;
mod outgoing;
mod regions;
mod ring;
mod setup;
mod socket;
mod transfers;
mod wire;

#[cfg(test)]
mod tests;

pub use self::fabric::TcpFabric;
pub use self::options::TcpOptions;
