//! The connections of local sockets, which the kernel tells a program of: that program attached, in place of an earlier
//! daemon's, and told of the connections that are older than itself.
//!
//! A link to a tracepoint cannot be given another program. So for a moment there are two, of which the second to be told of
//! something finds it done.

use std::io::{self, Read as _};
use std::path::PathBuf;

use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::{Program, TestRun as _, TestRunOptions};

use super::pins::Pins;
use super::{Error, Kernel, load, pins};

/// The program attached beside those before it; detached again when dropped unless [`Following::keep`] was called.
#[derive(Debug)]
pub(super) struct Following {
    pin: Option<PathBuf>,
    earlier: Vec<PathBuf>,
}

/// Attaches the program, and tells it of the connections that there are in this network namespace.
pub(super) fn follow(object: &mut Ebpf, pins: &Pins) -> Result<Following, Error> {
    let earlier = pins.all_sockets()?;
    let Some(Program::BtfTracePoint(program)) = object.program_mut(load::SOCKETS) else {
        return Err(Error::Foreign { what: load::SOCKETS });
    };
    let failed = |error| Error::Call { action: "be told of connections", source: io::Error::other(error) };
    let id = program.info().map_err(failed)?.id();
    let link = program.attach().map_err(failed)?;
    let link = FdLink::from(program.take_link(link).map_err(failed)?);
    let path = pins.sockets(id);
    link.pin(&path).map_err(|error| Error::path(&path, "pinned", io::Error::other(error)))?;
    let following = Following { pin: Some(path), earlier };
    list(object)?;
    Ok(following)
}

/// Tells the program of the connections that there are.
fn list(object: &mut Ebpf) -> Result<(), Error> {
    let Some(Program::Iter(program)) = object.program_mut(load::OLDER) else {
        return Err(Error::Foreign { what: load::OLDER });
    };
    let failed = |source| Error::Call { action: "list the connections that there are", source };
    let link = program.attach().and_then(|link| program.take_link(link));
    let link = link.map_err(|error| failed(io::Error::other(error)))?;
    let mut file = link.into_file().map_err(|error| failed(io::Error::other(error)))?;
    // It writes nothing: reading to the end runs it on all of them.
    file.read_to_end(&mut Vec::new()).map_err(failed)?;
    Ok(())
}

impl Following {
    /// Ends those before it.
    pub(super) fn keep(mut self) -> Result<(), Error> {
        self.pin = None;
        self.earlier.iter().try_for_each(|path| pins::detach(path))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(path) = &self.pin
            && let Err(error) = pins::detach(path)
        {
            tracing::warn!("{error}");
        }
    }
}

impl Kernel {
    /// Takes connections out of the table that were entered by a request that passed, and were not established within
    /// [`enforcer_ebpf::connection::STALE_NS`].
    ///
    /// # Errors
    /// The kernel refuses the program or the run.
    pub fn sweep(&mut self) -> Result<(), Error> {
        load::sweep(&mut self.object)?;
        let Some(Program::Xdp(program)) = self.object.program(load::SWEEP) else {
            return Err(Error::Foreign { what: load::SWEEP });
        };
        let mut options = TestRunOptions::new();
        options.data_in = Some(&[0; Self::SHORTEST]);
        let failed = |error| Error::Call {
            action: "look for connections that never came to be",
            source: io::Error::other(error),
        };
        program.test_run(options).map_err(failed).map(drop)
    }
}
