//! How a cost grows: the figures of a chart with a line for each peer.

use serde::{Deserialize, Serialize};

use crate::stats::{Results, seconds};

/// What a curve counts.
#[derive(Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Seconds,
    Bytes,
}

/// A chart's short name, what it shows, what its x axis counts, and in which unit.
#[derive(Clone, Copy)]
pub struct Chart {
    pub name: &'static str,
    pub title: &'static str,
    pub along: &'static str,
    pub unit: Unit,
}

/// One line of a chart.
#[derive(Serialize, Deserialize)]
pub struct Curve {
    pub chart: String,
    pub title: String,
    pub along: String,
    pub unit: Unit,
    pub peer: String,
    /// x, and its samples.
    pub points: Vec<(f64, Vec<f64>)>,
    /// Which of the runs it is from.
    #[serde(default)]
    pub run: usize,
}

impl Results {
    /// Adds a sample to a chart.
    pub fn point(&mut self, chart: &Chart, peer: &str, x: f64, value: f64) {
        let found = self.curves.iter().position(|c| c.chart == chart.name && c.peer == peer);
        let at = found.unwrap_or_else(|| {
            self.curves.push(Curve {
                chart: chart.name.into(),
                title: chart.title.into(),
                along: chart.along.into(),
                unit: chart.unit,
                peer: peer.into(),
                points: vec![],
                run: 0,
            });
            self.curves.len() - 1
        });
        let points = &mut self.curves[at].points;
        match points.iter_mut().find(|(at, _)| *at == x) {
            Some((_, samples)) => samples.push(value),
            None => points.push((x, vec![value])),
        }
    }

    /// The charts in order, each with its lines.
    pub fn charts(&self) -> Vec<Vec<&Curve>> {
        let mut charts: Vec<Vec<&Curve>> = vec![];
        for curve in &self.curves {
            match charts.iter_mut().find(|c| c[0].chart == curve.chart) {
                Some(chart) => chart.push(curve),
                None => charts.push(vec![curve]),
            }
        }
        charts
    }
}

impl Curve {
    /// The median at each x.
    pub fn medians(&self) -> Vec<(f64, f64)> {
        self.points.iter().map(|(x, samples)| (*x, crate::stats::median(samples))).collect()
    }

    /// The median at one x.
    pub fn at(&self, x: f64) -> Option<f64> {
        self.medians().into_iter().find(|(at, _)| *at == x).map(|(_, y)| y)
    }
}

/// A value in words.
pub fn text(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Seconds => seconds(value),
        Unit::Bytes => format!("{:.1} MB", value / 1e6),
    }
}

/// A chart as the rows of a table: what stands at the top, then x and each line's value.
pub fn rows(chart: &[&Curve]) -> Vec<Vec<String>> {
    let mut xs: Vec<f64> = chart.iter().flat_map(|c| c.points.iter().map(|(x, _)| *x)).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let head = [chart[0].along.clone()].into_iter().chain(chart.iter().map(|c| c.peer.clone())).collect();
    let row = |x: f64| {
        let value = |c: &&Curve| c.at(x).map_or("-".into(), |y| text(c.unit, y));
        [format!("{x}")].into_iter().chain(chart.iter().map(value)).collect()
    };
    [head].into_iter().chain(xs.into_iter().map(row)).collect()
}
