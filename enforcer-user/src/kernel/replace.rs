//! Programs of earlier daemons, each replaced in one step: every packet meets the old one or the new one.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use super::{
    Error, Mode,
    attach::why_not,
    filter_pin::FilterPin,
    load::Verified,
    pins::{self, Kept, Pins},
    syscall,
};

/// A program that takes the place of what is kept.
#[derive(Debug)]
pub(super) struct Replacement {
    /// The interface's present name.
    pub(super) interface: String,
    pub(super) kept: Kept,
    pub(super) program: Verified,
    pub(super) mode: Mode,
}

/// Replaces all, or none.
///
/// # Errors
/// One that cannot be replaced; those before it have their earlier programs again, if those can be opened.
pub(super) fn all(replacements: &[Replacement], pins: &Pins) -> Result<(), Error> {
    let mut done: Vec<(&Replacement, Option<OwnedFd>)> = Vec::new();
    for replacement in replacements {
        let earlier = replacement.earlier();
        if let Err(error) = replacement.carry_out(pins) {
            for (replacement, earlier) in done {
                if earlier.is_none_or(|earlier| replacement.undo(&earlier, pins).is_err()) {
                    tracing::warn!("{} keeps the new program, on the same maps", replacement.interface);
                }
            }
            let Replacement { interface, mode, .. } = replacement;
            let reason = format!("the earlier program cannot be replaced: {}", why_not(*mode, &error));
            return Err(Error::CannotAttach { interface: interface.clone(), mode: *mode, reason });
        }
        done.push((replacement, earlier));
    }
    Ok(())
}

/// Removes what only kept the earlier programs; gives the pins of links, with the interfaces' present names.
pub(super) fn finish(replacements: Vec<Replacement>) -> Vec<(PathBuf, String)> {
    let mut named = Vec::new();
    for Replacement { interface, kept, .. } in replacements {
        if kept.filter.is_none() {
            named.push((kept.path, interface));
        } else if let Err(error) = pins::detach(&kept.path) {
            // The filter has another program by now, so this is the earlier one's pin and nothing else.
            tracing::warn!("{error}");
        }
    }
    named
}

impl Replacement {
    /// The program that is there; `None` if it cannot be opened.
    fn earlier(&self) -> Option<OwnedFd> {
        match self.kept.filter {
            Some(_) => self.kept.fd.try_clone().ok(),
            None => syscall::program_by_id(self.kept.program).ok(),
        }
    }

    fn carry_out(&self, pins: &Pins) -> io::Result<()> {
        let Some((filter, path)) = self.filter(pins) else {
            return syscall::update_link(self.kept.fd.as_fd(), self.program.fd.as_fd());
        };
        // Pinned first: without its pin nobody would know the filter.
        syscall::pin(self.program.fd.as_fd(), &path)?;
        if let Err(error) = pins::set_time(&path, self.kept.since) {
            tracing::debug!("{} does not tell since when it guards: {error}", path.display());
        }
        let replaced = filter.replace(self.program.fd.as_fd(), self.program.name);
        if replaced.is_err() {
            // The filter has the earlier program, so this is the pin alone.
            let _ = std::fs::remove_file(&path);
        }
        replaced
    }

    fn undo(&self, earlier: &OwnedFd, pins: &Pins) -> io::Result<()> {
        let Some((filter, path)) = self.filter(pins) else {
            return syscall::update_link(self.kept.fd.as_fd(), earlier.as_fd());
        };
        filter.replace(earlier.as_fd(), self.program.name)?;
        std::fs::remove_file(&path)
    }

    /// The filter as it will be, and its pin; `None` for a link.
    fn filter(&self, pins: &Pins) -> Option<(FilterPin, PathBuf)> {
        let filter = self.kept.filter.as_ref()?;
        let filter = FilterPin { interface: self.interface.clone(), program: self.program.id, ..filter.clone() };
        let path = pins.filter(&filter);
        Some((filter, path))
    }
}
