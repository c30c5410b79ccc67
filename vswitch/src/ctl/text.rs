//! How numbers, times and tables look.

use std::fmt::Write as _;

/// Puts colour on words, or does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    colour: bool,
}

impl Paint {
    /// With colour on a terminal, unless the user has `NO_COLOR` set.
    pub(super) fn new(terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: terminal && !unwanted,
        }
    }

    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self { colour: false }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    pub(super) fn waiting(self, text: &str) -> String {
        self.paint("33", text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(super) fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Characters that a terminal shows: escape sequences have none.
fn width(text: &str) -> usize {
    let mut inside = false;
    let mut count = 0;
    for c in text.chars() {
        match c {
            '\x1b' => inside = true,
            'm' if inside => inside = false,
            _ if inside => {}
            _ => count += 1,
        }
    }
    count
}

/// Columns under headings.
pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A heading that begins with `>` is a column of numbers, aligned to the right.
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    pub(super) fn render(&self, paint: Paint) -> String {
        let head: Vec<&str> = self
            .head
            .iter()
            .map(|h| h.trim_start_matches('>'))
            .collect();
        let widths: Vec<usize> = (0..head.len())
            .map(|at| {
                let cells = self
                    .rows
                    .iter()
                    .filter_map(|row| row.get(at))
                    .map(|cell| width(cell));
                cells.chain([width(head[at])]).max().unwrap_or(0)
            })
            .collect();
        let mut out = String::new();
        let mut line = |cells: Vec<String>| {
            let mut text = String::new();
            for (at, cell) in cells.iter().enumerate() {
                let gap = " ".repeat(
                    widths
                        .get(at)
                        .copied()
                        .unwrap_or(0)
                        .saturating_sub(width(cell)),
                );
                let right = self.head.get(at).is_some_and(|h| h.starts_with('>'));
                let between = if at == 0 { "" } else { "  " };
                let cell = if right {
                    format!("{gap}{cell}")
                } else {
                    format!("{cell}{gap}")
                };
                text += between;
                text += &cell;
            }
            // Never fails: it writes to a String.
            let _ = writeln!(out, "{}", text.trim_end());
        };
        line(head.iter().map(|h| paint.strong(h)).collect());
        self.rows.iter().for_each(|row| line(row.clone()));
        out
    }
}

/// Words, wrapped at 100 columns, later lines indented by `indent`.
pub(super) fn wrapped(first: &str, indent: usize, words: &[String]) -> String {
    let mut out = first.to_owned();
    let mut column = width(first);
    for (at, word) in words.iter().enumerate() {
        if at > 0 && column + 1 + width(word) > 100 {
            out += "\n";
            out += &" ".repeat(indent);
            column = indent;
        } else if at > 0 {
            out.push(' ');
            column += 1;
        }
        out += word;
        column += width(word);
    }
    out
}

/// `1 address`, `2 addresses`.
pub(super) fn counted(n: u64, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// A span of time, in its two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let (d, h, m, s) = (
        seconds / 86_400,
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60,
    );
    match (d, h, m) {
        (0, 0, 0) => format!("{s} s"),
        (0, 0, _) if s == 0 => format!("{m} min"),
        (0, 0, _) => format!("{m} min {s} s"),
        (0, _, 0) => format!("{h} h"),
        (0, ..) => format!("{h} h {m} min"),
        (_, 0, _) => format!("{d} d"),
        _ => format!("{d} d {h} h"),
    }
}

/// Three digits and a decimal prefix: `1.25 M`, `999`; ends with a space before the unit.
pub(super) fn scaled(value: f64) -> String {
    if !value.is_finite() || value < 0.5 {
        return "0 ".into();
    }
    let mut value = value;
    let mut prefix = "";
    for next in ["k", "M", "G", "T"] {
        // What rounds to 1000 belongs to the next prefix.
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        prefix = next;
    }
    let digits = match value {
        _ if prefix.is_empty() => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {prefix}")
}

/// Bytes of memory, in binary units.
pub(super) fn memory(bytes: u64) -> String {
    let units = [(1u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    for (size, unit) in units {
        if bytes >= size {
            let value = bytes as f64 / size as f64;
            let digits = usize::from(!bytes.is_multiple_of(size));
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

/// A number with its thousands apart.
pub(super) fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time() {
        let shown: Vec<String> = [0, 59, 60, 61, 3600, 3661, 86_400, 90_000, 8_640_000]
            .map(duration)
            .into();
        assert_eq!(
            shown,
            [
                "0 s",
                "59 s",
                "1 min",
                "1 min 1 s",
                "1 h",
                "1 h 1 min",
                "1 d",
                "1 d 1 h",
                "100 d"
            ]
        );
    }

    #[test]
    fn numbers_have_three_digits() {
        let shown: Vec<String> = [
            0.0,
            0.4,
            7.0,
            999.0,
            999.7,
            1250.0,
            12_345.0,
            999_999.0,
            1.5e9,
            f64::NAN,
            -1.0,
        ]
        .map(scaled)
        .into();
        assert_eq!(
            shown,
            [
                "0 ", "0 ", "7 ", "999 ", "1.00 k", "1.25 k", "12.3 k", "1.00 M", "1.50 G", "0 ",
                "0 "
            ]
        );
        assert_eq!(memory(512 << 20), "512 MiB");
        assert_eq!(memory((5 << 30) / 2), "2.5 GiB");
        assert_eq!(memory(100), "100 B");
        assert_eq!(
            [grouped(7), grouped(1000), grouped(1_234_567)],
            ["7", "1,000", "1,234,567"]
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let table = |paint: Paint| {
            let mut table = Table::new(&["NAME", ">N"]);
            table.row([paint.good("a"), "10".into()]);
            table.row(["long".into(), "7".into()]);
            table.render(paint)
        };
        let plain = table(Paint::plain());
        assert_eq!(plain, "NAME   N\na     10\nlong   7\n");
        let coloured = table(Paint { colour: true });
        assert_ne!(coloured, plain);
        let stripped: String = coloured
            .split('\x1b')
            .map(|part| {
                part.split_once('m')
                    .filter(|_| part.starts_with('['))
                    .map_or(part, |(_, rest)| rest)
            })
            .collect();
        assert_eq!(stripped, plain);
    }
}
