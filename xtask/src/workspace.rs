//! This checkout as cargo sees it: where it is, where it builds, and which tests need what.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;

/// A checkout and its build folder.
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
    packages: Vec<Value>,
}

/// A test target that `cargo test` alone does not run.
#[derive(Debug)]
pub(crate) struct TestTarget {
    /// The package that it belongs to.
    pub(crate) package: String,
    /// Its name for `cargo test --test`.
    pub(crate) name: String,
}

impl Workspace {
    /// Asks cargo.
    ///
    /// # Errors
    /// `cargo metadata` fails, or does not answer as documented.
    pub(crate) fn read() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent folder")?.to_path_buf();
        let mut command = Command::new(cargo());
        command.args(["metadata", "--no-deps", "--format-version=1"]).current_dir(&root);
        let metadata: Value =
            serde_json::from_str(&process::output(&mut command)?).context("`cargo metadata` wrote no JSON")?;
        let target =
            metadata["target_directory"].as_str().context("`cargo metadata` named no target directory")?.into();
        let packages = metadata["packages"].as_array().cloned().unwrap_or_default();
        Ok(Self { root, target, packages })
    }

    /// The checkout's folder.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of all that is built; the virtual environments and the state of `cargo xtask run` are here too.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A binary of the debug profile.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.target.join("debug").join(name)
    }

    /// A binary of the release profile.
    pub(crate) fn release_binary(&self, name: &str) -> PathBuf {
        self.target.join("release").join(name)
    }

    /// `cargo`, in the checkout.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(cargo());
        command.current_dir(&self.root);
        command
    }

    /// The test targets that the packages list as `root-tests` in `[package.metadata.enforcer]`, in that order.
    pub(crate) fn root_tests(&self) -> Vec<TestTarget> {
        let listed = |package: &Value| {
            let names = package["metadata"]["enforcer"]["root-tests"].as_array().cloned().unwrap_or_default();
            let package = text(&package["name"]);
            let target = move |name| TestTarget { package: package.clone(), name: text(&name) };
            names.into_iter().map(target).collect::<Vec<_>>()
        };
        self.packages.iter().flat_map(listed).collect()
    }
}

/// The cargo that runs this task, else the one on the search path.
fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
