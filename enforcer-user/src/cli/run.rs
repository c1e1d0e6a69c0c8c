//! `enforcer run`: the daemon.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::config::{
    Existing, HeadTimeout, Metrics, Mode, OnRefuse, OpenHeads, Overrides, Settings, SizeOverrides, Switch,
};
use crate::daemon;
use crate::kernel::Hook;
use crate::policy::Limits;

const HELP: &str = "\
Defaults < configuration file < environment < flags. The file is TOML and has the same settings under the flags' names \
with `_` for `-`; `interfaces = [\"eth0\"]` and `ports = [8000]` are lists. An unknown field is an error. Only in the file: \
`[on_refuse]`, a table with a word for each reason, and `[answers]`, which sets realm, fields and bodies of what refused \
requests are answered.

The daemon runs in the foreground and logs to standard error. SIGINT or SIGTERM stops it and leaves enforcement in the \
kernel, as does a crash: the next `enforcer run` takes it over without a gap, `enforcer detach` ends it. Several \
daemons can run on one host, each with its own --socket, --state-dir, --bpffs-dir and --metrics.

  enforcer run --interface lo --port 8000
  enforcer run --interface eth0,eth1 --port 8000 --port 8001 --mode observe";

#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Arguments {
    /// Network interface to guard; repeat it, or separate several by commas
    #[arg(
        long = "interface",
        env = "ENFORCER_INTERFACE",
        value_name = "IF",
        value_delimiter = ',',
        hide_env_values = true
    )]
    interfaces: Vec<String>,

    /// TCP port to guard, for plaintext HTTP/1.1; repeat it, or separate several by commas
    ///
    /// Where the file has several `[[service]]`, each has its ports there.
    #[arg(long = "port", env = "ENFORCER_PORT", value_name = "N", value_delimiter = ',', hide_env_values = true)]
    ports: Vec<u16>,

    /// Configuration file [default: /etc/enforcer/enforcer.toml, which need not exist]
    #[arg(long, env = "ENFORCER_CONFIG", value_name = "FILE", hide_env_values = true)]
    config: Option<PathBuf>,

    /// Directory of the store and of the key secret, made with mode 0700 [default: /var/lib/enforcer]
    #[arg(long, env = "ENFORCER_STATE_DIR", value_name = "DIR", hide_env_values = true)]
    state_dir: Option<PathBuf>,

    /// Directory of the pins, on a BPF file system [default: /sys/fs/bpf/enforcer]
    #[arg(long, env = "ENFORCER_BPFFS_DIR", value_name = "DIR", hide_env_values = true)]
    bpffs_dir: Option<PathBuf>,

    /// Address of /metrics and /healthz, or `off` [default: 127.0.0.1:9464]
    #[arg(long, env = "ENFORCER_METRICS", value_name = "IP:PORT|off", hide_env_values = true)]
    metrics: Option<Metrics>,

    /// Where to attach: auto, xdp-native, xdp-generic or tc [default: auto]
    ///
    /// `auto` attaches in the driver where it can (xdp-native), else in the kernel's own receive path (xdp-generic), and
    /// in traffic control (tc) only where another's XDP program is, which leaves XDP no place. `enforcer status` says
    /// which, and why.
    #[arg(long, env = "ENFORCER_HOOK", value_name = "HOOK", hide_env_values = true)]
    hook: Option<Hook>,

    /// What becomes of a refused request: answer, reset or drop [default: answer]
    ///
    /// `answer` sends the client 401, 429 or what else fits, in the app's place, and frees the worker that had accepted
    /// the connection at once. `reset` ends the connection on both sides without a word. `drop` says nothing
    /// to either side, and that has a price: the client sends the request again and again until it gives up, and the
    /// worker that had accepted the connection keeps waiting for it. A flood of refused requests then takes all workers.
    /// The word holds for all reasons, whatever the table `[on_refuse]` of the file says.
    #[arg(long, env = "ENFORCER_ON_REFUSE", value_name = "ACTION", hide_env_values = true)]
    on_refuse: Option<OnRefuse>,

    /// Whether refusals happen: enforce, or observe to count and pass them [default: enforce]
    #[arg(long, env = "ENFORCER_MODE", value_name = "MODE", hide_env_values = true)]
    mode: Option<Mode>,

    /// What becomes of connections that were there before the guard: reset or adopt [default: reset]
    ///
    /// Where in a request such a connection stands cannot be known. `reset` ends, once, those on which bytes have come;
    /// clients connect again and are judged from their first byte. `adopt` leaves them, with a response that is under
    /// way, until the client sends again, and ends them then. One on which nothing has come yet is judged either way.
    #[arg(long, env = "ENFORCER_EXISTING", value_name = "WHAT", hide_env_values = true)]
    existing: Option<Existing>,

    /// Longest time for a connection's first byte and for a request's head, 1s to 1h [default: 30s]
    ///
    /// What takes longer is reset on both sides, however steadily bytes of it drip in. Bodies, responses and the time
    /// between two requests are not bounded by it.
    #[arg(long, env = "ENFORCER_HEAD_TIMEOUT", value_name = "TIME", hide_env_values = true)]
    head_timeout: Option<HeadTimeout>,

    /// Connections of one source that may wait for their first byte or within a head at once [default: 64]
    ///
    /// A source is an IPv4 address or an IPv6 /64. Of those that wait for longer than a second, the oldest beyond this
    /// number are reset.
    #[arg(long, env = "ENFORCER_MAX_OPEN_HEADS", value_name = "N", hide_env_values = true)]
    max_open_heads: Option<OpenHeads>,

    #[command(flatten)]
    sizes: SizeOverrides,

    /// Whether a source that goes on sending what is refused is kept out for a time: on or off [default: on]
    ///
    /// A source is an IPv4 address or an IPv6 /64. Of its refused requests the first 50 a second are met with what
    /// --on-refuse says, those beyond with a reset; with the first beyond 500 a second its penalty begins: it can open no
    /// connection for 10 s, and for twice as long each further time, up to an hour. All of this happens in the kernel,
    /// and ends without a daemon. Only requests on real connections count, so nobody can bring a penalty on another's
    /// address. A source from which a registered key was served within the last minute gets none: it may be many clients
    /// behind one address.
    ///
    /// The table `[penalty]` of the configuration file changes the numbers: answers, tolerated, first, longest, shared,
    /// ipv4, ipv6. `enforcer penalty ls` lists who is kept out, `enforcer penalty rm ADDRESS` lets a source in again.
    #[arg(long, env = "ENFORCER_PENALTY", value_name = "on|off", hide_env_values = true)]
    penalty: Option<Switch>,

    /// Limit of a new principal that is given none [default: 100/minute]
    #[arg(long, env = "ENFORCER_DEFAULT_LIMIT", value_name = "LIMIT", hide_env_values = true)]
    default_limit: Option<Limits>,

    /// End enforcement when the daemon stops, instead of leaving it in the kernel
    #[arg(long, env = "ENFORCER_DETACH_ON_EXIT", value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", value_parser = BoolishValueParser::new(), hide_env_values = true)]
    detach_on_exit: Option<bool>,

    /// Log more; -v also turns on the log lines of the program in the kernel
    #[arg(short, long, action = ArgAction::Count)]
    verbose: u8,
}

impl Arguments {
    pub(super) fn execute(self, socket: Option<PathBuf>) -> anyhow::Result<()> {
        let verbose = self.verbose;
        let settings = Settings::resolve(self.overrides(socket))?;
        log_to_stderr(verbose);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            // Before anything is attached: a signal that comes meanwhile is not lost, and ends the daemon cleanly.
            let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
            let shutdown = async move {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            };
            Ok(daemon::run(settings, verbose > 0, shutdown).await?)
        })
    }

    fn overrides(self, socket: Option<PathBuf>) -> Overrides {
        let Self {
            interfaces,
            ports,
            config,
            state_dir,
            bpffs_dir,
            metrics,
            hook,
            on_refuse,
            mode,
            existing,
            head_timeout,
            max_open_heads,
            sizes,
            penalty,
            default_limit,
            detach_on_exit,
            verbose: _,
        } = self;
        Overrides {
            config,
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
        }
    }
}

fn log_to_stderr(verbose: u8) {
    let filter = match verbose {
        0 => "info",
        1 => "info,enforcer=debug,enforcer_user=debug",
        2 => "debug",
        _ => "trace",
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 0)
        .init();
}
