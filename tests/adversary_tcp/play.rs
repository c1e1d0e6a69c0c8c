//! Plays a script: each step with the client's means, at one of two paces.

use std::time::Duration;

use anyhow::{Context, Result};
use enforcer_tests::raw::{Checksum, Client, Handshake, Segment, flag};

use crate::data::Identity;
use crate::script::Script;
use crate::step::{Around, LOST, Oddity, SECOND, Step, Verb};

/// How quickly one segment follows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    /// After a pause in which the server acts on the first.
    Paced,
    /// At once: the enforcer may see both before the server has seen one.
    Burst,
}

/// Long enough for a segment to reach the server's socket, and for the answer to come back.
const PAUSE: Duration = Duration::from_millis(2);
/// How far behind the last one a later connection of the same port begins (RFC 6191 wants it greater).
const LATER: u32 = 100_000;

/// A script under way.
pub(crate) struct Player<'a, 'w, 'h> {
    client: &'a mut Client<'w>,
    identity: &'a Identity,
    pace: Pace,
    attach: Option<&'h mut dyn FnMut() -> Result<()>>,
    began: bool,
}

impl<'a, 'w, 'h> Player<'a, 'w, 'h> {
    /// Plays for `client`; `attach` starts the enforcer, for a script that does so.
    pub(crate) fn new(
        client: &'a mut Client<'w>,
        identity: &'a Identity,
        pace: Pace,
        attach: Option<&'h mut dyn FnMut() -> Result<()>>,
    ) -> Self {
        Self { client, identity, pace, attach, began: false }
    }

    /// Plays all steps.
    ///
    /// # Errors
    /// When a step cannot be done; names it.
    pub(crate) fn play(&mut self, script: &Script) -> Result<()> {
        script.steps.iter().try_for_each(|step| self.step(step).with_context(|| format!("at step {:?}", step.line)))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        match step.verb {
            Verb::Connect => self.connect(step),
            Verb::Send | Verb::Lose | Verb::Decoy => self.send(step, flag::PSH | flag::ACK),
            Verb::Fin => self.send(step, flag::FIN | flag::ACK),
            Verb::Rst => self.send(step, flag::RST | flag::ACK),
            Verb::Ack => self.send(step, flag::ACK),
            Verb::Syn => self.send(step, flag::SYN),
            Verb::Deliver => self.client.deliver(step.size.unwrap_or(1400)),
            Verb::Answers(count) => self.client.await_answers(count),
            Verb::Closed => self.client.await_close(),
            Verb::Sleep(time) => self.client.pump(Duration::from_millis(time)),
            Verb::Attach => self.attach.as_mut().context("nothing can be attached here")?(),
            Verb::Mute => {
                self.client.acknowledges = false;
                Ok(())
            }
            Verb::Window(window) => {
                self.client.window = window;
                Ok(())
            }
        }
    }

    fn connect(&mut self, step: &Step) -> Result<()> {
        let isn = match step.isn {
            Some(isn) => isn,
            None if step.same_isn || !self.began => self.client.seq(-1),
            None => self.client.seq(self.client.next()).wrapping_add(LATER),
        };
        self.began = true;
        if step.new_port {
            let port = self.client.ends.client.port();
            self.client.ends.client.set_port(port + 1);
        }
        let v6 = self.client.ends.client.is_ipv6();
        let (destinations, oddities): (Vec<_>, Vec<_>) =
            step.oddities.iter().partition(|oddity| matches!(oddity, Oddity::Destination(_)));
        if !destinations.is_empty() {
            self.client.ends.server.set_ip(SECOND[usize::from(v6)].parse()?);
        }
        let payload = step.data.as_ref().map(|data| data.bytes(self.identity)).transpose()?.unwrap_or_default();
        let around = Around { identity: self.identity, v6, client: None };
        let handshake = Handshake { isn, timestamps: step.timestamps, hold: step.hold };
        self.client.connect(&handshake, |segment| {
            let begins = segment.flags & flag::SYN != 0;
            if begins {
                segment.payload = payload.clone();
            }
            let fits = |oddity: &&&Oddity| begins || !matches!(oddity, Oddity::Options(_));
            oddities.iter().filter(fits).try_for_each(|oddity| oddity.apply(segment, around))
        })?;
        self.pause()
    }

    fn send(&mut self, step: &Step, flags: u16) -> Result<()> {
        let bytes = step.data.as_ref().map(|data| data.bytes(self.identity)).transpose()?.unwrap_or_default();
        let default = if step.verb == Verb::Syn { -1 } else { self.client.next() };
        let place = step.place(self.client.next(), self.identity)?.unwrap_or(default);
        let honest = matches!(step.verb, Verb::Send | Verb::Lose);
        let size = step.size.unwrap_or(bytes.len()).max(1);
        for time in 0..step.times {
            for (index, piece) in chunks(&bytes, size).enumerate() {
                let place = place + (index * size) as i64;
                let segment = self.segment(step, place, flags, piece)?;
                if honest && time == 0 {
                    self.client.remember(place, piece);
                }
                if step.verb != Verb::Decoy && time == 0 && segment.flags & flag::FIN != 0 {
                    self.client.advance(1);
                }
                self.client.emit(&segment)?;
                self.pause()?;
            }
        }
        Ok(())
    }

    fn segment(&self, step: &Step, place: i64, flags: u16, payload: &[u8]) -> Result<Segment> {
        let mut segment = self.client.segment(place, flags, payload);
        if !step.oddities.iter().all(Oddity::leaves_offload) {
            segment.checksum = Checksum::Right;
        }
        if step.verb == Verb::Lose {
            segment.ip.tos = LOST;
        }
        let v6 = self.client.ends.client.is_ipv6();
        let around = Around { identity: self.identity, v6, client: Some(self.client) };
        step.oddities.iter().try_for_each(|oddity| oddity.apply(&mut segment, around))?;
        Ok(segment)
    }

    fn pause(&mut self) -> Result<()> {
        match self.pace {
            Pace::Paced => self.client.pump(PAUSE),
            Pace::Burst => Ok(()),
        }
    }
}

/// At least one piece, so that a segment without data is sent too.
fn chunks(bytes: &[u8], size: usize) -> impl Iterator<Item = &[u8]> {
    let empty = bytes.is_empty().then_some(bytes);
    empty.into_iter().chain(bytes.chunks(size))
}
