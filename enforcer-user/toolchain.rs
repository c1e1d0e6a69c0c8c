//! The toolchain of the BPF program: its pins, how it is found, and the command that builds the object.
//!
//! The one place that both the build script of `enforcer-user` and `cargo xtask` include, so that what set-up installs
//! is what the build looks for. Three toolchains are accepted, in this order: a rustup toolchain named `bpf`, Debian's
//! `/usr/bin/cargo` with its `rustc`, and rustup's `nightly`; each needs the source of `core`, because no toolchain
//! ships it compiled for BPF.

use std::{
    env,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Oldest Rust, `1.x`, that the BPF program builds with: the workspace's `rust-version`.
pub(crate) const MIN_RUST_MINOR: u32 = 95;
/// The bpf-linker release that set-up installs.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM that bpf-linker is linked with; not older than the one inside rustc, whose bitcode it reads.
pub(crate) const LLVM_MAJOR: u32 = 22;
/// Debian's packages that hold the compiler, the source of `core` and bpf-linker's LLVM.
pub(crate) const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "llvm-22-dev"];
/// The name that set-up gives Debian's compiler among the rustup toolchains.
pub(crate) const RUSTUP_NAME: &str = "bpf";
/// Rust's name for the machine of the program.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Names a prebuilt object, which is embedded instead of a built one.
pub(crate) const PREBUILT: &str = "ENFORCER_BPF_OBJECT";

/// What the program is compiled and linked with, besides the linker itself.
///
/// v3 is the first instruction set with atomics that return a value. BTF is what `bpf_loop` callbacks need to load.
/// The last one keeps an unaligned eight-byte load one instruction; x86-64 and aarch64 allow it.
const RUSTFLAGS: &[&str] =
    &["-Ctarget-cpu=v3", "-Clink-arg=--btf", "-Clink-arg=--cpu-features=+allows-misaligned-mem-access"];

/// What cargo and rustup set for build scripts and `cargo run`, and what would bend the nested build.
const FOREIGN: &[&str] = &[
    "CARGO",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_LINKER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler and a linker that together build the BPF program.
#[derive(Debug)]
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

/// Where cargo and rustc come from.
#[derive(Clone, Copy, Debug)]
enum Compiler {
    /// `rustup run NAME`.
    Rustup(&'static str),
    /// `/usr/bin`.
    Distribution,
}

/// What the BPF program cannot be built without, and is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Missing {
    compiler: bool,
    linker: bool,
}

impl Toolchain {
    /// Looks for a compiler and for bpf-linker.
    ///
    /// # Errors
    /// Names what is missing, and the cure.
    pub(crate) fn find() -> Result<Self, Missing> {
        let candidates = [Compiler::Rustup(RUSTUP_NAME), Compiler::Distribution, Compiler::Rustup("nightly")];
        let compiler = candidates.into_iter().find(Compiler::is_usable);
        match (compiler, find_linker()) {
            (Some(compiler), Some(linker)) => Ok(Self { compiler, linker }),
            (compiler, linker) => Err(Missing { compiler: compiler.is_none(), linker: linker.is_none() }),
        }
    }

    /// `cargo SUBCOMMAND` on the BPF program, for the BPF target, with `target_dir` to itself: a cargo that shared the
    /// outer one's directory would wait for its lock for ever.
    pub(crate) fn cargo(&self, subcommand: &str, workspace: &Path, target_dir: &Path) -> Command {
        let mut command = self.compiler.command("cargo");
        for name in FOREIGN {
            command.env_remove(name);
        }
        if matches!(self.compiler, Compiler::Distribution) {
            command.env("RUSTC", "/usr/bin/rustc");
        }
        let mut flags = OsString::from("-Clinker=");
        flags.push(&self.linker);
        for flag in RUSTFLAGS {
            flags.push("\x1f");
            flags.push(flag);
        }
        command
            .current_dir(workspace)
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            // `-Z build-std` and `core::intrinsics` are unstable; this lets a stable compiler have them.
            .env("RUSTC_BOOTSTRAP", "1")
            .arg(subcommand)
            .args(["--package", "enforcer-ebpf", "--bin", "enforcer-bpf", "--features", "bpf", "--profile", "bpf"])
            .args(["--target", TARGET, "-Zbuild-std=core", "--target-dir"])
            .arg(target_dir);
        command
    }

    /// Where `cargo build` leaves the object.
    pub(crate) fn object(target_dir: &Path) -> PathBuf {
        target_dir.join(TARGET).join("bpf/enforcer-bpf")
    }
}

impl Compiler {
    fn command(self, program: &str) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                // A toolchain that is not there is not to be fetched behind the operator's back.
                command.env("RUSTUP_AUTO_INSTALL", "0").args(["run", name, program]);
                command
            }
            Self::Distribution => Command::new(Path::new("/usr/bin").join(program)),
        }
    }

    fn rustc(self, args: &[&str]) -> Option<String> {
        let output =
            self.command("rustc").env_remove("RUSTUP_TOOLCHAIN").args(args).stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn is_usable(&self) -> bool {
        let Some(version) = self.rustc(&["--version"]) else { return false };
        let Some(sysroot) = self.rustc(&["--print", "sysroot"]) else { return false };
        rust_minor(&version).is_some_and(|minor| minor >= MIN_RUST_MINOR)
            && Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    }
}

/// The `x` of `rustc 1.x.y …`.
fn rust_minor(version: &str) -> Option<u32> {
    version.split_whitespace().nth(1)?.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

/// bpf-linker on PATH, or where `cargo install` puts it.
fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let cargo_home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let default_home = env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let installed = [cargo_home, default_home].into_iter().flatten().map(|home| home.join("bin"));
    env::split_paths(&path).chain(installed).map(|dir| dir.join("bpf-linker")).find(|file| file.is_file())
}

/// The directory of the nested build, from the outer one's settings: `target/bpf` unless CARGO_TARGET_DIR says other.
pub(crate) fn target_dir(workspace: &Path) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    workspace.join(target).join("bpf")
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.compiler {
            write!(
                formatter,
                "no Rust of at least 1.{MIN_RUST_MINOR} has the source of `core` (looked for: the rustup toolchain \
                 `{RUSTUP_NAME}`, /usr/bin/rustc, rustup's nightly with rust-src)"
            )?;
        }
        if self.compiler && self.linker {
            formatter.write_str(", and ")?;
        }
        if self.linker {
            formatter.write_str("bpf-linker is neither on PATH nor in ~/.cargo/bin")?;
        }
        write!(formatter, ": run `cargo xtask setup`, or name a prebuilt object in {PREBUILT}")
    }
}
