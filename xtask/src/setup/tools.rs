//! The programs that the tests drive: taken as they are where they are there, else from the system's packages.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, at},
    setup::{Setup, apt, say},
    workspace::Workspace,
};

/// A program, and the package that brings it.
struct Tool {
    program: &'static str,
    package: &'static str,
    /// Where the program lies in its package, if it is taken out of that instead of installing it: the package would
    /// start a server of its own, or change what is there.
    file: Option<&'static str>,
}

const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", file: None },
    Tool { program: "ethtool", package: "ethtool", file: None },
    Tool { program: "nft", package: "nftables", file: None },
    Tool { program: "curl", package: "curl", file: None },
    Tool { program: "openssl", package: "openssl", file: None },
    Tool { program: "jq", package: "jq", file: None },
    Tool { program: "bpftool", package: "bpftool", file: None },
    Tool { program: "node", package: "nodejs", file: None },
    Tool { program: "wrk", package: "wrk", file: None },
    // `java` runs a source file only where the compiler is, too.
    Tool { program: "javac", package: "default-jdk-headless", file: None },
    Tool { program: "chromium", package: "chromium", file: None },
    Tool { program: "promtool", package: "prometheus", file: Some("usr/bin/promtool") },
    NGINX,
    HAPROXY,
    REDIS,
];

const NGINX: Tool = Tool { program: "nginx", package: "nginx", file: Some("usr/sbin/nginx") };
const HAPROXY: Tool = Tool { program: "haproxy", package: "haproxy", file: Some("usr/sbin/haproxy") };
// One program under two names; which one it is called by says what it does.
const REDIS: Tool = Tool { program: "redis-server", package: "redis-tools", file: Some("usr/bin/redis-check-rdb") };

/// The servers that the flood is also sent to.
const PEERS: &[Tool] = &[NGINX, HAPROXY, REDIS];

/// Gets the tools that are missing.
///
/// # Errors
/// Names those that are missing and cannot be had.
pub(crate) fn ensure(setup: &Setup<'_>) -> Result<()> {
    get(setup, TOOLS, "tools of the tests")
}

/// Gets the servers that the enforcer is compared with, as far as they are missing. None of them is started.
///
/// # Errors
/// Names those that are missing and cannot be had.
pub(crate) fn ensure_peers(setup: &Setup<'_>) -> Result<()> {
    get(setup, PEERS, "servers to compare with")
}

fn get(setup: &Setup<'_>, tools: &[Tool], what: &str) -> Result<()> {
    let workspace = setup.workspace;
    let is_here =
        |tool: &&Tool| process::find(tool.program).is_some() || folder(workspace).join(tool.program).is_file();
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !is_here(tool)).collect();
    if missing.is_empty() {
        say(what, "there");
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if !apt::can_install(setup, &packages)? {
        let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
        bail!("{what}: this system's packages do not have {}: put them on PATH", programs.join(", "));
    }
    let installed: Vec<&str> = missing.iter().filter(|tool| tool.file.is_none()).map(|tool| tool.package).collect();
    if !installed.is_empty() {
        apt::install(setup, &installed, &format!("installing the {what}"))?;
    }
    for Tool { program, package, file } in missing {
        if let Some(file) = file {
            unpack(setup, program, package, file)?;
        }
    }
    Ok(())
}

/// Installs a C++ compiler if there is none: libFuzzer comes as source.
///
/// # Errors
/// There is none, and none can be installed.
pub(crate) fn ensure_compiler(setup: &Setup<'_>) -> Result<()> {
    if process::find("c++").is_some() || env::var_os("CXX").is_some() {
        say("C++ compiler", "there");
        return Ok(());
    }
    if !apt::can_install(setup, &["g++"])? {
        bail!("a C++ compiler is needed for libFuzzer, and was not found: install one as `c++`, or name it in CXX");
    }
    apt::install(setup, &["g++"], "installing a C++ compiler")
}

/// PATH, followed by the folder of the tools that were unpacked.
///
/// # Errors
/// The folder's name cannot stand in PATH.
pub(crate) fn path(workspace: &Workspace) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain([folder(workspace)]);
    env::join_paths(folders).with_context(|| format!("{} cannot stand in PATH", folder(workspace).display()))
}

/// Where unpacked programs are kept.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    workspace.target().join("tools")
}

/// Fetches a package and keeps the one `file` of it in the build folder, as `program`; nothing is installed but
/// libraries that it is linked with.
///
/// # Errors
/// The package or a library cannot be fetched, or the file is not in the package.
pub(crate) fn unpack(setup: &Setup<'_>, program: &str, package: &str, file: &str) -> Result<()> {
    let folder = folder(setup.workspace);
    let kept = folder.join(program);
    say(program, format_args!("missing; is taken out of the package {package}, into {}", folder.display()));
    if setup.dry {
        return Ok(());
    }
    let scratch = folder.join("package");
    fs::create_dir_all(&scratch).with_context(at("make", &scratch))?;
    process::run(Command::new("apt-get").args(["download", package]).current_dir(&scratch))?;
    let archive = fs::read_dir(&scratch)
        .with_context(at("read", &scratch))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("`apt-get download {package}` left no package"))?;
    process::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(&scratch))?;
    let unpacked = scratch.join(file);
    if lacks_libraries(&unpacked) {
        let depends = process::output(Command::new("dpkg-deb").arg("--field").arg(&archive).arg("Depends"))?;
        let missing = apt::missing(&libraries(&depends));
        apt::install(setup, &missing, &format!("installing the libraries of {program}"))?;
    }
    fs::rename(&unpacked, &kept).with_context(at("move", &unpacked))?;
    fs::remove_dir_all(&scratch).with_context(at("remove", &scratch))
}

/// Whether `program` is linked with a library that is not here.
fn lacks_libraries(program: &Path) -> bool {
    let listed = Command::new("ldd").arg(program).output();
    listed.is_ok_and(|listed| String::from_utf8_lossy(&listed.stdout).contains("not found"))
}

/// The packages of libraries in a package's dependencies, the first where any of several will do.
fn libraries(depends: &str) -> Vec<&str> {
    let first = depends.split(',').filter_map(|depend| depend.split_ascii_whitespace().next());
    first.filter(|package| package.starts_with("lib")).collect()
}

#[cfg(test)]
mod tests {
    use super::libraries;

    #[test]
    fn reads_the_libraries_of_a_package() {
        let depends = "libc6 (>= 2.34), liblua5.3-0, libsystemd0 | libelogind0, adduser, lsb-base (>= 3.0-6)\n";
        assert_eq!(libraries(depends), ["libc6", "liblua5.3-0", "libsystemd0"]);
    }
}
