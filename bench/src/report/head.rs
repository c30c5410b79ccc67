//! What every report begins with, and how its figures are set in columns.

use serde::Serialize;

use crate::machine::Notes;

/// What was measured, on what, and who took part.
#[derive(Clone, Debug, Serialize)]
pub struct Head {
    /// Its name on the command line.
    pub experiment: String,
    /// What it measures.
    pub title: String,
    /// On what.
    pub machine: Notes,
    /// Name and description of who took part, the switch first.
    pub contestants: Vec<(String, String)>,
    /// Who did not, and why.
    pub skipped: Vec<String>,
}

impl Head {
    /// The head as text: title, machine, contestants. An empty line comes last.
    pub fn render(&self) -> String {
        let mut lines = vec![
            String::new(),
            format!("{}: {}", self.experiment, self.title),
        ];
        lines.extend(super::table::machine_lines(&self.machine));
        let about = self.contestants.iter();
        lines.extend(about.map(|(name, about)| format!("{name:12} {about}").trim_end().to_owned()));
        lines.push("\n".into());
        lines.join("\n")
    }

    /// Who took part.
    pub fn names(&self) -> Vec<String> {
        let names = self.contestants.iter();
        names.map(|(name, _)| name.clone()).collect()
    }

    /// Who was left out, a line each.
    pub fn not_measured(&self) -> String {
        let lines = self.skipped.iter();
        lines
            .map(|reason| format!("Not measured: {reason}\n"))
            .collect()
    }
}

/// Sets rows in columns, two spaces between them: the first `left` columns to the left, the others to the right. The
/// first row is the heading.
pub fn columns(rows: &[Vec<String>], left: usize) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).enumerate();
        let cells: Vec<_> = cells
            .map(|(column, (cell, &width))| match column < left {
                true => format!("{cell:width$}"),
                false => format!("{cell:>width$}"),
            })
            .collect();
        text += cells.join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [
            ["who", "MiB", "of it"],
            ["vswitch", "7", ""],
            ["a", "1234", "0.5"],
        ];
        let rows = rows.map(|row| row.map(String::from).to_vec());
        assert_eq!(
            columns(&rows, 1),
            "who       MiB  of it\nvswitch     7\na        1234    0.5\n"
        );
        assert_eq!(columns(&[], 1), "");
    }

    #[test]
    fn the_head_names_everybody() {
        let report = crate::report::testing::report();
        let head = Head {
            experiment: "idle".into(),
            title: "nothing".into(),
            machine: report.machine,
            contestants: report.contestants,
            skipped: report.skipped,
        };
        let text = head.render();
        assert!(
            text.contains("\nidle: nothing\n") && text.contains("\ntestpmd      testpmd 1.0\n")
        );
        assert!(text.ends_with("\n\n"));
        assert_eq!(head.not_measured(), "Not measured: mover: on holiday\n");
    }
}
