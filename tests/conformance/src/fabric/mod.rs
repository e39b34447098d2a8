//! The suite that every fabric provider passes.
//!
//! Cases are generic over a [`Provider`] and panic when something does not hold. They assume
//! nothing beyond the trait: both ends are always polled in turn, because on some providers remote
//! memory makes progress only while its owner polls.

pub mod connections;
pub mod end;
pub mod failures;
pub mod messages;
pub mod registrations;
pub mod sleeping;
pub mod steady;
pub mod transfers;

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

    /// Ends a fabric the way the death of its process does.
    fn kill(&self, fabric: Self::Fabric);
}

/// Bounds that cases run into.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections of the fabric.
    pub connections_max: usize,
    /// Registrations per connection.
    pub registrations_max: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { connections_max: 256, registrations_max: 64 }
    }
}

/// Makes one `#[test]` per case of the suite. The argument is an expression that makes a
/// [`Provider`]. The test binary's global allocator must be
/// [`gannet_runtime::counting_allocator::CountingAllocator`].
#[macro_export]
macro_rules! fabric_conformance {
    ($provider:expr) => {
        $crate::fabric_conformance! { $provider;
            connections: a_connection_is_made, nobody_listens, an_address_has_one_listener,
                connections_are_bounded, many_connections_do_not_mix, a_fabric_reaches_itself,
                an_ended_connection_takes_nothing, ids_are_not_reused,
                disconnecting_early_is_clean;
            messages: order_over_both_classes, long_messages_are_refused,
                a_full_queue_refuses_and_nothing_is_lost, classes_have_their_own_credits,
                disconnect_delivers_what_was_sent;
            transfers: a_write_is_visible_before_the_next_message, reads_and_writes_of_every_size,
                bounds_and_rights_are_enforced, a_local_range_must_fit,
                a_full_transfer_queue_gives_memory_back, completions_keep_their_order;
            registrations: keys_are_unique, a_foreign_key_is_refused, a_deregistered_key_is_refused,
                deregistration_waits_for_views, registrations_are_bounded,
                registrations_end_with_the_connection;
            failures: every_transfer_completes_once, a_dead_peer_is_noticed,
                a_dead_listener_is_replaced;
            sleeping: no_wake_up_is_lost, a_sleeper_without_credits_is_woken,
                a_sleeper_learns_of_the_end;
            steady: steady_state_allocates_nothing;
        }
    };
    ($provider:expr; $($module:ident: $($case:ident),+;)+) => {
        $(
            mod $module {
                #[allow(unused_imports)]
                use super::*;
                $(
                    #[test]
                    fn $case() {
                        $crate::fabric::$module::$case(&$provider);
                    }
                )+
            }
        )+
    };
}
