//! Whether refused requests are answered: while all interfaces can send answers. Where one cannot, all of them are reset
//! instead, since clients would wait for what never comes. Likewise, whether their connections are kept.

use std::sync::Arc;
use std::time::Duration;

use enforcer_ebpf::abi::Service;
use tokio::sync::watch;

use super::tables::Tables;
use super::{Daemon, registry};
use crate::config::Settings;
use crate::kernel::{self, Kernel};

/// How often it is looked whether the program that answers is still there.
const INTERVAL: Duration = Duration::from_secs(5);

/// Why what was to be answered is not, in words; `None` where it is, or nothing was to be.
pub(super) fn refused(settings: &Settings, kernel: &Kernel) -> Option<String> {
    let why = kernel.cannot_answer()?;
    let answers = settings.services.iter().any(|guarded| guarded.service().flags & Service::ANSWER != 0);
    answers.then(|| format!("refused requests are reset, not answered: {why}"))
}

/// Resets instead of answering, and says so, where not all interfaces can send answers.
pub(super) fn fall_back(settings: &Settings, tables: &mut Tables) -> Result<(), kernel::Error> {
    let kernel = tables.kernel();
    let unanswered = refused(settings, kernel);
    let unkept = kernel.attachments().iter().find_map(|at| Some((at.interface.as_str(), at.cannot_keep.as_deref()?)));
    let unkept = unkept.map(|(interface, why)| format!("a refused request ends its connection: {interface}: {why}"));
    let lost = match (&unanswered, &unkept) {
        (Some(_), _) => Service::ANSWER | Service::KEEP,
        (None, Some(_)) => Service::KEEP,
        (None, None) => return Ok(()),
    };
    let slots: Vec<u32> = tables.seats().values().map(|seat| seat.slot).collect();
    let kernel = tables.kernel_mut();
    let mut is_said = false;
    for slot in slots {
        let service = kernel.service(slot)?;
        if service.flags & lost == 0 {
            continue;
        }
        if !is_said {
            unanswered.iter().chain(&unkept).for_each(|warning| tracing::warn!("{warning}"));
            is_said = true;
        }
        kernel.set_service(slot, &Service { flags: service.flags & !lost, ..service })?;
    }
    Ok(())
}

/// Falls back when the program that answers is taken away from an interface, until the daemon stops.
pub(super) async fn watch(daemon: Arc<Daemon>, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
        let this = Arc::clone(&daemon);
        let look = move |registry: &mut registry::Registry| {
            registry.tables.kernel_mut().look_for_answers();
            Ok(fall_back(&this.settings, &mut registry.tables)?)
        };
        match daemon.with(look).await {
            Ok(()) => {}
            Err(registry::Error::Stopping) => return,
            Err(error) => tracing::warn!("whether refused requests are answered cannot be told: {error}"),
        }
    }
}
