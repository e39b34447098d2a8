//! The ways to one server: its addresses, in the order in which they are tried.
//!
//! A server listens at several addresses, of one fabric or of several, and tells its peers all of
//! them. A peer begins with the best one and goes on to the next when one does not lead to the
//! server: this machine has no such device or socket, nobody listens there, or somebody else does (a
//! path of shm names another server on each machine), who refuses the hello. Which end is tried is
//! decided here alone, for hosts and data servers; when, is decided by those who connect.

use crate::Address;

/// The addresses of one server and which of them is to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    addresses: Vec<Address>,
    current: usize,
}

/// How good the fabric of an address is, the lowest first: shm does without a network, rdma without
/// the kernel.
fn rank(address: &Address) -> u8 {
    match address {
        Address::Shm(_) => 0,
        Address::Rdma { .. } => 1,
        Address::Tcp { .. } => 2,
    }
}

impl Route {
    /// The best fabric first; addresses of one fabric stay in the order in which the server named
    /// them, each counts once.
    #[must_use]
    pub fn new(addresses: impl IntoIterator<Item = Address>) -> Route {
        let mut route = Route { addresses: Vec::new(), current: 0 };
        route.append(addresses);
        route.addresses.sort_by_key(rank);
        route
    }

    /// As [`Route::new`], but with `first` before all others, whatever its fabric: it was named by
    /// the user.
    #[must_use]
    pub fn beginning_with(first: Address, others: impl IntoIterator<Item = Address>) -> Route {
        let others = Route::new(others);
        let mut route = Route { addresses: vec![first], current: 0 };
        route.append(others.addresses);
        route
    }

    fn append(&mut self, addresses: impl IntoIterator<Item = Address>) {
        for address in addresses {
            if !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
    }

    /// The address to be tried; `None` if the server has none.
    #[must_use]
    pub fn current(&self) -> Option<&Address> {
        self.addresses.get(self.current)
    }

    /// The current address did not lead to the server. True if there is another one to be tried; if
    /// not, the next round begins with the best again.
    pub fn advance(&mut self) -> bool {
        self.current += 1;
        let more = self.current < self.addresses.len();
        if !more {
            self.current = 0;
        }
        more
    }

    /// Begins with the best again.
    pub fn restart(&mut self) {
        self.current = 0;
    }

    /// Whether the current address is the one that every round begins with.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.current == 0
    }

    /// Whether there is nothing to try after the current one.
    #[must_use]
    pub fn is_last(&self) -> bool {
        self.current + 1 >= self.addresses.len()
    }

    /// All addresses in the order in which they are tried.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// All addresses in the order in which they are tried.
    #[must_use]
    pub fn into_addresses(self) -> Vec<Address> {
        self.addresses
    }

    /// Takes what a server says now; where it names the same, the one that is tried stays.
    pub fn renew(&mut self, other: Route) {
        if !self.is_same(&other) {
            let current = self.addresses.get(self.current);
            let place = other.addresses.iter().position(|address| Some(address) == current);
            *self = Route { current: place.unwrap_or(0), ..other };
        }
    }

    /// Whether the addresses are those of the other, in the same order.
    #[must_use]
    pub fn is_same(&self, other: &Route) -> bool {
        self.addresses == other.addresses
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Address> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn order(route: &mut Route) -> Vec<String> {
        let mut tried = Vec::new();
        loop {
            tried.extend(route.current().map(ToString::to_string));
            if !route.advance() {
                return tried;
            }
        }
    }

    #[test]
    fn the_best_fabric_comes_first_whatever_the_server_says() {
        let named = addresses(&["tcp://b:1", "rdma://a:1", "tcp://a:1", "shm:///s", "tcp://b:1"]);
        let mut route = Route::new(named);
        let expected = ["shm:///s", "rdma://a:1", "tcp://b:1", "tcp://a:1"];
        assert_eq!(order(&mut route), expected);
        assert_eq!(order(&mut route), expected, "the next round begins with the best again");
    }

    #[test]
    fn every_order_of_naming_gives_the_same_order_of_fabrics() {
        let all = addresses(&["shm:///s", "rdma://a:1", "tcp://a:1"]);
        for permutation in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let route = Route::new(permutation.map(|at| all[at].clone()));
            assert_eq!(route.addresses(), all, "{permutation:?}");
        }
    }

    #[test]
    fn the_users_own_choice_comes_before_the_best() {
        let others = addresses(&["tcp://a:1", "shm:///s", "tcp://b:1"]);
        let mut route = Route::beginning_with("tcp://b:1".parse().unwrap(), others);
        assert_eq!(order(&mut route), ["tcp://b:1", "shm:///s", "tcp://a:1"]);
    }

    #[test]
    fn a_restart_forgets_what_failed() {
        let mut route = Route::new(addresses(&["tcp://a:1", "shm:///s"]));
        assert!(!route.is_last() && route.advance() && route.is_last());
        route.restart();
        assert_eq!(route.current(), Some(&"shm:///s".parse().unwrap()));
        let again = Route::new(addresses(&["shm:///s", "tcp://a:1"]));
        assert!(route.advance() && route.is_same(&again) && route != again);
    }

    #[test]
    fn news_of_a_server_keep_the_address_that_is_tried() {
        let mut route = Route::new(addresses(&["shm:///s", "tcp://a:1"]));
        route.advance();
        route.renew(Route::new(addresses(&["tcp://a:1", "rdma://a:1", "shm:///t"])));
        assert_eq!(route.current(), Some(&"tcp://a:1".parse().unwrap()));
        assert_eq!(route.addresses().len(), 3);
        route.renew(Route::new(addresses(&["shm:///t", "tcp://b:1"])));
        assert_eq!(route.current(), Some(&"shm:///t".parse().unwrap()), "it is gone");
    }

    #[test]
    fn a_server_without_addresses_is_nowhere() {
        let mut route = Route::new([]);
        assert!(route.current().is_none() && route.is_last() && !route.advance());
        assert!(route.current().is_none());
    }
}
