//! What the daemon is told: the caller's arguments, and defaults where neither they nor the environment name a thing.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::Path,
};

/// The arguments of `enforcer run`, and what of them the demonstration must know.
#[derive(Debug)]
pub(crate) struct Settings {
    arguments: Vec<OsString>,
    interfaces: Vec<String>,
    port: Option<u16>,
    socket: OsString,
}

/// A setting that has a default here.
struct Setting {
    flag: &'static str,
    variable: &'static str,
}

const INTERFACE: Setting = Setting { flag: "--interface", variable: "ENFORCER_INTERFACE" };
const PORT: Setting = Setting { flag: "--port", variable: "ENFORCER_PORT" };
const CONFIG: Setting = Setting { flag: "--config", variable: "ENFORCER_CONFIG" };
const STATE: Setting = Setting { flag: "--state-dir", variable: "ENFORCER_STATE_DIR" };
const SOCKET: Setting = Setting { flag: "--socket", variable: "ENFORCER_SOCKET" };

impl Settings {
    /// Completes `given` with a state directory and a socket in `folder`, and with port 8000 on lo unless the
    /// arguments, the environment or a configuration that they name say other.
    pub(crate) fn read(given: &[OsString], folder: &Path) -> Self {
        Self::complete(given, folder, &|name| env::var_os(name))
    }

    fn complete(given: &[OsString], folder: &Path, variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let mut arguments = given.to_vec();
        let mut named = |setting: &Setting, default: Option<&OsStr>| {
            let mut values = values(given, setting.flag);
            if values.is_empty() {
                values.extend(variable(setting.variable).filter(|value| !value.is_empty()));
            }
            if let (true, Some(default)) = (values.is_empty(), default) {
                arguments.extend([setting.flag.into(), default.to_owned()]);
                values.push(default.to_owned());
            }
            values
        };
        let configured = !named(&CONFIG, None).is_empty();
        let unless_configured = |default| (!configured).then(|| OsStr::new(default));
        let interfaces = named(&INTERFACE, unless_configured("lo"));
        let ports = named(&PORT, unless_configured("8000"));
        named(&STATE, Some(folder.join("state").as_os_str()));
        let socket = named(&SOCKET, Some(folder.join("control.sock").as_os_str())).remove(0);
        if !given.iter().any(|argument| argument == "--detach-on-exit") {
            arguments.push("--detach-on-exit".into());
        }
        let interfaces =
            interfaces.iter().flat_map(|list| list.to_string_lossy().split(',').map(str::to_owned).collect::<Vec<_>>());
        let port = ports
            .first()
            .and_then(|list| list.to_string_lossy().split(',').next().and_then(|port| port.trim().parse().ok()));
        Self { interfaces: interfaces.collect(), port, socket, arguments }
    }

    /// For `enforcer run`.
    pub(crate) fn arguments(&self) -> &[OsString] {
        &self.arguments
    }

    /// Where the daemon listens for commands.
    pub(crate) fn socket(&self) -> &OsStr {
        &self.socket
    }

    /// The first guarded port; `None` where only a configuration file says.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// Whether an app on 127.0.0.1 would be behind the guard.
    pub(crate) fn guards_loopback(&self) -> bool {
        self.interfaces.iter().any(|interface| interface.trim() == "lo")
    }
}

/// The values of `flag` in `arguments`, written `--flag value` or `--flag=value`.
fn values(arguments: &[OsString], flag: &str) -> Vec<OsString> {
    let joined = format!("{flag}=");
    let value = |(index, argument): (usize, &OsString)| {
        if argument == flag {
            return arguments.get(index + 1).cloned();
        }
        argument.to_str().and_then(|argument| argument.strip_prefix(&joined)).map(OsString::from)
    };
    arguments.iter().enumerate().filter_map(value).collect()
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsString, path::Path};

    use super::Settings;

    fn complete(given: &[&str], environment: &[(&str, &str)]) -> Settings {
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        Settings::complete(&given, Path::new("/t"), &|name| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
        })
    }

    fn line(settings: &Settings) -> String {
        settings.arguments().iter().map(|argument| argument.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn guards_port_8000_on_lo_and_leaves_nothing_by_default() {
        let settings = complete(&[], &[]);
        let expected = "--interface lo --port 8000 --state-dir /t/state --socket /t/control.sock --detach-on-exit";
        assert_eq!(line(&settings), expected);
        assert_eq!((settings.port(), settings.guards_loopback()), (Some(8000), true));
    }

    #[test]
    fn gives_way_to_what_the_caller_names() {
        let settings = complete(&["--port=9000", "--interface", "eth0", "--socket", "/s"], &[]);
        assert_eq!(line(&settings), "--port=9000 --interface eth0 --socket /s --state-dir /t/state --detach-on-exit");
        assert_eq!((settings.port(), settings.guards_loopback()), (Some(9000), false));
        assert_eq!(settings.socket(), "/s");
    }

    #[test]
    fn gives_way_to_the_environment() {
        let settings =
            complete(&[], &[("ENFORCER_INTERFACE", "eth0,lo"), ("ENFORCER_SOCKET", "/s"), ("ENFORCER_PORT", "")]);
        assert_eq!(line(&settings), "--port 8000 --state-dir /t/state --detach-on-exit");
        assert_eq!((settings.socket().to_str(), settings.guards_loopback()), (Some("/s"), true));
    }

    #[test]
    fn leaves_interfaces_and_ports_to_a_configuration_that_is_named() {
        let settings = complete(&["--config", "a.toml"], &[]);
        assert_eq!(line(&settings), "--config a.toml --state-dir /t/state --socket /t/control.sock --detach-on-exit");
        assert_eq!((settings.port(), settings.guards_loopback()), (None, false));
    }
}
