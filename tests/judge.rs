//! The host library on whole packets, without the kernel: what `verdicts` holds the loaded program against.

#[path = "verdicts/scenarios.rs"]
mod scenarios;

use std::net::SocketAddr;

use anyhow::Result;
use enforcer_ebpf::verdict::{Count, Event, Reason};
use enforcer_tests::bucket::sliding;
use enforcer_tests::client::get;
use enforcer_tests::corpus::KEY;
use enforcer_tests::kernel::Loaded;
use enforcer_tests::packet::{Frame, flag};
use enforcer_tests::tables::Tables;
use enforcer_tests::world::{Fate, Host};

/// Nothing: the scenarios run on the library alone.
fn load(_: &str, _: &Tables) -> Result<Option<Loaded>> {
    Ok(None)
}

/// Nobody is told anything where no program is.
fn answers(_: &str) -> bool {
    false
}

/// All of them.
fn takes_any_frame(_: &str) -> bool {
    true
}

#[test]
fn of_a_segment_merged_beyond_what_a_length_can_say_all_comes_again() {
    let tables = Tables::new().with_key(KEY, 1, 0).with_limits(1, &[sliding(100, 3_600_000_000_000)]);
    for (client, server, length) in [("10.9.0.2:4000", "10.9.0.1:8000", 16), ("[fd09::2]:4000", "[fd09::1]:8000", 18)] {
        let [client, server]: [SocketAddr; 2] = [client, server].map(|end| end.parse().expect("an address"));
        let host = Host::new(&tables);
        host.watch(&Frame::bare(server, client, 7, flag::SYN | flag::ACK).acking(1).build());
        let judge = |seq: usize, payload: &[u8]| {
            let mut frame = Frame::data(client, server, 1 + seq as u32, payload).acking(8).build();
            // Larger than any test packet of the kernel: as a host says it whose `gso_max_size` is beyond 64 KiB.
            if payload.len() > 0xffff {
                frame[length..length + 2].fill(0);
            }
            (host.judge(&frame), frame)
        };
        let head = format!("POST / HTTP/1.1\r\nX-API-Key: {KEY}\r\nContent-Length: 70000\r\n\r\n");
        let good = [head.as_bytes(), &[b'x'; 70_000]].concat();
        let both = [&good[..], &get("/", None)].concat();
        assert!(judge(0, &both).0 == Fate::Dropped, "what no length can say was not dropped");
        let count = |count: Count| host.totals()[count.index() as usize];
        assert_eq!([Event::Dropped, Event::Cut, Event::Allowed].map(|event| count(Count::Event(event))), [1, 0, 1]);
        // TCP sends it again in parts, and none of it is charged twice.
        for (number, part) in good.chunks(50_000).enumerate() {
            let (fate, frame) = judge(50_000 * number, part);
            assert!(fate == Fate::Passed(frame), "part {number} did not pass");
        }
        let (fate, frame) = judge(good.len(), &both[good.len()..]);
        assert!(matches!(fate, Fate::Passed(bytes) if bytes != frame), "an unkeyed request passed");
        assert_eq!((count(Count::Event(Event::Allowed)), count(Count::Refused(Reason::Unkeyed))), (1, 1));
    }
}
