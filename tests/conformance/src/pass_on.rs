//! For fabrics that wrap another one and change some of what it does.

/// Inside of an `impl Fabric`: makes the named methods do what those of the fabric in the field
/// `inner` do. Whatever is not named is to be written by hand. `sleeping` stands for those that
/// belong to it: `arm`, `disarm` and `wake_descriptors`.
#[macro_export]
macro_rules! pass_on {
    ($($method:ident)*) => { $($crate::pass_on!(@ $method);)* };
    (@ capabilities) => {
        fn capabilities(
            &self,
            connection: $crate::gannet_fabric::ConnectionId,
        ) -> $crate::gannet_fabric::Capabilities {
            self.inner.capabilities(connection)
        }
    };
    (@ listen) => {
        fn listen(
            &mut self,
            at: &$crate::gannet_fabric::Address,
        ) -> Result<(), $crate::gannet_fabric::FabricError> {
            self.inner.listen(at)
        }
    };
    (@ connect) => {
        fn connect(
            &mut self,
            to: &$crate::gannet_fabric::Address,
        ) -> Result<$crate::gannet_fabric::ConnectionId, $crate::gannet_fabric::FabricError> {
            self.inner.connect(to)
        }
    };
    (@ disconnect) => {
        fn disconnect(&mut self, connection: $crate::gannet_fabric::ConnectionId) {
            self.inner.disconnect(connection);
        }
    };
    (@ peer) => {
        fn peer(
            &self,
            connection: $crate::gannet_fabric::ConnectionId,
        ) -> Option<$crate::gannet_fabric::PeerIdentity> {
            self.inner.peer(connection)
        }

        fn scheme(&self, connection: $crate::gannet_fabric::ConnectionId) -> &'static str {
            self.inner.scheme(connection)
        }

        fn is_short_of_places(&self, connection: $crate::gannet_fabric::ConnectionId) -> bool {
            self.inner.is_short_of_places(connection)
        }
    };
    (@ prepare) => {
        fn prepare(
            &mut self,
            memory: &std::sync::Arc<$crate::gannet_runtime::memory::Mapping>,
        ) -> Result<(), $crate::gannet_fabric::FabricError> {
            self.inner.prepare(memory)
        }
    };
    (@ register) => {
        fn register(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            memory: &std::sync::Arc<$crate::gannet_runtime::memory::Mapping>,
            access: $crate::gannet_fabric::Access,
        ) -> Result<$crate::gannet_fabric::Registration, $crate::gannet_fabric::FabricError> {
            self.inner.register(connection, memory, access)
        }
    };
    (@ open_window) => {
        fn open_window(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            base: $crate::gannet_fabric::Key,
            offset: u64,
            len_bytes: u64,
            access: $crate::gannet_fabric::Access,
        ) -> Result<$crate::gannet_fabric::Registration, $crate::gannet_fabric::WindowError> {
            self.inner.open_window(connection, base, offset, len_bytes, access)
        }
    };
    (@ deregister) => {
        fn deregister(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            key: $crate::gannet_fabric::Key,
        ) {
            self.inner.deregister(connection, key);
        }
    };
    (@ send) => {
        fn send(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            message: &[u8],
        ) -> Result<(), $crate::gannet_fabric::PostError> {
            self.inner.send(connection, message)
        }
    };
    (@ write) => {
        fn write(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            transfer: $crate::gannet_fabric::Transfer,
        ) -> Result<(), $crate::gannet_fabric::Refused> {
            self.inner.write(connection, transfer)
        }
    };
    (@ read) => {
        fn read(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            transfer: $crate::gannet_fabric::Transfer,
        ) -> Result<(), $crate::gannet_fabric::Refused> {
            self.inner.read(connection, transfer)
        }
    };
    (@ map) => {
        fn map(
            &mut self,
            connection: $crate::gannet_fabric::ConnectionId,
            remote: $crate::gannet_fabric::RemoteSlice,
            access: $crate::gannet_fabric::Access,
        ) -> Option<$crate::gannet_runtime::memory::Slice> {
            self.inner.map(connection, remote, access)
        }
    };
    (@ flush) => {
        fn flush(&mut self) {
            self.inner.flush();
        }
    };
    (@ poll) => {
        fn poll(
            &mut self,
            now: $crate::gannet_runtime::time::Time,
            events: &mut $crate::gannet_fabric::Events,
        ) {
            self.inner.poll(now, events);
        }
    };
    (@ sleeping) => {
        fn arm(&mut self) {
            self.inner.arm();
        }

        fn disarm(&mut self) {
            self.inner.disarm();
        }

        fn wake_descriptors(&self, visit: &mut dyn FnMut(std::os::fd::BorrowedFd<'_>)) {
            self.inner.wake_descriptors(visit);
        }
    };
}
