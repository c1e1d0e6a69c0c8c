//! The veth pair between the guarded end and the client's, with addresses of the range for tests (RFC 2544, RFC 6890).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::net::if_::if_nametoindex;

use crate::netlink::{self, attribute};

/// The end that the program is attached to.
pub(super) const GUARDED: &str = "verify0";
/// The client's end.
const CLIENT: &str = "verify1";
/// Address of the guarded end.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// Addresses of the client's end, from the second of the network on.
pub(super) const SOURCES: u8 = 16;

// include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h, veth.h
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFF_UP: u32 = 1;

/// The address of the client's end with this number, of [`SOURCES`].
pub(super) const fn source(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 0, 2 + number)
}

/// Makes the pair, with one end in the calling thread's namespace and the other in the one that `other` names.
pub(super) fn make(other: BorrowedFd<'_>) -> io::Result<()> {
    let named = |name: &str| attribute(IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    let place = attribute(IFLA_NET_NS_FD, &other.as_raw_fd().to_ne_bytes());
    let peer = attribute(VETH_INFO_PEER, &[header(0, 0), named(CLIENT), place].concat());
    let kind = attribute(IFLA_INFO_KIND, b"veth");
    let info = attribute(IFLA_LINKINFO, &[kind, attribute(IFLA_INFO_DATA, &peer)].concat());
    let body = [header(0, 0), named(GUARDED), info].concat();
    netlink::change(libc::NETLINK_ROUTE as isize, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &body)
}

/// Gives the guarded end, in the calling thread's namespace, its address.
pub(super) fn raise_guarded() -> io::Result<()> {
    raise(GUARDED, [SERVER])
}

/// Gives the client's end, in the calling thread's namespace, all its addresses.
pub(super) fn raise_client() -> io::Result<()> {
    raise(CLIENT, (0..SOURCES).map(source))
}

fn raise(name: &str, addresses: impl IntoIterator<Item = Ipv4Addr>) -> io::Result<()> {
    let index = if_nametoindex(name)?;
    netlink::change(libc::NETLINK_ROUTE as isize, RTM_NEWLINK, 0, &header(index, IFF_UP))?;
    for address in addresses {
        // struct ifaddrmsg: family, length of the prefix, flags, scope, interface.
        let mut body = vec![libc::AF_INET as u8, 24, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(attribute(IFA_LOCAL, &address.octets()));
        body.extend(attribute(IFA_ADDRESS, &address.octets()));
        netlink::change(libc::NETLINK_ROUTE as isize, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &body)?;
    }
    Ok(())
}

/// A `struct ifinfomsg` that sets these flags.
fn header(index: u32, flags: u32) -> Vec<u8> {
    // Family, padding and type are zero: any.
    [0, index, flags, flags].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}
