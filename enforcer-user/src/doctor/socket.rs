//! Sockets that no TCP hook sees, though an application may serve on them: Unix, UDP and multipath TCP.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink;

// include/uapi/linux/{sock_diag,inet_diag,in}.h, include/net/tcp_states.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const INET_DIAG_REQ_PROTOCOL: u16 = 3;
const IPPROTO_MPTCP: u32 = 262;
const TCP_LISTEN: u32 = 10;
/// Size of `struct inet_diag_sockid` and of `struct inet_diag_msg`.
const ID: usize = 48;
const MESSAGE: usize = 72;

/// `__SO_ACCEPTCON` of net/unix: the socket listens.
const LISTENS: u32 = 1 << 16;

/// A Unix socket that waits for connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unix {
    /// Its path; `@name` for an abstract one.
    pub(super) path: String,
    pub(super) inode: u64,
}

/// A bound socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

/// The listening stream sockets of this network namespace.
///
/// # Errors
/// The list cannot be read.
pub(super) fn unix() -> io::Result<Vec<Unix>> {
    Ok(parse_unix(&fs::read_to_string("/proc/thread-self/net/unix")?))
}

/// The bound UDP sockets of this network namespace that take packets from anybody.
///
/// # Errors
/// The list cannot be read.
pub(super) fn udp() -> io::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for path in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        match fs::read_to_string(path) {
            Ok(text) => bound.extend(text.lines().filter_map(parse_udp)),
            // Without IPv6 there is no list of it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(bound)
}

/// The multipath listeners of this network namespace; none where the kernel has no multipath TCP.
///
/// # Errors
/// A failed call.
pub(super) fn multipath() -> io::Result<Vec<Bound>> {
    let mut bound = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let listed =
            netlink::dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, &multipath_request(family as u8), |_, payload| {
                bound.extend(parse_diag(payload));
            });
        match listed {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EINVAL)) => {
            }
            listed => listed?,
        }
    }
    Ok(bound)
}

/// Whether this kernel can end connections of other processes. It is asked to end one that there cannot be: port 0.
///
/// # Errors
/// A failed call.
pub(super) fn can_destroy() -> io::Result<bool> {
    let mut request = vec![libc::AF_INET as u8, libc::IPPROTO_TCP as u8, 0, 0];
    request.extend([0; 4 + ID]);
    match netlink::act(NETLINK_SOCK_DIAG, SOCK_DESTROY, &request) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(true),
            Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => Ok(false),
            _ => Err(error),
        },
    }
}

/// `struct inet_diag_req_v2` for listeners, and the protocol, whose number does not fit in it.
fn multipath_request(family: u8) -> Vec<u8> {
    let mut request = vec![family, IPPROTO_MPTCP as u8, 0, 0];
    request.extend((1u32 << TCP_LISTEN).to_ne_bytes());
    request.extend([0; ID]);
    request.extend(8u16.to_ne_bytes());
    request.extend(INET_DIAG_REQ_PROTOCOL.to_ne_bytes());
    request.extend(IPPROTO_MPTCP.to_ne_bytes());
    request
}

/// Reads one `struct inet_diag_msg`.
fn parse_diag(payload: &[u8]) -> Option<Bound> {
    let message: &[u8; MESSAGE] = payload.first_chunk()?;
    let port = u16::from_be_bytes([message[4], message[5]]);
    let source: [u8; 16] = *message.get(8..)?.first_chunk()?;
    let ip = if i32::from(message[0]) == libc::AF_INET {
        IpAddr::V4(Ipv4Addr::new(source[0], source[1], source[2], source[3]))
    } else {
        IpAddr::V6(Ipv6Addr::from(source))
    };
    Some(Bound { address: SocketAddr::new(ip, port), inode: netlink::word(message.get(68..)?)?.into() })
}

/// Reads `/proc/net/unix`: address, references, protocol, flags, type, state, inode and path of each socket.
fn parse_unix(text: &str) -> Vec<Unix> {
    let listener = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        let flags = u32::from_str_radix(fields.next()?, 16).ok()?;
        let kind = fields.next()?;
        let inode = fields.nth(1)?;
        // The path is the rest of the line; it may hold spaces.
        let path = line.split_once(&format!(" {inode} ")).map_or("", |(_, path)| path.trim_end());
        let is_stream = matches!(kind, "0001" | "0005");
        let inode = inode.parse().ok()?;
        (flags & LISTENS != 0 && is_stream).then(|| Unix { path: path.to_owned(), inode })
    };
    text.lines().skip(1).filter_map(listener).collect()
}

/// Reads a line of `/proc/net/udp` or `udp6`; `None` for a socket that is connected to one peer, and for the header.
fn parse_udp(line: &str) -> Option<Bound> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (ip, port) = fields.next()?.split_once(':')?;
    let (_, peer) = fields.next()?.split_once(':')?;
    let inode = fields.nth(6)?.parse().ok()?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(8 * at..8 * at + 8)?, 16).ok();
    // Each word is printed as a number of this machine's byte order.
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?.to_ne_bytes()).into(),
        _ => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).into()
        }
    };
    (peer == "0000").then_some(Bound { address: SocketAddr::new(ip, port), inode })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_unix_listener_is_found_and_a_connection_is_not() {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("a socket");
        let _listener = UnixListener::bind(&path).expect("a listener");
        let _pair = UnixStream::pair().expect("a pair");
        let found = unix().expect("a list");
        let path = path.to_str().expect("text");
        assert_eq!(found.iter().filter(|one| one.path == path).count(), 1, "{found:?}");
    }

    #[test]
    fn only_listening_stream_sockets_are_ways_in() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            ffff9: 00000002 00000000 00010000 0001 01 21744 /run/a b.sock\n\
            ffffa: 00000002 00000000 00010000 0005 01 21745 @packet\n\
            ffffb: 00000002 00000000 00000000 0002 01 21746 /run/datagram\n\
            ffffc: 00000003 00000000 00000000 0001 03 21747\n\
            ffffd: 00000002 00000000 00010000 0001 01 21748\n";
        let unix = |path: &str, inode| Unix { path: path.to_owned(), inode };
        assert_eq!(parse_unix(text), [unix("/run/a b.sock", 21744), unix("@packet", 21745), unix("", 21748)]);
    }

    #[test]
    fn a_udp_socket_is_found_with_its_address() {
        for bind in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(bind).expect("a socket");
            let address = socket.local_addr().expect("its address");
            let found = udp().expect("a list");
            assert_eq!(found.iter().filter(|one| one.address == address).count(), 1, "{address} in {found:?}");
        }
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn a_connected_udp_socket_takes_packets_of_its_peer_only() {
        let line =
            |peer| format!("  12: 0100007F:1F40 {peer} 07 00000000:00000000 00:00000000 00000000  1000  0 4711 2 0 0");
        let address = "127.0.0.1:8000".parse().expect("an address");
        assert_eq!(parse_udp(&line("00000000:0000")), Some(Bound { address, inode: 4711 }));
        assert_eq!(parse_udp(&line("0200007F:0035")), None);
        assert_eq!(parse_udp("  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"), None);
    }

    #[test]
    fn asking_whether_connections_can_be_ended_ends_none() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
        // It is built into this kernel or not; that it answers is what matters.
        assert!(can_destroy().is_ok());
        assert!(client.peer_addr().is_ok());
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn multipath_listeners_are_asked_for_by_the_protocols_whole_number() {
        let request = multipath_request(libc::AF_INET as u8);
        assert_eq!(request[..8], [2, 6, 0, 0, 0, 4, 0, 0]);
        assert_eq!(request[8 + ID..], [8, 0, 3, 0, 6, 1, 0, 0]);
    }
}
