//! Charts as SVG by hand; readable on light and dark pages.

use std::fmt::Write;

use crate::curves::{self, Curve};
use crate::stats::ratio;

/// A bar: who, how much, and what it should not exceed.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub target: Option<f64>,
}

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#24292f}.h{font-weight:600}.d{fill:#57606a}\
    .bar{fill:#b6bec8}.own{fill:#1f6feb}.axis{stroke:#8c959f;stroke-width:1}.mark{stroke:#cf222e;stroke-width:2}\
    .l0{stroke:#1f6feb}.l1{stroke:#8c959f}.l2{stroke:#bf8700}.l3{stroke:#8250df}.line{fill:none;stroke-width:2}.grid{stroke:#8c959f40}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.d{fill:#9aa4af}.bar{fill:#565f6b}.own{fill:#58a6ff}\
    .axis{stroke:#6e7681}.mark{stroke:#ff7b72}}</style>";

const LEFT: f64 = 150.0;
const WIDTH: f64 = 520.0;
const LINE: f64 = 16.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Groups of bars on one logarithmic scale, with a line at 1 (the baseline) and a mark at each target.
pub fn bars(title: &str, groups: &[(String, Vec<Bar>)]) -> String {
    let values =
        || groups.iter().flat_map(|(_, bars)| bars).flat_map(|b| [Some(b.value), b.target]).flatten();
    let least = values().fold(0.5, f64::min).max(1e-5).log10();
    let most = values().fold(2.0, f64::max).log10();
    let at = |value: f64| LEFT + (value.max(1e-5).log10() - least) / (most - least) * WIDTH;
    let mut body = String::new();
    let mut y = 48.0;
    for (name, bars) in groups {
        let _ = writeln!(body, "<text class='h' x='8' y='{y}'>{}</text>", escape(name));
        for bar in bars {
            y += LINE;
            let (x, class) = (at(bar.value), if bar.name.starts_with("outfs") { "own" } else { "bar" });
            let (from, length) = (x.min(at(1.0)), (x - at(1.0)).abs().max(1.0));
            let top = y - 10.0;
            let _ = writeln!(
                body,
                "<text class='d' x='{}' y='{y}' text-anchor='end'>{}</text>",
                LEFT - 8.0,
                escape(&bar.name)
            );
            let _ = writeln!(
                body,
                "<rect class='{class}' x='{from:.1}' y='{top:.1}' width='{length:.1}' height='11'/>"
            );
            let _ = writeln!(
                body,
                "<text class='d' x='{:.1}' y='{y}'>{}</text>",
                x.max(at(1.0)) + 5.0,
                ratio(bar.value)
            );
            if let Some(mark) = bar.target.map(at) {
                let _ = writeln!(body, "<path class='mark' d='M{mark:.1} {:.1}v13'/>", top - 1.0);
            }
        }
        y += LINE * 1.6;
    }
    let one = at(1.0);
    let width = LEFT + WIDTH + 70.0;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {y:.0}' width='{width}' role='img'>\n{STYLE}\n\
         <title>{title}</title>\n<text class='h' x='8' y='18'>{title}</text>\n\
         <path class='axis' d='M{one:.1} 28V{:.0}'/>\n{body}</svg>\n",
        y - LINE,
        title = escape(title)
    )
}

const TALL: f64 = 240.0;
const TOP: f64 = 36.0;

/// The powers of ten (and what lies at the ends) that an axis shows.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let (from, to) = (least.log10().floor() as i32, most.log10().ceil() as i32);
    (from..=to).map(|n| 10f64.powi(n)).collect()
}

fn round(x: f64) -> String {
    match x {
        x if x >= 1e6 => format!("{} M", x / 1e6),
        x if x >= 1e4 => format!("{} k", x / 1e3),
        x => format!("{x}"),
    }
}

/// Lines over one axis. Values are logarithmic; so is x, unless it starts at 0.
pub fn lines(chart: &[&Curve]) -> String {
    let points: Vec<(f64, f64)> = chart.iter().flat_map(|c| c.medians()).collect();
    let (xs, ys) = (points.iter().map(|p| p.0), points.iter().map(|p| p.1.max(1e-9)));
    let (first, last) = xs.fold((f64::INFINITY, 0f64), |(a, b), x| (a.min(x), b.max(x)));
    let heights = ticks(ys.clone().fold(f64::INFINITY, f64::min), ys.fold(0.0, f64::max));
    let (low, high) = (heights[0].log10(), heights[heights.len() - 1].log10());
    let scale = |x: f64| if first > 0.0 { x.log10() } else { x };
    let across = |x: f64| 90.0 + (scale(x) - scale(first)) / (scale(last) - scale(first)).max(1e-9) * 420.0;
    let up = |y: f64| TOP + TALL - (y.max(1e-9).log10() - low) / (high - low).max(1e-9) * TALL;
    let mut body = String::new();
    for y in &heights {
        let (at, text) = (up(*y), curves::text(chart[0].unit, *y));
        let _ = writeln!(
            body,
            "<path class='grid' d='M90 {at:.1}H510'/><text class='d' x='82' y='{:.1}' text-anchor='end'>{text}</text>",
            at + 4.0
        );
    }
    let mut marks: Vec<f64> = points.iter().map(|p| p.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for x in marks {
        let at = across(x);
        let _ = writeln!(
            body,
            "<text class='d' x='{at:.1}' y='{:.1}' text-anchor='middle'>{}</text>",
            TOP + TALL + 18.0,
            round(x)
        );
    }
    for (n, curve) in chart.iter().enumerate() {
        let path: Vec<_> =
            curve.medians().iter().map(|(x, y)| format!("{:.1} {:.1}", across(*x), up(*y))).collect();
        let _ = writeln!(body, "<path class='line l{n}' d='M{}'/>", path.join("L"));
        // The names stand in a list: at the lines' ends they would lie on one another.
        let y = TOP + 12.0 + LINE * n as f64;
        let _ = writeln!(
            body,
            "<path class='line l{n}' d='M524 {:.1}h18'/><text x='548' y='{y:.1}'>{}</text>",
            y - 4.0,
            escape(&curve.peer)
        );
    }
    let (title, along) = (escape(&chart[0].title), escape(&chart[0].along));
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 700 {0}' width='700' role='img'>\n{STYLE}\n<title>{title}</title>\n\
         <text class='h' x='8' y='18'>{title}</text>\n{body}<text class='d' x='300' y='{1}' text-anchor='middle'>{along}</text>\n</svg>\n",
        TOP + TALL + 50.0,
        TOP + TALL + 38.0
    )
}
