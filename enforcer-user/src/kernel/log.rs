//! The program's log lines, drained into the daemon's log at debug level.
//!
//! For people who look at single packets; what an operator counts is in the maps. An object without log statements has
//! no ring buffer, which is no error.

use std::io;

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::{Interest, unix::AsyncFd};

/// The reader of the program's log lines.
pub struct Logger(EbpfLogger<Forward>);

/// Hands each line on to `tracing`.
struct Forward;

impl Log for Forward {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        tracing::debug!(target: "enforcer::kernel", "{}", record.args());
    }

    fn flush(&self) {}
}

impl Logger {
    pub(super) fn open(object: &mut Ebpf) -> Option<Self> {
        match EbpfLogger::init_with_logger(object, Forward) {
            Ok(logger) => Some(Self(logger)),
            Err(error) => {
                tracing::debug!("the program writes no log: {error}");
                None
            }
        }
    }

    /// Drains the lines for as long as it is polled; run it as a task of its own, because aya-log panics on a record
    /// that it cannot read.
    ///
    /// # Errors
    /// The descriptor cannot be registered, or the runtime is shutting down.
    pub async fn run(self) -> io::Result<()> {
        // SAFETY: the logger owns the ring buffer's descriptor, always the same one, until it is dropped with `lines`.
        let mut lines = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        loop {
            let mut ready = lines.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
