//! The numbers of one side of a kept connection, made those of the other in a packet's header.

use super::Sheet;
use crate::flow::{self, after, stage};
use crate::judge::World;
use crate::reply::TCP_HEADER;
use crate::shift::Shift;
use crate::wire::{Head, Segment, flag};
use crate::words;

/// Options of a header that are walked; SACK blocks are written behind one to five others.
const OPTIONS: u32 = 12;
/// Most SACK blocks (RFC 2018 §3).
const BLOCKS: u32 = 4;

/// Where the numbers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Toward {
    /// From the client to its server.
    Server,
    /// From the server to its client.
    Client,
}

/// How the ends of a connection count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Counts {
    /// Alike.
    Alike = 0,
    /// As is noted in the sheet.
    Shifted = 1,
    /// Otherwise, and the packet is one that the judge made of what was kept back; or it is not known, since another CPU
    /// is at work on the connection. Wrongly counted, bytes would be taken at another place than where they were judged.
    Never = 2,
}

/// Finds how the ends of the connection of the sheet's packet count.
#[inline(always)]
pub(super) fn find<W: World>(world: &W, sheet: &mut Sheet, toward: Toward) -> Counts {
    let tuple = match toward {
        Toward::Server => sheet.segment.tuple,
        Toward::Client => sheet.segment.tuple.reversed(),
    };
    let hash = flow::hash(world.flow_secret(), &tuple);
    let Some(mut set) = world.lock(hash) else { return Counts::Never };
    let Some(way) = world.find(&set, hash, &tuple) else { return Counts::Alike };
    let flow = set.flow(way);
    if toward == Toward::Client {
        flow.leaves = 1;
    }
    if flow.shift.is_kept == 0 || sheet.segment.has(flag::SYN) {
        return Counts::Alike;
    }
    if toward == Toward::Server {
        if sheet.segment.has(flag::RST) {
            // One that the judge made for the server of a refused connection counts as that does.
            if flow.stage != stage::FOLLOWED {
                return Counts::Alike;
            }
            // The client's own comes behind all that was judged: it counts more.
            if !after(sheet.segment.seq, flow.next()) {
                return Counts::Never;
            }
        }
        flow.shift.acknowledge(sheet.segment.ack);
    }
    words::copy(&flow.shift, &mut sheet.shift);
    sheet.ends = [flow.base, flow.server];
    Counts::Shifted
}

/// Translates the header; `replace` puts a number at a place of the frame in the place of another.
#[inline(always)]
pub(super) fn translate(
    head: &Head,
    segment: &Segment,
    shift: &Shift,
    toward: Toward,
    mut replace: impl FnMut(u32, u32, u32),
) {
    let Segment { tcp, seq, ack, .. } = *segment;
    let (to_seq, to_ack) = match toward {
        Toward::Server => (shift.seq_to_server(seq), shift.ack_to_server(ack)),
        Toward::Client => (shift.seq_to_client(seq), shift.ack_to_client(ack)),
    };
    replace(tcp.wrapping_add(4), seq, to_seq);
    if segment.has(flag::ACK) {
        replace(tcp.wrapping_add(8), ack, to_ack);
    }
    let (first, edges) = sacked(head, segment);
    for edge in 0..2 * BLOCKS {
        if edge >= edges {
            break;
        }
        let at = first.wrapping_add(4 * edge);
        let number = head.u32(at);
        let translated = match toward {
            Toward::Server => shift.ack_to_server(number),
            Toward::Client => shift.ack_to_client(number),
        };
        replace(at, number, translated);
    }
}

/// Where the edges of SACK blocks are in the header, and how many.
#[inline(always)]
fn sacked(head: &Head, segment: &Segment) -> (u32, u32) {
    const END: u8 = 0;
    const NOP: u8 = 1;
    const SACK: u8 = 5;
    let mut at = segment.tcp.wrapping_add(TCP_HEADER);
    for _ in 0..OPTIONS {
        if at.wrapping_add(1) >= segment.payload {
            break;
        }
        let (kind, len) = (head.u8(at), u32::from(head.u8(at.wrapping_add(1))));
        match kind {
            END => break,
            NOP => at = at.wrapping_add(1),
            SACK if at.wrapping_add(len) <= segment.payload => {
                return (at.wrapping_add(2), len.saturating_sub(2) / 4);
            }
            _ if len < 2 => break,
            _ => at = at.wrapping_add(len),
        }
    }
    (0, 0)
}
