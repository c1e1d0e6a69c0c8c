//! Other programs: each is shown before it runs, a failure says which one it was, and what needs root gets it.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Runs `command` with this terminal, after showing it.
///
/// # Errors
/// It cannot be started, or ends with a status other than 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    show(command);
    let status = command.status().with_context(|| cannot_start(command))?;
    if !status.success() {
        bail!("`{}` failed ({status}); what it printed above says why", words(command));
    }
    Ok(())
}

/// What `command` writes to its standard output; its standard error goes to this terminal.
///
/// # Errors
/// As [`run`], or the output is not UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output().with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", words(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote something that is no text", words(command)))
}

/// Whether `command` can be started and ends with status 0; it is neither shown nor heard.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Shows `command` as one would type it.
pub(crate) fn show(command: &Command) {
    eprintln!("+ {}", line(command));
}

/// Where `program` is on the search path.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A command that runs `program` as root: by itself, or through `sudo`.
///
/// # Errors
/// This process is not root, and there is no `sudo`; `what` says in the error what root was needed for.
pub(crate) fn as_root(program: impl AsRef<OsStr>, what: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find("sudo") else {
        bail!("{what} needs root, and there is no sudo here; become root and run the same command again");
    };
    let mut command = Command::new(sudo);
    command.arg("--").arg(program);
    Ok(command)
}

/// Lets sudo ask for its password now, where later several commands would ask at once; nothing to do for root.
///
/// # Errors
/// As [`as_root`], or the password was not given.
pub(crate) fn authenticate(what: &str) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let sudo = as_root("true", what)?;
    run(Command::new(sudo.get_program()).arg("--validate"))
}

/// Says which file could not be read or written.
pub(crate) fn at(verb: &'static str, path: &Path) -> impl FnOnce() -> String {
    let path = path.display().to_string();
    move || format!("cannot {verb} {path}")
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", words(command))
}

/// `command` as one would type it, but for PATH, which is long and only lengthened.
fn line(command: &Command) -> String {
    let set = command.get_envs().filter(|(name, _)| *name != "PATH").filter_map(|(name, value)| Some((name, value?)));
    let mut line: String = set.map(|(name, value)| format!("{}={} ", name.to_string_lossy(), quoted(value))).collect();
    line += &words(command);
    line
}

/// The same without the variables that are set for it.
fn words(command: &Command) -> String {
    // cargo names itself to what it runs by a long path.
    let is_cargo = env::var_os("CARGO").is_some_and(|cargo| cargo == command.get_program());
    let program = if is_cargo { OsStr::new("cargo") } else { command.get_program() };
    let words: Vec<String> = std::iter::once(program).chain(command.get_args()).map(quoted).collect();
    words.join(" ")
}

/// `word` as a shell takes it.
pub(crate) fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.into_owned();
    }
    if !word.chars().any(char::is_control) {
        return format!("'{}'", word.replace('\'', r"'\''"));
    }
    let escape = |c: char| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if c.is_control() => format!("\\x{:02x}", u32::from(c)),
        c => c.to_string(),
    };
    format!("$'{}'", word.chars().map(escape).collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::{ffi::OsStr, process::Command};

    use super::{line, quoted};

    #[test]
    fn shows_a_command_as_a_shell_takes_it() {
        assert_eq!(quoted(OsStr::new("--port=8000")), "--port=8000");
        assert_eq!(quoted(OsStr::new("100 per minute")), "'100 per minute'");
        assert_eq!(quoted(OsStr::new("it's")), r"'it'\''s'");
        assert_eq!(quoted(OsStr::new("-Ca\u{1f}-Cb")), r"$'-Ca\x1f-Cb'");
        assert_eq!(quoted(OsStr::new("")), "''");
        let mut command = Command::new("run");
        assert_eq!(line(command.arg("a b").env("NAME", "x").env_remove("OTHER")), "NAME=x run 'a b'");
    }
}
