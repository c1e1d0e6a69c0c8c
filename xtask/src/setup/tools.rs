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
    /// Take the program out of its package instead of installing that: it would start a server of its own.
    unpack: bool,
}

const TOOLS: &[Tool] = &[
    Tool { program: "ip", package: "iproute2", unpack: false },
    Tool { program: "ethtool", package: "ethtool", unpack: false },
    Tool { program: "nft", package: "nftables", unpack: false },
    Tool { program: "curl", package: "curl", unpack: false },
    Tool { program: "bpftool", package: "bpftool", unpack: false },
    Tool { program: "node", package: "nodejs", unpack: false },
    Tool { program: "wrk", package: "wrk", unpack: false },
    // `java` runs a source file only where the compiler is, too.
    Tool { program: "javac", package: "default-jdk-headless", unpack: false },
    Tool { program: "promtool", package: "prometheus", unpack: true },
    Tool { program: "nginx", package: "nginx", unpack: true },
    Tool { program: "haproxy", package: "haproxy", unpack: true },
];

/// Installs the tools that are missing.
///
/// # Errors
/// Names those that are missing and cannot be installed.
pub(crate) fn ensure(setup: &Setup<'_>) -> Result<()> {
    let workspace = setup.workspace;
    let is_here =
        |tool: &&Tool| process::find(tool.program).is_some() || folder(workspace).join(tool.program).is_file();
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| !is_here(tool)).collect();
    if missing.is_empty() {
        say("tools of the tests", "there");
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    if !apt::can_install(setup, &packages)? {
        let programs: Vec<&str> = missing.iter().map(|tool| tool.program).collect();
        bail!("the tests need {}, which this system's packages do not have: put them on PATH", programs.join(", "));
    }
    let (unpacked, installed): (Vec<&Tool>, Vec<&Tool>) = missing.into_iter().partition(|tool| tool.unpack);
    if !installed.is_empty() {
        let packages: Vec<&str> = installed.iter().map(|tool| tool.package).collect();
        apt::install(setup, &packages, "installing the tools of the tests")?;
    }
    unpacked.into_iter().try_for_each(|tool| unpack(setup, tool.package, tool.program).map(|_| ()))
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

/// Fetches a package, keeps one program of it in the build folder, and says where; nothing is installed.
///
/// # Errors
/// The package cannot be fetched, or the program is not in it.
pub(crate) fn unpack(setup: &Setup<'_>, package: &str, program: &str) -> Result<PathBuf> {
    let folder = folder(setup.workspace);
    let kept = folder.join(program);
    say(program, format_args!("missing; is taken out of the package {package}, into {}", folder.display()));
    if setup.dry {
        return Ok(kept);
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
    let folders = ["usr/bin", "usr/sbin"].map(|folder| scratch.join(folder).join(program));
    let unpacked = folders.iter().find(|path| path.is_file());
    let unpacked = unpacked.with_context(|| format!("the package {package} has no {program}"))?;
    ensure_libraries(setup, &archive, program)?;
    fs::rename(unpacked, &kept).with_context(at("move", unpacked))?;
    fs::remove_dir_all(&scratch).with_context(at("remove", &scratch))?;
    Ok(kept)
}

/// Installs the libraries that a package depends on, as far as they are missing; all else that it depends on is for its
/// installation.
fn ensure_libraries(setup: &Setup<'_>, archive: &Path, program: &str) -> Result<()> {
    let depends = process::output(Command::new("dpkg-deb").arg("--field").arg(archive).arg("Depends"))?;
    let names = depends.split([',', '|']).filter_map(|dependency| dependency.split_whitespace().next());
    let libraries: Vec<&str> = names.filter(|name| name.starts_with("lib")).collect();
    let missing = apt::missing(&libraries);
    if missing.is_empty() {
        return Ok(());
    }
    apt::install(setup, &missing, &format!("installing the libraries of {program}"))
}
