//! What the tests across the crates share: frames, namespaces, real servers and clients, the real daemon.
//!
//! Everything that a test starts or creates belongs to a value and ends with it: child processes by their id, network
//! namespaces and BPF mounts by their name. Nothing is attached to an interface outside a test's own namespaces.

pub mod bucket;
pub mod capture;
pub mod client;
pub mod corpus;
pub mod enforcer;
pub mod kernel;
pub mod limiter_model;
pub mod machine;
pub mod meters;
pub mod netns;
pub mod origin;
pub mod other_parser;
pub mod packet;
pub mod page;
pub mod passage;
pub mod peer;
pub mod pin;
pub mod process;
pub mod program;
pub mod random;
pub mod raw;
pub mod reader;
pub mod receiver;
pub mod relay;
pub mod root;
pub mod script;
pub mod script_mutation;
pub mod tables;
pub mod target;
pub mod weather;
pub mod world;

/// The folder of this crate, where apps, clients and corpus lie.
#[must_use]
pub fn folder() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
}
