//! The calendar in UTC: which day it is, and where weeks, months and years begin.
//!
//! It is the proleptic Gregorian one from 1970 on, counted in years that begin in March, so that a leap day is their
//! last. Divisions are by constants, but for one by a window's length.

use crate::abi::{Limit, align};
use crate::limit::TICK_NS;

/// Seconds of a day.
pub const DAY: u64 = 86_400;
const WEEK: u64 = 7 * DAY;
/// Ticks of a second.
const SECOND: u64 = 1_000_000_000 / TICK_NS;
/// The epoch was a Thursday.
const SINCE_MONDAY: u64 = 3 * DAY;

/// A day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    /// Eras of 400 years since 0000-03-01.
    era: u32,
    /// Years of the era that have passed, each from March to February.
    years: u32,
    /// Days of that year that have passed.
    days: u32,
}

impl Date {
    /// The day that is this many after 1970-01-01; right for the next ten million years.
    #[must_use]
    #[inline(always)]
    pub const fn from_days(days: u32) -> Self {
        let since = days + 719_468;
        let (era, day) = (since / 146_097, since % 146_097);
        let years = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        Self { era, years, days: day - (365 * years + years / 4 - years / 100) }
    }

    /// Months of the year from March that have passed, 0–11.
    #[inline(always)]
    const fn months(self) -> u32 {
        (5 * self.days + 2) / 153
    }

    /// The year.
    #[must_use]
    #[inline(always)]
    pub const fn year(self) -> u32 {
        self.years + self.era * 400 + (self.months() >= 10) as u32
    }

    /// The month, 0 = January.
    #[must_use]
    #[inline(always)]
    pub const fn month(self) -> u32 {
        let months = self.months();
        if months < 10 { months + 2 } else { months - 10 }
    }

    /// The day of the month, from 1.
    #[must_use]
    #[inline(always)]
    pub const fn day(self) -> u32 {
        self.days - (153 * self.months() + 2) / 5 + 1
    }

    /// The day of the year, from 1.
    #[must_use]
    #[inline(always)]
    pub const fn day_of_year(self) -> u32 {
        /// From March 1 to January 1.
        const JANUARY: u32 = 306;
        if self.days >= JANUARY {
            return self.days - JANUARY + 1;
        }
        let is_leap = self.years.is_multiple_of(4) && (!self.years.is_multiple_of(100) || self.years == 0);
        self.days + 60 + is_leap as u32
    }
}

/// A window of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Period {
    /// Its first second, in Unix time.
    pub start: u64,
    /// The first second behind it.
    pub end: u64,
}

impl Period {
    /// None.
    pub const NONE: Self = Self { start: 0, end: 0 };

    /// Becomes the window of `limit`, which has an [`align`], that a second of Unix time falls in. A function of its own,
    /// so that its registers are not on its callers' stacks.
    #[inline(never)]
    pub fn find(&mut self, limit: &Limit, unix: u64) {
        let days = (unix / DAY) as u32;
        match limit.interval {
            align::MONTH => {
                let start = first_of_month(days);
                // 31 days on it is the next month, whichever this is.
                self.reach(start, first_of_month(start + 31));
            }
            align::YEAR => {
                let start = first_of_year(days);
                // Likewise.
                self.reach(start, first_of_year(start + 366));
            }
            _ => {
                let window = limit.window / SECOND;
                let window = if window == 0 { 1 } else { window };
                let since = if window == WEEK { unix + SINCE_MONDAY } else { unix };
                let elapsed = since % window;
                self.start = unix.saturating_sub(elapsed);
                self.end = unix + (window - elapsed);
            }
        }
    }

    /// From the begin of one day to that of another.
    #[inline(always)]
    const fn reach(&mut self, start: u32, end: u32) {
        self.start = start as u64 * DAY;
        self.end = end as u64 * DAY;
    }
}

#[inline(always)]
const fn first_of_month(days: u32) -> u32 {
    days - (Date::from_days(days).day() - 1)
}

#[inline(always)]
const fn first_of_year(days: u32) -> u32 {
    days - (Date::from_days(days).day_of_year() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The calendar by its rule alone, a day at a time.
    fn every_day_until(last: u32) -> impl Iterator<Item = (u32, [u32; 4])> {
        let (mut year, mut month, mut day, mut of_year) = (1970, 0, 1, 1);
        (0..).map_while(move |days| {
            let today = (days, [year, month, day, of_year]);
            let is_leap = year % 4 == 0 && year % 100 != 0 || year % 400 == 0;
            let length = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize];
            (day, of_year) = (day + 1, of_year + 1);
            if day > length {
                (day, month) = (1, month + 1);
            }
            if month == 12 {
                (month, of_year, year) = (0, 1, year + 1);
            }
            (today.1[0] <= last).then_some(today)
        })
    }

    #[test]
    fn counts_the_days_of_six_centuries() {
        for (days, expected) in every_day_until(2570) {
            let date = Date::from_days(days);
            assert_eq!([date.year(), date.month(), date.day(), date.day_of_year()], expected, "{days} days");
        }
    }

    fn period(limit: &Limit, unix: u64) -> Period {
        let mut period = Period::default();
        period.find(limit, unix);
        period
    }

    #[test]
    fn a_month_and_a_year_reach_from_their_first_day_to_the_next_ones() {
        let limit = |interval| Limit { interval, ..Limit::default() };
        let (mut month, mut year) = (None, None);
        for (days, [_, _, day, of_year]) in every_day_until(2200) {
            let unix = u64::from(days) * DAY;
            for (first, interval, open) in
                [(day == 1, align::MONTH, &mut month), (of_year == 1, align::YEAR, &mut year)]
            {
                let (now, last) = (period(&limit(interval), unix), period(&limit(interval), unix + DAY - 1));
                assert_eq!(now, last);
                match open {
                    Some(open) if !first => assert_eq!(now, *open),
                    before => {
                        assert_eq!(now.start, unix);
                        assert!(before.is_none_or(|before| before.end == unix));
                        *before = Some(now);
                    }
                }
            }
        }
    }

    #[test]
    fn multiples_begin_at_the_epoch_and_weeks_on_a_monday() {
        let multiple = |seconds: u64| Limit { interval: align::MULTIPLE, window: seconds * SECOND, ..Limit::default() };
        // 2026-01-01T12:34:56Z, a Thursday.
        let unix = 1_767_270_896;
        for (seconds, start) in [
            (1, unix),
            (60, unix - 56),
            (900, unix - 4 * 60 - 56),
            (3_600, unix - 34 * 60 - 56),
            (DAY, unix - unix % DAY),
            (WEEK, unix - unix % DAY - 3 * DAY),
            (10 * DAY, 2_045 * 10 * DAY),
        ] {
            let expected = Period { start, end: start + seconds };
            assert_eq!(period(&multiple(seconds), unix), expected, "{seconds} s");
        }
        // Before the first Monday of all.
        assert_eq!(period(&multiple(WEEK), DAY), Period { start: 0, end: 4 * DAY });
    }
}
