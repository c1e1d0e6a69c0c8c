//! Exit codes: which error ends the program with which number.

use std::io;

use super::{doctor, verify};
use crate::verify::{proof, signer};
use crate::{client, config, daemon, kernel};

/// Wrong usage or input that only a handler could see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Something that a command names and that is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Missing(pub(super) String);

/// The exit code for an error: that of the first link of its chain that has one, else 1.
#[must_use]
pub fn code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(of).unwrap_or(1)
}

/// The error in one line: its chain, without what an outer error has said of an inner one already.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for link in error.chain() {
        let words = link.to_string();
        if said.is_empty() {
            said = words;
        } else if !said.contains(&words) {
            said = format!("{said}: {words}");
        }
    }
    said
}

fn of(error: &(dyn std::error::Error + 'static)) -> Option<u8> {
    if error.is::<Usage>() {
        return Some(2);
    }
    if error.is::<Missing>() {
        return Some(6);
    }
    if let Some(error) = error.downcast_ref::<doctor::Failed>() {
        return Some(error.exit_code());
    }
    if error.is::<verify::Failed>() {
        return Some(3);
    }
    if let Some(error) = error.downcast_ref::<crate::verify::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<signer::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<proof::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<client::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<kernel::Error>() {
        return Some(error.exit_code());
    }
    if let Some(error) = error.downcast_ref::<config::Error>() {
        return Some(match error {
            config::Error::Read { source, .. } if is_permission(source) => 5,
            _ => 2,
        });
    }
    error.downcast_ref::<daemon::Error>().map(of_daemon)
}

fn of_daemon(error: &daemon::Error) -> u8 {
    use daemon::{Error, socket, state_dir};
    match error {
        Error::Kernel(error) => error.exit_code(),
        Error::State(state_dir::Error::Held { .. }) | Error::Socket(socket::Error::Held { .. }) => 14,
        Error::State(state_dir::Error::Io { source, .. })
        | Error::Socket(socket::Error::Io { source, .. })
        | Error::Metrics { source, .. }
        | Error::Store(crate::store::Error::File { source, .. })
            if is_permission(source) =>
        {
            5
        }
        Error::State(_)
        | Error::Socket(_)
        | Error::Store(_)
        | Error::Metrics { .. }
        | Error::Answer(_)
        | Error::Policy(_) => 1,
    }
}

fn is_permission(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Refusal;
    use anyhow::Context;
    use hyper::StatusCode;

    #[test]
    fn an_error_keeps_its_code_under_its_context() {
        let error = Err::<(), _>(Usage("wrong".into())).context("while trying").expect_err("an error");
        assert_eq!(code(&error), 2);
        assert_eq!(code(&anyhow::anyhow!("whatever")), 1);
    }

    #[test]
    fn an_error_says_each_thing_once() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let words = source.to_string();
        let error = config::Error::Read { path: "/x".into(), source };
        let error = anyhow::Error::from(error).context("no settings");
        assert_eq!(sentence(&error), format!("no settings: the configuration /x cannot be read: {words}"));
    }

    #[test]
    fn refusals_of_the_daemon_end_by_their_status() {
        for (status, expected) in [
            (StatusCode::BAD_REQUEST, 2),
            (StatusCode::CONFLICT, 2),
            (StatusCode::FORBIDDEN, 5),
            (StatusCode::NOT_FOUND, 6),
            (StatusCode::INTERNAL_SERVER_ERROR, 1),
        ] {
            let error = client::Error::Refused { status, refusal: Refusal::new("no") };
            assert_eq!(code(&error.into()), expected);
        }
        let source = || io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(code(&client::Error::Unreachable { socket: "/x".into(), source: source() }.into()), 4);
        assert_eq!(code(&client::Error::Permission { socket: "/x".into() }.into()), 5);
        let held = daemon::state_dir::Error::Held { path: "/x".into() };
        assert_eq!(code(&daemon::Error::State(held).into()), 14);
        assert_eq!(code(&config::Error::Read { path: "/x".into(), source: source() }.into()), 2);
    }
}
