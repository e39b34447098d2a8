//! The suite that every fabric provider passes.
//!
//! Cases are generic over a [`Provider`] and panic when something does not hold. They assume
//! nothing beyond the trait: both ends are always polled in turn, because on some providers remote
//! memory makes progress only while its owner polls. Memory is registered, and windows are opened,
//! at the end that connected, since the other need not be able to. What a provider states not to
//! have ([`gannet_fabric::Capabilities`]) must be refused; what it states to have must work.

pub mod connections;
pub mod end;
pub mod failures;
pub mod messages;
pub mod registrations;
pub mod sleeping;
pub mod steady;
pub mod transfers;
pub mod windows;

use gannet_fabric::{Address, Fabric};

/// Makes fabrics of one provider for the suite.
pub trait Provider: Sync {
    /// The provider.
    type Fabric: Fabric;

    /// A fabric with default bounds, in the calling thread.
    fn fabric(&self) -> Self::Fabric {
        self.fabric_with(Bounds::default())
    }

    /// A fabric with the given bounds, in the calling thread.
    fn fabric_with(&self, bounds: Bounds) -> Self::Fabric;

    /// An address at which nobody listens, another one at each call.
    fn address(&self) -> Address;

    /// Ends a fabric the way the death of its process does: nothing is said to the peers. On shm the
    /// kernel closes the sockets; on a network it destroys the queue pairs, and what was posted and
    /// has not left the device may get lost with them.
    fn kill(&self, fabric: Self::Fabric);

    /// How many times slower than shared memory the provider's device is: cases with thousands of
    /// rounds do so many times fewer.
    fn slowdown(&self) -> u32 {
        1
    }

    /// Whether the device checks each transfer against exactly the range of its window. Some check
    /// against the window's registration only.
    fn windows_are_exact(&self) -> bool {
        true
    }

    /// Rounds of a case that does `full` of them where nothing is slow.
    fn rounds(&self, full: u64) -> u64 {
        (full / u64::from(self.slowdown().max(1))).max(8).min(full)
    }
}

/// Bounds that cases run into.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections of the fabric.
    pub connections_max: usize,
    /// Registrations per connection.
    pub registrations_max: usize,
    /// Windows open per connection, where there are any.
    pub windows_max: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { connections_max: 256, registrations_max: 64, windows_max: 64 }
    }
}

/// Makes one `#[test]` per case of the suite. The argument is an expression that makes a
/// [`Provider`]. The test binary's global allocator must be
/// [`gannet_runtime::counting_allocator::CountingAllocator`]. An attribute may follow, such as
/// `#[ignore = "why"]`, for every test.
#[macro_export]
macro_rules! fabric_conformance {
    ($provider:expr $(, #[$attribute:meta])?) => {
        $crate::fabric_conformance! { @cases $provider, [$($attribute)?];
            connections: a_connection_is_made, nobody_listens, an_address_has_one_listener,
                connections_are_bounded, many_connections_do_not_mix, a_fabric_reaches_itself,
                an_ended_connection_takes_nothing, ids_are_not_reused,
                disconnecting_early_is_clean;
            messages: order_over_both_classes, long_messages_are_refused,
                a_full_queue_refuses_and_nothing_is_lost, classes_have_their_own_credits,
                disconnect_delivers_what_was_sent;
            transfers: a_write_is_visible_before_the_next_message, reads_and_writes_of_every_size,
                bounds_and_rights_are_enforced, a_local_range_must_fit,
                a_full_transfer_queue_gives_memory_back, completions_keep_their_order,
                a_message_behind_a_refused_transfer_is_not_delivered,
                a_refused_transfer_spares_other_connections,
                prepared_memory_and_other_memory_transfers;
            registrations: keys_are_unique, a_foreign_key_is_refused, a_deregistered_key_is_refused,
                deregistration_waits_for_views, deregistration_meets_transfers,
                registrations_are_bounded, registrations_end_with_the_connection;
            windows: without_windows_none_is_opened, a_window_opens_its_range_and_direction,
                a_closed_window_is_refused, a_window_ends_with_its_base_and_its_connection,
                impossible_windows_are_not_opened, windows_are_bounded,
                many_windows_open_and_close;
            failures: every_transfer_completes_once, a_dead_peer_is_noticed,
                a_dead_listener_is_replaced;
            sleeping: no_wake_up_is_lost, a_sleeper_without_credits_is_woken,
                a_sleeper_learns_of_the_end, what_is_over_at_once_keeps_awake;
            steady: steady_state_allocates_nothing, windows_in_steady_state_allocate_nothing;
        }
    };
    (@cases $provider:expr, $attributes:tt; $($module:ident: $($case:ident),+;)+) => {
        $(
            mod $module {
                #[allow(unused_imports)]
                use super::*;
                $(
                    $crate::fabric_conformance! { @test $provider, $attributes, $module, $case }
                )+
            }
        )+
    };
    (@test $provider:expr, [$($attribute:meta)?], $module:ident, $case:ident) => {
        #[test]
        $(#[$attribute])?
        fn $case() {
            $crate::fabric::$module::$case(&$provider);
        }
    };
}
