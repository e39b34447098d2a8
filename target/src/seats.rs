//! What each connection of the fabric is used for.

use gannet_fabric::ConnectionId;

/// Who sits at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// A peer that connected and has not said hello.
    Stranger,
    /// A host, with the place of its session.
    Host(u32),
    /// A metadata-server reactor, with its channel.
    Reactor(u16),
}

/// Roles by connection. Lookup is by position; the generation tells successors apart.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    seats: Vec<Option<(ConnectionId, Role)>>,
}

/// Connections beyond this position are refused: a provider's table is far smaller.
const SEATS_MAX: usize = 1 << 20;

impl Seats {
    /// Gives a connection a role; false when the table would grow beyond its bound.
    pub(crate) fn set(&mut self, connection: ConnectionId, role: Role) -> bool {
        let index = connection.index as usize;
        if index >= SEATS_MAX {
            return false;
        }
        if index >= self.seats.len() {
            self.seats.resize(index + 1, None);
        }
        self.seats[index] = Some((connection, role));
        true
    }

    /// The role of a connection, `None` when it was taken away.
    #[inline]
    pub(crate) fn role(&self, connection: ConnectionId) -> Option<Role> {
        match self.seats.get(connection.index as usize) {
            Some(Some((seated, role))) if *seated == connection => Some(*role),
            _ => None,
        }
    }

    /// Takes a connection's role away: what still comes from it is ignored.
    pub(crate) fn clear(&mut self, connection: ConnectionId) {
        if self.role(connection).is_some() {
            self.seats[connection.index as usize] = None;
        }
    }

    /// All connections that have a role.
    pub(crate) fn connections(&self) -> impl Iterator<Item = ConnectionId> {
        self.seats.iter().flatten().map(|(connection, _)| *connection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn successors_of_a_position_do_not_inherit_its_role() {
        let first = ConnectionId { index: 3, generation: 1 };
        let second = ConnectionId { index: 3, generation: 2 };
        let mut seats = Seats::default();
        assert!(seats.set(first, Role::Host(7)));
        assert_eq!((seats.role(first), seats.role(second)), (Some(Role::Host(7)), None));
        assert!(seats.set(second, Role::Stranger));
        seats.clear(first);
        assert_eq!((seats.role(first), seats.role(second)), (None, Some(Role::Stranger)));
        assert_eq!(seats.connections().collect::<Vec<_>>(), [second]);
        assert!(!seats.set(ConnectionId { index: u32::MAX, generation: 0 }, Role::Stranger));
    }
}
