//! Opens of the world's host, and what a metadata server's restart asks of it.

use gannet_proto::operations::{Attributes, DeclareOpen, InodeRequest};
use gannet_proto::{Handle, Inode, Status};
use zerocopy::little_endian::{U16, U32};

use super::World;

impl World {
    /// OPEN or CLOSE under a number of the host's.
    pub(in crate::tests) fn open_file(
        &mut self,
        inode: Inode,
        kind: u16,
        number: u32,
    ) -> Result<Attributes, Status> {
        let request = InodeRequest {
            header: self.header(inode.shard().unwrap(), 0),
            handle: Handle::new(inode),
            operation: U16::new(kind),
            identity: U16::new(self.identity),
            open: U32::new(number),
        };
        self.send_inode(&request);
        World::result(self.wait(&request.header))
    }

    /// The host says that it has a file open.
    pub(in crate::tests) fn declare(&mut self, inode: Inode, kind: u16, number: u32) {
        let request = DeclareOpen {
            handle: Handle::new(inode),
            operation: U16::new(kind),
            identity: U16::new(self.identity),
            open: U32::new(number),
        };
        let reactor = usize::from(self.config.shard_map[usize::from(inode.shard().unwrap().0)]);
        let now = self.now();
        let (core, sink) = (&mut self.cores[reactor], &mut self.sinks[reactor]);
        core.declare_open(now, self.indexes[reactor], &request, sink);
        self.run();
    }

    /// The host has told all that it has open.
    pub(in crate::tests) fn reclaim_complete(&mut self) {
        let now = self.now();
        let hosts = self.cores.iter_mut().zip(&mut self.sinks).zip(&self.indexes);
        for ((core, sink), host) in hosts {
            core.reclaim_complete(now, *host, sink);
        }
        self.run();
    }

    /// The hosts of the last run have come back, or do not.
    pub(in crate::tests) fn end_reclaim(&mut self) {
        let now = self.now();
        for (core, sink) in self.cores.iter_mut().zip(&mut self.sinks) {
            core.end_reclaim(now, sink);
        }
        self.run();
    }
}
