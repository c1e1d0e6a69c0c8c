//! What a run of the test states: what came of it, and what it is true of.

use anyhow::Context as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::Report;
use crate::doctor::Workers;
use crate::kernel;

/// All that is needed to know which test it was. Nothing in it is secret: of the policy it has a digest, of keys nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// When the test ended.
    pub time: Timestamp,
    /// The same, in seconds of Unix time.
    pub unix_seconds: i64,
    /// Name of the host.
    pub host: String,
    /// Release of its kernel, and the machine that it is built for.
    pub kernel: String,
    /// Version of the enforcer that was tested.
    pub version: String,
    /// Number of its maps' layout.
    pub abi: u32,
    /// SHA-256, in hex, of the BPF object that judged.
    pub object_sha256: String,
    /// The service whose part of the policy was tried.
    pub service: String,
    /// The path that was asked for.
    pub path: String,
    /// Whose the policy was.
    pub policy_of: PolicyOf,
    /// SHA-256, in hex, of the policy's text: what `enforcer export` printed then, or the file that was named.
    pub policy_sha256: String,
    /// Who served on the service's ports meanwhile; absent if the policy was a file's, or nobody could look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// What came of it.
    #[serde(flatten)]
    pub report: Report,
}

/// Where a policy that was tried is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyOf {
    /// The daemon that runs: it held then.
    Daemon,
    /// A file: whether it held anywhere is not known.
    File,
}

/// What was tried, before anything is known to come of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matter {
    service: String,
    path: String,
    policy_of: PolicyOf,
    policy_sha256: String,
    workers: Option<Workers>,
}

impl Matter {
    /// A policy's text, tried for a service at a path, with these behind its ports.
    #[must_use]
    pub fn new(policy: &str, policy_of: PolicyOf, service: &str, path: &str, workers: Option<Workers>) -> Self {
        let (service, path) = (service.to_owned(), path.to_owned());
        Self { service, path, policy_of, policy_sha256: sha256(policy.as_bytes()), workers }
    }

    /// States what came of it, as of now and here.
    ///
    /// # Errors
    /// The kernel does not say what it is.
    pub fn state(self, report: Report) -> anyhow::Result<Statement> {
        let Self { service, path, policy_of, policy_sha256, workers } = self;
        let system = nix::sys::utsname::uname().context("the kernel does not say its name")?;
        let [host, release, machine] =
            [system.nodename(), system.release(), system.machine()].map(|name| name.to_string_lossy().into_owned());
        let time = Timestamp::now();
        Ok(Statement {
            time,
            unix_seconds: time.as_second(),
            host,
            kernel: format!("{release} {machine}"),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi: enforcer_ebpf::abi::ABI,
            object_sha256: sha256(kernel::object()),
            service,
            path,
            policy_of,
            policy_sha256,
            workers,
            report,
        })
    }
}

/// The SHA-256 (FIPS 180-4) of `bytes`, in lower-case hex.
pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-4's example, as `printf abc | sha256sum` says it too.
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
