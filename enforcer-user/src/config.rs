//! The daemon's static settings: defaults, then the configuration file, then the environment, then the flags.
//!
//! The file is TOML, and a field that is not known is an error: a typo never leaves a default in force. Every error
//! says where the value came from, in a file with line and column. Keys and limits are not settings; they live in the
//! store and change while the daemon runs.

mod answers;
pub(crate) mod bounds;
mod choice;
mod host;
mod penalty;
mod refusals;
mod service;
mod sizes;
mod targets;

use std::fmt;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use toml::Spanned;

pub use bounds::{HeadTimeout, OpenHeads, OutOfBounds};
use choice::Choice;
pub use host::HostName;
pub use penalty::{Penalty, Rate, Switch, Term, Width};
pub use refusals::{OnRefuse, Refusals};
pub use service::{Guarded, leader, leaders, mode_of_ports};
pub use sizes::{SizeOverrides, Sizes};
pub use targets::Targets;

use crate::kernel::Hook;
use crate::policy::Limits;

/// The file that is read if none is named; it need not exist.
pub const DEFAULT_CONFIG: &str = "/etc/enforcer/enforcer.toml";
/// Default of [`Settings::state_dir`].
pub const DEFAULT_STATE_DIR: &str = "/var/lib/enforcer";
/// Default of [`Settings::socket`].
pub const DEFAULT_SOCKET: &str = "/run/enforcer/control.sock";
/// Default of [`Settings::bpffs_dir`].
pub const DEFAULT_BPFFS_DIR: &str = "/sys/fs/bpf/enforcer";
/// Default of [`Settings::metrics`].
pub const DEFAULT_METRICS: &str = "127.0.0.1:9464";
/// Default of [`Settings::default_limit`].
pub const DEFAULT_LIMIT: &str = "100/minute";

/// Most ports that one service has.
const MAX_PORTS: usize = 1024;
/// Most interfaces that one daemon guards.
const MAX_INTERFACES: usize = 256;

/// All that `enforcer run` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interfaces to guard, each once, at least one.
    pub interfaces: Vec<String>,
    /// What is guarded, each by a name of its own, at least one; no port is of two.
    pub services: Vec<Guarded>,
    /// Where to attach.
    pub hook: Hook,
    /// What becomes of connections that were there before the guard.
    pub existing: Existing,
    /// Limit of a principal that is given none.
    pub default_limit: Limits,
    /// Directory of the store and the key secret.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// Directory of the pins.
    pub bpffs_dir: PathBuf,
    /// Address of the metrics.
    pub metrics: Metrics,
    /// Whether enforcement ends when the daemon stops.
    pub detach_on_exit: bool,
}

/// Whether refusals happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// They happen.
    #[default]
    Enforce,
    /// They are counted, and the requests pass.
    Observe,
}

/// What becomes of connections that were there before the guard: no request boundary can be proven for those on which
/// bytes have come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Existing {
    /// They end at once.
    #[default]
    Reset,
    /// They go on until the client sends again; then they end.
    Adopt,
}

/// Where the metrics are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metrics {
    /// Nowhere.
    Off,
    /// Over HTTP at this address.
    At(SocketAddr),
}

/// A word that is none of the accepted ones.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is not accepted here; accepted: {accepted}")]
pub struct UnknownWord {
    found: String,
    accepted: &'static str,
}

impl UnknownWord {
    fn new(found: &str, accepted: &'static str) -> Self {
        Self { found: found.to_owned(), accepted }
    }
}

impl Mode {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl FromStr for Mode {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "enforce" => Ok(Self::Enforce),
            "observe" => Ok(Self::Observe),
            _ => Err(UnknownWord::new(text, "enforce, observe")),
        }
    }
}

impl Existing {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Adopt => "adopt",
        }
    }
}

impl FromStr for Existing {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "reset" => Ok(Self::Reset),
            "adopt" => Ok(Self::Adopt),
            _ => Err(UnknownWord::new(text, "reset, adopt")),
        }
    }
}

impl FromStr for Metrics {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "off" => Ok(Self::Off),
            _ => {
                text.parse().map(Self::At).map_err(|_| UnknownWord::new(text, "IP:PORT such as 127.0.0.1:9464, or off"))
            }
        }
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::At(address) => address.fmt(f),
        }
    }
}

/// Values that stand above the file: those of the environment and of the flags, already merged.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The file to read instead of [`DEFAULT_CONFIG`]; it must exist.
    pub config: Option<PathBuf>,
    /// Overrides [`Settings::interfaces`] if it is not empty.
    pub interfaces: Vec<String>,
    /// Overrides [`Guarded::ports`] of the only service if it is not empty.
    pub ports: Vec<u16>,
    /// Overrides [`Settings::hook`].
    pub hook: Option<Hook>,
    /// Overrides [`Guarded::on_refuse`] of all services.
    pub on_refuse: Option<OnRefuse>,
    /// Overrides [`Guarded::mode`] of all services.
    pub mode: Option<Mode>,
    /// Overrides [`Settings::existing`].
    pub existing: Option<Existing>,
    /// Overrides [`Guarded::head_timeout`] of all services.
    pub head_timeout: Option<HeadTimeout>,
    /// Overrides [`Guarded::max_open_heads`] of all services.
    pub max_open_heads: Option<OpenHeads>,
    /// Overrides [`Guarded::sizes`] of all services.
    pub sizes: SizeOverrides,
    /// Overrides the switch of [`Guarded::penalty`] of all services.
    pub penalty: Option<Switch>,
    /// Overrides [`Settings::default_limit`].
    pub default_limit: Option<Limits>,
    /// Overrides [`Settings::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// Overrides [`Settings::socket`].
    pub socket: Option<PathBuf>,
    /// Overrides [`Settings::bpffs_dir`].
    pub bpffs_dir: Option<PathBuf>,
    /// Overrides [`Settings::metrics`].
    pub metrics: Option<Metrics>,
    /// Overrides [`Settings::detach_on_exit`].
    pub detach_on_exit: Option<bool>,
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file that was named is not there, or cannot be read.
    #[error("the configuration {} cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the call.
        source: io::Error,
    },
    /// A place in the file.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong there and what is accepted.
        message: String,
    },
    /// A value of the environment or the command line.
    #[error("{setting}: {message}")]
    Value {
        /// Flag and variable.
        setting: &'static str,
        /// What is wrong and what is accepted.
        message: String,
    },
    /// Something that has no default.
    #[error("no {what} to guard: give {flag}, set {variable}, or write `{field}` in {}", path.display())]
    Missing {
        /// What is missing.
        what: &'static str,
        /// Its flag.
        flag: &'static str,
        /// Its variable.
        variable: &'static str,
        /// Its field in the file, with an example.
        field: &'static str,
        /// The file.
        path: PathBuf,
    },
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    interfaces: Option<Vec<Spanned<String>>>,
    ports: Option<Vec<Spanned<u16>>>,
    hook: Option<Spanned<String>>,
    on_refuse: Option<Spanned<Choice<refusals::Table>>>,
    answers: Option<Spanned<answers::Written>>,
    mode: Option<Spanned<String>>,
    existing: Option<Spanned<String>>,
    head_timeout: Option<Spanned<String>>,
    max_open_heads: Option<Spanned<u64>>,
    max_head: Option<Spanned<u64>>,
    max_fields: Option<Spanned<u64>>,
    max_target: Option<Spanned<u64>>,
    max_body: Option<Spanned<u64>>,
    penalty: Option<Spanned<Choice<penalty::Table>>>,
    service: Option<Spanned<Vec<service::Written>>>,
    default_limit: Option<Spanned<String>>,
    state_dir: Option<PathBuf>,
    socket: Option<PathBuf>,
    bpffs_dir: Option<PathBuf>,
    metrics: Option<Spanned<String>>,
    detach_on_exit: Option<bool>,
}

impl Settings {
    /// Puts the settings together.
    ///
    /// # Errors
    /// A file that was named cannot be read, a value is not accepted, or there is nothing to guard.
    pub fn resolve(overrides: Overrides) -> Result<Self, Error> {
        let (path, text) = read(&overrides)?;
        Self::merge(overrides, &path, &text)
    }

    fn merge(overrides: Overrides, path: &Path, text: &str) -> Result<Self, Error> {
        let source = Source { path, text };
        let file = source.parse()?;
        let Overrides {
            config: _,
            interfaces,
            ports,
            hook,
            on_refuse,
            mode,
            existing,
            head_timeout,
            max_open_heads,
            sizes,
            penalty,
            default_limit,
            state_dir,
            socket,
            bpffs_dir,
            metrics,
            detach_on_exit,
        } = overrides;
        let common = service::Common {
            on_refuse: file.on_refuse,
            answers: file.answers,
            mode: file.mode,
            head_timeout: file.head_timeout,
            max_open_heads: file.max_open_heads,
            max_head: file.max_head,
            max_fields: file.max_fields,
            max_target: file.max_target,
            max_body: file.max_body,
            penalty: file.penalty,
        };
        let above = service::Above { on_refuse, mode, head_timeout, max_open_heads, sizes, penalty };
        let hook = or(hook, source.word("hook", file.hook)?);
        let interfaces = merge_interfaces(interfaces, &file.interfaces.unwrap_or_default(), &source)?;
        let settings = Self {
            interfaces,
            services: service::merge(ports, &file.ports.unwrap_or_default(), file.service, common, above, &source)?,
            hook: hook.unwrap_or(Hook::Auto),
            existing: or(existing, source.word("existing", file.existing)?).unwrap_or_default(),
            default_limit: match or(default_limit, source.word("default_limit", file.default_limit)?) {
                Some(limit) => limit,
                None => value("the built-in default limit", DEFAULT_LIMIT)?,
            },
            state_dir: or(state_dir, file.state_dir).unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            socket: or(socket, file.socket).unwrap_or_else(|| DEFAULT_SOCKET.into()),
            bpffs_dir: or(bpffs_dir, file.bpffs_dir).unwrap_or_else(|| DEFAULT_BPFFS_DIR.into()),
            metrics: match or(metrics, source.word("metrics", file.metrics)?) {
                Some(metrics) => metrics,
                None => value("the built-in metrics address", DEFAULT_METRICS)?,
            },
            detach_on_exit: or(detach_on_exit, file.detach_on_exit).unwrap_or(false),
        };
        Ok(settings)
    }

    /// The ports of all services.
    #[must_use]
    pub fn ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.services.iter().flat_map(|service| service.ports.iter().copied()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Guarded> {
        self.services.iter().find(|service| service.name == name)
    }
}

/// The file's path and text; the default file need not exist.
fn read(overrides: &Overrides) -> Result<(PathBuf, String), Error> {
    let path = overrides.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    match fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound && overrides.config.is_none() => {
            Ok((path, String::new()))
        }
        Err(source) => Err(Error::Read { path, source }),
    }
}

fn or<T>(above: Option<T>, below: Option<T>) -> Option<T> {
    above.or(below)
}

fn value<T: FromStr<Err: fmt::Display>>(setting: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|error: T::Err| Error::Value { setting, message: error.to_string() })
}

/// The file, to say where in it something is wrong.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn parse(&self) -> Result<File, Error> {
        toml::from_str(self.text).map_err(|error| {
            // The message alone: toml's own display is a drawing of several lines.
            self.invalid(error.span().unwrap_or_default(), error.message().trim_end().replace('\n', ", "))
        })
    }

    fn invalid(&self, span: Range<usize>, message: impl Into<String>) -> Error {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        Error::Invalid { path: self.path.to_owned(), line, column, message: message.into() }
    }

    fn word<T: FromStr<Err: fmt::Display>>(
        &self,
        field: &str,
        written: Option<Spanned<String>>,
    ) -> Result<Option<T>, Error> {
        let Some(written) = written else { return Ok(None) };
        self.word_at(field, written.span(), written.get_ref()).map(Some)
    }

    fn word_at<T: FromStr<Err: fmt::Display>>(&self, field: &str, span: Range<usize>, word: &str) -> Result<T, Error> {
        word.parse().map_err(|error| self.invalid(span, format!("{field}: {error}")))
    }

    fn number<T: TryFrom<u64, Error: fmt::Display>>(
        &self,
        field: &str,
        written: Option<Spanned<u64>>,
    ) -> Result<Option<T>, Error> {
        let Some(written) = written else { return Ok(None) };
        match T::try_from(*written.get_ref()) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(self.invalid(written.span(), format!("{field}: {error}"))),
        }
    }
}

/// What the file says is checked even where something else stands above it.
fn merge_interfaces(
    above: Vec<String>,
    written: &[Spanned<String>],
    source: &Source<'_>,
) -> Result<Vec<String>, Error> {
    for name in written {
        check_interface(name.get_ref())
            .map_err(|message| source.invalid(name.span(), format!("interfaces: {message}")))?;
    }
    for name in &above {
        let setting = "--interface (ENFORCER_INTERFACE)";
        check_interface(name).map_err(|message| Error::Value { setting, message })?;
    }
    let wanted = if above.is_empty() { written.iter().map(|name| name.get_ref().clone()).collect() } else { above };
    let mut interfaces: Vec<String> = Vec::with_capacity(wanted.len());
    for name in wanted {
        if !interfaces.contains(&name) {
            interfaces.push(name);
        }
    }
    if interfaces.is_empty() {
        return Err(Error::Missing {
            what: "interface",
            flag: "--interface IF",
            variable: "ENFORCER_INTERFACE",
            field: "interfaces = [\"eth0\"]",
            path: source.path.to_owned(),
        });
    }
    if interfaces.len() > MAX_INTERFACES {
        let message = format!("{} interfaces; accepted: at most {MAX_INTERFACES}", interfaces.len());
        return Err(Error::Value { setting: "interfaces", message });
    }
    Ok(interfaces)
}

/// Refuses what Linux could never call an interface; it becomes a file name below the pins' directory.
fn check_interface(name: &str) -> Result<(), String> {
    let accepted = "1 to 15 characters without `/`, `:` and white space, as `ip link` shows them";
    let valid = (1..=15).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if valid { Ok(()) } else { Err(format!("{name:?} is no interface's name; accepted: {accepted}")) }
}

fn merge_ports(above: Vec<u16>, written: &[Spanned<u16>], source: &Source<'_>) -> Result<Vec<u16>, Error> {
    let accepted = "TCP ports, 1 to 65535";
    if let Some(zero) = written.iter().find(|port| *port.get_ref() == 0) {
        return Err(source.invalid(zero.span(), format!("ports: 0 is no port; accepted: {accepted}")));
    }
    if above.contains(&0) {
        let message = format!("0 is no port; accepted: {accepted}");
        return Err(Error::Value { setting: "--port (ENFORCER_PORT)", message });
    }
    let mut ports = if above.is_empty() { written.iter().map(|port| *port.get_ref()).collect() } else { above };
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        return Err(Error::Missing {
            what: "port",
            flag: "--port N",
            variable: "ENFORCER_PORT",
            field: "ports = [8000]",
            path: source.path.to_owned(),
        });
    }
    if ports.len() > MAX_PORTS {
        let message = format!("{} ports; accepted: at most {MAX_PORTS}", ports.len());
        return Err(Error::Value { setting: "ports", message });
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use enforcer_ebpf::abi::{REASONS, Service};
    use enforcer_ebpf::verdict::Action;

    use super::*;
    use crate::answer::Texts;

    fn merge(overrides: Overrides, text: &str) -> Result<Settings, String> {
        Settings::merge(overrides, Path::new("e.toml"), text).map_err(|error| error.to_string())
    }

    fn only(settings: &Settings) -> &Guarded {
        let [service] = &settings.services[..] else { panic!("{} services", settings.services.len()) };
        service
    }

    fn guard_lo() -> Overrides {
        Overrides { interfaces: vec!["lo".into()], ports: vec![8000], ..Overrides::default() }
    }

    #[test]
    fn without_a_file_the_defaults_hold() {
        let settings = merge(guard_lo(), "").expect("settings");
        let service = Guarded {
            name: "default".into(),
            ports: vec![8000],
            hosts: Vec::new(),
            on_refuse: Refusals::default(),
            answers: Texts::default(),
            mode: Mode::Enforce,
            head_timeout: "30s".parse().expect("a time"),
            max_open_heads: "64".parse().expect("a number"),
            sizes: Sizes::default(),
            penalty: Penalty::default(),
        };
        assert_eq!(
            settings,
            Settings {
                interfaces: vec!["lo".into()],
                services: vec![service],
                hook: Hook::Auto,
                existing: Existing::Reset,
                default_limit: "100/minute".parse().expect("a limit"),
                state_dir: "/var/lib/enforcer".into(),
                socket: "/run/enforcer/control.sock".into(),
                bpffs_dir: "/sys/fs/bpf/enforcer".into(),
                metrics: Metrics::At("127.0.0.1:9464".parse().expect("an address")),
                detach_on_exit: false,
            }
        );
    }

    const FULL: &str = r#"
        interfaces = ["eth0", "lo", "eth0"]
        ports = [8001, 8000]
        hook = "xdp-generic"
        on_refuse = "drop"
        mode = "observe"
        existing = "adopt"
        head_timeout = "1m 30s"
        max_open_heads = 5
        default_limit = "5/second"
        state_dir = "/s"
        socket = "/c"
        bpffs_dir = "/b"
        metrics = "off"
        detach_on_exit = true
    "#;

    #[test]
    fn the_file_stands_above_the_defaults() {
        let settings = merge(Overrides::default(), FULL).expect("settings");
        assert_eq!((settings.ports(), settings.services.len()), (vec![8000, 8001], 1));
        let service = only(&settings);
        assert_eq!((settings.hook, service.on_refuse.usual()), (Hook::XdpGeneric, OnRefuse::Drop));
        assert_eq!((service.mode, settings.metrics), (Mode::Observe, Metrics::Off));
        assert_eq!(settings.default_limit.to_string(), "5/second");
        assert_eq!((settings.existing, service.max_open_heads.get()), (Existing::Adopt, 5));
        assert_eq!(service.head_timeout.to_string(), "1m 30s");
        assert_eq!(settings.interfaces, ["eth0", "lo"]);
        assert_eq!((settings.state_dir, settings.socket), ("/s".into(), "/c".into()));
        assert_eq!((settings.bpffs_dir, settings.detach_on_exit), (PathBuf::from("/b"), true));
    }

    #[test]
    fn flags_and_environment_stand_above_the_file() {
        let overrides = Overrides {
            mode: Some(Mode::Enforce),
            existing: Some(Existing::Reset),
            head_timeout: Some("2s".parse().expect("a time")),
            max_open_heads: Some("7".parse().expect("a number")),
            socket: Some("/over".into()),
            detach_on_exit: Some(false),
            ..guard_lo()
        };
        let settings = merge(overrides, FULL).expect("settings");
        let service = only(&settings);
        assert_eq!((service.mode, service.on_refuse.usual()), (Mode::Enforce, OnRefuse::Drop));
        assert_eq!((settings.existing, service.max_open_heads.get()), (Existing::Reset, 7));
        assert_eq!(service.head_timeout.to_string(), "2s");
        assert_eq!((settings.ports(), settings.interfaces), (vec![8000], vec!["lo".into()]));
        assert_eq!((settings.socket, settings.detach_on_exit), ("/over".into(), false));
    }

    #[test]
    fn says_where_in_the_file_something_is_wrong() {
        for (text, message) in [
            ("mode = \"enforce\"\nmod = 1\n", "e.toml:2:1: unknown field `mod`, expected one of"),
            ("mode = \"strict\"", "e.toml:1:8: mode: \"strict\" is not accepted here; accepted: enforce, observe"),
            ("\n  hook = \"xdp\"", "e.toml:2:10: hook: `xdp` is no hook: auto, xdp-native, xdp-generic or tc"),
            ("default_limit = \"100/mintue\"", "e.toml:1:17: default_limit: column 5: \"mintue\" is no unit of time"),
            ("existing = \"keep\"", "e.toml:1:12: existing: \"keep\" is not accepted here; accepted: reset, adopt"),
            (
                "\nhead_timeout = \"10\"",
                "e.toml:2:16: head_timeout: \"10\" is not accepted here; accepted: a time from 1s to 1h",
            ),
            ("head_timeout = 10", "e.toml:1:16: invalid type: integer `10`, expected a string"),
            (
                "max_open_heads = 0",
                "e.toml:1:18: max_open_heads: \"0\" is not accepted here; accepted: 1 to 1000000 connections",
            ),
            ("max_open_heads = -1", "e.toml:1:18: "),
            ("max_head = 16385", "e.toml:1:12: max_head: \"16385\" is not accepted here; accepted: 1 to 16384"),
            ("metrics = \"localhost\"", "e.toml:1:11: metrics: \"localhost\" is not accepted here; accepted: IP:PORT"),
            (
                "interfaces = [\"lo\", \"a/b\"]",
                "e.toml:1:21: interfaces: \"a/b\" is no interface's name; accepted: 1 to 15",
            ),
            ("ports = [8000, 70000]", "e.toml:1:16: "),
            ("ports = [0]", "e.toml:1:10: ports: 0 is no port; accepted: TCP ports, 1 to 65535"),
            ("ports = 8000", "e.toml:1:9: invalid type: integer `8000`, expected a sequence"),
            ("mode = enforce", "e.toml:1:8: "),
            ("mode = \"enforce\"\nmode = \"observe\"", "e.toml:2:1: duplicate key"),
        ] {
            let error = merge(guard_lo(), text).expect_err(text);
            assert!(error.starts_with(message) && !error.contains('\n'), "{text:?}: {error}");
        }
    }

    #[test]
    fn says_what_there_is_no_default_for() {
        let error = merge(Overrides { ports: vec![1], ..Overrides::default() }, "").expect_err("no interface");
        assert_eq!(
            error,
            "no interface to guard: give --interface IF, set ENFORCER_INTERFACE, or write `interfaces = [\"eth0\"]` in e.toml"
        );
        let error =
            merge(Overrides { interfaces: vec!["lo".into()], ..Overrides::default() }, "").expect_err("no port");
        assert!(
            error.starts_with("no port to guard: give --port N, set ENFORCER_PORT, or write `ports = [8000]`"),
            "{error}"
        );
        let error = merge(Overrides { interfaces: vec![String::new()], ..guard_lo() }, "").expect_err("no name");
        assert!(error.starts_with("--interface (ENFORCER_INTERFACE): \"\" is no interface's name"), "{error}");
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let overrides = Overrides { config: Some("/nonexistent/e.toml".into()), ..guard_lo() };
        let error = Settings::resolve(overrides).expect_err("no file").to_string();
        assert!(error.starts_with("the configuration /nonexistent/e.toml cannot be read: "), "{error}");
    }

    #[test]
    fn the_service_carries_mode_and_action() {
        let settings =
            merge(guard_lo(), "mode = \"observe\"\non_refuse = \"drop\"\nhead_timeout = \"2s\"").expect("settings");
        assert_eq!(only(&settings).service().head_timeout_ns, 2_000_000_000);
        assert_eq!(only(&settings).service().flags, Service::OBSERVE);
        assert_eq!(only(&settings).service().actions, [Action::Drop as u8; REASONS]);
        let unpunished = || Overrides { penalty: Some(Switch::Off), ..guard_lo() };
        let settings = merge(unpunished(), "").expect("settings");
        let actions = [Action::Answer as u8; REASONS];
        let service = only(&settings).service();
        assert_eq!(service, Service { flags: Service::ANSWER | Service::KEEP, actions, ..Service::DEFAULT });
        let settings = merge(unpunished(), "on_refuse = \"reset\"").expect("settings");
        assert_eq!(only(&settings).service(), Service::DEFAULT);
    }
}
