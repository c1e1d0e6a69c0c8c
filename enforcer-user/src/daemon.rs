//! The daemon: opens the store, fills the maps, attaches the program, and serves the control socket and the metrics.
//!
//! [`run`] is its whole life. Nothing is attached before everything else has succeeded, so a start that fails leaves
//! nothing behind. A clean stop leaves enforcement pinned in the kernel, as a crash does: only `enforcer detach`, or
//! `--detach-on-exit`, ends it.
//!
//! # Layout
//! - `state_dir`, `socket`: what belongs to this daemon alone
//! - `registry`, `tables`, `slots`: a change, from the request through the store to the maps
//! - `keeping`: what was counted, written down for when the maps are gone
//! - `penalties`: the sources that the program keeps out
//! - `reaper`: connections ended that keep a worker waiting, or that are older than the guard
//! - `answering`: whether refused requests can be answered
//! - `sweeping`, `retired`: connections that never came to be, and what was used of limits that are long gone
//! - `report`, `reading`: what it tells about itself
//! - `coverage`: what it says at its start of the ways that it does not guard
//! - `serving`, `exporter`: HTTP on both its ends

mod answering;
mod coverage;
mod exemptions;
mod explain;
mod exporter;
mod forecast;
mod keeping;
mod leaks;
mod penalties;
mod policy;
mod reading;
mod reaper;
pub(crate) mod registry;
mod report;
mod retired;
mod rulebook;
mod serving;
mod slots;
pub mod socket;
pub mod state_dir;
mod sweeping;
mod tables;
mod trial;

use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;

use crate::api::Refusal;
use crate::config::{self, Metrics, Settings};
use crate::control::{self, Peer};
use crate::kernel::{self, Clock, Kernel};
use crate::store::{self, Store};
use enforcer_ebpf::abi;
use enforcer_ebpf::flow;
use keeping::Keeper;
use reading::Reader;
use reaper::Reaper;
use reaper::tally::Tally;
use registry::Registry;
use state_dir::StateDir;
use tables::Tables;

/// Why the daemon did not start, or did not end as it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory.
    #[error(transparent)]
    State(#[from] state_dir::Error),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// The policy in the store.
    #[error("the policy in the store cannot be laid out: {0}")]
    Policy(String),
    /// The texts of the answers.
    #[error(transparent)]
    Answer(#[from] crate::answer::Unsendable),
    /// The metrics' address.
    #[error("the metrics cannot be served on {address}: {source}: name another --metrics IP:PORT, or --metrics off")]
    Metrics {
        /// The address.
        address: std::net::SocketAddr,
        /// The error of the call.
        source: io::Error,
    },
}

/// What the handlers of both ends share.
pub(crate) struct Daemon {
    pub(crate) settings: Settings,
    pub(crate) since: Timestamp,
    /// The connections that were ended.
    pub(crate) reaped: Arc<Tally>,
    /// `None` once enforcement was ended over the socket.
    registry: Mutex<Option<Registry>>,
    reader: Mutex<Reader>,
    stop: watch::Sender<bool>,
}

impl Daemon {
    /// Runs `work` with the registry on a thread that may block, one at a time.
    pub(crate) async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Registry) -> Result<T, registry::Error> + Send + 'static,
    ) -> Result<T, registry::Error> {
        let daemon = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || match daemon.registry().as_mut() {
            Some(registry) => work(registry),
            None => Err(registry::Error::Stopping),
        });
        // The runtime drops a blocking task only when it ends itself.
        task.await.unwrap_or(Err(registry::Error::Stopping))
    }

    /// Runs `work`, which reads what no change needs to wait for, on a thread that may block, one at a time.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Reader) -> Result<T, registry::Error> + Send + 'static,
    ) -> Result<T, registry::Error> {
        let daemon = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let reader = daemon.reader.lock().unwrap_or_else(PoisonError::into_inner);
            work(&reader)
        });
        task.await.unwrap_or(Err(registry::Error::Stopping))
    }

    fn registry(&self) -> std::sync::MutexGuard<'_, Option<Registry>> {
        // A panic while it was held has rolled back the store's transaction.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends enforcement and lets the daemon end; says which interfaces were guarded.
    pub(crate) async fn detach(self: &Arc<Self>) -> Result<Vec<String>, registry::Error> {
        let daemon = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || {
            let registry = daemon.registry().take().ok_or(registry::Error::Stopping)?;
            let removed = registry.tables.into_kernel().detach();
            daemon.stop.send_replace(true);
            Ok(removed?)
        });
        task.await.unwrap_or(Err(registry::Error::Stopping))
    }
}

/// Runs the daemon until `shutdown` comes, or until enforcement is ended over the control socket.
///
/// `log` lets the kernel's program write log lines, for people who look at single packets.
///
/// # Errors
/// It could not start, and has left nothing behind, or enforcement could not be ended at the end.
pub async fn run(settings: Settings, log: bool, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
    let state = StateDir::open(&settings.state_dir)?;
    let secret = state.secret()?;
    let store = Store::open(&state.store())?;
    store.bind(secret)?;
    let (control_socket, _socket_file) = socket::listen(&settings.socket)?;
    let metrics_socket = match settings.metrics {
        Metrics::Off => None,
        Metrics::At(address) => {
            let listener = TcpListener::bind(address).await;
            Some(listener.map_err(|source| Error::Metrics { address, source })?)
        }
    };
    let options = kernel::Options {
        interfaces: settings.interfaces.clone(),
        hook: settings.hook,
        bpffs_dir: kernel::reach(&settings.bpffs_dir),
        key_secret: secret,
        flows: abi::FLOW_SETS * flow::WAYS as u32,
        log,
    };
    let kernel = Kernel::load(&options)?;
    let (is_empty, counted) = (kernel.is_empty(), kernel.counted());
    // What an earlier daemon has left judges already, by the clock as it was then.
    let clock = kernel.clock();
    clock.set();
    let now = Timestamp::now();
    let names: Vec<String> = settings.services.iter().map(|service| service.name.clone()).collect();
    let unlaid = |error: registry::Error| Error::Policy(error.to_string());
    let on_trial = kernel.trial()?;
    let began = Instant::now();
    let held = Registry::load(&store, &names, now).map_err(unlaid)?;
    let keys = store.keys_by_tag()?;
    let read = began.elapsed();
    let mut tables = Tables::reconcile(kernel, &settings.services, &held.services, &held.terms, &keys)?;
    let (keys, principals, time) = (keys.len(), held.terms.len(), began.elapsed().as_millis());
    let read = read.as_millis();
    tracing::info!(
        "brought the maps to {keys} keys and {principals} principals in {time} ms, {read} of them to read the store"
    );
    let (book, named) = held.rules(tables.seats(), secret).map_err(unlaid)?;
    tables.set_services(&settings.services)?;
    let switch = tables.lay_out(&book, &[], Vec::new())?;
    // A port goes to a service once its rules hold, and what its service was before goes on until then.
    tables.switch(None)?;
    tables.set_hosts(&settings.services, secret)?;
    tables.set_ports(&settings.services)?;
    tables.clear_hosts(&settings.services, secret)?;
    tables.settle(switch)?;
    tables.clear_seats()?;
    let reader = Reader::open(&state.store(), counted.clone())?;
    let keeper = Keeper::open(&state.counts(), counted, is_empty);
    if let Some((_, Some(before))) = &keeper
        && let Err(error) = keeping::put_back(before, &mut tables)
    {
        tracing::error!(
            "not all that was counted before could be put back, what is missing begins with nothing: {error}"
        );
    }
    let trial = Registry::resume_trial(&store, &mut tables, secret, on_trial, now).map_err(unlaid)?;
    tables.kernel_mut().attach(&options)?;
    answering::fall_back(&settings, &mut tables)?;
    if log && let Some(logger) = tables.kernel_mut().logger() {
        tokio::spawn(logger.run());
    }
    announce(&settings, tables.kernel());
    coverage::warn(&settings, &options);
    let reaped = Arc::new(Tally::default());
    let leaders = config::leaders(&settings.services);
    if tables.kernel().attachments().iter().any(|attachment| !attachment.taken_over) {
        for service in &leaders {
            if let Err(error) = reaper::end_existing(service, settings.existing, tables.kernel(), &reaped) {
                tracing::error!("connections that are older than the guard are not ended: {error}");
            }
        }
    }
    let followed = tables.kernel().connections();
    let reaper = |service| Reaper::new(service, followed.clone(), Arc::clone(&reaped));
    let reapers: Vec<Reaper> = leaders.iter().map(reaper).collect();

    let registry = Registry {
        store,
        tables,
        secret,
        default_limit: settings.default_limit.clone(),
        groups: held.groups,
        rules: named,
        trial,
    };
    let (stop, stopped) = watch::channel(false);
    let (registry, reader) = (Mutex::new(Some(registry)), Mutex::new(reader));
    let daemon = Arc::new(Daemon { settings, since: Timestamp::now(), reaped, registry, reader, stop });
    let control = control::router(Arc::clone(&daemon));
    let identify = |stream: &UnixStream| Peer::of(stream);
    let mut ends = tokio::task::JoinSet::new();
    ends.spawn(serving::serve(control_socket, control, identify, stopped.clone()));
    if let Some(listener) = metrics_socket {
        ends.spawn(serving::serve(listener, exporter::router(Arc::clone(&daemon)), |_| (), stopped.clone()));
    }
    for reaper in reapers {
        ends.spawn(reaper.run(stopped.clone()));
    }
    ends.spawn(keep_time(clock, stopped.clone()));
    if let Some((keeper, _)) = keeper {
        ends.spawn(keeper.watch(stopped.clone()));
    }
    ends.spawn(policy::watch(Arc::clone(&daemon), stopped.clone()));
    ends.spawn(answering::watch(Arc::clone(&daemon), stopped.clone()));
    ends.spawn(sweeping::watch(Arc::clone(&daemon), stopped.clone()));
    ends.spawn(leaks::watch(Arc::clone(&daemon), stopped.clone()));

    let mut stopped = stopped;
    tokio::select! {
        () = shutdown => {}
        _ = stopped.wait_for(|stop| *stop) => {}
    }
    daemon.stop.send_replace(true);
    ends.join_all().await;
    let registry = daemon.registry().take();
    farewell(&daemon.settings, registry)
}

/// There is no service of this name.
fn no_service(settings: &Settings, name: &str) -> registry::Error {
    let there: Vec<&str> = settings.services.iter().map(|service| service.name.as_str()).collect();
    let message = format!("no service `{name}` is guarded");
    registry::Error::NotFound(Refusal::of("service", message, there.join(", ")))
}

/// Sets the program's clock every second: the time of day may be set, too.
async fn keep_time(clock: Clock, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = ticks.tick() => clock.set(),
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// The one line that says what is guarded, once it is.
fn announce(settings: &Settings, kernel: &Kernel) {
    let places: Vec<String> = kernel
        .attachments()
        .iter()
        .map(|at| {
            let taken_over = if at.taken_over { ", taken over from an earlier daemon" } else { "" };
            format!("{} ({}: {}{taken_over}; endpoints: {})", at.interface, at.mode, at.reason, at.endpoints)
        })
        .collect();
    let services: Vec<String> = settings.services.iter().map(ToString::to_string).collect();
    tracing::info!(
        "{} on {}, socket {}, metrics {}",
        services.join("; "),
        places.join(", "),
        settings.socket.display(),
        settings.metrics
    );
    if let Metrics::At(address) = settings.metrics
        && !address.ip().is_loopback()
    {
        tracing::warn!("metrics on {address} show the names of all principals to whoever reaches this address");
    }
}

/// Ends enforcement if that was asked for, and says what is left.
fn farewell(settings: &Settings, registry: Option<Registry>) -> Result<(), Error> {
    let Some(registry) = registry else {
        tracing::info!("stopped; enforcement was ended by `enforcer detach`");
        return Ok(());
    };
    let kernel = registry.tables.into_kernel();
    if settings.detach_on_exit {
        let removed = kernel.detach()?;
        tracing::info!("stopped; enforcement on {} has ended with it (--detach-on-exit)", removed.join(", "));
        return Ok(());
    }
    let interfaces: Vec<&str> = kernel.attachments().iter().map(|at| at.interface.as_str()).collect();
    tracing::info!(
        "stopped; the kernel goes on enforcing on {}: `enforcer run` takes it over, `enforcer detach` ends it",
        interfaces.join(", ")
    );
    Ok(())
}
