//! Reverse proxies before the guarded app: they keep their connections to it, and many clients share those.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use enforcer_tests::netns::Namespace;
use enforcer_tests::process::{Process, wait_for};
use tempfile::TempDir;

/// A proxy's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// nginx, with a pool of idle connections.
    Nginx,
    /// HAProxy, which reuses connections where it is safe.
    HaProxy,
}

/// A running proxy.
pub(crate) struct Proxy {
    _process: Process,
    _folder: TempDir,
    /// Where it listens.
    pub(crate) address: SocketAddr,
}

impl Kind {
    /// Both of them.
    pub(crate) const ALL: [Self; 2] = [Self::Nginx, Self::HaProxy];

    /// Starts it in `namespace`, before the app at `app`.
    ///
    /// # Errors
    /// When it does not come up; with what it printed.
    pub(crate) fn start(self, namespace: &Namespace, app: SocketAddr) -> Result<Proxy> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().display();
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9000);
        let (program, configuration) = match self {
            Self::Nginx => ("nginx", nginx(&path.to_string(), address, app)),
            Self::HaProxy => ("haproxy", haproxy(address, app)),
        };
        let file = folder.path().join("proxy.conf");
        fs::write(&file, configuration)?;
        let mut command = namespace.command(program);
        match self {
            Self::Nginx => command.args(["-p", &path.to_string(), "-e", "stderr", "-c"]).arg(&file),
            Self::HaProxy => command.args(["-db", "-f"]).arg(&file),
        };
        let mut process = Process::start(command, &folder.path().join("output"))?;
        wait_for("the proxy", || {
            if let Some(status) = process.ended()? {
                bail!("{program} ended with {status}: {} (`cargo xtask setup --tests` installs it)", process.output());
            }
            let up = || Ok(TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok());
            Ok(namespace.run(up)?.then_some(()))
        })
        .with_context(|| format!("starting {program}"))?;
        Ok(Proxy { _process: process, _folder: folder, address })
    }
}

fn nginx(folder: &str, address: SocketAddr, app: SocketAddr) -> String {
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n"))
        .concat();
    format!(
        "daemon off;\npid {folder}/pid;\nuser root;\nworker_processes 1;\nevents {{ worker_connections 256; }}\nhttp {{\n\
         {temporary}  access_log off;\n  upstream app {{ server {app}; keepalive 8; }}\n  server {{\n    listen {address};\n    \
         location / {{\n      proxy_pass http://app;\n      proxy_http_version 1.1;\n      proxy_set_header Connection \
         \"\";\n    }}\n  }}\n}}\n"
    )
}

fn haproxy(address: SocketAddr, app: SocketAddr) -> String {
    format!(
        "global\n  maxconn 256\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 30s\n  timeout server 30s\n  \
         option http-keep-alive\n  http-reuse safe\nfrontend clients\n  bind {address}\n  default_backend app\nbackend \
         app\n  server app {app}\n"
    )
}
