//! The verbs provider.

mod options;

pub use self::options::VerbsOptions;
#[cfg(feature = "verbs")]
pub use self::skeleton::VerbsFabric;

#[cfg(feature = "verbs")]
mod skeleton {
    use crate::*;
    use std::convert::Infallible;
    /// Being written.
    #[derive(Debug)]
    pub struct VerbsFabric(Infallible);
    impl VerbsFabric {
        /// Being written.
        ///
        /// # Errors
        /// Always.
        pub fn new(_options: super::VerbsOptions) -> Result<VerbsFabric, FabricError> {
            Err(FabricError::Missing("not yet".into()))
        }
    }
    impl Fabric for VerbsFabric {
        fn capabilities(&self) -> Capabilities {
            match self.0 {}
        }
        fn listen(&mut self, _: &Address) -> Result<(), FabricError> {
            match self.0 {}
        }
        fn connect(&mut self, _: &Address) -> Result<ConnectionId, FabricError> {
            match self.0 {}
        }
        fn disconnect(&mut self, _: ConnectionId) {
            match self.0 {}
        }
        fn peer(&self, _: ConnectionId) -> Option<PeerIdentity> {
            match self.0 {}
        }
        fn prepare(&mut self, _: &Arc<Mapping>) -> Result<(), FabricError> {
            match self.0 {}
        }
        fn register(
            &mut self,
            _: ConnectionId,
            _: &Arc<Mapping>,
            _: Access,
        ) -> Result<Registration, FabricError> {
            match self.0 {}
        }
        fn open_window(
            &mut self,
            _: ConnectionId,
            _: Key,
            _: u64,
            _: u64,
            _: Access,
        ) -> Result<Registration, WindowError> {
            match self.0 {}
        }
        fn deregister(&mut self, _: ConnectionId, _: Key) {
            match self.0 {}
        }
        fn send(&mut self, _: ConnectionId, _: &[u8]) -> Result<(), PostError> {
            match self.0 {}
        }
        fn write(&mut self, _: ConnectionId, _: Transfer) -> Result<(), Refused> {
            match self.0 {}
        }
        fn read(&mut self, _: ConnectionId, _: Transfer) -> Result<(), Refused> {
            match self.0 {}
        }
        fn map(&mut self, _: ConnectionId, _: RemoteSlice, _: Access) -> Option<Slice> {
            match self.0 {}
        }
        fn flush(&mut self) {
            match self.0 {}
        }
        fn poll(&mut self, _: Time, _: &mut Events) {
            match self.0 {}
        }
        fn arm(&mut self) {
            match self.0 {}
        }
        fn disarm(&mut self) {
            match self.0 {}
        }
        fn wake_descriptors(&self, _: &mut dyn FnMut(BorrowedFd<'_>)) {
            match self.0 {}
        }
    }
}
