//! Debian's and Ubuntu's packages: what is installed, what could be, and getting it without removing anything.

use std::process::Command;

use anyhow::Result;

use crate::{process, setup::Setup};

/// Whether this system has apt at all.
pub(crate) fn is_here() -> bool {
    process::find("apt-get").is_some() && process::find("dpkg-query").is_some()
}

/// Those of `packages` that are not installed.
pub(crate) fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    packages.iter().copied().filter(|package| !is_installed(package)).collect()
}

/// Whether every one of `packages` is installed or can be; reads the archive's lists anew if some are not known.
pub(crate) fn can_install(setup: &Setup<'_>, packages: &[&str]) -> Result<bool> {
    if !is_here() {
        return Ok(false);
    }
    if packages.iter().all(|package| is_known(package)) {
        return Ok(true);
    }
    update(setup)?;
    // Lists that were not read say nothing.
    Ok(setup.dry || packages.iter().all(|package| is_known(package)))
}

/// Installs `packages`; `what` is what they are for.
///
/// # Errors
/// There are no rights to install packages, or apt-get fails.
pub(crate) fn install(setup: &Setup<'_>, packages: &[&str], what: &str) -> Result<()> {
    let attempt = || -> Result<()> {
        let mut command = apt_get(what)?;
        command.args(["install", "--yes", "--no-remove", "--no-install-recommends"]).args(packages);
        setup.run(&mut command)
    };
    // Lists that are older than the archive name files that are gone from it.
    attempt().or_else(|_| {
        update(setup)?;
        attempt()
    })
}

fn update(setup: &Setup<'_>) -> Result<()> {
    setup.run(apt_get("reading the lists of packages")?.arg("update"))
}

fn apt_get(what: &str) -> Result<Command> {
    // `env`, since sudo keeps none of ours.
    let mut command = process::as_root("env", what)?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    Ok(command)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    query.output().is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

fn is_known(package: &str) -> bool {
    let mut query = Command::new("apt-cache");
    query.args(["show", "--no-all-versions", package]);
    process::succeeds(&mut query)
}
