//! Aligned columns for people.

use std::fmt;

use anstyle::Style;

/// A cell: its text, and how it looks where the output has colours.
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    pub(super) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self {
            text: text.into(),
            style,
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Rows under a heading; numbers to the right, words to the left.
pub(super) struct Table {
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|&cell| cell.into()).collect()],
        }
    }

    pub(super) fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

/// Numbers as `format::count` writes them, too.
fn is_number(cell: &Cell) -> bool {
    let digits = cell.text.trim_end_matches(['k', 'M', 'G', 'T', 'P', 'E']);
    cell.text == "-" || digits.parse::<f64>().is_ok()
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column| {
            cells(column)
                .map(|cell| cell.text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let numeric = |column| cells(column).count() > 1 && cells(column).skip(1).all(is_number);
        let layout: Vec<(usize, bool)> = (0..columns).map(|c| (width(c), numeric(c))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, &(width, numeric)) in row.iter().zip(&layout) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                let Cell { text, style } = cell;
                let fill = " ".repeat(width.saturating_sub(text.chars().count()));
                let (before, after) = if numeric {
                    (fill.as_str(), "")
                } else {
                    ("", fill.as_str())
                };
                line += &format!("{before}{style}{text}{style:#}{after}");
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use anstyle::AnsiColor;

    use super::*;

    #[test]
    fn numbers_to_the_right() {
        let mut table = Table::new(&["NAME", "N", "ADDRESS"]);
        table.row(["a", "7", "via x"]);
        table.row(["long", "1.23M", "-"]);
        assert_eq!(
            table.to_string(),
            "NAME      N  ADDRESS\na         7  via x\nlong  1.23M  -\n"
        );
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(&["STATE", "N"]);
        let red = AnsiColor::Red.on_default();
        table.row([Cell::styled("up", red), "7".into()]);
        assert_eq!(table.to_string(), "STATE  N\n\u{1b}[31mup\u{1b}[0m     7\n");
    }
}
