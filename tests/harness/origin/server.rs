//! The servers that can be an origin, and how each is told to serve an app on a port.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use anyhow::Result;

use super::venv;
use crate::folder;
use crate::netns::Namespace;

/// How gunicorn's workers serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One connection at a time, closed after one request.
    Sync(usize),
    /// Four threads each; connections are kept.
    Threads(usize),
}

impl Workers {
    const fn count(self) -> usize {
        match self {
            Self::Sync(count) | Self::Threads(count) => count,
        }
    }
}

/// A server and its way of working. All of them serve the same apps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// gunicorn, with its own parser.
    Gunicorn(Workers),
    /// Likewise, with two sync workers, to which every connection begins with a header of the PROXY protocol: `v1` or `v2`.
    GunicornBehindProxy(&'static str),
    /// waitress, which reads a request whole before it calls the app.
    Waitress,
    /// werkzeug's development server, on Python's `http.server`; `flask run` starts it.
    Werkzeug,
    /// uvicorn with the parser h11; the app runs through a2wsgi.
    UvicornH11,
    /// uvicorn with the parser httptools; the app runs through a2wsgi.
    UvicornHttptools,
}

impl From<Workers> for Server {
    fn from(workers: Workers) -> Self {
        Self::Gunicorn(workers)
    }
}

impl fmt::Display for Server {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Gunicorn(Workers::Sync(_)) => "gunicorn sync",
            Self::Gunicorn(Workers::Threads(_)) => "gunicorn gthread",
            Self::GunicornBehindProxy(_) => "gunicorn behind a proxy",
            Self::Waitress => "waitress",
            Self::Werkzeug => "werkzeug",
            Self::UvicornH11 => "uvicorn h11",
            Self::UvicornHttptools => "uvicorn httptools",
        })
    }
}

impl Server {
    /// One of each kind, as the adversarial suites run them.
    pub const EACH: [Self; 6] = [
        Self::Gunicorn(Workers::Sync(8)),
        Self::Gunicorn(Workers::Threads(2)),
        Self::Waitress,
        Self::Werkzeug,
        Self::UvicornH11,
        Self::UvicornHttptools,
    ];

    /// How many processes it starts besides the first.
    pub(super) const fn children(self) -> usize {
        match self {
            Self::Gunicorn(workers) => workers.count(),
            Self::GunicornBehindProxy(_) => 2,
            Self::Waitress | Self::Werkzeug | Self::UvicornH11 | Self::UvicornHttptools => 0,
        }
    }

    /// The command that serves `app` in `namespace` on the wildcard of the address's family: what the enforcer sees
    /// must not depend on how the server is bound.
    pub(super) fn command(self, namespace: &Namespace, app: &str, address: SocketAddr) -> Result<Command> {
        let (host, bind) = match address.ip() {
            IpAddr::V4(_) => ("0.0.0.0", format!("0.0.0.0:{}", address.port())),
            IpAddr::V6(_) => ("::", format!("[::]:{}", address.port())),
        };
        let (apps, port) = (folder().join("apps"), address.port().to_string());
        let program = match self {
            Self::Gunicorn(_) | Self::GunicornBehindProxy(_) => "gunicorn",
            Self::Waitress => "waitress-serve",
            Self::Werkzeug => "flask",
            Self::UvicornH11 | Self::UvicornHttptools => "uvicorn",
        };
        let mut command = namespace.command(venv(program)?);
        match self {
            Self::Gunicorn(workers) => {
                command.args(["--bind", &bind, "--workers", &workers.count().to_string()]);
                match workers {
                    Workers::Sync(_) => command.args(["--worker-class", "sync"]),
                    Workers::Threads(_) => {
                        // A worker that has reached its number of connections, by default 1000, may never accept again.
                        command.args(["--worker-class", "gthread", "--threads", "4", "--keep-alive", "30"]);
                        command.args(["--worker-connections", "10000"])
                    }
                };
                command.args(["--timeout", "120", "--graceful-timeout", "1", "--log-level", "warning"]);
                command.args(["--no-control-socket", &format!("{app}:app")]);
            }
            Self::GunicornBehindProxy(version) => {
                command.args(["--bind", &bind, "--workers", "2", "--proxy-protocol", version]);
                command.args(["--proxy-allow-from", "*", "--graceful-timeout", "1", "--log-level", "warning"]);
                command.args(["--no-control-socket", &format!("{app}:app")]);
            }
            Self::Waitress => {
                command.args([format!("--listen={bind}"), "--threads=16".to_owned(), format!("{app}:app")]);
            }
            Self::Werkzeug => {
                command.args(["--app", app, "run", "--host", host, "--port", &port, "--no-reload"]);
            }
            Self::UvicornH11 | Self::UvicornHttptools => {
                let parser = if self == Self::UvicornH11 { "h11" } else { "httptools" };
                command.args(["--http", parser, "--host", host, "--port", &port, "--timeout-keep-alive", "30"]);
                command.args(["--timeout-graceful-shutdown", "1", "--lifespan", "off", "--ws", "none"]);
                command.args(["--no-access-log", "--log-level", "warning", "asgi:app"]);
            }
        }
        command.current_dir(&apps).env("PYTHONPATH", &apps).env("PYTHONDONTWRITEBYTECODE", "1").env("WSGI_APP", app);
        Ok(command)
    }
}
