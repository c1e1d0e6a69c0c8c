//! Questions to the kernel over netlink, and its answers, message by message.
//!
//! Each call has a socket of its own, so that no answer is taken for another call's, and asks in the network namespace
//! of the calling thread.

use std::io;

use netlink_packet_core::NetlinkBuffer;
use netlink_sys::{Socket, SocketAddr};

// include/uapi/linux/netlink.h
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
/// Size of `struct nlmsghdr`.
const HEADER: usize = 16;

/// Asks `protocol` for the list that a message of type `kind` with the payload `body` asks for, and gives each answer's
/// type and payload to `each`.
///
/// # Errors
/// The kernel's refusal, or a failed call.
pub(crate) fn dump(protocol: isize, kind: u16, body: &[u8], each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    exchange(protocol, kind, NLM_F_DUMP, body, each)
}

/// Has `protocol` do what a message of type `kind` with the payload `body` asks for.
///
/// # Errors
/// The kernel's refusal, or a failed call.
pub(crate) fn act(protocol: isize, kind: u16, body: &[u8]) -> io::Result<()> {
    ask(protocol, kind, body, |_, _| {})
}

/// Like [`act`], with flags for what is to be made anew or replaced, such as NLM_F_CREATE.
///
/// # Errors
/// The kernel's refusal, or a failed call.
pub(crate) fn change(protocol: isize, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
    exchange(protocol, kind, NLM_F_ACK | flags, body, |_, _| {})
}

/// Asks `protocol` for the one thing that a message of type `kind` with the payload `body` names, and gives the answer's
/// type and payload to `each`.
///
/// # Errors
/// The kernel's refusal, or a failed call.
pub(crate) fn ask(protocol: isize, kind: u16, body: &[u8], each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    exchange(protocol, kind, NLM_F_ACK, body, each)
}

fn exchange(protocol: isize, kind: u16, flags: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = vec![0; HEADER + body.len()];
    let mut message = NetlinkBuffer::new(&mut request[..]);
    message.set_length((HEADER + body.len()) as u32);
    message.set_message_type(kind);
    message.set_flags(NLM_F_REQUEST | flags);
    message.set_sequence_number(1);
    message.payload_mut().copy_from_slice(body);
    socket.send(&request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if read(&datagram, &mut each)? {
            return Ok(());
        }
    }
}

/// Reads one datagram; `true` if the list ends with it.
fn read(datagram: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    let mut rest = datagram;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                let code = message.payload().first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(true) };
            }
            kind => each(kind, message.payload()),
        }
        rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The text of an attribute's value, up to its first zero byte.
pub(crate) fn text(value: &[u8]) -> String {
    let text = value.split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// The number in an attribute's value, in this machine's byte order.
pub(crate) fn word(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// An attribute's bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((payload.len() + HEADER) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn answers(datagram: &[u8]) -> (io::Result<bool>, Vec<(u16, Vec<u8>)>) {
        let mut answers = Vec::new();
        let ended = read(datagram, &mut |kind, payload| answers.push((kind, payload.to_vec())));
        (ended, answers)
    }

    #[test]
    fn a_list_goes_on_until_the_kernel_says_that_it_is_done() {
        let (one, other) = (message(16, b"one"), message(17, b"other"));
        let (ended, found) = answers(&[&one[..], &other[..]].concat());
        assert!(matches!(ended, Ok(false)), "{ended:?}");
        assert_eq!(found, [(16, b"one".to_vec()), (17, b"other".to_vec())]);
        let (ended, found) = answers(&[one, message(NLMSG_DONE, &0i32.to_ne_bytes())].concat());
        assert!(matches!(ended, Ok(true)) && found.len() == 1, "{ended:?}");
    }

    #[test]
    fn a_refusal_is_an_error_and_what_is_cut_short_too() {
        let (ended, _) = answers(&message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes()));
        assert_eq!(ended.expect_err("refused").raw_os_error(), Some(libc::EPERM));
        assert!(answers(&[0; 7]).0.is_err());
    }
}
