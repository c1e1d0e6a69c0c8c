//! What is sent, and how many of it must reach the app: the procedure that shows whether limits belong to keys.
//!
//! Each check has addresses and keys of its own, so that none uses up what another is measured by.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use zeroize::Zeroizing;

use super::Check;
use super::link::source;
use super::visitor::visit;

/// Requests of each key in an hour.
pub(super) const LIMIT: usize = 5;

/// The keys of the checks, each of a principal with [`LIMIT`] of its own.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) roaming: Zeroizing<String>,
    pub(super) neighbours: [Zeroizing<String>; 2],
    pub(super) revoked: Zeroizing<String>,
    pub(super) twice: Zeroizing<String>,
    pub(super) pipelined: Zeroizing<String>,
    pub(super) split: Zeroizing<String>,
}

/// Which requests without a good key the policy lets pass.
#[derive(Clone, Copy, Debug)]
pub(super) struct Strangers {
    /// Those without any.
    pub(super) unkeyed: bool,
    /// Those with one that is not registered, or not any more.
    pub(super) unregistered: bool,
}

/// Who asks, in the requests' path and field for keys.
struct Asker<'a> {
    server: SocketAddr,
    path: &'a str,
    field: &'a str,
    executed: &'a AtomicUsize,
}

/// One connection: the number of its source, its bytes by segment, and its requests.
struct Visit {
    source: u8,
    pieces: Vec<Vec<u8>>,
    requests: usize,
}

impl Asker<'_> {
    /// A request with these keys, each in a field.
    fn request(&self, keys: &[&str]) -> Vec<u8> {
        let fields: String = keys.iter().map(|key| format!("{}: {key}\r\n", self.field)).collect();
        format!("GET {} HTTP/1.1\r\nHost: enforcer-verify\r\n{fields}\r\n", self.path).into_bytes()
    }

    /// A connection with one request in one segment.
    fn one(&self, source: u8, keys: &[&str]) -> Visit {
        Visit { source, pieces: vec![self.request(keys)], requests: 1 }
    }

    /// Makes the visits one after the other; `expected` of their requests must reach the app, and be answered by it.
    async fn check(&self, check: &str, expected: usize, visits: Vec<Visit>) -> anyhow::Result<Check> {
        let before = self.executed.load(Ordering::SeqCst);
        let (mut sent, mut answers) = (0, Vec::new());
        for Visit { source: number, pieces, requests } in visits {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            sent += requests;
            answers.extend(visit(source(number), self.server, &pieces, requests).await?);
        }
        let executed = self.executed.load(Ordering::SeqCst) - before;
        let served = answers.iter().filter(|status| **status == 200).count();
        let passed = executed == expected && served == expected;
        Ok(Check { check: check.to_owned(), passed, sent, expected, executed, answers })
    }
}

/// Runs them all against `server`, with requests for `path` whose key is in `field`; `executed` is what reached the app.
pub(super) async fn all(
    server: SocketAddr,
    path: &str,
    field: &str,
    keys: &Keys,
    strangers: Strangers,
    executed: &Arc<AtomicUsize>,
) -> anyhow::Result<Vec<Check>> {
    let asker = Asker { server, path, field, executed };
    let Keys { roaming, neighbours: [first, second], revoked, twice, pipelined, split } = keys;
    let roamed = (0..12).map(|number| asker.one(number % 3, &[roaming])).collect();
    let shared = (0..14).map(|number| asker.one(3, &[if number % 2 == 0 { first } else { second }])).collect();
    // Of the form of a key, and nobody's.
    let unknown = crate::credential::generate()?;
    let mut together = vec![Visit { source: 8, pieces: vec![asker.request(&[pipelined]).repeat(3)], requests: 3 }];
    together.extend((0..4).map(|_| asker.one(8, &[pipelined])));
    let halves = |number: usize| {
        let request = asker.request(&[split]);
        // Each time the field of the key, too, is cut elsewhere.
        let pieces = request.chunks(3 + number).map(<[u8]>::to_vec).collect();
        Visit { source: 9, pieces, requests: 1 }
    };
    Ok(vec![
        asker.check("one key from three sources", LIMIT, roamed).await?,
        asker.check("two keys from one source", 2 * LIMIT, shared).await?,
        asker.check("no key", usize::from(strangers.unkeyed), vec![asker.one(4, &[])]).await?,
        asker.check("an unknown key", usize::from(strangers.unregistered), vec![asker.one(5, &[&unknown])]).await?,
        asker.check("a revoked key", usize::from(strangers.unregistered), vec![asker.one(6, &[revoked])]).await?,
        asker.check("a key twice in one request", 0, vec![asker.one(7, &[twice, twice])]).await?,
        asker.check("pipelined requests", LIMIT, together).await?,
        asker.check("requests split into many segments", LIMIT, (0..7).map(halves).collect()).await?,
    ])
}
