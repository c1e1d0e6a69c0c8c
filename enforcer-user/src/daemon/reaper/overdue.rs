//! Which connections have kept a worker waiting for too long, or are too many of one source.
//!
//! Only two kinds are ever named: those on which nothing has come, and those within a request head. A connection between
//! two requests, in a body, or waiting for its response has no head under way, and is none of them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::tally::Cause;
use crate::kernel::Followed;
use crate::sockets::{Connection, State};

/// A connection that waits for less than this counts towards no source's bound: an honest client's head takes less.
const YOUNG: Duration = Duration::from_secs(1);

/// How much waiting is allowed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// For a first byte, and for a head from its first byte to its last.
    pub(super) head_timeout: Duration,
    /// Connections of one source that wait at once.
    pub(super) max_open_heads: usize,
    /// Longest head in bytes.
    pub(super) max_head: u32,
}

/// What a worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// The connection's first byte.
    FirstByte,
    /// The end of the head that began at this time, CLOCK_BOOTTIME in ns.
    Head(u64),
}

/// A connection to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overdue<'c> {
    pub(super) connection: &'c Connection,
    pub(super) cause: Cause,
    pub(super) wait: Wait,
}

/// Since when the head under way of a connection has been under way, by its client's and its service's end.
pub(super) type Heads = HashMap<(SocketAddr, SocketAddr), u64>;

/// The heads under way among connections that are followed.
pub(super) fn heads(followed: &[Followed]) -> Heads {
    let head = |one: &Followed| Some(((one.peer, one.local), one.head_since?));
    followed.iter().filter(|one| one.has_socket).filter_map(head).collect()
}

/// Forwarded connections whose head has been unfinished for too long, each with the time when that began.
pub(super) fn forwarded(
    followed: &[Followed],
    now: u64,
    bounds: Bounds,
) -> impl Iterator<Item = (SocketAddr, SocketAddr, u64)> {
    let head = |one: &Followed| Some((one.peer, one.local, one.head_since?));
    let is_overdue = move |since: u64| Duration::from_nanos(now.saturating_sub(since)) > bounds.head_timeout;
    followed
        .iter()
        .filter(|one| !one.has_socket && !one.refused)
        .filter_map(head)
        .filter(move |head| is_overdue(head.2))
}

/// All connections that are to be ended at `now`, CLOCK_BOOTTIME in ns; of one source, the oldest first.
pub(super) fn overdue<'c>(connections: &'c [Connection], heads: &Heads, now: u64, bounds: Bounds) -> Vec<Overdue<'c>> {
    let mut overdue = Vec::new();
    let mut waiting: HashMap<IpAddr, Vec<(Duration, Overdue<'c>)>> = HashMap::new();
    for connection in connections.iter().filter(|connection| connection.state == State::Established) {
        let Some((wait, age)) = wait(connection, heads, now, bounds) else { continue };
        let cause = match wait {
            Wait::FirstByte => Cause::Silent,
            Wait::Head(_) => Cause::SlowHead,
        };
        if age > bounds.head_timeout {
            overdue.push(Overdue { connection, cause, wait });
        } else if age > YOUNG {
            let one = Overdue { connection, cause: Cause::Source, wait };
            waiting.entry(source(connection.peer.ip())).or_default().push((age, one));
        }
    }
    for mut of_source in waiting.into_values() {
        let beyond = of_source.len().saturating_sub(bounds.max_open_heads);
        of_source.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        overdue.extend(of_source.into_iter().take(beyond).map(|(_, one)| one));
    }
    overdue
}

/// What a worker waits for on this connection, and for how long it has; `None` if for nothing of its client's.
fn wait(connection: &Connection, heads: &Heads, now: u64, bounds: Bounds) -> Option<(Wait, Duration)> {
    let activity = &connection.activity;
    if activity.bytes_received == 0 {
        return Some((Wait::FirstByte, activity.last_data_received));
    }
    // More than a head is unread: the application is busy with an earlier request, and the client may be held up by a
    // full receive buffer.
    if connection.unread > bounds.max_head {
        return None;
    }
    let since = *heads.get(&(connection.peer, connection.local))?;
    Some((Wait::Head(since), Duration::from_nanos(now.saturating_sub(since))))
}

/// Who an address belongs to: an IPv4 address by itself, an IPv6 address with its /64.
fn source(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: &str = "10.0.0.1:8000";
    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 1000 * SECOND;
    const BOUNDS: Bounds = Bounds { head_timeout: Duration::from_secs(10), max_open_heads: 3, max_head: 16_384 };

    /// A connection of `peer` on which `received` bytes have come, the last (or its start) `ms` ago.
    fn connection(peer: &str, received: u64, ms: u64) -> Connection {
        let mut connection = Connection::example(peer, LOCAL, 1);
        connection.activity.bytes_received = received;
        connection.activity.last_data_received = Duration::from_millis(ms);
        connection
    }

    fn followed(peer: &str, head_since: Option<u64>) -> Followed {
        let end = |text: &str| text.parse().expect("an address");
        Followed { peer: end(peer), local: end(LOCAL), head_since, has_socket: true, refused: false, kept: false }
    }

    fn causes(connections: &[Connection], followed: &[Followed]) -> Vec<(String, Cause)> {
        let found = overdue(connections, &heads(followed), NOW, BOUNDS);
        let mut causes: Vec<_> = found.iter().map(|one| (one.connection.peer.to_string(), one.cause)).collect();
        causes.sort_by(|one, other| one.0.cmp(&other.0));
        causes
    }

    #[test]
    fn a_connection_that_sends_nothing_is_overdue_after_the_time_for_a_head() {
        let connections = [connection("10.0.0.2:1", 0, 10_001), connection("10.0.0.2:2", 0, 10_000)];
        assert_eq!(causes(&connections, &[]), [("10.0.0.2:1".to_owned(), Cause::Silent)]);
    }

    #[test]
    fn a_head_is_overdue_from_its_first_byte_on_however_lately_its_last_came() {
        let connections = [connection("10.0.0.2:1", 50, 0), connection("10.0.0.2:2", 50, 9_000)];
        let followed =
            [followed("10.0.0.2:1", Some(NOW - 10 * SECOND - 1)), followed("10.0.0.2:2", Some(NOW - 10 * SECOND))];
        assert_eq!(causes(&connections, &followed), [("10.0.0.2:1".to_owned(), Cause::SlowHead)]);
    }

    #[test]
    fn what_has_no_head_under_way_is_left_alone_however_long_nothing_comes() {
        let connections = [connection("10.0.0.2:1", 500, 900_000), connection("10.0.0.2:2", 500, 900_000)];
        assert_eq!(causes(&connections, &[followed("10.0.0.2:1", None)]), []);
    }

    #[test]
    fn a_client_that_has_ended_its_side_or_whose_earlier_requests_are_unread_is_left_alone() {
        let mut ended = connection("10.0.0.2:1", 0, 60_000);
        ended.state = State::CloseWait;
        let mut unread = connection("10.0.0.2:2", 70_000, 60_000);
        unread.unread = BOUNDS.max_head + 1;
        let head = followed("10.0.0.2:2", Some(NOW - 60 * SECOND));
        assert_eq!(causes(&[ended, unread], &[head]), []);
        unread.unread = BOUNDS.max_head;
        assert_eq!(causes(&[unread], &[head]), [("10.0.0.2:2".to_owned(), Cause::SlowHead)]);
    }

    #[test]
    fn of_one_source_the_oldest_beyond_the_bound_are_ended() {
        let mut connections: Vec<Connection> =
            (1..=4).map(|n| connection(&format!("10.0.0.2:{n}"), 0, 5000 - 500 * n)).collect();
        connections.push(connection("10.0.0.2:5", 20, 0));
        let head = followed("10.0.0.2:5", Some(NOW - 9 * SECOND));
        // Too young to count.
        connections.push(connection("10.0.0.2:6", 0, 1000));
        // Another source.
        connections.push(connection("10.0.0.3:7", 0, 9000));
        let expected = [("10.0.0.2:1".to_owned(), Cause::Source), ("10.0.0.2:5".to_owned(), Cause::Source)];
        assert_eq!(causes(&connections, &[head]), expected);
    }

    #[test]
    fn those_that_are_overdue_make_room_for_the_others_of_their_source() {
        let mut connections: Vec<Connection> = (1..=3).map(|n| connection(&format!("10.0.0.2:{n}"), 0, 5000)).collect();
        connections.push(connection("10.0.0.2:4", 0, 11_000));
        assert_eq!(causes(&connections, &[]), [("10.0.0.2:4".to_owned(), Cause::Silent)]);
    }

    #[test]
    fn ipv6_addresses_of_one_64_are_one_source() {
        let of = |peers: [&str; 4]| peers.map(|peer| connection(peer, 0, 5000));
        assert_eq!(causes(&of(["[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:1", "[fd00::ffff:0:0:4]:1"]), &[]).len(), 1);
        assert_eq!(causes(&of(["[fd00::1]:1", "[fd00::2]:1", "[fd00::3]:1", "[fd00:0:0:1::4]:1"]), &[]), []);
    }

    #[test]
    fn a_forwarded_connection_is_named_but_never_as_one_that_could_be_ended() {
        let old = Some(NOW - 11 * SECOND);
        let elsewhere = Followed { has_socket: false, ..followed("10.0.0.2:1", old) };
        let refused = Followed { refused: true, ..elsewhere };
        let young = Followed { head_since: Some(NOW - SECOND), ..elsewhere };
        let here = followed("10.0.0.2:2", old);
        let all = [elsewhere, refused, young, here];
        let found: Vec<_> = forwarded(&all, NOW, BOUNDS).collect();
        assert_eq!(found, [(elsewhere.peer, elsewhere.local, NOW - 11 * SECOND)]);
        assert_eq!(heads(&all).len(), 1);
    }
}
