//! The plot: bars by case and contestant, with the range of the slices that count.

use std::path::Path;

use plotters::coord::ranged1d::{KeyPointHint, Ranged};
use plotters::prelude::*;

use super::Report;
use crate::probe::Class;
use crate::{Error, Result};

const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 95, 168),
    RGBColor(230, 138, 46),
    RGBColor(120, 120, 120),
    RGBColor(70, 150, 90),
    RGBColor(150, 90, 160),
    RGBColor(190, 60, 60),
];
const HEIGHT: u32 = 420;
/// What the labels leave out.
const CAPTION: &str = "CPUs sharing a cache unless marked";
/// Pixels for a bar, and for what is around the bars.
const BAR: u32 = 30;
const MARGINS: u32 = 160;

/// Draws the fullest class of each case into an SVG file.
pub fn write(report: &Report, path: &Path) -> Result<()> {
    let svg = draw(report).map_err(|error| Error::Plot(error.to_string()))?;
    std::fs::write(path, svg).map_err(Error::io(format!("write {}", path.display())))
}

/// One bar: where it stands, who it is, median, smallest, largest.
struct Bar {
    at: f64,
    contestant: usize,
    median: f64,
    min: f64,
    max: f64,
}

/// Cases side by side, a bar's width between them.
fn bars(report: &Report) -> Vec<Bar> {
    let stride = report.contestants.len() + 1;
    let mut bars = Vec::new();
    for (case, first) in report.cases.iter().zip((0..).step_by(stride)) {
        for (contestant, (name, _)) in report.contestants.iter().enumerate() {
            if let Some(summary) = case.results.first().and_then(|r| r.summaries.get(name)) {
                bars.push(Bar {
                    at: (first + contestant) as f64,
                    contestant,
                    median: summary.median,
                    min: summary.min,
                    max: summary.max,
                });
            }
        }
    }
    bars
}

/// An axis with a label in the middle of each case.
struct Cases {
    stride: f64,
    count: usize,
}

impl Cases {
    fn end(&self) -> f64 {
        self.stride * self.count as f64
    }
}

impl Ranged for Cases {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value + 0.5) / self.end().max(1.0);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.count)
            .map(|case| case as f64 * self.stride + (self.stride - 2.0) / 2.0)
            .collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        -0.5..self.end() - 0.5
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Cases {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

fn draw(report: &Report) -> Result<String, Box<dyn std::error::Error>> {
    let bars = bars(report);
    let axis = Cases {
        stride: report.contestants.len() as f64 + 1.0,
        count: report.cases.len(),
    };
    let stride = axis.stride;
    let label = |value: &f64| {
        let case = report.cases.get((value / stride) as usize);
        case.map_or(String::new(), |case| {
            let mark = match case.results.first().map(|result| result.class) {
                Some(Class::Shared) => "",
                Some(Class::Split) => " (split)",
                None => " (none)",
            };
            format!("{} B, {} fl.{mark}", case.load.frame_len, case.load.flows)
        })
    };
    let top = bars.iter().map(|bar| bar.max).fold(1.0, f64::max) * 1.3;
    let width = (BAR * axis.end() as u32 + MARGINS).max(600);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (width, HEIGHT)).into_drawing_area();
        area.fill(&WHITE)?;
        let title = format!("{}: {} ({})", report.experiment, report.title, CAPTION);
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(50)
            .build_cartesian_2d(axis, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&label)
            .y_desc(&report.unit)
            .label_style(("sans-serif", 12))
            .draw()?;
        for (contestant, (name, _)) in report.contestants.iter().enumerate() {
            let colour = COLOURS[contestant % COLOURS.len()];
            let own = || bars.iter().filter(|bar| bar.contestant == contestant);
            chart
                .draw_series(own().map(|bar| {
                    let corners = [(bar.at - 0.45, 0.0), (bar.at + 0.45, bar.median)];
                    Rectangle::new(corners, colour.filled())
                }))?
                .label(name)
                .legend(move |(x, y)| {
                    Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
                });
            chart
                .draw_series(own().map(|bar| {
                    PathElement::new(vec![(bar.at, bar.min), (bar.at, bar.max)], BLACK)
                }))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK)
            .label_font(("sans-serif", 13))
            .draw()?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::testing;

    #[test]
    fn bars_stand_where_there_are_figures() {
        let bars = bars(&testing::report());
        assert_eq!(
            bars.iter().map(|bar| bar.at).collect::<Vec<_>>(),
            [0.0, 1.0]
        );
        assert_eq!(
            (bars[0].min, bars[0].median, bars[0].max),
            (30.0, 31.0, 32.0)
        );
    }

    #[test]
    fn the_plot_is_an_svg_with_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        write(&testing::report(), &path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["vswitch", "testpmd", "Mpps", "64 B, 1024 fl.", "a &amp; b"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
    }

    #[test]
    fn nothing_measured_is_still_a_plot() {
        let mut report = testing::report();
        report.cases.clear();
        assert!(draw(&report).unwrap().contains("</svg>"));
    }
}
