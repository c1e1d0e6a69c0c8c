//! What is really guarded: the pins, read without a daemon and without its lock.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError};
use enforcer_ebpf::abi::{Ruleset, SERVICES, Service, map};

use super::{
    Error, checks,
    forwarding::Endpoints,
    interface::{self, Interface},
    pins::Pins,
    role::Role,
};

/// An enforcement that is pinned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// Where the program is attached.
    pub places: Vec<Guarded>,
    /// Ids of the programs that answer and watch beside it.
    pub helpers: Vec<u32>,
    /// The TCP ports that it guards, in order.
    pub ports: Vec<u16>,
    /// Those of them whose requests are only counted.
    pub observed: Vec<u16>,
    /// Those of them where connections are bounded.
    pub bounded: Vec<u16>,
    /// Whether a program is told of connections that are established or over.
    pub follows: bool,
    /// Names of interfaces in this network namespace that it is attached to and that carry the connections of servers behind
    /// this host, too.
    pub forwarding: Vec<String>,
}

/// An interface that the program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The interface's index in its network namespace.
    pub interface: u32,
    /// The program's id.
    pub program: u32,
}

/// The enforcement whose pins lie in `bpffs_dir`; `None` if there is none.
///
/// # Errors
/// A pin that cannot be read.
pub fn guard(bpffs_dir: &Path) -> Result<Option<Guard>, Error> {
    if !checks::is_on_bpffs(bpffs_dir) {
        return Ok(None);
    }
    let pins = Pins::new(bpffs_dir);
    let mut guard = Guard::default();
    for kept in pins.kept()?.into_iter().filter(|kept| kept.interface != 0) {
        match kept.role {
            Role::Judge => guard.places.push(Guarded { interface: kept.interface, program: kept.program }),
            Role::Answer | Role::Watch => guard.helpers.push(kept.program),
        }
    }
    if guard.places.is_empty() {
        return Ok(None);
    }
    guard.follows = !pins.all_sockets()?.is_empty();
    let forwards = |interface: &Interface| {
        guard.places.iter().any(|place| place.interface == interface.index)
            && Endpoints::of(interface) == Endpoints::Forwarded
    };
    guard.forwarding = interface::all()?.into_iter().filter(forwards).map(|interface| interface.name).collect();
    let ports: Array<MapData, u32> = open(&pins, map::PORTS)?;
    let services: Array<MapData, Service> = open(&pins, map::SERVICES)?;
    let rulesets: Array<MapData, Ruleset> = open(&pins, map::RULESETS)?;
    for (port, slot) in (0..=u16::MAX).zip(ports.iter()) {
        let slot = slot.map_err(|source| Error::Map { map: map::PORTS, action: "read", source })?;
        let Some(slot) = slot.checked_sub(1) else { continue };
        guard.ports.push(port);
        let service = services.get(&slot.min(SERVICES - 1), 0);
        let service = service.map_err(|source| Error::Map { map: map::SERVICES, action: "read", source })?;
        if service.flags & Service::OBSERVE != 0 {
            guard.observed.push(port);
        }
        let rules = rulesets.get(&service.rules, 0);
        let rules = rules.map_err(|source| Error::Map { map: map::RULESETS, action: "read", source })?;
        if rules.counts_connections() {
            guard.bounded.push(port);
        }
    }
    Ok(Some(guard))
}

fn open<V: aya::Pod>(pins: &Pins, name: &'static str) -> Result<Array<MapData, V>, Error> {
    let opened = |source: MapError| Error::Map { map: name, action: "opened", source };
    let data = MapData::from_pin(pins.map(name)).map_err(opened)?;
    Map::Array(data).try_into().map_err(opened)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_guarded_where_there_are_no_pins() {
        let dir = tempfile::tempdir().expect("a directory");
        assert_eq!(guard(dir.path()).expect("readable"), None);
        assert_eq!(guard(&dir.path().join("absent")).expect("readable"), None);
    }
}
