//! sock_diag over netlink: the requests as bytes, and what the kernel answers with.
//!
//! Only the fields that matter are read, at the offsets of `include/uapi/linux/{inet_diag,tcp}.h`, which only ever grow
//! at their ends.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use netlink_packet_core::NlasIterator;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink;

use super::{Activity, Connection, Listener, State};

// include/uapi/linux/{sock_diag,inet_diag}.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_SKV6ONLY: u16 = 11;
const INET_DIAG_BC_S_GE: u8 = 2;
const INET_DIAG_BC_S_LE: u8 = 3;
/// The extension that asks for INET_DIAG_INFO.
const WITH_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
/// Size of `struct inet_diag_bc_op`.
const OP: usize = 4;

// include/net/tcp_states.h
const TCP_ESTABLISHED: u8 = 1;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LISTEN: u8 = 10;

/// Size of `struct inet_diag_sockid`.
const ID: usize = 48;
/// Size of `struct inet_diag_msg`.
const MESSAGE: usize = 72;

/// A socket as the kernel names it, to be sent back as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    family: u8,
    bytes: [u8; ID],
}

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    id: Id,
    state: u8,
    unread: u32,
    uid: u32,
    inode: u32,
    v6_only: bool,
    activity: Option<Activity>,
}

pub(super) fn listeners() -> io::Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(&list(family as u8, &[TCP_LISTEN], None), |entry| {
            let Entry { id, uid, inode, v6_only, .. } = entry;
            listeners.push(Listener { address: id.local(), v6_only, interface: id.interface(), inode, uid });
        })?;
    }
    Ok(listeners)
}

pub(super) fn connections(ports: &[u16]) -> io::Result<Vec<Connection>> {
    let (Some(&first), Some(&last)) = (ports.iter().min(), ports.iter().max()) else { return Ok(Vec::new()) };
    let mut connections = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        dump(&list(family as u8, &[TCP_ESTABLISHED, TCP_CLOSE_WAIT], Some((first, last))), |entry| {
            let wanted = connection(&entry).filter(|connection| ports.contains(&connection.local.port()));
            connections.extend(wanted);
        })?;
    }
    Ok(connections)
}

pub(super) fn again(id: &Id) -> io::Result<Option<Connection>> {
    let mut found = None;
    netlink::ask(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &request(id, WITH_INFO, u32::MAX), |_, payload| {
        found = parse(payload).as_ref().and_then(connection);
    })?;
    Ok(found)
}

pub(super) fn destroy(id: &Id) -> io::Result<()> {
    netlink::act(NETLINK_SOCK_DIAG, SOCK_DESTROY, &request(id, 0, 0))
}

fn dump(request: &[u8], mut each: impl FnMut(Entry)) -> io::Result<()> {
    netlink::dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, request, |_, payload| {
        if let Some(entry) = parse(payload) {
            each(entry);
        }
    })
}

/// A connection, of an entry that is one; a socket without `tcp_info` has no application behind it any more.
fn connection(entry: &Entry) -> Option<Connection> {
    let Entry { id, state, unread, uid, inode, v6_only: _, activity } = *entry;
    let state = match state {
        TCP_ESTABLISHED => State::Established,
        TCP_CLOSE_WAIT => State::CloseWait,
        _ => return None,
    };
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let (local, peer) = (canonical(id.local()), canonical(id.peer()));
    Some(Connection { local, peer, state, inode, uid, cookie: id.cookie(), unread, activity: activity?, id })
}

/// A request for the TCP sockets of `family` in these states, with a local port in this range.
fn list(family: u8, states: &[u8], ports: Option<(u16, u16)>) -> Vec<u8> {
    let states = states.iter().fold(0, |mask, state| mask | 1 << state);
    let mut request = request(&Id { family, bytes: [0; ID] }, WITH_INFO, states);
    if let Some((first, last)) = ports {
        // Two tests of two words each; `yes` goes on behind the test, `no` beyond the end, which leaves the socket out.
        request.extend((4 + 4 * OP as u16).to_ne_bytes());
        request.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        for (code, port, rest) in [(INET_DIAG_BC_S_GE, first, 4 * OP), (INET_DIAG_BC_S_LE, last, 2 * OP)] {
            request.extend([code, 2 * OP as u8]);
            request.extend((rest as u16 + OP as u16).to_ne_bytes());
            request.extend([0, 0]);
            request.extend(port.to_ne_bytes());
        }
    }
    request
}

/// `struct inet_diag_req_v2`.
fn request(id: &Id, extensions: u8, states: u32) -> Vec<u8> {
    let mut request = Vec::with_capacity(8 + ID + 4 + 4 * OP);
    request.extend([id.family, libc::IPPROTO_TCP as u8, extensions, 0]);
    request.extend(states.to_ne_bytes());
    request.extend(id.bytes);
    request
}

/// Reads one `struct inet_diag_msg` and its attributes; `None` for one that is cut short or of another family.
fn parse(payload: &[u8]) -> Option<Entry> {
    let (head, attributes) = payload.split_at_checked(MESSAGE)?;
    let family = head[0];
    if !matches!(i32::from(family), libc::AF_INET | libc::AF_INET6) {
        return None;
    }
    let id = Id { family, bytes: *head.get(4..)?.first_chunk()? };
    let (unread, uid, inode) = (word(head, 56)?, word(head, 64)?, word(head, 68)?);
    let mut entry = Entry { id, state: head[1], unread, uid, inode, v6_only: false, activity: None };
    for attribute in NlasIterator::new(attributes) {
        let Ok(attribute) = attribute else { break };
        match attribute.kind() {
            INET_DIAG_SKV6ONLY => entry.v6_only = attribute.value().first().is_some_and(|&only| only != 0),
            INET_DIAG_INFO => entry.activity = activity(attribute.value()),
            _ => {}
        }
    }
    Some(entry)
}

/// Reads `struct tcp_info`; all that is read is in it since Linux 4.2.
fn activity(info: &[u8]) -> Option<Activity> {
    let ms = |at| word(info, at).map(|ms| Duration::from_millis(ms.into()));
    let bytes = |at: usize| Some(u64::from_ne_bytes(*info.get(at..)?.first_chunk()?));
    Some(Activity {
        last_data_sent: ms(44)?,
        last_data_received: ms(52)?,
        last_ack_received: ms(56)?,
        bytes_acked: bytes(120)?,
        bytes_received: bytes(128)?,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    netlink::word(bytes.get(at..)?)
}

#[cfg(test)]
impl Default for Id {
    fn default() -> Self {
        Self { family: 0, bytes: [0; ID] }
    }
}

impl Id {
    fn local(&self) -> SocketAddr {
        SocketAddr::new(self.address(4), self.port(0))
    }

    fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.address(20), self.port(2))
    }

    fn interface(&self) -> u32 {
        self.native(36)
    }

    fn cookie(&self) -> u64 {
        u64::from(self.native(44)) << 32 | u64::from(self.native(40))
    }

    fn port(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn address(&self, at: usize) -> IpAddr {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.bytes[at..at + 16]);
        if i32::from(self.family) == libc::AF_INET {
            Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
        } else {
            Ipv6Addr::from(bytes).into()
        }
    }

    fn native(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.bytes[at..at + 4]);
        u32::from_ne_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute;

    /// `struct inet_diag_msg` of a connection from 10.0.0.2:41000 to 10.0.0.1:8000, and the length of what follows.
    const ENTRY: [u8; MESSAGE] = [
        2, 1, 0, 0, // AF_INET, ESTABLISHED, timer, retransmits
        0x1f, 0x40, 0xa0, 0x28, // ports
        10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // local
        10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // peer
        0, 0, 0, 0, // interface
        0x2a, 0, 0, 0, 1, 0, 0, 0, // cookie
        0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, // expires, queues
        0x21, 0, 0, 0, // uid
        0x39, 0x30, 0, 0, // inode
    ];

    /// `struct tcp_info` with what is read of it.
    fn tcp_info(received: u64, since_received: u32) -> Vec<u8> {
        let mut info = vec![0xee; 232];
        info[44..48].copy_from_slice(&7u32.to_ne_bytes());
        info[52..56].copy_from_slice(&since_received.to_ne_bytes());
        info[56..60].copy_from_slice(&9u32.to_ne_bytes());
        info[120..128].copy_from_slice(&11u64.to_ne_bytes());
        info[128..136].copy_from_slice(&received.to_ne_bytes());
        info
    }

    // The literals are in the byte order of the little-endian machines that the enforcer runs on.
    #[cfg(target_endian = "little")]
    #[test]
    fn a_connection_is_read_with_its_activity() {
        let payload = [&ENTRY[..], &attribute(8, &[0]), &attribute(INET_DIAG_INFO, &tcp_info(1000, 2500))].concat();
        let connection = connection(&parse(&payload).expect("an entry")).expect("a connection");
        assert_eq!(connection.local, "10.0.0.1:8000".parse().expect("an address"));
        assert_eq!(connection.peer, "10.0.0.2:41000".parse().expect("an address"));
        assert_eq!((connection.state, connection.inode, connection.uid), (State::Established, 12345, 33));
        assert_eq!((connection.cookie, connection.unread), (1 << 32 | 42, 5));
        let activity = Activity {
            bytes_received: 1000,
            bytes_acked: 11,
            last_data_sent: Duration::from_millis(7),
            last_data_received: Duration::from_millis(2500),
            last_ack_received: Duration::from_millis(9),
        };
        assert_eq!(connection.activity, activity);
    }

    #[test]
    fn an_ipv4_mapped_connection_has_ipv4_addresses_and_is_named_as_it_came() {
        let mut entry = ENTRY;
        entry[0] = libc::AF_INET6 as u8;
        for at in [8, 24] {
            let v4 = [entry[at], entry[at + 1], entry[at + 2], entry[at + 3]];
            entry[at..at + 4].fill(0);
            entry[at + 10..at + 12].fill(0xff);
            entry[at + 12..at + 16].copy_from_slice(&v4);
        }
        let payload = [&entry[..], &attribute(INET_DIAG_INFO, &tcp_info(0, 1))].concat();
        let connection = connection(&parse(&payload).expect("an entry")).expect("a connection");
        assert_eq!(connection.local, "10.0.0.1:8000".parse().expect("an address"));
        assert_eq!(connection.peer, "10.0.0.2:41000".parse().expect("an address"));
        assert_eq!((connection.id.family, &connection.id.bytes[..]), (10, &entry[4..52]));
    }

    #[test]
    fn what_is_cut_short_or_has_no_tcp_info_is_no_connection() {
        assert_eq!(parse(&ENTRY[..MESSAGE - 1]), None);
        let bare = parse(&ENTRY).expect("an entry");
        assert_eq!((bare.activity, connection(&bare)), (None, None));
        let short = [&ENTRY[..], &attribute(INET_DIAG_INFO, &tcp_info(1, 1)[..135])].concat();
        assert_eq!(connection(&parse(&short).expect("an entry")), None);
        let mut listening = ENTRY;
        listening[1] = TCP_LISTEN;
        let listening = [&listening[..], &attribute(INET_DIAG_INFO, &tcp_info(1, 1))].concat();
        assert_eq!(connection(&parse(&listening).expect("an entry")), None);
        let mut unix = ENTRY;
        unix[0] = libc::AF_UNIX as u8;
        assert_eq!(parse(&unix), None);
    }

    #[test]
    fn a_dual_stack_listener_is_told_from_one_for_ipv6_only() {
        for (only, expected) in [(0, false), (1, true)] {
            let payload = [&ENTRY[..], &attribute(INET_DIAG_SKV6ONLY, &[only])].concat();
            assert_eq!(parse(&payload).expect("an entry").v6_only, expected);
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_list_of_connections_is_asked_for_by_state_and_range_of_ports() {
        let asked = list(libc::AF_INET as u8, &[TCP_ESTABLISHED, TCP_CLOSE_WAIT], Some((8000, 8001)));
        let sought = [2, 6, 2, 0, 0x02, 0x01, 0, 0];
        let filter = [20, 0, 1, 0, 2, 8, 20, 0, 0, 0, 0x40, 0x1f, 3, 8, 12, 0, 0, 0, 0x41, 0x1f];
        assert_eq!(asked, [&sought[..], &[0; ID], &filter].concat());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_connection_is_destroyed_by_the_name_that_the_kernel_gave_it() {
        let id = parse(&ENTRY).expect("an entry").id;
        assert_eq!(request(&id, 0, 0), [&[2, 6, 0, 0, 0, 0, 0, 0], &ENTRY[4..52]].concat());
    }
}
