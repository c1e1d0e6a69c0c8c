//! The few settings that a command needs which only looks: what to guard, and where the pins lie.

use std::path::{Path, PathBuf};

use super::{DEFAULT_BPFFS_DIR, Error, File, Overrides, Source, merge_interfaces, merge_ports, read, service};

/// What is to be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// Interfaces, each once; none if none are named anywhere.
    pub interfaces: Vec<String>,
    /// TCP ports, each once; none if none are named anywhere.
    pub ports: Vec<u16>,
    /// Directory of the pins.
    pub bpffs_dir: PathBuf,
}

impl Targets {
    /// Puts them together as [`super::Settings::resolve`] does, except that there may be nothing to guard.
    ///
    /// # Errors
    /// A file that was named cannot be read, or a value is not accepted.
    pub fn resolve(overrides: Overrides) -> Result<Self, Error> {
        let (path, text) = read(&overrides)?;
        Self::merge(overrides, &path, &text)
    }

    fn merge(overrides: Overrides, path: &Path, text: &str) -> Result<Self, Error> {
        let source = Source { path, text };
        let File { interfaces, ports, service, bpffs_dir, .. } = source.parse()?;
        let mut written = ports.unwrap_or_default();
        written.extend(service.into_iter().flat_map(toml::Spanned::into_inner).flat_map(service::Written::into_ports));
        let interfaces = merge_interfaces(overrides.interfaces, &interfaces.unwrap_or_default(), &source);
        let ports = merge_ports(overrides.ports, &written, &source);
        Ok(Self {
            interfaces: or_none(interfaces)?,
            ports: or_none(ports)?,
            bpffs_dir: overrides.bpffs_dir.or(bpffs_dir).unwrap_or_else(|| DEFAULT_BPFFS_DIR.into()),
        })
    }
}

fn or_none<T>(merged: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match merged {
        Err(Error::Missing { .. }) => Ok(Vec::new()),
        merged => merged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(overrides: Overrides, text: &str) -> Result<Targets, String> {
        Targets::merge(overrides, Path::new("e.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn they_come_from_the_file_and_from_above_it_as_a_starts_do() {
        let text = "interfaces = [\"eth0\"]\nports = [8000]\nbpffs_dir = \"/b\"\nmode = \"observe\"";
        let targets = merge(Overrides::default(), text).expect("targets");
        let expected = Targets { interfaces: vec!["eth0".into()], ports: vec![8000], bpffs_dir: "/b".into() };
        assert_eq!(targets, expected);
        let services = "[[service]]\nname = \"a\"\nports = [2]\n[[service]]\nname = \"b\"\nports = [1]";
        assert_eq!(merge(Overrides::default(), services).expect("targets").ports, [1, 2]);
        let overrides = Overrides { ports: vec![9000], ..Overrides::default() };
        assert_eq!(merge(overrides, text).expect("targets"), Targets { ports: vec![9000], ..expected });
    }

    #[test]
    fn there_may_be_nothing_to_guard_but_no_wrong_value() {
        let nothing = Targets { interfaces: vec![], ports: vec![], bpffs_dir: DEFAULT_BPFFS_DIR.into() };
        assert_eq!(merge(Overrides::default(), ""), Ok(nothing));
        let error = merge(Overrides::default(), "ports = [0]").expect_err("no port");
        assert!(error.starts_with("e.toml:1:10: ports: 0 is no port"), "{error}");
        let error = merge(Overrides::default(), "port = [1]").expect_err("a typo");
        assert!(error.starts_with("e.toml:1:1: unknown field `port`"), "{error}");
    }
}
