//! The frames of one client's connection, as they passed the client's interface.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Result, ensure};
use enforcer_tests::capture::Heard;
use enforcer_tests::raw::Received;
use enforcer_tests::receiver;

use crate::site::PORT;

/// Frames that a connection takes besides those with the client's data: handshake, answer, ends, and their acknowledgments.
const BESIDES: usize = 10;

/// A frame from the server's side.
pub(crate) struct FromServer {
    at: Instant,
    right: bool,
    segment: Received,
}

/// Those of one connection.
pub(crate) struct Frames {
    from_server: Vec<FromServer>,
    /// How many the client sent, with data and in all.
    sent: [usize; 2],
}

impl Frames {
    /// Those of the client's connection from `port`.
    pub(crate) fn of(heard: &[Heard], port: u16) -> Self {
        let (mut from_server, mut sent) = (Vec::new(), [0; 2]);
        for Heard { at, frame } in heard {
            let Some(segment) = Received::read(frame) else { continue };
            match (segment.source.port(), segment.destination.port()) {
                (PORT, to) if to == port => {
                    from_server.push(FromServer { at: *at, right: receiver::read(frame).is_some(), segment });
                }
                (from, PORT) if from == port => {
                    sent[0] += usize::from(!segment.payload.is_empty());
                    sent[1] += 1;
                }
                _ => {}
            }
        }
        Self { from_server, sent }
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
        let [answer] = answers[..] else { anyhow::bail!("{} answers: {answers:?}", answers.len()) };
        ensure!(answer.fin, "the answer does not end the connection: {answer:?}");
        let [with_data, sent] = self.sent;
        let (most, all) = (BESIDES + 3 * with_data, sent + self.from_server.len());
        ensure!(all <= most, "{all} frames for {with_data} with data");
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
