//! The packet that a refused one is turned into: same ends, same direction, no payload.
//!
//! Checksums are written in full: on `lo` and veth the incoming ones are partial, so nothing may be derived from
//! them. IPv4's own is always whole and is adjusted (RFC 1624).

use crate::wire::{Head, Segment, Tuple, flag};

/// Bytes of a TCP header without options.
pub(crate) const TCP_HEADER: u32 = 20;

/// Longest packet whose length both IP versions can say; IPv6 could say 40 bytes more.
const LONGEST: u32 = u16::MAX as u32;

/// What a rewritten frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Bytes of the frame that the head holds and that must be written back.
    pub head: u32,
    /// Length of the frame.
    pub frame: u32,
}

/// Turns the segment into a RST with this sequence number. It acknowledges what the segment does as its receiver counts: a
/// handshake that waits for its end believes no other.
#[inline(always)]
pub fn reset(head: &mut Head, segment: &Segment, seq: u32) -> Rewrite {
    head.set_u32(segment.tcp + 8, segment.ack);
    bare(head, segment, seq, flag::RST | flag::ACK)
}

/// Takes payload and FIN away, so that an acknowledgment is left, with this sequence number.
#[inline(always)]
pub fn strip(head: &mut Head, segment: &Segment, seq: u32) -> Rewrite {
    bare(head, segment, seq, flag::ACK)
}

#[inline(always)]
fn bare(head: &mut Head, segment: &Segment, seq: u32, flags: u8) -> Rewrite {
    let tcp = segment.tcp;
    head.set_u32(tcp + 4, seq);
    head.set_u8(tcp + 12, (TCP_HEADER as u8 / 4) << 4);
    head.set_u8(tcp + 13, flags);
    head.set_u16(tcp + 18, 0);
    set_length(head, segment, tcp + TCP_HEADER);
    set_checksum(head, &segment.tuple, tcp, TCP_HEADER, 0);
    Rewrite { head: tcp + TCP_HEADER, frame: tcp + TCP_HEADER }
}

/// Whether [`cut`] can keep `len` bytes of payload: what hosts merge beyond what its length field can say
/// (`gso_max_size`, ip-link(8)) has a length of 0 and ends with its frame, which XDP does not shorten.
#[must_use]
#[inline(always)]
pub const fn can_cut(segment: &Segment, len: u32) -> bool {
    segment.payload + len - segment.ip <= LONGEST
}

/// Keeps the first `len` bytes of the payload, which [`can_cut`] must allow, and takes the rest and a FIN away; `sum` is the [`add`]ed sum of the
/// TCP options and those bytes.
#[inline(always)]
pub fn cut(head: &mut Head, segment: &Segment, len: u32, sum: u64) -> Rewrite {
    let tcp = segment.tcp;
    head.set_u8(tcp + 13, segment.flags as u8 & !flag::FIN);
    let frame = segment.payload + len;
    set_length(head, segment, frame);
    set_checksum(head, &segment.tuple, tcp, frame - tcp, sum);
    Rewrite { head: tcp + TCP_HEADER, frame }
}

/// Where the bytes begin whose sum [`cut`] wants; they go on for [`summed`] bytes.
#[must_use]
#[inline(always)]
pub const fn summed_from(segment: &Segment) -> u32 {
    segment.tcp + TCP_HEADER
}

/// How many bytes [`cut`] wants summed to keep `len` of payload.
#[must_use]
#[inline(always)]
pub const fn summed(segment: &Segment, len: u32) -> u32 {
    segment.payload - (segment.tcp + TCP_HEADER) + len
}

/// Adds eight bytes to a ones' complement sum (RFC 1071), in memory order.
#[must_use]
#[inline(always)]
pub const fn add(sum: u64, word: u64) -> u64 {
    let (sum, carry) = sum.overflowing_add(word);
    sum.wrapping_add(carry as u64)
}

/// The 16 bits that a sum comes to.
#[must_use]
#[inline(always)]
pub(crate) const fn folded(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[inline(always)]
fn set_length(head: &mut Head, segment: &Segment, frame: u32) {
    let ip = segment.ip;
    if segment.tuple.is_v6() {
        head.set_u16(ip + 4, (frame - ip - 40) as u16);
        return;
    }
    let new = (frame - ip) as u16;
    let old = head.u16(ip + 2);
    let sum = u64::from(!head.u16(ip + 10)) + u64::from(!old) + u64::from(new);
    head.set_u16(ip + 10, !folded(sum));
    head.set_u16(ip + 2, new);
}

/// Writes the checksum of the TCP header at `tcp`: over the pseudo-header of `len` bytes between the two ends, the header's
/// first 20 bytes as they stand and `sum`.
#[inline(always)]
pub(crate) fn set_checksum(head: &mut Head, ends: &Tuple, tcp: u32, len: u32, sum: u64) {
    let Tuple { source, destination, .. } = *ends;
    head.set_u16(tcp + 16, 0);
    let mut sum = add(sum, u64::from(len.to_be()) + u64::from(6u32.to_be()));
    for word in [source[0], source[1], destination[0], destination[1]] {
        sum = add(sum, word);
    }
    for at in [0, 4, 8, 12, 16] {
        sum = add(sum, u64::from(head.u32_raw(tcp + at)));
    }
    head.set_u16(tcp + 16, u16::from_be(!folded(sum)));
}

#[cfg(test)]
mod tests {
    use super::{can_cut, cut};
    use crate::wire::{self, Head, Segment};

    /// The headers of a segment that was merged to `frame` bytes, and says no length.
    fn merged(v6: bool, frame: u32) -> (Head, Segment) {
        let mut head = Head::new();
        let tcp = if v6 {
            head.set_u16(12, 0x86dd);
            head.set_u8(14, 0x60);
            head.set_u8(20, wire::TCP);
            54
        } else {
            head.set_u16(12, 0x0800);
            head.set_u8(14, 0x45);
            head.set_u8(23, wire::TCP);
            34
        };
        head.set_u8(tcp + 12, 5 << 4);
        let mut segment = Segment::EMPTY;
        assert_eq!(wire::parse(&head, frame, &mut segment), Ok(()));
        assert_eq!((segment.tcp, segment.payload + segment.len), (tcp, frame));
        (head, segment)
    }

    #[test]
    fn what_is_kept_of_a_merged_segment_has_a_length_that_can_be_said_or_is_not_cut() {
        for v6 in [false, true] {
            let (mut head, segment) = merged(v6, 200_000);
            let most = 0xffff - (segment.payload - segment.ip);
            assert!(can_cut(&segment, most) && !can_cut(&segment, most + 1), "v6: {v6}");
            let rewrite = cut(&mut head, &segment, most, 0);
            let mut kept = Segment::EMPTY;
            assert_eq!(wire::parse(&head, rewrite.frame, &mut kept), Ok(()));
            assert_eq!(kept.len, most);
            // What follows it in a frame that is not shortened is not of it.
            assert_eq!(wire::parse(&head, 200_000, &mut kept), Ok(()));
            assert_eq!(kept.len, most);
        }
    }
}
