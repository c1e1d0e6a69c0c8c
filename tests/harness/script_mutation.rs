//! Random events for scripts: the next bytes, the same again, across each other, ahead, others in their place, and all
//! that a client can do to its connection.

use crate::packet::flag;
use crate::random::Random;
use crate::script::{Bytes, CONNECTIONS, Client, Event, Manner, Script};

/// Takes an event away, repeats or moves one, or lets something else happen.
pub fn change(script: &mut Script, random: &mut Random) {
    let at = random.below(script.events.len() + 1);
    if at < script.events.len() {
        match random.below(5) {
            0 => {
                script.events.remove(at);
                return;
            }
            1 => {
                let again = script.events[at].clone();
                script.events.insert(random.below(script.events.len() + 1), again);
                return;
            }
            2 => {
                let other = random.below(script.events.len());
                script.events.swap(at, other);
                return;
            }
            _ => {}
        }
    }
    let new = event(script, random);
    script.events.insert(at, new);
}

/// Something that may happen: mostly to connection 0, and near its stream's begin or where a head ends.
pub fn event(script: &Script, random: &mut Random) -> Event {
    // Mostly one connection: it is a connection's history that matters.
    let connection = if random.once_in(4) { random.below(CONNECTIONS) } else { 0 };
    let len = script.stream.len().max(1);
    let end = b"\r\n\r\n";
    let is_end = |at: &usize| script.stream[..*at].ends_with(end);
    let ends: Vec<usize> = (end.len()..=script.stream.len()).filter(is_end).collect();
    let place = |random: &mut Random| match random.below(3) {
        0 if !ends.is_empty() => *random.pick(&ends),
        1 => 0,
        _ => random.below(len + 1),
    };
    match random.below(10) {
        0 => {
            // On an open connection: a SYN that makes a place of the stream the first of another.
            let isn = Client::default().isns[connection].wrapping_add(place(random) as u32);
            let isn = (!random.once_in(3)).then_some(isn);
            Event::Open { connection, isn, manner: manner(random) }
        }
        1 => Event::Reset { connection, at: place(random) },
        2 => Event::Wait { ms: *random.pick(&[1, 1000, 59_999, 60_001, 3_600_000]) },
        3..=5 => Event::Send { connection, bytes: Bytes::Next(1 + random.below(len)), manner: manner(random) },
        6 | 7 => {
            let bytes = Bytes::Stream(place(random), 1 + random.below(len));
            Event::Send { connection, bytes, manner: manner(random) }
        }
        _ => {
            let bytes = Bytes::Other(place(random), 1 + random.below(script.other.len().max(1)));
            Event::Send { connection, bytes, manner: manner(random) }
        }
    }
}

fn manner(random: &mut Random) -> Manner {
    let mut manner = Manner::default();
    if random.once_in(3) {
        manner.lost = random.once_in(2);
        manner.without_ack = random.once_in(10);
        if random.once_in(3) {
            manner.flags = *random.pick(&[flag::FIN, flag::URG, flag::SYN, flag::RST]);
        }
        if random.once_in(8) {
            manner.garbled = Some((12 + random.below(70), random.number() as u8));
        }
    }
    manner
}
