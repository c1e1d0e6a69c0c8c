//! Virtual environments in the build folder, each with exactly the packages of a requirements file.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    process,
    setup::{Setup, apt, say},
};

/// Debian's packages for making virtual environments.
const PACKAGES: &[&str] = &["python3", "python3-venv"];

/// Makes `target/NAME`, or makes it anew when the requirements have changed, and returns its folder.
///
/// # Errors
/// There is no Python that can make one, or a package cannot be installed.
pub(crate) fn ensure(setup: &Setup<'_>, name: &str, requirements: &str) -> Result<PathBuf> {
    let workspace = setup.workspace;
    let folder = workspace.target().join(name);
    let requirements = workspace.root().join(requirements);
    let wanted = fs::read_to_string(&requirements).map_err(|error| {
        anyhow::anyhow!(
            "cannot read {}, which says what belongs in {}: {error}",
            requirements.display(),
            folder.display()
        )
    })?;
    let stamp = folder.join("installed-requirements.txt");
    let installed = fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted);
    // An upgrade of the system's Python can break an environment that was made with it.
    if installed && process::succeeds(Command::new(folder.join("bin/python")).args(["-c", "import flask"])) {
        say("Python environment", format_args!("{} is there", folder.display()));
        return Ok(folder);
    }
    ensure_python(setup)?;
    setup.run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut install = Command::new(folder.join("bin/python"));
    install
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .arg(&requirements);
    setup.run(&mut install)?;
    if setup.dry {
        return Ok(folder);
    }
    fs::write(&stamp, wanted).map_err(|error| anyhow::anyhow!("cannot write {}: {error}", stamp.display()))?;
    Ok(folder)
}

fn ensure_python(setup: &Setup<'_>) -> Result<()> {
    let can_make = || process::succeeds(Command::new("python3").args(["-c", "import venv, ensurepip"]));
    if can_make() {
        return Ok(());
    }
    if !apt::can_install(setup, PACKAGES)? {
        bail!(
            "Python 3 with the modules venv and ensurepip is needed for the Flask app, and was not found: install it"
        );
    }
    apt::install(setup, PACKAGES, "installing Python")?;
    if !setup.dry && !can_make() {
        bail!("python3 on PATH cannot make virtual environments (`python3 -m venv`): put one that can first on PATH");
    }
    Ok(())
}
