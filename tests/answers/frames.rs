//! The frames of one client's connection, as they passed the client's interface.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use enforcer_tests::capture::Heard;
use enforcer_tests::raw::Received;
use enforcer_tests::receiver;

use crate::site::PORT;

/// Frames that a connection takes besides those with the client's data: handshake, answer, ends, and their acknowledgments.
const BESIDES: usize = 10;

/// Of how many segments one may come again without one being lost: a probe of its last (RFC 8985 §7), while the server
/// acknowledges late.
const AGAIN: usize = 10;

/// Of how many segments one may be overtaken by a later one: a host hands what two CPUs send on to a third as it comes.
const OVERTAKEN: usize = 50;

/// More bytes than any side of a connection sends here.
const MOST: usize = 1 << 24;

/// A frame from the server's side.
pub(crate) struct FromServer {
    at: Instant,
    right: bool,
    segment: Received,
}

/// Those of one connection.
pub(crate) struct Frames {
    from_server: Vec<FromServer>,
    from_client: Vec<Received>,
}

impl Frames {
    /// Those of the client's connection from `port`.
    pub(crate) fn of(heard: &[Heard], port: u16) -> Self {
        let (mut from_server, mut from_client) = (Vec::new(), Vec::new());
        for Heard { at, frame } in heard {
            let Some(segment) = Received::read(frame) else { continue };
            match (segment.source.port(), segment.destination.port()) {
                (PORT, to) if to == port => {
                    from_server.push(FromServer { at: *at, right: receiver::read(frame).is_some(), segment });
                }
                (from, PORT) if from == port => from_client.push(segment),
                _ => {}
            }
        }
        Self { from_server, from_client }
    }

    /// All that brought bytes of an answer.
    pub(crate) fn answers(&self) -> Vec<&Received> {
        let segments = self.from_server.iter().map(|from| &from.segment);
        segments.filter(|segment| !segment.payload.is_empty()).collect()
    }

    /// Fails if a checksum or a length was wrong, a RST came before `read`, an answer had no end or came twice, or there
    /// were more frames than it all needs.
    pub(crate) fn expect_one_answer(&self, read: Instant) -> Result<()> {
        ensure!(!self.from_server.is_empty(), "nothing was heard");
        for FromServer { at, right, segment } in &self.from_server {
            ensure!(*right, "a wrong frame: {segment:?}");
            ensure!(!segment.rst || *at > read, "a RST came before the answer was read: {segment:?}");
        }
        let answers = self.answers();
        let [answer] = answers[..] else { bail!("{} answers: {answers:?}", answers.len()) };
        ensure!(answer.fin, "the answer does not end the connection: {answer:?}");
        let with_data = self.from_client.iter().filter(|segment| !segment.payload.is_empty()).count();
        let (most, all) = (BESIDES + 3 * with_data, self.from_client.len() + self.from_server.len());
        ensure!(all <= most, "{all} frames for {with_data} with data");
        Ok(())
    }

    /// Fails if a checksum or a length was wrong, anything but the client ended the connection, a byte of either side
    /// changed or never came, or more was sent again or overtaken than a host brings about whose worker takes its time.
    pub(crate) fn expect_orderly(&self) -> Result<()> {
        let wrong = self.from_server.iter().find(|from| !from.right || from.segment.rst);
        ensure!(wrong.is_none(), "a wrong frame, or a RST: {:?}", wrong.map(|from| &from.segment));
        ensure!(self.from_client.iter().any(|segment| segment.fin), "the client has not ended it");
        let from_server: Vec<&Received> = self.from_server.iter().map(|from| &from.segment).collect();
        for (side, segments) in [("server", from_server), ("client", self.from_client.iter().collect())] {
            let Stream { again, overtaken } = Stream::of(&segments).with_context(|| format!("from the {side}"))?;
            let all = segments.len();
            ensure!(again <= all / AGAIN, "{again} segments of the {side}'s {all} came again");
            ensure!(overtaken <= all / OVERTAKEN, "{overtaken} segments of the {side}'s {all} were overtaken");
        }
        Ok(())
    }

    /// Fails if the answers were not `count`, and all of them the same to the byte.
    pub(crate) fn expect_repeated(&self, count: usize) -> Result<()> {
        let mut different = BTreeMap::new();
        for answer in self.answers() {
            *different.entry((answer.seq, answer.fin, answer.payload.clone())).or_insert(0) += 1;
        }
        ensure!(different.len() == 1 && different.values().sum::<usize>() == count, "answers: {different:?}");
        Ok(())
    }
}

/// One side's segments, put together.
struct Stream {
    /// Segments with bytes that had come before.
    again: usize,
    /// Segments that came behind a later one, by their bytes or by what they acknowledge.
    overtaken: usize,
}

impl Stream {
    /// Fails if the SYN is missing, a byte came twice and was another, or one never came.
    fn of(segments: &[&Received]) -> Result<Self> {
        let Some((first, rest)) = segments.split_first().filter(|(first, _)| first.syn) else {
            bail!("its SYN is missing")
        };
        let mut stream = Self { again: 0, overtaken: 0 };
        let mut bytes = Vec::<Option<u8>>::new();
        let mut acknowledged = rest.first().map_or(0, |second| second.ack);
        for segment in rest.iter().filter(|segment| !segment.rst) {
            let Received { seq, ack, payload, .. } = segment;
            let told = || format!("{seq} to {}, acknowledging {ack}", seq.wrapping_add(payload.len() as u32));
            let at = seq.wrapping_sub(first.seq).wrapping_sub(1) as usize;
            ensure!(at <= MOST, "outside of the stream: {}", told());
            let end = at + payload.len();
            let behind = end < bytes.len() || ack.wrapping_sub(acknowledged).cast_signed() < 0;
            if !behind {
                acknowledged = *ack;
            }
            // Behind a FIN an acknowledgment without bytes is one further.
            if payload.is_empty() {
                stream.overtaken += usize::from(behind);
                continue;
            }
            bytes.resize(bytes.len().max(end), None);
            let places = &mut bytes[at..end];
            let known = places.iter().flatten().count();
            let same = places.iter().zip(payload).all(|(place, byte)| place.is_none_or(|known| known == *byte));
            ensure!(same, "other bytes in {}", told());
            places.iter_mut().zip(payload).for_each(|(place, byte)| *place = Some(*byte));
            stream.again += usize::from(known > 0);
            stream.overtaken += usize::from(behind && known == 0);
        }
        let missing = bytes.iter().position(Option::is_none);
        ensure!(missing.is_none(), "of {} bytes the one at {missing:?} never came", bytes.len());
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use super::*;

    fn segment(seq: u32, payload: &[u8]) -> Received {
        let nobody = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Received {
            source: nobody,
            destination: nobody,
            seq,
            ack: 1,
            syn: seq == 0,
            has_ack: true,
            fin: false,
            rst: false,
            timestamp: None,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn a_stream_may_be_repeated_and_overtaken_but_not_changed_nor_cut() -> Result<()> {
        let of = |segments: &[(u32, &[u8])]| {
            let segments: Vec<Received> = segments.iter().map(|(seq, payload)| segment(*seq, payload)).collect();
            Stream::of(&segments.iter().collect::<Vec<_>>()).map(|Stream { again, overtaken }| (again, overtaken))
        };
        let (syn, a, b, c) = ((0, &b""[..]), (1, &b"aa"[..]), (3, &b"bb"[..]), (5, &b"cc"[..]));
        assert_eq!(of(&[syn, a, b, c, (7, b""), (8, b"")])?, (0, 0));
        assert_eq!(of(&[syn, a, c, b])?, (0, 1));
        assert_eq!(of(&[syn, a, b, a, c])?, (1, 0));
        assert!(of(&[syn, a, c]).is_err(), "bytes that never came");
        assert!(of(&[syn, a, b, (3, b"bc"), c]).is_err(), "bytes that changed");
        assert!(of(&[a, b]).is_err(), "a stream without its SYN");
        Ok(())
    }
}
