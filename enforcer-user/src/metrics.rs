//! What Prometheus scrapes: the kernel's counters as they stand, rendered from one [`Snapshot`].
//!
//! The kernel's counters live in the pinned maps, so they go on over restarts of the daemon; those of connections that
//! the daemon has ended begin with it. Labels are names of principals and
//! words of closed sets, never a key, a tag or anything that a client chose. [`render`] is pure; the daemon takes the
//! snapshot and serves the text.

use std::fmt;

use enforcer_ebpf::abi::{ABI, Meter, TOTALS, tally};
use enforcer_ebpf::verdict::{Count, Event, Malformation, Reason};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// The `verdict` labels.
const VERDICTS: [&str; 4] = ["allowed", "limited", "denied", "would_refuse"];
/// What is counted of a principal.
const COUNTS: usize = VERDICTS.len() + 1;
/// Principals that have series of their own; the others are summed under [`OVERFLOW`].
pub const MAX_PRINCIPALS: usize = 1000;
/// The `principal` label of all principals beyond [`MAX_PRINCIPALS`]; no name begins with `_`.
pub const OVERFLOW: &str = "_overflow";

/// All that is exported, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Name, number of keys and meter of each principal, by index.
    pub principals: Vec<(String, u64, Meter)>,
    /// Each rule that is counted by itself: its service, `None` for what all of them share, and its counts by [`tally`].
    pub rules: Vec<(Option<String>, String, [u64; tally::LEN])>,
    /// The kernel's totals of each service, by its name and [`Count::index`].
    pub totals: Vec<(String, [u64; TOTALS as usize])>,
    /// Cause, connections ended, and connections that would have been.
    pub reaped: Vec<(&'static str, u64, u64)>,
    /// Map, entries and capacity.
    pub maps: Vec<(String, u64, u64)>,
    /// Interface and mode of each attachment.
    pub attachments: Vec<(String, String)>,
    /// Registered keys.
    pub keys: u64,
    /// Sources under a penalty.
    pub penalties: u64,
}

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text 0.0.4.
    Classic,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The format that an `Accept` header asks for: OpenMetrics only where it is named.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let named = accept.split(',').filter_map(|range| range.split(';').next());
        match named.map(str::trim).any(|range| range.eq_ignore_ascii_case("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Classic,
        }
    }

    /// Its content type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The scrape's text.
///
/// # Errors
/// None that a `String` can cause; the encoder's signature has one.
pub fn render(snapshot: Snapshot, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut rendered = String::new();
    text::encode(&mut rendered, &registry)?;
    Ok(match format {
        Format::OpenMetrics => rendered,
        Format::Classic => classic(&rendered),
    })
}

/// Text 0.0.4 from OpenMetrics: there a counter's HELP and TYPE carry the `_total` of its samples, and no EOF is said.
fn classic(rendered: &str) -> String {
    let mut text = String::with_capacity(rendered.len() + 512);
    // HELP comes before TYPE, which alone says whether it is a counter.
    let mut help: Option<(&str, &str)> = None;
    for line in rendered.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

impl Snapshot {
    /// What was counted of each service, of all of these: each with its labels.
    fn totals<'s, T: Copy + 's>(
        &'s self,
        all: &'static [T],
        label: &'static str,
        word: impl Fn(T) -> &'static str + 's,
        count: impl Fn(T) -> Count + 's,
    ) -> impl Iterator<Item = ([(&'static str, &'s str); 2], u64)> {
        let counts = self
            .totals
            .iter()
            .flat_map(move |(service, totals)| all.iter().map(move |&one| (service.as_str(), totals, one)));
        counts.map(move |(service, totals, one)| {
            let total = totals.get(count(one).index() as usize).copied().unwrap_or(0);
            ([("service", service), (label, word(one))], total)
        })
    }

    /// Requests by principal, for each of [`VERDICTS`], then those with a key in the URL: of those with keys or counts, and
    /// the sum of those beyond the cap.
    fn requests(&self) -> Vec<(&str, [u64; COUNTS])> {
        let counts = |meter: &Meter| [meter.allowed, meter.limited, meter.denied, meter.would_refuse, meter.key_in_url];
        let mut shown = Vec::new();
        let mut overflow: Option<[u64; COUNTS]> = None;
        for (name, keys, meter) in &self.principals {
            let counts = counts(meter);
            if *keys == 0 && counts == [0; COUNTS] {
                continue;
            }
            if shown.len() < MAX_PRINCIPALS {
                shown.push((name.as_str(), counts));
            } else {
                let sum = overflow.get_or_insert([0; COUNTS]);
                for (sum, count) in sum.iter_mut().zip(counts) {
                    *sum = sum.wrapping_add(count);
                }
            }
        }
        shown.extend(overflow.map(|sum| (OVERFLOW, sum)));
        shown
    }
}

/// Writes one family: its description, then a sample for each of `samples`.
fn family<'s, L: AsRef<[(&'static str, &'s str)]>>(
    encoder: &mut DescriptorEncoder<'_>,
    kind: MetricType,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (L, u64)>,
) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in samples {
        let labels = labels.as_ref();
        match kind {
            MetricType::Counter => {
                metric.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)?;
            }
            // An empty family would be written with empty braces.
            _ if labels.is_empty() => metric.encode_gauge(&value)?,
            _ => metric.encode_family(&labels)?.encode_gauge(&value)?,
        }
    }
    Ok(())
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let encoder = &mut encoder;
        let requests = self.requests();
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_requests", "Requests with a registered key, by its principal and the verdict"),
            requests.iter().flat_map(|(principal, counts)| {
                let verdicts = VERDICTS.iter().zip(counts);
                verdicts.map(|(verdict, count)| ([("principal", *principal), ("verdict", *verdict)], *count))
            }),
        )?;
        family(
            encoder,
            MetricType::Counter,
            (
                "enforcer_key_in_url",
                "Requests with a registered key that have a query parameter named like a key, by its principal",
            ),
            requests
                .iter()
                .filter(|(_, counts)| counts[VERDICTS.len()] != 0)
                .map(|(principal, counts)| ([("principal", *principal)], counts[VERDICTS.len()])),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_refused", "Requests and segments refused, by reason"),
            self.totals(Reason::ALL, "reason", Reason::as_str, Count::Refused),
        )?;
        family(
            encoder,
            MetricType::Counter,
            (
                "enforcer_would_refuse",
                "Requests and segments passed in observe mode that would have been refused, by reason",
            ),
            self.totals(Reason::ALL, "reason", Reason::as_str, Count::WouldRefuse),
        )?;
        // What all services share has no service.
        let by_rule = |what: usize| {
            let rules = self.rules.iter();
            rules.map(move |(service, rule, counts)| {
                let service = service.as_deref().unwrap_or_default();
                ([("service", service), ("rule", rule.as_str())], counts[what])
            })
        };
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_rule_refused", "Requests that the limits of a rule have refused"),
            by_rule(tally::REFUSED),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_rule_would_refuse", "Requests that the limits of a rule that observes would have refused"),
            by_rule(tally::WOULD_REFUSE),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_rule_candidate_would_refuse", "Requests that the candidate of a rule would have refused"),
            by_rule(tally::CANDIDATE),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_malformed", "Malformed requests, by what was wrong with them"),
            self.totals(Malformation::ALL, "kind", Malformation::as_str, Count::Malformed),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_events", "What else happened to requests and packets"),
            self.totals(Event::ALL, "event", Event::as_str, Count::Event),
        )?;
        family(
            encoder,
            MetricType::Counter,
            ("enforcer_reaped", "Connections that the daemon has ended, by cause"),
            self.reaped.iter().map(|(cause, ended, _)| ([("cause", *cause)], *ended)),
        )?;
        family(
            encoder,
            MetricType::Counter,
            (
                "enforcer_would_reap",
                "Connections left alone, in observe mode or because their socket is elsewhere, that would have been \
                 ended, by cause",
            ),
            self.reaped.iter().map(|(cause, _, would)| ([("cause", *cause)], *would)),
        )?;
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_map_entries", "Entries in use of a BPF map"),
            self.maps.iter().map(|(map, entries, _)| ([("map", map.as_str())], *entries)),
        )?;
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_map_capacity", "Entries that a BPF map has room for"),
            self.maps.iter().map(|(map, _, capacity)| ([("map", map.as_str())], *capacity)),
        )?;
        let mut pressure = encoder.encode_descriptor(
            "enforcer_map_pressure_ratio",
            "Entries in use of a BPF map by those that it has room for",
            None,
            MetricType::Gauge,
        )?;
        for (map, entries, capacity) in &self.maps {
            let ratio = *entries as f64 / (*capacity).max(1) as f64;
            pressure.encode_family(&[("map", map.as_str())])?.encode_gauge(&ratio)?;
        }
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_attach_info", "Interfaces that the program is attached to, and how"),
            self.attachments.iter().map(|(interface, mode)| ([("interface", interface.as_str()), ("mode", mode)], 1)),
        )?;
        let abi = ABI.to_string();
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_build_info", "Version of the daemon and of the maps' layout"),
            [([("version", env!("CARGO_PKG_VERSION")), ("abi", &abi)], 1)],
        )?;
        let none: [(&'static str, &str); 0] = [];
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_keys", "Registered keys, disabled ones included"),
            [(none, self.keys)],
        )?;
        let principals = self.principals.len() as u64;
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_principals", "Principals, those without keys included"),
            [(none, principals)],
        )?;
        family(
            encoder,
            MetricType::Gauge,
            ("enforcer_penalties", "Sources that are under a penalty now"),
            [(none, self.penalties)],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    fn meter(allowed: u64, limited: u64) -> Meter {
        Meter { allowed, limited, key_in_url: limited, ..Meter::default() }
    }

    fn snapshot(principals: Vec<(String, u64, Meter)>) -> Snapshot {
        let mut totals = [0; TOTALS as usize];
        totals[Count::Refused(Reason::Unkeyed).index() as usize] = 7;
        totals[Count::WouldRefuse(Reason::OverLimit).index() as usize] = 8;
        totals[Count::Malformed(Malformation::ObsFold).index() as usize] = 9;
        totals[Count::Event(Event::Allowed).index() as usize] = 10;
        Snapshot {
            keys: principals.iter().map(|(_, keys, _)| keys).sum(),
            principals,
            rules: vec![
                (None, "plan gold".into(), [14, 15, 16, 0]),
                (Some("api".into()), "source".into(), [17, 0, 0, 0]),
            ],
            totals: vec![("api".into(), totals), ("web".into(), [0; TOTALS as usize])],
            reaped: vec![("silent", 11, 12)],
            maps: vec![("KEYS".into(), 1, 4)],
            attachments: vec![("lo".into(), "xdp-generic".into())],
            penalties: 13,
        }
    }

    fn text(principals: Vec<(String, u64, Meter)>) -> String {
        render(snapshot(principals), Format::Classic).expect("text")
    }

    #[test]
    fn exports_every_count_under_its_label() {
        let text = text(vec![("alice".into(), 1, meter(100, 3)), ("gone".into(), 0, meter(0, 0))]);
        for line in [
            "enforcer_key_in_url_total{principal=\"alice\"} 3",
            "enforcer_requests_total{principal=\"alice\",verdict=\"allowed\"} 100",
            "enforcer_requests_total{principal=\"alice\",verdict=\"limited\"} 3",
            "enforcer_requests_total{principal=\"alice\",verdict=\"would_refuse\"} 0",
            "enforcer_refused_total{service=\"api\",reason=\"unkeyed\"} 7",
            "enforcer_would_refuse_total{service=\"api\",reason=\"over_limit\"} 8",
            "enforcer_malformed_total{service=\"api\",kind=\"obs_fold\"} 9",
            "enforcer_events_total{service=\"api\",event=\"allowed\"} 10",
            "enforcer_reaped_total{cause=\"silent\"} 11",
            "enforcer_would_reap_total{cause=\"silent\"} 12",
            "enforcer_map_entries{map=\"KEYS\"} 1",
            "enforcer_map_capacity{map=\"KEYS\"} 4",
            "enforcer_map_pressure_ratio{map=\"KEYS\"} 0.25",
            "enforcer_rule_refused_total{service=\"\",rule=\"plan gold\"} 14",
            "enforcer_rule_refused_total{service=\"api\",rule=\"source\"} 17",
            "enforcer_refused_total{service=\"web\",reason=\"unkeyed\"} 0",
            "enforcer_rule_would_refuse_total{service=\"\",rule=\"plan gold\"} 15",
            "enforcer_rule_candidate_would_refuse_total{service=\"\",rule=\"plan gold\"} 16",
            "enforcer_attach_info{interface=\"lo\",mode=\"xdp-generic\"} 1",
            "enforcer_keys 1",
            "enforcer_principals 2",
            "enforcer_penalties 13",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.contains(&format!("version=\"{}\",abi=\"{ABI}\"}} 1", env!("CARGO_PKG_VERSION"))));
        assert!(!text.contains("gone"), "a principal without keys and counts has no series");
        for reason in Reason::ALL {
            assert!(
                text.contains(&format!("enforcer_refused_total{{service=\"web\",reason=\"{}\"}}", reason.as_str()))
            );
        }
    }

    #[test]
    fn the_classic_text_describes_each_family_under_the_name_of_its_samples() {
        let text = text(vec![("alice".into(), 1, meter(1, 0))]);
        assert!(text.contains("# HELP enforcer_refused_total "));
        assert!(text.contains("# TYPE enforcer_refused_total counter\n"));
        assert!(text.contains("# TYPE enforcer_keys gauge\n"));
        assert!(!text.contains("EOF"));
        let open = render(snapshot(vec![]), Format::OpenMetrics).expect("text");
        assert!(open.contains("# TYPE enforcer_refused counter\n") && open.ends_with("# EOF\n"));
    }

    #[test]
    fn sums_the_principals_beyond_the_cap() {
        let many = (0..MAX_PRINCIPALS + 3).map(|index| (format!("p{index}"), 1, meter(2, 1))).collect();
        let text = text(many);
        assert!(text.contains("principal=\"p999\"") && !text.contains("principal=\"p1000\""));
        assert!(text.contains("enforcer_requests_total{principal=\"_overflow\",verdict=\"allowed\"} 6\n"));
        assert!(text.contains("enforcer_requests_total{principal=\"_overflow\",verdict=\"limited\"} 3\n"));
    }

    #[test]
    fn speaks_open_metrics_only_where_it_is_asked_to() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(Format::accepted("text/plain, */*"), Format::Classic);
        assert_eq!(Format::accepted(""), Format::Classic);
    }

    #[test]
    fn promtool_finds_nothing_to_complain_about() {
        let promtool =
            Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let Ok(mut promtool) = promtool else {
            eprintln!("SKIPPED promtool_finds_nothing_to_complain_about: promtool is not installed");
            return;
        };
        let text = text(vec![("alice".into(), 1, meter(1, 0))]);
        let mut stdin = promtool.stdin.take().expect("its input");
        stdin.write_all(text.as_bytes()).expect("written");
        drop(stdin);
        let output = promtool.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
