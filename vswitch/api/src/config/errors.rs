//! Problems of a configuration and how they are told.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every problem found in a configuration, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ConfigErrors {
    /// The name of the file, as it was given.
    pub file: String,
    /// The problems.
    pub problems: Vec<Problem>,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The key it is about, with dots: `ports.vm1.vhost-user.socket`. Empty for the whole file.
    pub key: String,
    /// Where that is; absent when it did not come from a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: String,
}

/// A place in a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1, in characters.
    pub column: u32,
    /// How many characters it is about, at least 1; ends with the line.
    pub length: u32,
    /// The line itself.
    pub text: String,
}

impl ConfigErrors {
    /// How many problems there are.
    pub fn len(&self) -> usize {
        self.problems.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }
}

impl std::error::Error for ConfigErrors {}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            problem.write(f, &self.file)?;
        }
        Ok(())
    }
}

impl Problem {
    fn write(&self, f: &mut fmt::Formatter<'_>, file: &str) -> fmt::Result {
        let Some(place) = &self.place else {
            let colon = if self.key.is_empty() { "" } else { ": " };
            return write!(f, "{}{colon}{}; {}", self.key, self.message, self.help);
        };
        let Place { line, column, .. } = place;
        let margin = line.to_string().len();
        let (text, before, length) = place.window();
        writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
        writeln!(f, "{:margin$} |", "")?;
        writeln!(f, "{line} | {text}")?;
        writeln!(f, "{:margin$} | {before}{}", "", "^".repeat(length))?;
        write!(f, "{:margin$} = {}", "", self.help)
    }
}

/// Characters of a line that are shown.
const WINDOW: usize = 120;

impl Place {
    /// The part of the line to show, what to put before the caret, and the caret's length. Of a
    /// long line, as JSON has them, it is the part around the place.
    fn window(&self) -> (String, String, usize) {
        let (at, length) = (self.column as usize - 1, self.length as usize);
        let count = self.text.chars().count();
        let from = if count <= WINDOW {
            0
        } else {
            at.saturating_sub(WINDOW / 3)
        };
        let mut text: String = self.text.chars().skip(from).take(WINDOW).collect();
        let mut before: String = text
            .chars()
            .take(at - from)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        if from > 0 {
            text.insert(0, '…');
            before.insert(0, ' ');
        }
        if count > from + WINDOW {
            text.push('…');
        }
        (
            text,
            before,
            length.min(WINDOW - (at - from).min(WINDOW - 1)),
        )
    }
}
