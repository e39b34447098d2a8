//! Names that an operation over several shards has in hand, and who waits for them.
//!
//! The empty name of an inode stands for the inode itself: for a directory that is removed or gets
//! another parent, and for a file whose links change.

use std::collections::VecDeque;

use gannet_proto::Inode;
use rustc_hash::FxHashMap;

use crate::operations::OperationId;
use crate::peer::StepRequest;

/// Most operations that wait for one name.
const WAITERS_MAX: usize = 256;

/// Who holds a name: its age (lower is older) and, to tell equals apart, its reactor.
pub(crate) type Holder = (u64, u16);

/// Who waits for a name.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// An operation of this reactor.
    Operation(OperationId),
    /// A step of an operation of any reactor.
    Step(StepRequest),
}

#[derive(Debug)]
struct HeldName {
    name: Box<[u8]>,
    holder: Holder,
    waiting: VecDeque<Waiter>,
}

/// All names held in directories of this reactor.
#[derive(Debug, Default)]
pub(crate) struct HeldNames {
    names: FxHashMap<Inode, Vec<HeldName>>,
}

impl HeldNames {
    /// Who holds a name.
    pub(crate) fn holder(&self, directory: Inode, name: &[u8]) -> Option<Holder> {
        if self.names.is_empty() {
            return None;
        }
        let held = self.names.get(&directory)?;
        held.iter().find(|held| *held.name == *name).map(|held| held.holder)
    }

    /// The names of a directory that are held, and by whom.
    pub(crate) fn of(&self, directory: Inode) -> impl Iterator<Item = (&[u8], Holder)> {
        let held = self.names.get(&directory).into_iter().flatten();
        held.map(|held| (&*held.name, held.holder))
    }

    /// Holds a name that nobody else holds.
    pub(crate) fn hold(&mut self, directory: Inode, name: &[u8], holder: Holder) {
        if self.holder(directory, name) == Some(holder) {
            return;
        }
        debug_assert!(self.holder(directory, name).is_none());
        let held = HeldName { name: name.into(), holder, waiting: VecDeque::new() };
        self.names.entry(directory).or_default().push(held);
    }

    /// Waits for a name that is held. `false`: too many wait.
    pub(crate) fn wait(&mut self, directory: Inode, name: &[u8], waiter: Waiter) -> bool {
        let mut held = self.names.get_mut(&directory).into_iter().flatten();
        match held.find(|held| *held.name == *name) {
            Some(held) if held.waiting.len() < WAITERS_MAX => {
                held.waiting.push_back(waiter);
                true
            }
            _ => false,
        }
    }

    /// Lets go of a name if `holder` has it; who waited for it is returned.
    pub(crate) fn release(
        &mut self,
        directory: Inode,
        name: &[u8],
        holder: Holder,
    ) -> VecDeque<Waiter> {
        let Some(held) = self.names.get_mut(&directory) else { return VecDeque::new() };
        let found = held.iter().position(|held| *held.name == *name && held.holder == holder);
        let waiting = found.map(|place| held.swap_remove(place).waiting).unwrap_or_default();
        if held.is_empty() {
            self.names.remove(&directory);
        }
        waiting
    }

    /// Forgets a waiting operation.
    pub(crate) fn forget(&mut self, id: OperationId) {
        for held in self.names.values_mut().flatten() {
            held.waiting.retain(|waiter| match waiter {
                Waiter::Operation(other) => *other != id,
                Waiter::Step(_) => true,
            });
        }
    }

    /// Whether no name is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}
