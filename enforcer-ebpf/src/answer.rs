//! What the client of a refused request is sent in the server's place: an answer, and from then on acknowledgments of
//! what it sends behind the request; or a RST.
//!
//! The judge leaves in the connection's entry what is due ([`crate::flow::Told`]), and turns the refused segment into a
//! RST for the server. That RST is met here, behind the judge, on the ingress of traffic control: there a packet can
//! become as long as an answer needs, and be sent back on any interface, which XDP can promise neither of.
//!
//! An answer is a text with places that are filled in ([`crate::abi::Answer`]). What was filled in is kept with the
//! connection, so that an answer that got lost is told again byte by byte. Its packet takes its addresses, and its
//! numbers, from the packet that it answers.

mod date;
mod text;
mod translation;

use crate::abi::{self, Bucket, Buckets, LIMITS, Limit, Policy, Service, scope};
use crate::flow::{self, Handshake, Receiver, Told, due, receiver};
use crate::judge::World;
use crate::limit;
use crate::opaque::opaque;
use crate::reply::{self, TCP_HEADER};
use crate::shift::Shift;
use crate::verdict::{Count, Event};
use crate::wire::{self, Head, Segment, Tuple, flag};
use crate::words;
pub use text::{TEXT, Text, piece};
use translation::{Counts, Toward};

/// Window that clients are offered, before scaling: enough to take the rest of an upload, and no reason to send it fast.
const WINDOW: u16 = 1024;
/// Hops that an answer may go.
const HOPS: u8 = 64;
/// ns in a second.
pub const SECOND: u64 = 1_000_000_000;
/// Bytes of a TCP option header that aligns the timestamps, and of those.
const TIMESTAMPS: u32 = 12;

/// What answers need of their surroundings, besides what the judge does.
pub trait Post: World {
    /// Seconds of Unix time.
    fn unix(&self) -> u64;
    /// Writes the answer at this index of [`crate::abi::map::ANSWERS`], with [`piece`]; `false` if there is none.
    fn write(&self, index: u32, told: &Told, text: &mut Text) -> bool;
    /// Notes what the limits of `told`'s claim say, with [`measure`].
    fn measure(&self, told: &mut Told, now: u64);
    /// Lets what is counted from now on be counted for the service in a slot.
    fn count_for(&self, slot: u32);
    /// The [`reply::add`]ed sum of the text.
    fn sum(&self, text: &Text) -> u64;
    /// Puts a number at a place of the packet in the place of another, and into its checksum.
    fn replace(&self, segment: &Segment, at: u32, from: u32, to: u32);
    /// Of a packet that leaves: whether a socket of this host sent it, and which.
    fn sender(&self) -> Receiver;
}

/// What lies in memory while an answer is written.
#[repr(C)]
pub struct Sheet {
    /// The first bytes of the frame that is answered.
    pub head: Head,
    /// Its headers, parsed.
    pub segment: Segment,
    /// Whom it was for.
    pub service: Service,
    /// What is told.
    pub told: Told,
    /// How the connection's ends count.
    pub shift: Shift,
    /// The first sequence numbers of both of them: which connection it is.
    pub ends: [u32; 2],
    /// The headers of the answer.
    pub envelope: Head,
    /// Its payload.
    pub text: Text,
}

impl Sheet {
    /// Empty.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            head: Head::new(),
            segment: Segment::EMPTY,
            service: Service::DEFAULT,
            told: Told::NOTHING,
            shift: Shift::NONE,
            ends: [0; 2],
            envelope: Head::new(),
            text: Text::new(),
        }
    }
}

impl Default for Sheet {
    fn default() -> Self {
        Self::new()
    }
}

/// Bytes of a packet that is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Letter {
    /// In [`Sheet::envelope`].
    pub envelope: u32,
    /// In [`Sheet::text`].
    pub text: u32,
    /// Whether the packet that is answered ends here.
    pub ends: bool,
}

impl Letter {
    /// None.
    pub const NONE: Self = Self { envelope: 0, text: 0, ends: false };
}

/// Writes what is due to the client of the arriving frame of `frame` bytes whose first bytes are in the sheet. If nothing
/// is, [`Letter::NONE`], and the numbers of a kept connection are made its server's.
#[inline(always)]
pub fn answer<P: Post>(post: &P, sheet: &mut Sheet, frame: u32) -> Letter {
    if wire::parse(&sheet.head, frame, &mut sheet.segment).is_err() {
        return Letter::NONE;
    }
    if sheet.segment.fragment != 0 || !post.service(sheet.segment.tuple.destination_port(), &mut sheet.service) {
        return Letter::NONE;
    }
    if !sheet.segment.has(flag::RST) || !take(post, sheet) {
        if sheet.service.flags & Service::KEEP == 0 {
            return Letter::NONE;
        }
        match translation::find(post, sheet, Toward::Server) {
            Counts::Alike => {}
            Counts::Shifted => {
                let known = post.receiver(&sheet.segment.tuple);
                let ends = !translate(post, sheet, known, Toward::Server);
                return Letter { ends, ..Letter::NONE };
            }
            Counts::Never => return Letter { ends: true, ..Letter::NONE },
        }
        return Letter::NONE;
    }
    let Told { seq, len, ack, .. } = sheet.told;
    let behind = seq.wrapping_add(len);
    match sheet.told.due {
        due::ANSWER if sheet.told.keeps != 0 => envelope(post, sheet, flag::ACK | flag::PSH, seq, ack),
        due::ANSWER => envelope(post, sheet, flag::ACK | flag::PSH | flag::FIN, seq, ack),
        due::ACKNOWLEDGMENT => envelope(post, sheet, flag::ACK, behind, ack),
        due::RESET => envelope(post, sheet, flag::RST | flag::ACK, seq, ack),
        _ => Letter::NONE,
    }
}

/// Makes the numbers of a leaving frame, as for [`answer`], its client's where its connection was kept; whether it may leave.
#[inline(always)]
pub fn leave<P: Post>(post: &P, sheet: &mut Sheet, frame: u32) -> bool {
    if wire::parse(&sheet.head, frame, &mut sheet.segment).is_err()
        || sheet.segment.fragment != 0
        || !post.service(sheet.segment.tuple.source_port(), &mut sheet.service)
        || sheet.service.flags & Service::KEEP == 0
    {
        return true;
    }
    if sheet.segment.has(flag::SYN) {
        let Segment { seq, ack, .. } = sheet.segment;
        if sheet.segment.has(flag::ACK) {
            // Under the ends as this packet names them: a forwarded connection's is under its client's.
            post.put_handshake(&sheet.segment.tuple, Handshake { client: ack, server: seq.wrapping_add(1) });
        }
        return true;
    }
    match translation::find(post, sheet, Toward::Client) {
        Counts::Alike => true,
        Counts::Shifted => {
            let known = post.sender();
            translate(post, sheet, known, Toward::Client)
        }
        Counts::Never => false,
    }
}

/// Translates the numbers of a packet; `false` if it may not go on.
#[inline(always)]
fn translate<P: Post>(post: &P, sheet: &Sheet, known: Receiver, toward: Toward) -> bool {
    let Sheet { head, segment, shift, ends: [base, server], .. } = sheet;
    match known.state {
        // What is sent to a connection that is gone is replied to with a RST, which its client must know for its own.
        receiver::ABSENT | receiver::LISTENING => return true,
        // Likewise, or it waits for the first packets of another connection between the same ends.
        receiver::REQUEST if known.base != *base || known.server != *server => return true,
        // Another connection, of which nothing was judged yet, or a socket that tells numbers that do not belong together,
        // since it takes a segment meanwhile. Wrongly counted, bytes would be taken elsewhere than where they were judged;
        // what is lost comes again.
        receiver::STREAM if known.base != *base || known.server != *server => return false,
        _ => {}
    }
    translation::translate(head, segment, shift, toward, |at, from, to| {
        if from != to {
            post.replace(segment, at, from, to);
        }
    });
    true
}

/// Takes what is due to the client out of the connection's entry, and writes the answer if it is one.
#[inline(always)]
fn take<P: Post>(post: &P, sheet: &mut Sheet) -> bool {
    let hash = flow::hash(post.flow_secret(), &sheet.segment.tuple);
    let Some(mut set) = post.lock(hash) else { return false };
    let Some(way) = post.find(&set, hash, &sheet.segment.tuple) else { return false };
    let flow = set.flow(way);
    if flow.told.due == due::NOTHING {
        return false;
    }
    words::copy(&flow.told, &mut sheet.told);
    flow.told.due = due::NOTHING;
    sheet.text.clear();
    if sheet.service.flags & Service::HOSTS != 0 && sheet.told.kind != Told::END {
        // The refused request was for one of several.
        post.count_for(abi::slot_of_answer(sheet.told.kind));
    }
    if sheet.told.due == due::RESET {
        post.count(Count::Event(Event::ResetClient));
        return true;
    }
    if sheet.told.due != due::ANSWER {
        return true;
    }
    let is_first = sheet.told.len == 0;
    if is_first {
        sheet.told.date = post.unix() as u32;
        if sheet.told.policy != 0 {
            post.measure(&mut sheet.told, flow.touched);
        }
    }
    let ends = sheet.told.kind == Told::END;
    if !ends && !post.write(sheet.told.kind, &sheet.told, &mut sheet.text) {
        return false;
    }
    // A FIN takes a number, too.
    sheet.told.len = sheet.text.len().wrapping_add(1 - (sheet.told.keeps & 1));
    flow.shift.told_behind = flow.shift.told_before.wrapping_add(sheet.told.len);
    words::copy(&sheet.told, &mut flow.told);
    flow.told.due = due::NOTHING;
    if !ends {
        post.count(Count::Event(if is_first { Event::Answered } else { Event::AnsweredAgain }));
    }
    true
}

/// Notes in `told` which limit of its claim keeps a request of its cost out for longest, and for how long; `retry` is
/// [`crate::limit::retry`] at `now` (CLOCK_BOOTTIME in ns), which the kernel makes a function of that its verifier checks
/// once.
#[inline(always)]
pub fn measure(
    told: &mut Told,
    policy: &Policy,
    buckets: &Buckets,
    now: u64,
    retry: impl Fn(&Bucket, &Limit, u64) -> u64,
) {
    let cost = u64::from(told.cost);
    let (mut longest, mut worst) = (0, 0);
    for index in 0..LIMITS {
        if index as u32 >= policy.len {
            break;
        }
        let retry = retry(&buckets.limits[index], &policy.limits[index], cost);
        if retry >= longest {
            longest = retry;
            worst = index;
        }
    }
    if told.scope.rule == scope::GUESSES {
        let blocked = buckets.candidate[0].arrival.saturating_sub(now);
        longest = if blocked > longest { blocked } else { longest };
    }
    let limit = &policy.limits[worst & (LIMITS - 1)];
    told.retry = seconds(longest);
    told.quota = limit.count;
    told.window = seconds(limit.window.saturating_mul(limit::TICK_NS));
    let name = &policy.names[worst & (LIMITS - 1)];
    told.name[0] = name[0];
    told.name[1] = name[1];
}

/// Whole seconds, rounded up, at least 1.
#[inline(always)]
pub(crate) const fn seconds(ns: u64) -> u32 {
    let seconds = ns / SECOND + (!ns.is_multiple_of(SECOND)) as u64;
    match seconds {
        0 => 1,
        1..=0x7fff_ffff => seconds as u32,
        // Never: as far as a client can be told.
        _ => 0x7fff_ffff,
    }
}

/// Writes the headers of a packet back to where the frame came from, around the sheet's text.
#[inline(always)]
fn envelope<P: Post>(post: &P, sheet: &mut Sheet, flags: u8, seq: u32, ack: u32) -> Letter {
    let Sheet { head, segment, told, envelope, text, .. } = sheet;
    let ip = segment.ip;
    for at in [0, 2, 4] {
        envelope.set_u16(at, head.u16(at + 6));
        envelope.set_u16(at + 6, head.u16(at));
    }
    // VLAN tags and the EtherType.
    for at in [12, 14, 16, 18, 20] {
        envelope.set_u16(at, head.u16(at));
    }
    let stamped = told.stamps[0] | told.stamps[1] != 0;
    let header = if stamped { TCP_HEADER + TIMESTAMPS } else { TCP_HEADER };
    let payload = text.len();
    let tcp = ip + if segment.tuple.is_v6() { 40 } else { 20 };
    let tcp = opaque(tcp);
    let Tuple { source, destination, .. } = segment.tuple;
    if segment.tuple.is_v6() {
        envelope.set_u32(ip, 0x6000_0000);
        envelope.set_u16(ip + 4, (header + payload) as u16);
        envelope.set_u8(ip + 6, wire::TCP);
        envelope.set_u8(ip + 7, HOPS);
        envelope.set_u64_raw(ip + 8, destination[0]);
        envelope.set_u64_raw(ip + 16, destination[1]);
        envelope.set_u64_raw(ip + 24, source[0]);
        envelope.set_u64_raw(ip + 32, source[1]);
    } else {
        const DONT_FRAGMENT: u16 = 0x4000;
        envelope.set_u16(ip, 0x4500);
        envelope.set_u16(ip + 2, (20 + header + payload) as u16);
        envelope.set_u16(ip + 4, 0);
        envelope.set_u16(ip + 6, DONT_FRAGMENT);
        envelope.set_u8(ip + 8, HOPS);
        envelope.set_u8(ip + 9, wire::TCP);
        envelope.set_u16(ip + 10, 0);
        envelope.set_u32_raw(ip + 12, destination[0] as u32);
        envelope.set_u32_raw(ip + 16, source[0] as u32);
        let mut sum = 0;
        for at in [0, 4, 8, 12, 16] {
            sum = reply::add(sum, u64::from(envelope.u32_raw(ip + at)));
        }
        envelope.set_u16(ip + 10, u16::from_be(!reply::folded(sum)));
    }
    envelope.set_u16(tcp, segment.tuple.destination_port());
    envelope.set_u16(tcp + 2, segment.tuple.source_port());
    envelope.set_u32(tcp + 4, seq);
    envelope.set_u32(tcp + 8, ack);
    envelope.set_u8(tcp + 12, (header as u8 / 4) << 4);
    envelope.set_u8(tcp + 13, flags);
    envelope.set_u16(tcp + 14, WINDOW);
    envelope.set_u16(tcp + 18, 0);
    let mut sum = if payload > 0 { post.sum(text) } else { 0 };
    if stamped {
        envelope.set_u32(tcp + 20, 0x0101_080a);
        envelope.set_u32(tcp + 24, told.stamps[0]);
        envelope.set_u32(tcp + 28, told.stamps[1]);
        for at in [20, 24, 28] {
            sum = reply::add(sum, u64::from(envelope.u32_raw(tcp + at)));
        }
    }
    reply::set_checksum(envelope, &segment.tuple, tcp, header + payload, sum);
    Letter { envelope: tcp + header, text: payload, ends: told.keeps != 0 }
}
