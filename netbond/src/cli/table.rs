//! Aligned columns for people.

use std::fmt;

/// Rows under a heading; numbers to the right, words to the left.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let cells = |column: usize| self.rows.iter().filter_map(move |row| row.get(column));
        let width = |column| {
            cells(column)
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let number = |cell: &String| cell == "-" || cell.parse::<f64>().is_ok();
        let numeric = |column| cells(column).count() > 1 && cells(column).skip(1).all(number);
        let layout: Vec<(usize, bool)> = (0..columns).map(|c| (width(c), numeric(c))).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, &(width, numeric)) in row.iter().zip(&layout) {
                if !line.is_empty() {
                    line.push_str("  ");
                }
                line += &if numeric {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_to_the_right() {
        let mut table = Table::new(&["NAME", "N", "ADDRESS"]);
        table.row(["a".to_owned(), "7".to_owned(), "via x".to_owned()]);
        table.row(["long".to_owned(), "123".to_owned(), "-".to_owned()]);
        assert_eq!(
            table.to_string(),
            "NAME    N  ADDRESS\na       7  via x\nlong  123  -\n"
        );
    }
}
