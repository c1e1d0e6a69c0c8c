//! The store's content as it lies in the maps: thin, since what is decided about it is decided elsewhere.
//!
//! A change is a list of [`Step`]s, each of which the kernel sees whole or not at all; if one fails, those before it are
//! undone. At a start the maps, which an earlier daemon may have filled, are brought to what the store says, without
//! touching a meter.

use std::collections::HashMap;
use std::time::Instant;

use enforcer_ebpf::abi::{self, Key, KeyTag, Meter, Policy};

use super::slots::Slots;
use crate::kernel::{Error, Kernel};
use crate::policy::LimitName;
use crate::store;

/// One change of the maps, with what it takes to undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A principal that is new: its meter is cleared, then it is put under its policy.
    Principal { index: u32, policy: Policy },
    /// A principal that goes from one policy to another by one store; its meter goes on.
    Policy { index: u32, from: Policy, to: Policy },
    /// A key that is new.
    Insert { tag: KeyTag, key: Key },
    /// A key that is revoked.
    Remove { tag: KeyTag, key: Key },
    /// A key that is switched off or on.
    Replace { tag: KeyTag, from: Key, to: Key },
}

/// A key's value in the map.
pub(super) fn key(principal: u32, disabled: bool) -> Key {
    let flags = if disabled { Key::DISABLED } else { 0 };
    Key { principal, flags, not_before: 0, expires: u64::MAX, policy: 0, reserved: 0 }
}

/// The maps, and which policy lies where in them.
#[derive(Debug)]
pub(super) struct Tables {
    kernel: Kernel,
    slots: Slots,
}

impl Tables {
    /// Brings the maps to what the store says: missing entries are made, entries that are too many are removed, and
    /// what is right already stays untouched.
    pub(super) fn reconcile(
        kernel: Kernel,
        principals: &[store::Principal],
        keys: &[store::Key],
    ) -> Result<Self, Error> {
        let mut tables = Self { kernel, slots: Slots::new(abi::POLICIES) };
        // Revoked keys go first: they are the ones that would be served wrongly.
        let mut wanted: HashMap<KeyTag, Key> =
            keys.iter().map(|row| (row.tag, key(row.principal, row.disabled))).collect();
        for (tag, value) in tables.kernel.keys()? {
            match wanted.get(&tag) {
                None => tables.kernel.remove_key(tag)?,
                Some(right) if *right == value => {
                    wanted.remove(&tag);
                }
                Some(_) => {}
            }
        }
        tables.reconcile_principals(principals)?;
        for (tag, value) in wanted {
            tables.kernel.insert_key(tag, value)?;
        }
        Ok(tables)
    }

    fn reconcile_principals(&mut self, principals: &[store::Principal]) -> Result<(), Error> {
        // All slots that are named must be known before the first is given out.
        let mut named = HashMap::new();
        for index in 0..abi::PRINCIPALS {
            let slot = self.kernel.principal(index)?.policy;
            if slot != 0 {
                if slot < abi::POLICIES {
                    let policy = self.kernel.policy(slot)?;
                    self.slots.adopt(slot, &policy);
                }
                named.insert(index, slot);
            }
        }
        for principal in principals {
            let policy = principal.limits.compile(LimitName::DEFAULT);
            match named.remove(&principal.index) {
                None => {
                    self.kernel.clear_meter(principal.index)?;
                    self.assign(principal.index, &policy)?;
                }
                Some(slot) if self.slots.holds(slot, &policy) => {}
                Some(slot) => {
                    self.assign(principal.index, &policy)?;
                    self.slots.release(slot, Instant::now());
                }
            }
        }
        for (index, slot) in named {
            self.kernel.set_principal(index, abi::Principal::default())?;
            self.slots.release(slot, Instant::now());
        }
        Ok(())
    }

    /// Puts a principal under a policy; the slot that it named before is the caller's to release.
    fn assign(&mut self, index: u32, policy: &Policy) -> Result<(), Error> {
        let full = Error::Full { map: abi::map::POLICIES, capacity: abi::POLICIES };
        let slot = self.slots.acquire(policy, Instant::now()).ok_or(full)?;
        let written = match slot.write {
            true => self.kernel.set_policy(slot.number, policy),
            false => Ok(()),
        };
        let assigned =
            written.and_then(|()| self.kernel.set_principal(index, abi::Principal { policy: slot.number, trial: 0 }));
        if assigned.is_err() {
            self.slots.release(slot.number, Instant::now());
        }
        assigned
    }

    /// Applies all steps, or none.
    pub(super) fn apply(&mut self, steps: &[Step]) -> Result<(), Error> {
        for (done, step) in steps.iter().enumerate() {
            if let Err(error) = self.step(step) {
                self.undo(&steps[..done]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Undoes steps that were applied, last first.
    pub(super) fn undo(&mut self, steps: &[Step]) {
        for step in steps.iter().rev() {
            let undone = match *step {
                Step::Principal { index, .. } => self.withdraw(index),
                Step::Policy { index, from, to } => self.step(&Step::Policy { index, from: to, to: from }),
                Step::Insert { tag, .. } => self.kernel.remove_key(tag),
                Step::Remove { tag, key } => self.kernel.insert_key(tag, key),
                Step::Replace { tag, from, .. } => self.kernel.insert_key(tag, from),
            };
            if let Err(error) = undone {
                tracing::error!(
                    "a change could not be undone, restart the daemon to bring the maps to the store: {error}"
                );
            }
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Principal { index, policy } => {
                self.kernel.clear_meter(*index)?;
                self.assign(*index, policy)
            }
            Step::Policy { index, from: _, to } => {
                let before = self.kernel.principal(*index)?.policy;
                self.assign(*index, to)?;
                self.slots.release(before, Instant::now());
                Ok(())
            }
            Step::Insert { tag, key } | Step::Replace { tag, to: key, .. } => self.kernel.insert_key(*tag, *key),
            Step::Remove { tag, .. } => self.kernel.remove_key(*tag),
        }
    }

    fn withdraw(&mut self, index: u32) -> Result<(), Error> {
        let slot = self.kernel.principal(index)?.policy;
        self.kernel.set_principal(index, abi::Principal::default())?;
        self.slots.release(slot, Instant::now());
        Ok(())
    }

    /// A principal's meter.
    pub(super) fn meter(&self, index: u32) -> Result<Meter, Error> {
        self.kernel.meter(index)
    }

    /// The kernel, for what needs no slots.
    pub(super) fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The kernel, to configure and to attach it.
    pub(super) fn kernel_mut(&mut self) -> &mut Kernel {
        &mut self.kernel
    }

    /// Gives the kernel back.
    pub(super) fn into_kernel(self) -> Kernel {
        self.kernel
    }
}
