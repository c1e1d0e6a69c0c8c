//! The TCP sockets of a network namespace, as the kernel's sock_diag interface lists them, and the end of a connection.
//!
//! The listeners tell where an application can be reached; the connections tell what has come in on each, which no
//! packet can tell of a client that sends none. All functions ask the namespace of the calling thread; [`within`]
//! calls them in another. They block, for as long as the kernel needs to walk its table of sockets.

mod diag;

use std::{
    fmt,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use diag::Id;

/// A socket that waits for connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens; an unspecified address for all addresses of the namespace.
    pub address: SocketAddr,
    /// Whether an IPv6 socket takes IPv6 connections only; `[::]` without it takes IPv4 connections too.
    pub v6_only: bool,
    /// Index of the interface that it is bound to; 0 = any.
    pub interface: u32,
    /// Number of its inode, by which `/proc/PID/fd` names it (`socket:[N]`).
    pub inode: u32,
    /// The user that it belongs to.
    pub uid: u32,
}

/// A connection whose client may have sent bytes that the application has not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// This host's end; an IPv4-mapped address is shown as the IPv4 address that it is.
    pub local: SocketAddr,
    /// The client's end, likewise.
    pub peer: SocketAddr,
    /// Whether the client may still send.
    pub state: State,
    /// Number of the socket's inode; 0 until the application accepts the connection.
    pub inode: u32,
    /// The user that it belongs to.
    pub uid: u32,
    /// The kernel's own number of this socket; no other socket of this boot has it.
    pub cookie: u64,
    /// Bytes received that the application has not read.
    pub unread: u32,
    /// What has happened on it.
    pub activity: Activity,
    id: Id,
}

/// States of a [`Connection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Both ends may send.
    Established,
    /// The client has ended its side.
    CloseWait,
}

/// What has happened on a connection, of `struct tcp_info`. Durations are since the event, in whole ms; before the first
/// such event, since the connection was established.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Bytes that the application has read or can read, and a FIN as one more.
    pub bytes_received: u64,
    /// Bytes sent that the client has acknowledged.
    pub bytes_acked: u64,
    /// Since data was sent last.
    pub last_data_sent: Duration,
    /// Since data was received last.
    pub last_data_received: Duration,
    /// Since an acknowledgement was received last.
    pub last_ack_received: Duration,
}

/// Why sockets could not be listed, or a connection not be ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no sock_diag for TCP.
    #[error(
        "the kernel does not list TCP sockets: load its module (`modprobe tcp_diag`), or build it with CONFIG_INET_DIAG"
    )]
    NoDiag,
    /// The list could not be had.
    #[error("the TCP sockets cannot be listed: {0}")]
    List(io::Error),
    /// The kernel cannot end connections.
    #[error("this kernel cannot end connections of other processes: it is built without CONFIG_INET_DIAG_DESTROY")]
    NoDestroy,
    /// One connection could not be ended.
    #[error("the connection of {peer} to {local} cannot be ended: {source}")]
    Destroy {
        /// This host's end.
        local: SocketAddr,
        /// The client's end.
        peer: SocketAddr,
        /// The error of the call.
        source: io::Error,
    },
    /// Another network namespace could not be entered.
    #[error("the network namespace {} cannot be entered: {source}", path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// The error of the call.
        source: io::Error,
    },
}

/// All listening TCP sockets, IPv4 first.
///
/// # Errors
/// [`Error::NoDiag`], or a failed call.
pub fn listeners() -> Result<Vec<Listener>, Error> {
    diag::listeners().map_err(list_error)
}

/// The connections to these local ports, IPv4 sockets first; those whose handshake is not complete are not among them.
///
/// # Errors
/// [`Error::NoDiag`], or a failed call.
pub fn connections(ports: &[u16]) -> Result<Vec<Connection>, Error> {
    diag::connections(ports).map_err(list_error)
}

/// A connection as it is now; `None` if it has ended, or if its client and the application have.
///
/// # Errors
/// [`Error::NoDiag`], or a failed call.
pub fn again(connection: &Connection) -> Result<Option<Connection>, Error> {
    match diag::again(&connection.id) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        found => found.map_err(list_error),
    }
}

/// Ends a connection at once: the client is sent a RST, and whatever the application does with it fails with
/// ECONNABORTED. `false` if it had ended by itself.
///
/// # Errors
/// [`Error::NoDestroy`], or a failed call; it needs CAP_NET_ADMIN in the namespace.
pub fn destroy(connection: &Connection) -> Result<bool, Error> {
    match diag::destroy(&connection.id) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(false),
            Some(libc::EOPNOTSUPP) => Err(Error::NoDestroy),
            _ => Err(Error::Destroy { local: connection.local, peer: connection.peer, source: error }),
        },
    }
}

/// Calls `ask` in the network namespace of the file `path`, such as `/run/netns/NAME` or `/proc/PID/ns/net`, on a thread
/// of its own, so that the caller's namespace stays what it is.
///
/// # Errors
/// [`Error::Namespace`].
///
/// # Panics
/// When `ask` does.
pub fn within<T: Send>(path: &Path, ask: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let error = |source| Error::Namespace { path: path.to_owned(), source };
    let namespace = File::open(path).map_err(error)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map(|()| ask()));
        match thread.join() {
            Ok(answer) => answer.map_err(|errno| error(errno.into())),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn list_error(error: io::Error) -> Error {
    match error.raw_os_error() {
        // EPROTONOSUPPORT: no sock_diag at all; ENOENT: none for TCP.
        Some(libc::ENOENT | libc::EPROTONOSUPPORT) => Error::NoDiag,
        _ => Error::List(error),
    }
}

impl Listener {
    /// Whether a connection to `address` on the listener's port can reach it.
    #[must_use]
    pub fn takes(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self.address.ip() {
            IpAddr::V6(own) if own.is_unspecified() => address.is_ipv6() || !self.v6_only,
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => address.is_ipv4(),
            own => own.to_canonical() == address,
        }
    }
}

impl fmt::Display for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} to {}", self.peer, self.local)
    }
}

#[cfg(test)]
impl Connection {
    /// An established connection on which nothing has come yet, which no kernel knows.
    pub(crate) fn example(peer: &str, local: &str, cookie: u64) -> Self {
        let end = |text: &str| text.parse().expect("an address");
        Self {
            local: end(local),
            peer: end(peer),
            state: State::Established,
            inode: 1,
            uid: 0,
            cookie,
            unread: 0,
            activity: Activity::default(),
            id: Id::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{ErrorKind, Read as _, Write as _},
        net::{TcpListener, TcpStream},
    };

    /// A listener, a client of it, and what the listener accepted.
    fn pair(bind: &str) -> (SocketAddr, TcpStream, TcpStream) {
        let listener = TcpListener::bind(bind).expect("a listener");
        let mut address = listener.local_addr().expect("its address");
        if address.ip().is_unspecified() {
            address.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        let client = TcpStream::connect(address).expect("a connection");
        let (accepted, _) = listener.accept().expect("it is accepted");
        (address, client, accepted)
    }

    fn only(address: SocketAddr) -> Connection {
        let found = connections(&[address.port()]).expect("a list");
        let [connection] = found[..] else { panic!("{} connections to {address}: {found:?}", found.len()) };
        connection
    }

    #[test]
    fn a_listener_is_found_with_its_address_and_owner() {
        for (bind, v6_only) in [("127.0.0.1:0", false), ("[::]:0", false), ("0.0.0.0:0", false)] {
            let listener = TcpListener::bind(bind).expect("a listener");
            let address = listener.local_addr().expect("its address");
            let found: Vec<Listener> =
                listeners().expect("a list").into_iter().filter(|one| one.address.port() == address.port()).collect();
            let [one] = found[..] else { panic!("{found:?}") };
            assert_eq!((one.address, one.v6_only, one.interface), (address, v6_only, 0));
            assert_eq!(one.uid, nix::unistd::getuid().as_raw());
            assert_ne!(one.inode, 0);
        }
    }

    #[test]
    fn what_a_connection_has_received_is_counted() {
        let (address, mut client, mut accepted) = pair("127.0.0.1:0");
        let before = only(address);
        assert_eq!((before.local, before.peer), (address, client.local_addr().expect("its address")));
        assert_eq!((before.state, before.activity.bytes_received), (State::Established, 0));
        client.write_all(b"GET /").expect("it is sent");
        accepted.read_exact(&mut [0; 3]).expect("it comes");
        let after = only(address);
        assert_eq!((after.activity.bytes_received, after.unread, after.cookie), (5, 2, before.cookie));
        let again = again(&before).expect("an answer").expect("it is there");
        assert_eq!((again.activity.bytes_received, again.cookie), (5, before.cookie));
        client.shutdown(std::net::Shutdown::Write).expect("it ends");
        assert_eq!(accepted.read_to_end(&mut Vec::new()).expect("the end comes"), 2);
        assert_eq!(only(address).state, State::CloseWait);
    }

    #[test]
    fn ports_that_are_not_asked_for_are_left_out_even_between_two_that_are() {
        let mut pairs = [pair("127.0.0.1:0"), pair("127.0.0.1:0"), pair("127.0.0.1:0")];
        pairs.sort_by_key(|(address, ..)| address.port());
        let asked = [pairs[2].0.port(), pairs[0].0.port()];
        let mut found: Vec<u16> = connections(&asked).expect("a list").iter().map(|one| one.local.port()).collect();
        found.sort_unstable();
        assert_eq!(found, [asked[1], asked[0]]);
        assert!(connections(&[]).expect("a list").is_empty());
    }

    #[test]
    fn an_ended_connection_is_reset_on_both_sides_whatever_family_its_socket_has() {
        if !nix::unistd::geteuid().is_root() {
            let (address, ..) = pair("127.0.0.1:0");
            assert!(matches!(destroy(&only(address)), Err(Error::Destroy { .. })), "without CAP_NET_ADMIN");
            return;
        }
        for bind in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let (address, mut client, mut accepted) = pair(bind);
            let connection = only(address);
            assert_eq!(connection.local, address, "{bind}");
            assert!(destroy(&connection).expect("it ends"), "{bind}");
            let seen = client.read(&mut [0; 1]).expect_err("the client");
            assert_eq!(seen.kind(), ErrorKind::ConnectionReset, "{bind}");
            let seen = accepted.read(&mut [0; 1]).expect_err("the server");
            assert_eq!(seen.kind(), ErrorKind::ConnectionAborted, "{bind}");
            assert!(!destroy(&connection).expect("it has ended"), "{bind}");
            assert_eq!(again(&connection).expect("an answer"), None, "{bind}");
        }
    }

    #[test]
    fn a_listener_takes_what_its_address_covers() {
        let listener = |address: &str, v6_only| Listener {
            address: format!("{address}:80").parse().expect("an address"),
            v6_only,
            interface: 0,
            inode: 1,
            uid: 0,
        };
        let v4: IpAddr = "10.0.0.1".parse().expect("an address");
        let v6: IpAddr = "fd00::1".parse().expect("an address");
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().expect("an address");
        for (own, v6_only, taken) in [
            ("[::]", false, [true, true, true]),
            ("[::]", true, [false, true, false]),
            ("0.0.0.0", false, [true, false, true]),
            ("10.0.0.1", false, [true, false, true]),
            ("[::ffff:10.0.0.1]", false, [true, false, true]),
            ("[fd00::1]", false, [false, true, false]),
            ("10.0.0.2", false, [false, false, false]),
        ] {
            assert_eq!([v4, v6, mapped].map(|address| listener(own, v6_only).takes(address)), taken, "{own}");
        }
    }

    #[test]
    fn asks_in_a_namespace_that_it_is_given_and_names_one_that_it_cannot_enter() {
        let error = within(Path::new("/nonexistent"), || ()).expect_err("no file");
        assert!(error.to_string().starts_with("the network namespace /nonexistent cannot be entered: "), "{error}");
        if nix::unistd::geteuid().is_root() {
            let found = within(Path::new("/proc/self/ns/net"), listeners).expect("it is entered");
            assert!(found.is_ok(), "{found:?}");
        }
    }
}
