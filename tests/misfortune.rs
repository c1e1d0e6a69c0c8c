//! Honest clients in bad weather: whatever happens to their segments, each request is served once and counted once.
//!
//! Each test is one weather: a relay loses, doubles, holds back and delays frames in both directions. Real clients send
//! to two real servers at once, over IPv4 and IPv6, with every hook. What was measured is printed as a table.

#[path = "misfortune/client.rs"]
mod client;
#[path = "misfortune/course.rs"]
mod course;
#[path = "misfortune/plan.rs"]
mod plan;
#[path = "misfortune/table.rs"]
mod table;

use std::time::Duration;

use anyhow::Result;
use enforcer_tests::weather::Weather;

use crate::course::Conditions;

const CLEAR: Weather = Weather { lost: 0, doubled: 0, held: 0, delay: Duration::ZERO, jitter: Duration::ZERO };
const DELAY: Duration = Duration::from_millis(5);
const JITTER: Duration = Duration::from_millis(5);

#[test]
fn every_request_is_served_in_clear_weather() -> Result<()> {
    course::run(&Conditions::new("clear", CLEAR))
}

#[test]
fn every_request_is_served_with_a_loss_of_one_percent() -> Result<()> {
    course::run(&Conditions::new("loss 1 %", Weather { lost: 10, ..CLEAR }))
}

#[test]
fn every_request_is_served_with_a_loss_of_five_percent() -> Result<()> {
    course::run(&Conditions::new("loss 5 %", Weather { lost: 50, ..CLEAR }))
}

#[test]
fn every_request_is_served_and_counted_once_with_doubled_segments() -> Result<()> {
    course::run(&Conditions::new("doubled 5 %", Weather { doubled: 50, ..CLEAR }))
}

#[test]
fn every_request_is_served_with_a_quarter_of_the_segments_overtaken() -> Result<()> {
    course::run(&Conditions::new("reordered 25 %", Weather { held: 250, ..CLEAR }))
}

#[test]
fn every_request_is_served_over_a_long_and_uneven_way() -> Result<()> {
    course::run(&Conditions::new("delay 5–10 ms", Weather { delay: DELAY, jitter: JITTER, ..CLEAR }))
}

#[test]
fn every_request_is_served_with_all_misfortunes_together() -> Result<()> {
    let weather = Weather { lost: 20, doubled: 20, held: 250, delay: DELAY, jitter: JITTER };
    course::run(&Conditions::new("all together", weather))
}

#[test]
fn every_request_is_served_when_judged_segments_are_lost_behind_the_hook() -> Result<()> {
    course::run(&Conditions::new("loss 3 % behind", CLEAR).with_loss_behind_the_hook(30))
}
