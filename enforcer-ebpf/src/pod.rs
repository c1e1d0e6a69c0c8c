//! That user space may read and write the maps' types as bytes.

#![allow(unsafe_code, reason = "aya::Pod is an unsafe trait")]

use aya::Pod;

use crate::abi::{
    Answer, Buckets, Client, Edge, EndsOffsets, Host, Key, KeyTag, Leaf, Meter, Policy, Rule, Ruleset, Scope, Service,
    Sighting, SocketOffsets, State, Turn,
};
use crate::connection::{Connections, Subjects};
use crate::flow::Set;
use crate::judge::explain::Explanation;
use crate::source::{Record, Source};

// SAFETY: integers and arrays of integers only, no padding (sizes are asserted beside the types), any bits are valid.
unsafe impl Pod for KeyTag {}
// SAFETY: as above.
unsafe impl Pod for Host {}
// SAFETY: as above.
unsafe impl Pod for Key {}
// SAFETY: as above.
unsafe impl Pod for Policy {}
// SAFETY: as above.
unsafe impl Pod for Buckets {}
// SAFETY: as above.
unsafe impl Pod for Scope {}
// SAFETY: as above.
unsafe impl Pod for Ruleset {}
// SAFETY: as above.
unsafe impl Pod for Edge {}
// SAFETY: as above.
unsafe impl Pod for State {}
// SAFETY: as above.
unsafe impl Pod for Leaf {}
// SAFETY: as above.
unsafe impl Pod for Rule {}
// SAFETY: as above.
unsafe impl Pod for Client {}
// SAFETY: as above.
unsafe impl Pod for Turn {}
// SAFETY: as above.
unsafe impl Pod for Sighting {}
// SAFETY: as above.
unsafe impl Pod for Meter {}
// SAFETY: as above.
unsafe impl Pod for Service {}
// SAFETY: as above.
unsafe impl Pod for SocketOffsets {}
// SAFETY: as above.
unsafe impl Pod for EndsOffsets {}
// SAFETY: as above.
unsafe impl Pod for Answer {}
// SAFETY: as above.
unsafe impl Pod for Set {}
// SAFETY: as above.
unsafe impl Pod for Connections {}
// SAFETY: as above.
unsafe impl Pod for Subjects {}
// SAFETY: as above.
unsafe impl Pod for Source {}
// SAFETY: as above.
unsafe impl Pod for Record {}
// SAFETY: as above.
unsafe impl Pod for Explanation {}
