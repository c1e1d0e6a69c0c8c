//! The maps go from one policy to another at one word: what is new lies ready beside what holds, until the map TRIAL lets
//! all of it hold at once, for good or for a time after which it ends by itself, also without a daemon.

use std::collections::HashSet;

use enforcer_ebpf::abi::{self, Client, Extent, Leaf, Rule, Ruleset, Share, State};

use super::rulebook::{Rulebook, Terms};
use super::tables::Tables;
use crate::kernel::{Error, Paths};
use crate::policy::Policy;
use crate::policy::exemptions::{self, Entry};

/// The slot of the one service.
const SERVICE: u32 = 0;
/// What holds in TRIAL for what is only being moved over.
const FOR_GOOD: u64 = u64::MAX;

/// A policy that holds for a time, and what held before.
#[derive(Debug)]
pub(super) struct Trial {
    /// The policy.
    pub(super) policy: Policy,
    /// When it ends by itself, in ns of CLOCK_BOOTTIME.
    pub(super) until: u64,
    pub(super) switch: Switch,
}

/// A change of principals' terms and of rules that lies ready.
#[derive(Debug)]
pub(super) struct Switch {
    principals: Vec<Moved>,
    /// Principals that are removed once it holds for good.
    removed: Vec<u32>,
    rules: Laid,
}

/// A principal that goes from one slot to another.
#[derive(Clone, Copy, Debug)]
struct Moved {
    index: u32,
    from: u32,
    to: u32,
}

/// Which slots and places a rulebook has.
#[derive(Clone, Debug, Default)]
pub(super) struct Laid {
    ruleset: u32,
    policies: Vec<u32>,
    clients: Vec<(Client, Share)>,
    extents: [Extent; 3],
    /// Entries of the exemptions, and of the proxies under the rules' bit.
    exempt: Vec<Entry>,
    proxies: Vec<Entry>,
    /// [`Ruleset::trusts`], or what it would be if any were trusted.
    trusts: u64,
}

/// A principal whose terms a policy changes.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) index: u32,
    /// Whether its meter is to be cleared: nobody has had the index.
    pub(super) is_new: bool,
    pub(super) terms: Terms,
}

impl Tables {
    /// Lays out a policy beside the one that holds.
    pub(super) fn lay_out(&mut self, book: &Rulebook, changes: &[Change], removed: Vec<u32>) -> Result<Switch, Error> {
        let mut switch = Switch { principals: Vec::new(), removed, rules: Laid::default() };
        let laid = self.lay_principals(changes, &mut switch.principals).and_then(|()| self.lay_rules(book));
        match laid {
            Ok(rules) => {
                switch.rules = rules;
                Ok(switch)
            }
            Err(error) => {
                self.take_up(&switch.principals);
                Err(error)
            }
        }
    }

    fn lay_principals(&mut self, changes: &[Change], moved: &mut Vec<Moved>) -> Result<(), Error> {
        for Change { index, is_new, terms } in changes {
            if *is_new {
                self.kernel_mut().clear_meter(*index)?;
            }
            let from = self.kernel().principal(*index)?.policy;
            let to = self.place(terms)?;
            moved.push(Moved { index: *index, from, to });
            self.kernel_mut().set_principal(*index, abi::Principal { policy: from, trial: to })?;
        }
        Ok(())
    }

    /// Takes principals' new slots away again.
    fn take_up(&mut self, moved: &[Moved]) {
        for Moved { index, from, to } in moved {
            if let Err(error) = self.kernel_mut().set_principal(*index, abi::Principal { policy: *from, trial: 0 }) {
                tracing::error!("principal {index} keeps a policy that was on trial: {error}");
            }
            self.displace(*to);
        }
    }

    fn lay_rules(&mut self, book: &Rulebook) -> Result<Laid, Error> {
        let mut laid = Laid::default();
        match self.write_rules(book, &mut laid) {
            Ok(()) => Ok(laid),
            Err(error) => {
                self.take_up_rules(&laid);
                Err(error)
            }
        }
    }

    fn write_rules(&mut self, book: &Rulebook, laid: &mut Laid) -> Result<(), Error> {
        let held = self.laid().clone();
        let mut slot = |tables: &mut Self, terms: Option<&Terms>| -> Result<u32, Error> {
            let Some(terms) = terms else { return Ok(0) };
            let slot = tables.place(terms)?;
            laid.policies.push(slot);
            Ok(slot)
        };
        let mut rules = book.rules;
        rules.source = slot(self, book.source.as_ref())?;
        rules.service = slot(self, book.ceiling.as_ref())?;
        rules.guesses = slot(self, book.guesses.as_ref())?;
        rules.preflight = slot(self, book.preflight.as_ref())?;
        rules.admission = slot(self, Some(&book.admission))?;
        let mut charges = Vec::with_capacity(book.charges.len());
        for (rule, terms) in &book.charges {
            charges.push(Rule { policy: slot(self, terms.as_ref())?, ..*rule });
        }
        let mut shares = Vec::with_capacity(book.clients.len());
        for (client, number, terms) in &book.clients {
            shares.push((*client, Share { policy: slot(self, Some(terms))?, number: *number }));
        }
        let [states, leaves, numbers] = laid.places(book, &held);
        let placed = book.paths.placed(&states, &leaves, &numbers);
        let paths = Paths {
            states: states.iter().copied().zip(placed.states).collect::<Vec<(u32, State)>>(),
            edges: placed.edges,
            leaves: leaves.iter().copied().zip(placed.leaves).collect::<Vec<(u32, Leaf)>>(),
            rules: numbers.iter().copied().zip(charges).collect(),
        };
        rules.routes = states.first().copied().unwrap_or(0);
        rules.extents = laid.extents;
        for scope in &book.ahead {
            self.kernel_mut().open_buckets(*scope)?;
        }
        for (number, until) in &book.exemptions {
            self.kernel_mut().set_exemption(*number, *until)?;
        }
        let kernel = self.kernel_mut();
        kernel.set_paths(&paths)?;
        laid.trusts = if held.trusts == 1 { 2 } else { 1 };
        rules.trusts *= laid.trusts;
        laid.exempt.clone_from(&book.exempt);
        laid.proxies = book.proxies.iter().map(|entry| Entry { value: entry.value * laid.trusts, ..*entry }).collect();
        kernel.set_exempt(&exemptions::together(&held.exempt, &laid.exempt))?;
        kernel.set_proxies(&exemptions::together(&held.proxies, &laid.proxies))?;
        for (client, share) in &shares {
            kernel.set_client(*client, *share)?;
        }
        laid.clients = shares;
        let ruleset = held.ruleset % (abi::RULESETS - 1) + 1;
        kernel.set_ruleset(ruleset, &rules)?;
        laid.ruleset = ruleset;
        let service = kernel.service(SERVICE)?;
        kernel.set_service(SERVICE, &abi::Service { rules_trial: ruleset, ..service })
    }

    /// Gives a rulebook's slots back, and what leads on from its states.
    fn take_up_rules(&mut self, laid: &Laid) {
        for slot in &laid.policies {
            self.displace(*slot);
        }
        let [states, ..] = laid.extents;
        let is_old = |state: u32| state.wrapping_sub(states.first) < states.len;
        if let Err(error) = self.kernel_mut().remove_edges(is_old) {
            tracing::error!("paths of a policy that does not hold any more stay in the maps: {error}");
        }
    }

    /// Lets a policy hold from now on, all of it at once: for good, or until then in ns of CLOCK_BOOTTIME.
    pub(super) fn switch(&mut self, until: Option<u64>) -> Result<(), Error> {
        self.kernel_mut().set_trial(until.unwrap_or(FOR_GOOD))
    }

    /// Makes what is on trial what holds.
    pub(super) fn settle(&mut self, switch: Switch) -> Result<(), Error> {
        self.kernel_mut().set_trial(FOR_GOOD)?;
        let Switch { principals, removed, rules } = switch;
        for Moved { index, to, .. } in &principals {
            self.kernel_mut().set_principal(*index, abi::Principal { policy: *to, trial: 0 })?;
        }
        for index in &removed {
            self.withdraw(*index)?;
        }
        let service = self.kernel().service(SERVICE)?;
        let service = abi::Service { rules: rules.ruleset, rules_trial: 0, ..service };
        self.kernel_mut().set_service(SERVICE, &service)?;
        self.kernel_mut().set_trial(0)?;
        for Moved { from, .. } in principals {
            self.displace(from);
        }
        let held = std::mem::replace(self.laid_mut(), rules);
        self.set_prefixes()?;
        let known: HashSet<Client> = self.laid().clients.iter().map(|(client, _)| *client).collect();
        for (client, _) in held.clients.iter().filter(|(client, _)| !known.contains(client)) {
            self.kernel_mut().remove_client(*client);
        }
        self.take_up_rules(&held);
        Ok(())
    }

    /// Ends what is on trial.
    pub(super) fn revert(&mut self, switch: Switch) -> Result<(), Error> {
        self.kernel_mut().set_trial(0)?;
        let service = self.kernel().service(SERVICE)?;
        self.kernel_mut().set_service(SERVICE, &abi::Service { rules_trial: 0, ..service })?;
        self.take_up(&switch.principals);
        self.take_up_rules(&switch.rules);
        self.set_prefixes()?;
        for (client, share) in self.laid().clients.clone() {
            self.kernel_mut().set_client(client, share)?;
        }
        Ok(())
    }

    /// Leaves of exemptions and proxies those of the rules that hold.
    fn set_prefixes(&mut self) -> Result<(), Error> {
        let Laid { exempt, proxies, .. } = self.laid().clone();
        self.kernel_mut().set_exempt(&exempt)?;
        self.kernel_mut().set_proxies(&proxies)
    }

    /// Takes note of the rules that an earlier daemon has left, and of the slots that they name, lest those are given out
    /// while requests are judged by them; ends what it had on trial.
    pub(super) fn recall_rules(&mut self) -> Result<(), Error> {
        let service = self.kernel().service(SERVICE)?;
        let Ruleset { extents, trusts, source, service: ceiling, guesses, preflight, admission, .. } =
            self.kernel().ruleset(service.rules)?;
        let clients = self.kernel().clients()?;
        let [.., rules] = extents;
        let mut policies = vec![source, ceiling, guesses, preflight, admission];
        for place in rules.first..rules.first.saturating_add(rules.len).min(abi::RULES) {
            policies.push(self.kernel().rule(place)?.policy);
        }
        policies.extend(clients.iter().map(|(_, share)| share.policy));
        for slot in &policies {
            self.adopt(*slot)?;
        }
        let [exempt, mut proxies] = self.kernel().prefixes()?;
        for entry in &mut proxies {
            entry.value &= trusts;
        }
        *self.laid_mut() = Laid { ruleset: service.rules, policies, clients, extents, exempt, proxies, trusts };
        self.kernel_mut().set_service(SERVICE, &abi::Service { rules_trial: 0, ..service })?;
        self.kernel_mut().set_trial(0)
    }
}

impl Laid {
    /// Places for a rulebook's states, leaves and rules, beside those of the one that holds.
    fn places(&mut self, book: &Rulebook, held: &Self) -> [Vec<u32>; 3] {
        let counts = [book.paths.states.len(), book.paths.leaves.len(), book.paths.rules.len()];
        let rooms = [abi::STATES, abi::LEAVES, abi::RULES];
        std::array::from_fn(|list| {
            let len = counts[list] as u32;
            let Extent { first, len: before } = held.extents[list];
            // Behind those that hold, or from the first on: a rulebook has half of the room at most.
            let behind = first + before;
            let begin = if len <= rooms[list].saturating_sub(behind.max(1)) { behind.max(1) } else { 1 };
            self.extents[list] = Extent { first: begin, len };
            (begin..begin + len).collect()
        })
    }
}
