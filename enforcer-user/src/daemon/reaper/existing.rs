//! Connections that were there before the guard: where in a request they stand cannot be known.

use std::collections::HashSet;

use super::destroy;
use super::tally::{Cause, Tally};
use crate::config::{Existing, Guarded, Mode};
use crate::kernel::{Followed, Kernel};
use crate::policy::document::DEFAULT_SERVICE;
use crate::sockets::{self, Connection, Error, State};

/// Deals with connections to the ports of a service that are older than the guard, and says in one line how many there are.
/// To be called once, right after an attachment that took over nothing.
///
/// # Errors
/// The sockets cannot be listed, or connections not be ended at all.
pub(in crate::daemon) fn end_existing(
    service: &Guarded,
    existing: Existing,
    kernel: &Kernel,
    tally: &Tally,
) -> Result<(), Error> {
    // The sockets first: what one of them receives after the attachment is in the table before.
    let connections = sockets::connections(&service.ports)?;
    let unknown = unknown(&connections, &kernel.connections().all());
    let of = match service.name.as_str() {
        DEFAULT_SERVICE => String::new(),
        name => format!("{name}: "),
    };
    let older = match unknown.len() {
        0 => {
            tracing::info!("{of}no connection is older than the guard and in the middle of its stream");
            return Ok(());
        }
        1 => format!("{of}1 connection is older than the guard and in the middle of its stream"),
        count => format!("{of}{count} connections are older than the guard and in the middle of their streams"),
    };
    match (service.mode, existing) {
        (Mode::Observe, _) => {
            unknown.iter().for_each(|_| tally.would_end(Cause::Existing));
            tracing::info!("{older}: left alone, since this observes");
        }
        (Mode::Enforce, Existing::Adopt) => {
            tracing::info!("{older}: left alone until the client sends again (--existing adopt)");
        }
        (Mode::Enforce, Existing::Reset) => {
            let mut ended = 0;
            for connection in unknown {
                if destroy(connection)? {
                    tally.ended(Cause::Existing);
                    ended += 1;
                }
            }
            tracing::info!("{older}: {ended} reset (--existing reset)");
        }
    }
    Ok(())
}

/// Those on which bytes have come that nobody has judged.
fn unknown<'c>(connections: &'c [Connection], followed: &[Followed]) -> Vec<&'c Connection> {
    let known: HashSet<_> = followed.iter().map(|one| (one.peer, one.local)).collect();
    let is_unknown = |one: &&Connection| {
        one.state == State::Established && one.activity.bytes_received > 0 && !known.contains(&(one.peer, one.local))
    };
    connections.iter().filter(is_unknown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_received_unjudged_bytes_and_may_receive_more_is_unknown() {
        let local = "10.0.0.1:8000";
        let connection = |peer: &str, received| {
            let mut connection = Connection::example(peer, local, 1);
            connection.activity.bytes_received = received;
            connection
        };
        let mut ended = connection("10.0.0.2:4", 9);
        ended.state = State::CloseWait;
        let connections =
            [connection("10.0.0.2:1", 9), connection("10.0.0.2:2", 0), connection("10.0.0.2:3", 9), ended];
        let known = connections[2];
        let followed = Followed {
            peer: known.peer,
            local: known.local,
            head_since: None,
            has_socket: true,
            refused: false,
            kept: false,
        };
        assert_eq!(unknown(&connections, &[followed]), [&connections[0]]);
    }
}
