//! What passes an interface, both ways, as a packet socket there hears it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;
use crate::raw::Wire;

/// How often an idle capture looks whether it shall end.
const IDLE: Duration = Duration::from_millis(20);

/// A frame, and when it was heard.
#[derive(Clone, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// All its bytes.
    pub frame: Vec<u8>,
}

/// A running capture; ends with its value.
#[derive(Debug)]
pub struct Capture {
    thread: Option<JoinHandle<Result<Vec<Heard>>>>,
    ending: Arc<AtomicBool>,
}

impl Capture {
    /// Starts to hear what passes `interface` of `namespace`.
    ///
    /// # Errors
    /// Without root, or when there is no such interface.
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let mut wire = namespace.run(|| Wire::listen(interface))?;
        let ending = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("capture".to_owned()).spawn({
            let ending = Arc::clone(&ending);
            move || {
                let mut heard = Vec::new();
                while !ending.load(Ordering::Relaxed) {
                    while let Some(frame) = wire.receive(Instant::now() + IDLE)? {
                        heard.push(Heard { at: Instant::now(), frame: frame.to_vec() });
                    }
                }
                Ok(heard)
            }
        })?;
        Ok(Self { thread: Some(thread), ending })
    }

    /// Ends it; gives what was heard, in its order.
    ///
    /// # Errors
    /// When the interface failed.
    pub fn finish(mut self) -> Result<Vec<Heard>> {
        self.end().context("the capture has ended before")?
    }

    fn end(&mut self) -> Option<Result<Vec<Heard>>> {
        self.ending.store(true, Ordering::Relaxed);
        let joined = self.thread.take()?.join();
        Some(joined.unwrap_or_else(|_| bail!("the capture panicked")))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
