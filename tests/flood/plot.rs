//! A bar chart as SVG: groups of bars on a logarithmic scale, each with its number.

use std::fmt::Write as _;

use crate::report::number;

/// A chart.
#[derive(Debug)]
pub(crate) struct Chart {
    /// What is shown, and in which unit.
    pub(crate) title: String,
    /// The bars' names, in the order within each group.
    pub(crate) series: Vec<String>,
    /// The groups' names, and their bars; a bar that is missing is named, and left empty.
    pub(crate) groups: Vec<(String, Vec<Option<f64>>)>,
}

/// Of the series, in turn: distinct to most eyes, and in grey.
const COLOURS: [&str; 4] = ["#9ec9e2", "#3c93c2", "#0d4a70", "#f4a261"];
const WIDTH: f64 = 760.0;
/// Left of the bars, for the groups' names.
const NAMES: f64 = 170.0;
/// Right of them, for the longest bar's number.
const NUMBERS: f64 = 60.0;
const BAR: f64 = 14.0;
const GAP: f64 = 12.0;
/// Above the bars, for title and legend.
const HEAD: f64 = 62.0;
/// Below them, for the scale.
const FOOT: f64 = 26.0;

impl Chart {
    /// The drawing.
    pub(crate) fn to_svg(&self) -> String {
        let Self { title, series, groups } = self;
        let values = || groups.iter().flat_map(|(_, bars)| bars).flatten().copied().filter(|value| *value > 0.0);
        // The scale begins below the least value, so that each has a bar.
        let low = values().fold(f64::MAX, f64::min).min(1e9).log10().floor();
        let high = values().fold(f64::MIN_POSITIVE, f64::max).log10().ceil().max(low + 1.0);
        let at = |value: f64| {
            let share = ((value.log10() - low) / (high - low)).clamp(0.0, 1.0);
            NAMES + share * (WIDTH - NAMES - NUMBERS)
        };
        let bars: usize = groups.iter().map(|(_, bars)| bars.len()).sum();
        let bottom = HEAD + bars as f64 * BAR + groups.len() as f64 * GAP;
        let height = bottom + FOOT;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
        );
        text(&mut svg, 10.0, 20.0, "start\" font-weight=\"bold", title);
        let mut left = 10.0;
        for (name, colour) in series.iter().zip(COLOURS.iter().cycle()) {
            rectangle(&mut svg, [left, 32.0, 12.0, 12.0], colour);
            text(&mut svg, left + 17.0, 42.0, "start", name);
            left += 40.0 + 6.5 * name.chars().count() as f64;
        }
        for power in low as i32..=high as i32 {
            let x = at(10_f64.powi(power));
            let _ = writeln!(svg, "<path d=\"M{x:.1} {HEAD}V{bottom}\" stroke=\"#dddddd\"/>");
            text(&mut svg, x, bottom + 16.0, "middle", &scale(power));
        }
        let mut y = HEAD;
        for (name, bars) in groups {
            let middle = y + bars.len() as f64 * BAR / 2.0 + 4.0;
            text(&mut svg, NAMES - 8.0, middle, "end", name);
            for (bar, colour) in bars.iter().zip(COLOURS.iter().cycle()) {
                let end = bar.map_or(NAMES, at);
                rectangle(&mut svg, [NAMES, y + 1.0, end - NAMES, BAR - 2.0], colour);
                text(&mut svg, end + 4.0, y + BAR - 3.0, "start", &bar.map_or_else(|| "–".to_owned(), number));
                y += BAR;
            }
            y += GAP;
        }
        svg + "</svg>\n"
    }
}

fn rectangle(svg: &mut String, [x, y, width, height]: [f64; 4], colour: &str) {
    let _ = writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{content}</text>");
}

/// A power of ten as it is read.
fn scale(power: i32) -> String {
    let value = 10_f64.powi(power);
    if power < 0 { value.to_string() } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::Chart;

    #[test]
    fn bars_are_as_long_as_their_logarithms() {
        let chart = Chart {
            title: "a < b".to_owned(),
            series: vec!["one".to_owned(), "two".to_owned(), "three".to_owned()],
            groups: vec![("group".to_owned(), vec![Some(1.0), Some(10.0), Some(100.0)])],
        };
        let svg = chart.to_svg();
        let widths = ["width=\"0.0\"", "width=\"265.0\"", "width=\"530.0\""];
        assert!(widths.iter().all(|width| svg.contains(width)), "{svg}");
        assert!(svg.contains("a &lt; b") && !svg.contains(">0.1<") && svg.contains(">100<"));
    }

    #[test]
    fn a_missing_bar_has_no_length() {
        let groups = vec![("group".to_owned(), vec![None, Some(5.0)])];
        let svg = Chart { title: String::new(), series: Vec::new(), groups }.to_svg();
        assert!(svg.contains(">–</text>") && !svg.contains("NaN"), "{svg}");
    }
}
