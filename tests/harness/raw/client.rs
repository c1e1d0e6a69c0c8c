//! A client's end of a connection: handshake, acknowledgments, the answers, and honest retransmission.
//!
//! What a script sends beside the honest stream goes through the same [`Client::emit`]; only what it calls honest is
//! remembered, and sent again by [`Client::deliver`] until the server has acknowledged it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::raw::received::Received;
use crate::raw::segment::{Checksum, Ends, Segment, flag};
use crate::raw::wire::Wire;

/// How long a handshake or an answer may take; only what has failed waits so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two honest transmissions of the same bytes.
const RESEND: Duration = Duration::from_millis(20);
/// Honest transmissions of the same bytes before the client gives up.
const RESENDS: usize = 20;

/// What a handshake is to be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The client's first sequence number, that of its SYN.
    pub isn: u32,
    /// Use timestamps (RFC 7323).
    pub timestamps: bool,
    /// Send no third segment; the first data brings the acknowledgment.
    pub hold: bool,
}

/// How often a client that is leaving says so.
const ABORTS: usize = 2;

/// A client's end.
#[derive(Debug)]
pub struct Client<'a> {
    wire: &'a mut Wire,
    /// Both ends' addresses.
    pub ends: Ends,
    /// Whether plain segments are sent with a checksum that the receiver must finish.
    pub partial_checksums: bool,
    /// Whether what arrives is acknowledged.
    pub acknowledges: bool,
    /// The window field of its segments.
    pub window: u16,
    isn: u32,
    expected: u32,
    acknowledged: u32,
    /// What the server acknowledged last. It may be less: a refused request that its stack has not taken is acknowledged
    /// by the answer alone.
    said: u32,
    /// The last timestamp of the server, on a connection that has them.
    timestamps: Option<u32>,
    clock: Instant,
    connected: bool,
    reset: bool,
    closed: bool,
    next: i64,
    stream: Vec<u8>,
    answer: Vec<u8>,
}

impl<'a> Client<'a> {
    /// A client that has sent nothing yet; the sequence number of its SYN would be `isn`.
    #[must_use]
    pub fn new(wire: &'a mut Wire, ends: Ends, isn: u32) -> Self {
        Self {
            wire,
            ends,
            partial_checksums: false,
            acknowledges: true,
            window: 0xffff,
            isn,
            expected: 0,
            acknowledged: 0,
            said: 0,
            timestamps: None,
            clock: Instant::now(),
            connected: false,
            reset: false,
            closed: false,
            next: 0,
            stream: Vec::new(),
            answer: Vec::new(),
        }
    }

    /// The place of the next honest byte; 0 is the first of the connection.
    #[must_use]
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Whether the server has reset the connection.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.reset
    }

    /// How many answers began to arrive on this connection.
    #[must_use]
    pub fn answers(&self) -> usize {
        self.answer.windows(9).filter(|window| window.starts_with(b"HTTP/1.") && window[8] == b' ').count()
    }

    /// The sequence number of a place in the stream.
    #[must_use]
    pub fn seq(&self, place: i64) -> u32 {
        self.isn.wrapping_add(1).wrapping_add(place as u32)
    }

    /// Begins a connection from the same port as before and waits for the server's part of the handshake. `shape`
    /// changes the client's segments of it.
    ///
    /// # Errors
    /// When the server does not answer, or the error of `shape`.
    pub fn connect(&mut self, handshake: &Handshake, shape: impl Fn(&mut Segment) -> Result<()>) -> Result<()> {
        self.isn = handshake.isn;
        (self.next, self.connected, self.reset, self.closed) = (0, false, false, false);
        (self.acknowledged, self.expected) = (handshake.isn.wrapping_add(1), 0);
        self.said = self.acknowledged;
        self.stream.clear();
        self.answer.clear();
        self.timestamps = handshake.timestamps.then_some(0);
        let mut syn = self.segment(-1, flag::SYN, &[]);
        syn.ack = 0;
        shape(&mut syn)?;
        let begin = Instant::now();
        while !self.connected {
            ensure!(begin.elapsed() < PATIENCE, "the server does not answer the SYN");
            self.emit(&syn)?;
            self.pump_until(Duration::from_millis(200), |client| client.connected)?;
        }
        if !handshake.hold {
            let mut ack = self.segment(0, flag::ACK, &[]);
            shape(&mut ack)?;
            self.emit(&ack)?;
        }
        Ok(())
    }

    /// A right segment of the connection at a place of the stream.
    #[must_use]
    pub fn segment(&self, place: i64, flags: u16, payload: &[u8]) -> Segment {
        let mut segment = Segment::new(self.seq(place), self.expected, flags, payload);
        segment.window = self.window;
        // Not that of another client: the server keeps the fragments of a packet for a while.
        segment.ip.id = self.ends.client.port().wrapping_mul(16);
        if let Some(options) = self.timestamp_option(0) {
            segment.options = options;
        }
        if self.partial_checksums {
            segment.checksum = Checksum::Partial;
        }
        segment
    }

    /// The timestamp option, `by` ms off its time; `None` for a connection without.
    #[must_use]
    pub fn timestamp_option(&self, by: i64) -> Option<Vec<u8>> {
        let echo = self.timestamps?;
        let value = (1_000_000 + self.clock.elapsed().as_millis() as i64 + by) as u32;
        Some([&[1, 1, 8, 10], &value.to_be_bytes()[..], &echo.to_be_bytes()].concat())
    }

    /// Notes honest data at a place, to be sent again until it is acknowledged.
    pub fn remember(&mut self, place: i64, payload: &[u8]) {
        self.next = self.next.max(place + payload.len() as i64);
        let Ok(begin) = usize::try_from(place) else { return };
        let end = begin + payload.len();
        if self.stream.len() < end {
            self.stream.resize(end, 0);
        }
        self.stream[begin..end].copy_from_slice(payload);
    }

    /// Notes that the honest stream goes on `by` sequence numbers later: behind a FIN.
    pub fn advance(&mut self, by: i64) {
        self.next += by;
    }

    /// Sends a segment as it is.
    ///
    /// # Errors
    /// When the interface does not take it.
    pub fn emit(&mut self, segment: &Segment) -> Result<()> {
        for (frame, offload) in segment.frames(&self.ends) {
            self.wire.send(&frame, offload)?;
        }
        Ok(())
    }

    /// Sends the honest stream in pieces of `size` from the first byte on that is not acknowledged, again and again,
    /// until the server has all of it or has reset the connection.
    ///
    /// # Errors
    /// When the interface fails, or the server does not take the bytes.
    pub fn deliver(&mut self, size: usize) -> Result<()> {
        for _ in 0..RESENDS {
            let done = |client: &Self| client.reset || client.left() == 0;
            self.pump_until(RESEND, done)?;
            if done(self) {
                return Ok(());
            }
            let begin = self.stream.len() - self.left();
            for (index, piece) in self.stream.clone()[begin..].chunks(size).enumerate() {
                let place = (begin + index * size) as i64;
                self.emit(&self.segment(place, flag::ACK | flag::PSH, piece))?;
            }
        }
        let left = self.left();
        ensure!(left == 0 || self.reset, "{left} honest bytes were sent {RESENDS} times and never acknowledged");
        Ok(())
    }

    /// Honest bytes that the server has not acknowledged.
    #[must_use]
    pub fn left(&self) -> usize {
        let acknowledged = self.acknowledged.wrapping_sub(self.seq(0)) as usize;
        self.stream.len().saturating_sub(acknowledged)
    }

    /// Takes what arrives within `time`.
    ///
    /// # Errors
    /// When the interface fails.
    pub fn pump(&mut self, time: Duration) -> Result<()> {
        self.pump_until(time, |_| false)
    }

    /// Waits for `count` answers, or for the end of the connection.
    ///
    /// # Errors
    /// When the interface fails.
    pub fn await_answers(&mut self, count: usize) -> Result<()> {
        self.pump_until(PATIENCE, |client| client.reset || client.answers() >= count)
    }

    /// Waits for the server to end its side, or to reset the connection.
    ///
    /// # Errors
    /// When the interface fails.
    pub fn await_close(&mut self) -> Result<()> {
        self.pump_until(PATIENCE, |client| client.reset || client.closed)
    }

    /// Ends the connection at the server, if it is still there: with a RST where the server last said that it stands,
    /// where it stands if it has everything, and where it says that it stands when it is asked (RFC 5961 §3.2).
    ///
    /// # Errors
    /// When the interface fails.
    pub fn abort(&mut self) -> Result<()> {
        for _ in 0..ABORTS {
            if !self.connected || self.reset {
                break;
            }
            let mut segment = self.segment(self.next, flag::RST | flag::ACK, &[]);
            self.emit(&segment)?;
            segment.seq = self.said;
            self.emit(&segment)?;
            self.pump(Duration::from_millis(1))?;
        }
        Ok(())
    }

    fn pump_until(&mut self, time: Duration, done: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + time;
        while !done(self) {
            let Some(frame) = self.wire.receive(deadline)? else { return Ok(()) };
            let received = Received::read(frame);
            if let Some(received) = received
                && (received.source.port(), received.destination) == (self.ends.server.port(), self.ends.client)
            {
                self.take(&received)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, received: &Received) -> Result<()> {
        let Received { seq, ack, syn, has_ack, fin, rst, timestamp, payload, .. } = received;
        if *rst {
            // An answer to something that the server did not understand carries no acknowledgment, and may come while
            // the connection lives.
            self.reset |= self.connected && *seq == self.expected;
            return Ok(());
        }
        if let (Some(echo), Some(value)) = (&mut self.timestamps, timestamp) {
            *echo = *value;
        }
        if *syn {
            if !self.connected && *has_ack && *ack == self.isn.wrapping_add(1) {
                self.connected = true;
                self.expected = seq.wrapping_add(1);
            }
            return Ok(());
        }
        if *has_ack && self.connected {
            self.said = *ack;
        }
        if *has_ack && self.connected && (ack.wrapping_sub(self.acknowledged) as i32) > 0 {
            self.acknowledged = *ack;
        }
        let length = payload.len() as u32 + u32::from(*fin);
        if length == 0 || !self.connected {
            return Ok(());
        }
        let known = self.expected.wrapping_sub(*seq);
        if known < length {
            self.answer.extend(payload.get(known as usize..).unwrap_or_default());
            self.expected = self.expected.wrapping_add(length - known);
            self.closed |= *fin;
        }
        if self.acknowledges {
            let mut segment = self.segment(0, flag::ACK, &[]);
            segment.seq = self.acknowledged;
            self.emit(&segment)?;
        }
        Ok(())
    }
}
