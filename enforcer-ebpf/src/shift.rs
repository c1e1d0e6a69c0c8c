//! The numbers of a connection from which requests were kept back: its server has never seen their bytes, and has never
//! sent the answers to them, so from then on the two ends count differently.
//!
//! As netfilter's sequence adjustment does, each direction has an offset before and one behind the place where it last
//! changed: what is sent again from before that place must keep the earlier one. A place is given up for the next one
//! only when both ends are beyond it.

use crate::flow::after;
use crate::opaque::zero;

/// How the two ends of a connection count; all 0 while they count alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Shift {
    /// The client's number of the first byte of the last request that was kept back.
    pub from: u32,
    /// And the number behind what was kept back of it so far.
    pub to: u32,
    /// How much less the server counts of the client's bytes before [`Shift::from`].
    pub before: u32,
    /// And behind [`Shift::to`].
    pub behind: u32,
    /// The server's number of the byte before which the last answer was inserted.
    pub inserted: u32,
    /// How much more the client counts of the server's bytes before that.
    pub told_before: u32,
    /// And from there on.
    pub told_behind: u32,
    /// Bytes of the request's body that are still to be kept back.
    pub left: u32,
    /// 1 if the ends count differently.
    pub is_kept: u32,
    /// 1 once the client has acknowledged the last answer.
    pub settled: u32,
}

impl Shift {
    /// Both count alike.
    pub const NONE: Self = Self {
        from: 0,
        to: 0,
        before: 0,
        behind: 0,
        inserted: 0,
        told_before: 0,
        told_behind: 0,
        left: 0,
        is_kept: 0,
        settled: 0,
    };

    /// Lets both ends count alike.
    #[inline(always)]
    pub fn clear(&mut self) {
        for word in [
            &mut self.from,
            &mut self.to,
            &mut self.before,
            &mut self.behind,
            &mut self.inserted,
            &mut self.told_before,
            &mut self.told_behind,
            &mut self.left,
            &mut self.is_kept,
            &mut self.settled,
        ] {
            *word = zero() as u32;
        }
    }

    /// Whether bytes of the client from `seq` to `end` are among those that are kept back.
    #[must_use]
    #[inline(always)]
    pub const fn holds(&self, seq: u32, end: u32) -> bool {
        after(self.to.wrapping_add(self.left), seq) && after(end, self.from)
    }

    /// The server's number of a byte of the client.
    #[must_use]
    #[inline(always)]
    pub const fn seq_to_server(&self, seq: u32) -> u32 {
        seq.wrapping_sub(if after(self.to, seq) { self.before } else { self.behind })
    }

    /// What the client acknowledges, as the server counts: nothing of an answer.
    #[must_use]
    #[inline(always)]
    pub const fn ack_to_server(&self, ack: u32) -> u32 {
        if !after(ack, self.inserted.wrapping_add(self.told_before)) {
            ack.wrapping_sub(self.told_before)
        } else if after(self.inserted.wrapping_add(self.told_behind), ack) {
            self.inserted
        } else {
            ack.wrapping_sub(self.told_behind)
        }
    }

    /// The client's number of a byte of the server.
    #[must_use]
    #[inline(always)]
    pub const fn seq_to_client(&self, seq: u32) -> u32 {
        seq.wrapping_add(if after(self.inserted, seq) { self.told_before } else { self.told_behind })
    }

    /// What the server acknowledges, as the client counts. That a request was kept back is acknowledged with its answer
    /// alone until the client has that: else it would not send again, and a lost answer would not be missed.
    #[must_use]
    #[inline(always)]
    pub const fn ack_to_client(&self, ack: u32) -> u32 {
        let accepted = self.from.wrapping_sub(self.before);
        let is_behind = after(ack, accepted) || (ack == accepted && self.settled != 0);
        ack.wrapping_add(if is_behind { self.behind } else { self.before })
    }

    /// Takes note of what the client acknowledges, by its own count.
    #[inline(always)]
    pub const fn acknowledge(&mut self, ack: u32) {
        // Until it is written, the answer has no length, and nothing acknowledges it.
        let is_written = self.told_behind != self.told_before;
        if is_written && self.left == 0 && !after(self.inserted.wrapping_add(self.told_behind), ack) {
            self.settled = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Shift;

    /// A request of 100 bytes at 5000 was kept back, behind one of 30; its answer of 400 bytes was inserted at 9000, behind
    /// one of 200.
    const KEPT: Shift = Shift {
        from: 5000,
        to: 5100,
        before: 30,
        behind: 130,
        inserted: 9000,
        told_before: 200,
        told_behind: 600,
        left: 0,
        is_kept: 1,
        settled: 0,
    };

    #[test]
    fn bytes_before_and_behind_are_counted_by_their_own_offsets() {
        assert_eq!([4999, 5100, 5200].map(|seq| KEPT.seq_to_server(seq)), [4969, 4970, 5070]);
        assert_eq!([8999, 9000, 9001].map(|seq| KEPT.seq_to_client(seq)), [9199, 9600, 9601]);
    }

    #[test]
    fn a_server_is_told_nothing_of_the_answer() {
        let acks = [9199, 9200, 9201, 9599, 9600, 9601];
        assert_eq!(acks.map(|ack| KEPT.ack_to_server(ack)), [8999, 9000, 9000, 9000, 9000, 9001]);
    }

    #[test]
    fn a_server_acknowledges_the_request_only_once_the_answer_is_there() {
        assert_eq!([4969, 4970, 4971].map(|ack| KEPT.ack_to_client(ack)), [4999, 5000, 5101]);
        let mut kept = KEPT;
        kept.acknowledge(9599);
        assert_eq!(kept.ack_to_client(4970), 5000);
        let mut unwritten = Shift { told_behind: KEPT.told_before, ..KEPT };
        unwritten.acknowledge(9600);
        assert_eq!(unwritten.settled, 0);
        kept.acknowledge(9600);
        assert_eq!(kept.ack_to_client(4970), 5100);
    }

    #[test]
    fn numbers_wrap_around() {
        let far = 0u32.wrapping_sub(5050);
        let kept = Shift { from: KEPT.from.wrapping_add(far), to: KEPT.to.wrapping_add(far), ..KEPT };
        assert_eq!(kept.seq_to_server(0xffff_ffcc), 0xffff_ffcc - 30);
        assert_eq!(kept.seq_to_server(50), 50u32.wrapping_sub(130));
        assert!(kept.holds(0xffff_ffff, 1) && !kept.holds(50, 60) && !kept.holds(0xffff_ff00, 0xffff_ffce));
    }
}
