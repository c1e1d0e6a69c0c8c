//! Bodies: skipped by count, in one piece or in chunks.

use super::bytes::Window;
use super::target::hexadecimal;
use super::{Cursor, LineEnd, Machine, Step, line_end, phase};
use crate::verdict::Malformation;

impl Machine {
    #[inline(always)]
    pub(super) fn body(&mut self, window: &Window, cursor: &mut Cursor) -> Step {
        let unread = cursor.unread();
        if self.pass_over(cursor) {
            return Step::More;
        }
        if self.phase == phase::CHUNK_SIZE {
            let digit = hexadecimal(window.byte(cursor.pos));
            if digit < 16 {
                if self.digits >= 15 {
                    return Step::Refused(Malformation::Chunk.into());
                }
                self.digits += 1;
                self.left = (self.left << 4) | u64::from(digit);
                cursor.pos = cursor.pos.wrapping_add(1);
                return Step::More;
            }
            if self.digits == 0 {
                return Step::Refused(Malformation::Chunk.into());
            }
        }
        match line_end(window, cursor.pos, unread) {
            LineEnd::Cut => Step::Starved,
            LineEnd::No if self.phase == phase::LAST_CHUNK => Step::Refused(Malformation::Trailer.into()),
            LineEnd::No => Step::Refused(Malformation::Chunk.into()),
            LineEnd::Yes => {
                cursor.pos = cursor.pos.wrapping_add(2);
                self.phase = match self.phase {
                    phase::CHUNK_SIZE if self.left > 0 => phase::CHUNK_DATA,
                    phase::CHUNK_SIZE => phase::LAST_CHUNK,
                    phase::LAST_CHUNK => phase::START,
                    _ => phase::CHUNK_SIZE,
                };
                self.digits = 0;
                Step::More
            }
        }
    }
}
