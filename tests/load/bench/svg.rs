//! Charts as SVG by hand; readable on light and dark pages.

use std::fmt::Write;

use crate::stats::ratio;

/// A bar: who, how much, and what it should not exceed.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub target: Option<f64>,
}

const STYLE: &str = "<style>text{font:12px system-ui,sans-serif;fill:#24292f}.h{font-weight:600}.d{fill:#57606a}\
    .bar{fill:#b6bec8}.own{fill:#1f6feb}.axis{stroke:#8c959f;stroke-width:1}.mark{stroke:#cf222e;stroke-width:2}\
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
