//! Bars in groups, with the range of what each is the median of. Drawn as SVG.

use std::path::Path;

use plotters::coord::ranged1d::{KeyPointHint, Ranged};
use plotters::prelude::*;

use crate::stats::Summary;
use crate::{Error, Result};

pub(super) const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 95, 168),
    RGBColor(230, 138, 46),
    RGBColor(120, 120, 120),
    RGBColor(70, 150, 90),
    RGBColor(150, 90, 160),
    RGBColor(190, 60, 60),
];
const HEIGHT: u32 = 420;
/// Pixels for a bar, for what is around the bars, and for a letter of the title.
const BAR: u32 = 30;
const MARGINS: u32 = 160;
const LETTER: u32 = 9;

/// What is drawn.
#[derive(Clone, Debug)]
pub struct Chart {
    /// Above it.
    pub title: String,
    /// Unit of every bar.
    pub unit: String,
    /// Who the bars of a group are, in their order.
    pub names: Vec<String>,
    /// Label of each group, and its bars; nothing where there is no figure.
    pub groups: Vec<(String, Vec<Option<Summary>>)>,
}

impl Chart {
    /// Writes it to an SVG file.
    pub fn write(&self, path: &Path) -> Result<()> {
        let svg = self
            .draw()
            .map_err(|error| Error::Plot(error.to_string()))?;
        std::fs::write(path, svg).map_err(Error::io(format!("write {}", path.display())))
    }

    /// Groups side by side, a bar's width between them.
    fn bars(&self) -> Vec<Bar> {
        let stride = self.names.len() + 1;
        let mut bars = Vec::new();
        for ((_, group), first) in self.groups.iter().zip((0..).step_by(stride)) {
            for (contestant, summary) in group.iter().enumerate() {
                if let Some(summary) = *summary {
                    bars.push(Bar {
                        at: (first + contestant) as f64,
                        contestant,
                        summary,
                    });
                }
            }
        }
        bars
    }
}

/// One bar: where it stands, and whose it is.
struct Bar {
    at: f64,
    contestant: usize,
    summary: Summary,
}

/// An axis with a label in the middle of each group.
struct Groups {
    stride: f64,
    count: usize,
}

impl Groups {
    fn end(&self) -> f64 {
        self.stride * self.count as f64
    }
}

impl Ranged for Groups {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let part = (value + 0.5) / self.end().max(1.0);
        limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        (0..self.count)
            .map(|group| group as f64 * self.stride + (self.stride - 2.0) / 2.0)
            .collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        -0.5..self.end() - 0.5
    }
}

impl plotters::coord::ranged1d::ValueFormatter<f64> for Groups {
    fn format(value: &f64) -> String {
        value.to_string()
    }
}

impl Chart {
    fn draw(&self) -> Result<String, Box<dyn std::error::Error>> {
        let bars = self.bars();
        let axis = Groups {
            stride: self.names.len() as f64 + 1.0,
            count: self.groups.len(),
        };
        let stride = axis.stride;
        let label = |value: &f64| {
            let group = self.groups.get((value / stride) as usize);
            group.map_or(String::new(), |(label, _)| label.clone())
        };
        let top = bars.iter().map(|bar| bar.summary.max).fold(1.0, f64::max) * 1.3;
        let title = LETTER * self.title.chars().count() as u32;
        let labels = self
            .groups
            .iter()
            .map(|(label, _)| label.chars().count() as u32);
        let group = (BAR * stride as u32).max(LETTER * (labels.max().unwrap_or_default() + 2));
        let width = (group * self.groups.len() as u32 + MARGINS).max(title + MARGINS / 2);
        let mut svg = String::new();
        {
            let area = SVGBackend::with_string(&mut svg, (width, HEIGHT)).into_drawing_area();
            area.fill(&WHITE)?;
            let mut chart = ChartBuilder::on(&area)
                .caption(&self.title, ("sans-serif", 18))
                .margin(12)
                .x_label_area_size(30)
                .y_label_area_size(50)
                .build_cartesian_2d(axis, 0.0..top)?;
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(TRANSPARENT)
                .x_label_formatter(&label)
                .y_desc(&self.unit)
                .label_style(("sans-serif", 12))
                .draw()?;
            for (contestant, name) in self.names.iter().enumerate() {
                let colour = COLOURS[contestant % COLOURS.len()];
                let own = || bars.iter().filter(|bar| bar.contestant == contestant);
                chart
                    .draw_series(own().map(|bar| {
                        let corners = [(bar.at - 0.45, 0.0), (bar.at + 0.45, bar.summary.figure)];
                        Rectangle::new(corners, colour.filled())
                    }))?
                    .label(name)
                    .legend(move |(x, y)| {
                        Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour.filled())
                    });
                chart.draw_series(own().map(|bar| {
                    PathElement::new(
                        vec![(bar.at, bar.summary.min), (bar.at, bar.summary.max)],
                        BLACK,
                    )
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> Chart {
        let bar = |median| Summary::of([median - 1.0, median, median + 1.0]);
        Chart {
            title: "a & b".into(),
            unit: "MiB".into(),
            names: vec!["vswitch".into(), "testpmd".into()],
            groups: vec![
                ("2 ports".into(), vec![bar(31.0), bar(20.0)]),
                ("16 ports".into(), vec![None, bar(40.0)]),
            ],
        }
    }

    #[test]
    fn bars_stand_where_there_are_figures() {
        let bars = chart().bars();
        let places: Vec<_> = bars.iter().map(|bar| (bar.at, bar.contestant)).collect();
        assert_eq!(places, [(0.0, 0), (1.0, 1), (4.0, 1)]);
        assert_eq!(bars[0].summary.max, 32.0);
    }

    #[test]
    fn the_chart_is_an_svg_with_every_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("chart.svg");
        chart().write(&path).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["vswitch", "testpmd", "MiB", "16 ports", "a &amp; b"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(chart().write(Path::new("/nowhere/chart.svg")).is_err());
    }

    #[test]
    fn nothing_measured_is_still_a_chart() {
        let mut chart = chart();
        chart.groups.clear();
        assert!(chart.draw().unwrap().contains("</svg>"));
    }
}
