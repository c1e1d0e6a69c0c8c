//! Scripts of segments through the judge's whole way, with a receiver behind it that accepts bytes as Linux does.
//!
//! Whatever a client sends and whatever its receiver's stack discards: what the receiver has accepted is a stream that
//! the reference reads as whole requests of registered keys, each of them charged. And an honest client, whose
//! segments come in any order and any number of times, gets all its good requests through, each charged once.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use enforcer_ebpf::abi::Service;
use enforcer_ebpf::verdict::Count;
use enforcer_ebpf::wire::flag;
use enforcer_tests::bucket::sliding;
use enforcer_tests::corpus::KEY;
use enforcer_tests::random::Random;
use enforcer_tests::receiver::{Received, Receiver};
use enforcer_tests::script::{CONNECTIONS, Client, Event, Script};
use enforcer_tests::script_mutation;
use enforcer_tests::tables::Tables;
use enforcer_tests::world::{Fate, Host, tuple};

use crate::reference::{self, End};
use crate::{Check, mutation};

/// Events of a script that are played.
const MOST: usize = 80;
/// Connections that a set of the table has room for.
const WAYS: usize = enforcer_ebpf::flow::WAYS;
/// Bytes that the machine may hold before it counts them.
const LAG: usize = 32;
const MS: u64 = 1_000_000;
const HOUR: u64 = 3_600_000 * MS;

/// The registered keys and whose they are; the last principal has a limit of 3.
const KEYS: [(&str, u32); 4] = [(KEY, 1), ("other_key_1", 1), ("other_key_2", 2), (FEW, 3)];
const FEW: &str = "key_of_a_few_requests";

/// What scripts are made of.
pub const TOKENS: &[&[u8]] = &[
    b"open 0",
    b"next 0 ",
    b"send 0 ",
    b"fake 0 ",
    b"reset 0 ",
    b"wait 60001",
    b" fin",
    b" urg",
    b" syn",
    b" rst",
    b" noack",
    b" lost",
    b" garbled 50 1",
    b"\n====\n",
];

/// Where the receiver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On this host, whose sockets can be asked.
    Local,
    /// On another.
    Elsewhere,
}

/// A judge, a client and its receivers.
struct Play {
    place: Place,
    host: Host,
    client: Client,
    receivers: [Receiver; CONNECTIONS],
    /// Time has passed, and with it perhaps a limit's window.
    waited: bool,
    trace: Option<String>,
}

impl Play {
    fn new(place: Place, with_trace: bool) -> Self {
        thread_local! {
            static TABLES: Tables = {
                let plenty = [sliding(1_000_000, HOUR)];
                let tables = KEYS.iter().fold(Tables::new(), |tables, (key, principal)| {
                    tables.with_key(key, *principal, 0)
                });
                tables.with_limits(1, &plenty).with_limits(2, &plenty).with_limits(3, &[sliding(3, HOUR)])
            };
        }
        Self {
            place,
            host: TABLES.with(|tables| Host::with_sets(tables, 1)),
            client: Client::default(),
            receivers: Default::default(),
            waited: false,
            trace: with_trace.then(String::new),
        }
    }

    fn play(&mut self, script: &Script) {
        for event in &script.events {
            if let Event::Wait { ms } = event {
                self.host.wait(u64::from(*ms) * MS);
                self.waited = true;
                if let Some(trace) = &mut self.trace {
                    let _ = writeln!(trace, "    {event}");
                }
            }
            let Some(connection) = event.connection() else { continue };
            let Some(frame) = self.client.play(event, script) else { continue };
            let fate = self.judge(connection, &frame, event.is_lost());
            if let Some(trace) = &mut self.trace {
                let _ = writeln!(trace, "    {event}: {fate}; next {:?}", self.receivers[connection].next());
            }
        }
    }

    fn judge(&mut self, connection: usize, frame: &[u8], lost: bool) -> &'static str {
        if self.place == Place::Local {
            let (client, server) = self.client.ends[connection];
            self.host.tell(tuple(client, server), self.receivers[connection].socket());
        }
        let Fate::Passed(bytes) = self.host.judge(frame) else { return "dropped" };
        let before = self.receivers[connection].next();
        if !lost {
            self.receivers[connection].deliver(&bytes);
        }
        let next = self.receivers[connection].next();
        if before.is_none() && next.is_some() {
            self.client.acks[connection] = self.receivers[connection].server();
        }
        if let (Place::Elsewhere, Some(next)) = (self.place, next) {
            self.host.watch(&self.client.answer(connection, next, before.is_none()));
        }
        if bytes == frame { "passed" } else { "rewritten" }
    }

    /// What the receivers accepted is what was judged, charged and let through.
    fn is_safe(&self) -> Check {
        let mut executed = BTreeMap::new();
        for (connection, receiver) in self.receivers.iter().enumerate() {
            for Received { bytes, is_finished, is_edited } in receiver.received() {
                let fail = |what: String| {
                    Err(format!("{:?}, connection {connection}: the receiver {what}: {}", self.place, text(bytes)))
                };
                if *is_edited {
                    return fail("took urgent data".to_owned());
                }
                let reading = reference::read(bytes, &Service::DEFAULT);
                for head in &reading.heads {
                    let key = head.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
                    let owner = KEYS.iter().find(|(known, _)| Some(*known) == key.as_deref());
                    let Some((_, principal)) = owner else {
                        return fail(format!("executes a request with the key {key:?}, up to byte {}", head.end));
                    };
                    *executed.entry(*principal).or_insert(0) += 1;
                }
                match reading.end {
                    End::Refused(at) if at + LAG <= bytes.len() => {
                        return fail(format!("has bytes that are to be refused at {at}"));
                    }
                    End::Head if *is_finished => return fail("sees the end of its stream inside a head".to_owned()),
                    _ => {}
                }
            }
        }
        for (principal, executed) in executed {
            let charged = self.host.meter(principal).allowed;
            if executed > charged {
                return Err(format!(
                    "{:?}: principal {principal} has {executed} requests, {charged} charged",
                    self.place
                ));
            }
            if principal == 3 && executed > 3 && !self.waited {
                return Err(format!("{:?}: {executed} requests under a limit of 3", self.place));
            }
        }
        Ok(())
    }

    /// Sends again all that the receivers do not have, in order and without loss.
    fn finish(&mut self, script: &Script) {
        for connection in 0..CONNECTIONS {
            let mut fruitless = 0;
            while let Some(next) = self.receivers[connection].next() {
                let at = next.wrapping_sub(self.client.seq(connection, 0)) as usize;
                if at >= script.stream.len() || fruitless == 4 {
                    break;
                }
                let payload = &script.stream[at..(at + 1400).min(script.stream.len())];
                let frame = self.client.frame(connection, next, flag::ACK, payload).build();
                let fate = self.judge(connection, &frame, false);
                let after = self.receivers[connection].next();
                if let Some(trace) = &mut self.trace {
                    let _ = writeln!(trace, "    again from {at} on {connection}: {fate}; next {after:?}");
                }
                fruitless = if after == Some(next) { fruitless + 1 } else { 0 };
            }
        }
    }

    /// Each connection's receiver has all good requests, and each was charged once.
    fn is_served(&self, script: &Script) -> Check {
        let reading = reference::read(&script.stream, &Service::DEFAULT);
        let is_good = |key: &Option<Vec<u8>>| {
            key.as_ref().is_some_and(|key| KEYS.iter().any(|(known, _)| known.as_bytes() == key))
        };
        let good = reading.heads.iter().take_while(|head| is_good(&head.key)).count();
        let all_good = good == reading.heads.len() && !matches!(reading.end, End::Refused(_));
        // Of a request whose body is refused, the head may have gone before it, or not.
        let least = good - usize::from(reading.is_body_refused && good == reading.heads.len());
        let mut connections = 0;
        for (connection, receiver) in self.receivers.iter().enumerate() {
            let Some(received) = receiver.received().last() else { continue };
            connections += 1;
            let heads = reference::read(&received.bytes, &Service::DEFAULT).heads.len();
            if !(least..=good).contains(&heads) || all_good && received.bytes != script.stream {
                return Err(format!(
                    "{:?}, connection {connection}: of {good} good requests {heads} came through, {} bytes of {}",
                    self.place,
                    received.bytes.len(),
                    script.stream.len()
                ));
            }
        }
        let allowed = Count::Event(enforcer_ebpf::verdict::Event::Allowed);
        let charged = self.host.totals()[allowed.index() as usize];
        if !(least as u64 * connections..=good as u64 * connections).contains(&charged) {
            return Err(format!(
                "{:?}: {charged} charged, for {good} on each of {connections} connections",
                self.place
            ));
        }
        Ok(())
    }
}

/// Whether an honest client can expect to be served: nothing that is still to be mended is in the way.
fn is_promised(script: &Script) -> bool {
    let opened = script.events.iter().filter(|event| matches!(event, Event::Open { .. })).count();
    let limited = script.stream.windows(FEW.len()).any(|bytes| bytes == FEW.as_bytes());
    let waited = script.events.iter().map(|event| if let Event::Wait { ms } = event { u64::from(*ms) * MS } else { 0 });
    // A head that takes longer is refused.
    let in_time = waited.sum::<u64>() < Service::DEFAULT.head_timeout_ns / 2;
    script.is_honest() && opened <= WAYS && !limited && in_time
}

/// Plays the script with receivers on this host and elsewhere.
///
/// # Errors
/// What a receiver accepted that it must not have, or did not get.
pub fn check(input: &[u8]) -> Check {
    let script = Script::parse(input, MOST);
    for place in [Place::Local, Place::Elsewhere] {
        let mut play = Play::new(place, false);
        play.play(&script);
        play.is_safe()?;
        if is_promised(&script) {
            play.finish(&script);
            play.is_safe()?;
            play.is_served(&script)?;
        }
    }
    Ok(())
}

fn text(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(2000)];
    let rest = bytes.len() - shown.len();
    let more = if rest == 0 { String::new() } else { format!(" and {rest} bytes more") };
    format!("\"{}\"{more}", shown.escape_ascii())
}

/// The script, and what became of every segment.
#[must_use]
pub fn explain(input: &[u8]) -> String {
    let script = Script::parse(input, MOST);
    let mut told = format!("the stream {}\nthe other {}\n", text(&script.stream), text(&script.other));
    for place in [Place::Local, Place::Elsewhere] {
        let mut play = Play::new(place, true);
        play.play(&script);
        if is_promised(&script) {
            play.finish(&script);
        }
        let _ = write!(told, "receivers {place:?}:\n{}", play.trace.unwrap_or_default());
        for (connection, receiver) in play.receivers.iter().enumerate() {
            for received in receiver.received() {
                let _ = writeln!(told, "  connection {connection} received {}", text(&received.bytes));
            }
        }
    }
    told
}

/// Changes the events, or one of the streams.
#[must_use]
pub fn mutate(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut script = Script::parse(input, MOST);
    match random.below(8) {
        0 => script.stream = mutation::stream(&script.stream, random),
        1 => script.other = mutation::stream(&script.other, random),
        // Other bytes for the same places are the beginning of many attacks.
        2 => script.other = mutation::stream(&script.stream, random),
        _ => {
            for _ in 0..1 + random.below(4) {
                script_mutation::change(&mut script, random);
            }
        }
    }
    script.to_bytes()
}
