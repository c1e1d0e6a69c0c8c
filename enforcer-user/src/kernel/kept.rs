//! The end of connections that went on behind a refused request, where enforcement ends: nobody makes the numbers of one
//! side those of the other from then on, and both sides would wait for each other until they give up.
//!
//! They are reset while their packets are still translated, so that their clients take the RST; and once more behind the
//! change, for those that were kept meanwhile: of such a client the host itself resets the next packet.

use std::collections::HashSet;

use super::{Connections, Followed};
use crate::sockets::{self, Connection};

/// Makes a change behind which kept connections that are `lost` are not translated any more, and ends those. That they
/// cannot be ended is no reason not to make it.
pub(super) fn end_with<T>(
    connections: &Connections,
    lost: impl Fn(&Followed) -> bool,
    change: impl FnOnce() -> T,
) -> T {
    let before = end(connections, &lost);
    let changed = change();
    match before.and_then(|before| Ok(before + end(connections, &lost)?)) {
        Ok(0) => {}
        Ok(count) => tracing::info!("{count} connections were reset on which a request had been refused"),
        Err(error) => tracing::warn!("connections on which a request was refused will stand still: {error}"),
    }
    changed
}

/// Ends those of the kept connections that are `lost`; how many.
fn end(connections: &Connections, lost: impl Fn(&Followed) -> bool) -> Result<usize, sockets::Error> {
    let lost: Vec<Followed> = connections.all().into_iter().filter(|one| one.kept && lost(one)).collect();
    let ports: HashSet<u16> = lost.iter().map(|one| one.local.port()).collect();
    let sockets = sockets::connections(&ports.into_iter().collect::<Vec<_>>())?;
    let mut count = 0;
    for one in among(&sockets, &lost) {
        match sockets::destroy(one) {
            Ok(ended) => count += usize::from(ended),
            // One connection must not keep the others from being ended.
            Err(error @ sockets::Error::Destroy { .. }) => tracing::warn!("{error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// Those of the sockets whose connections are among `kept`. A place in the table outlives its connection: one on which
/// nothing has come yet is another.
fn among<'s>(sockets: &'s [Connection], kept: &[Followed]) -> impl Iterator<Item = &'s Connection> {
    let kept: HashSet<_> = kept.iter().map(|one| (one.peer, one.local)).collect();
    sockets.iter().filter(move |one| one.activity.bytes_received > 0 && kept.contains(&(one.peer, one.local)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_connection_between_the_same_ends_is_not_the_kept_one() {
        let local = "10.0.0.1:8000";
        let mut kept = Connection::example("10.0.0.2:1", local, 1);
        kept.activity.bytes_received = 9;
        let mut other = Connection::example("10.0.0.2:2", local, 2);
        other.activity.bytes_received = 9;
        let later = Connection::example("10.0.0.2:1", local, 3);
        let followed = Followed {
            peer: kept.peer,
            local: kept.local,
            head_since: None,
            has_socket: true,
            refused: false,
            kept: true,
        };
        let sockets = [kept, other, later];
        assert_eq!(among(&sockets, &[followed]).collect::<Vec<_>>(), [&sockets[0]]);
    }
}
