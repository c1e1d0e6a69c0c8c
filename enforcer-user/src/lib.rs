//! The enforcer's daemon and command line: all of it but `main`, so that tests can reach it.
//!
//! # Layout, in the order of a command
//! - [`cli`]: what can be asked, and how answers look
//! - [`client`]: a request over the control socket
//! - [`api`]: what goes over it, for both ends
//! - `control`: the routes, and who may use them
//! - [`daemon`]: the process that owns the store and the maps
//! - [`store`]: the policy, its numbers and the tags of keys in SQLite
//! - [`policy`]: limit strings, the policy as a file, what changes with another, and its paths as an automaton
//! - [`kernel`]: the program, its maps and its attachment
//! - [`doctor`]: what the program does not see, and whether the system can run it
//! - [`verify`]: the program and a policy held against real requests, apart from live traffic
//! - [`sockets`]: the TCP sockets beside it, and the end of a connection
//! - [`metrics`]: what Prometheus scrapes
//!
//! Beside the way: [`config`], the daemon's static settings; [`name`], what principals and keys are called;
//! [`prefix`], what sources are called; [`credential`], keys in clear for the short time that they are; `netlink`,
//! questions to the kernel.

pub mod answer;
pub mod api;
pub mod cli;
pub mod client;
pub mod config;
mod control;
pub mod credential;
pub mod daemon;
pub mod doctor;
pub mod kernel;
pub mod metrics;
pub mod name;
mod netlink;
pub mod policy;
pub mod prefix;
pub mod sockets;
pub mod store;
pub mod verify;
