//! Lines over time or size, in panels one above the other. Drawn as SVG.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::chart::COLOURS;
use crate::{Error, Result};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 300;

/// A panel.
#[derive(Clone, Debug)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Along the axes.
    pub axes: [String; 2],
    /// Powers of ten along the x axis.
    pub log: bool,
    /// Name and points of each line, by x.
    pub lines: Vec<(String, Vec<(f64, f64)>)>,
}

/// Writes panels to an SVG file.
pub fn write(panels: &[Panel], path: &Path) -> Result<()> {
    let svg = draw(panels).map_err(|error| Error::Plot(error.to_string()))?;
    std::fs::write(path, svg).map_err(Error::io(format!("write {}", path.display())))
}

type Drawn<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn draw(panels: &[Panel]) -> Drawn<String> {
    let mut svg = String::new();
    {
        let height = HEIGHT * panels.len().max(1) as u32;
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        for (panel, area) in panels
            .iter()
            .zip(area.split_evenly((panels.len().max(1), 1)))
        {
            panel.draw(&area).map_err(|error| error.to_string())?;
        }
        area.present()?;
    }
    Ok(svg)
}

impl Panel {
    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Drawn<()> {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let end = points().map(|point| point.0).fold(1.0, f64::max);
        let top = points().map(|point| point.1).fold(0.1, f64::max) * 1.1;
        let place = |x: f64| if self.log { x.max(1.0).log10() } else { x };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(36)
            .y_label_area_size(50)
            .build_cartesian_2d(0.0..place(end), 0.0..top)
            .map_err(|error| error.to_string())?;
        let label = |x: &f64| match self.log {
            true => format!("{:.0}", 10f64.powf(*x)),
            false => format!("{x:.0}"),
        };
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .x_label_formatter(&label)
            .x_desc(&self.axes[0])
            .y_desc(&self.axes[1])
            .label_style(("sans-serif", 12))
            .draw()
            .map_err(|error| error.to_string())?;
        for (number, (name, points)) in self.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let points = points.iter().map(|(x, y)| (place(*x), *y));
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|error| error.to_string())?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE)
            .border_style(BLACK)
            .label_font(("sans-serif", 12))
            .draw()
            .map_err(|error| error.to_string())?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_show_their_names() {
        let panel = |title: &str, log| Panel {
            title: title.into(),
            axes: ["ms".into(), "load".into()],
            log,
            lines: vec![("ours & theirs".into(), vec![(0.0, 0.5), (100.0, 0.7)])],
        };
        let svg = draw(&[panel("over time", false), panel("by size", true)]).unwrap();
        for text in ["over time", "by size", "ours &amp; theirs", "load"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert!(write(&[], Path::new("/nowhere/lines.svg")).is_err());
    }
}
