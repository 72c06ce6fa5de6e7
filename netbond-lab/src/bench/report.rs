//! The figures as tables, in text and as a page with plots.

use std::fmt::{self, Write as _};

use super::figures::Row;

/// Figures to show.
#[derive(Clone, Debug)]
pub struct Report(pub Vec<Row>);

/// What is plotted without an ideal: parts of its names.
const PLOTTED: [&str; 4] = ["-cost", "outage-", "failures-", "drop-"];

/// A scenario's figures: a row for each system, a column for each quantity.
struct Table<'a> {
    scenario: &'a str,
    systems: Vec<&'a str>,
    /// Name and unit.
    measures: Vec<(&'a str, &'a str)>,
    rows: Vec<&'a Row>,
}

impl Report {
    fn tables(&self) -> Vec<Table<'_>> {
        let mut tables: Vec<Table<'_>> = Vec::new();
        for row in &self.0 {
            let found = tables
                .iter()
                .position(|table| table.scenario == row.scenario);
            let index = found.unwrap_or_else(|| {
                tables.push(Table {
                    scenario: &row.scenario,
                    systems: Vec::new(),
                    measures: Vec::new(),
                    rows: Vec::new(),
                });
                tables.len() - 1
            });
            let table = &mut tables[index];
            if !table.systems.contains(&row.system.as_str()) {
                table.systems.push(&row.system);
            }
            let measure = (row.measure.as_str(), row.unit.as_str());
            if !table.measures.contains(&measure) {
                table.measures.push(measure);
            }
            table.rows.push(row);
        }
        tables
    }

    /// A page of HTML that needs nothing else. `title` says where the figures come from.
    pub fn html(&self, title: &str) -> String {
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>netbond: comparison</title>\n<style>\n{STYLE}</style>\n\
             <h1>netbond beside other ways to join paths</h1>\n<p>{}</p>\n",
            escaped(title)
        );
        for table in self.tables() {
            let _ = writeln!(page, "<h2>{}</h2>", escaped(table.scenario));
            for (measure, unit) in &table.measures {
                page += &table.plot(measure, unit);
            }
            page += &table.html();
        }
        page
    }
}

impl<'a> Table<'a> {
    fn row(&self, system: &str, measure: &str) -> Option<&'a Row> {
        let mut rows = self.rows.iter();
        rows.find(|row| row.system == system && row.measure == measure)
            .copied()
    }

    /// Bars of a quantity for each system: the share of the ideal where it has one, and what is [`PLOTTED`].
    fn plot(&self, measure: &str, unit: &str) -> String {
        let rows: Vec<&Row> = self
            .systems
            .iter()
            .filter_map(|system| self.row(system, measure))
            .collect();
        let shares: Option<Vec<f64>> = rows.iter().map(|row| row.ideal_share).collect();
        let (what, most, bars): (String, f64, Vec<(f64, String)>) = if let Some(shares) = shares {
            let bars = shares
                .into_iter()
                .map(|share| (share, format!("{:.1} %", share * 100.0)));
            (
                format!("{measure}, share of the ideal"),
                1.0,
                bars.collect(),
            )
        } else if PLOTTED.iter().any(|part| measure.contains(part)) {
            let bars = rows.iter().map(|row| (row.median, number(row.median)));
            let most = rows.iter().map(|row| row.median).fold(0.0, f64::max);
            (format!("{measure}, {unit}"), most, bars.collect())
        } else {
            return String::new();
        };
        let systems: Vec<&str> = rows.iter().map(|row| row.system.as_str()).collect();
        plot(&what, &systems, &bars, most)
    }

    fn html(&self) -> String {
        let mut text = "<div class=\"table\"><table>\n<tr><th>system".to_owned();
        for (measure, unit) in &self.measures {
            let _ = write!(text, "<th>{}<br>{}", escaped(measure), escaped(unit));
        }
        text.push('\n');
        for system in &self.systems {
            let _ = write!(text, "<tr><th>{}", escaped(system));
            for (measure, _) in &self.measures {
                let cell = self
                    .row(system, measure)
                    .map_or_else(|| "–".to_owned(), cell);
                let _ = write!(text, "<td>{cell}");
            }
            text.push('\n');
        }
        text + "</table></div>\n"
    }
}

/// A median, and the range where it was measured more than once.
fn cell(row: &Row) -> String {
    let mut text = number(row.median);
    if row.runs > 1 && number(row.min) != number(row.max) {
        let _ = write!(text, " ({} to {})", number(row.min), number(row.max));
    }
    text
}

/// Three digits, or all of those before the point.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// Bars below each other, as SVG.
fn plot(what: &str, names: &[&str], bars: &[(f64, String)], most: f64) -> String {
    const WIDTH: f64 = 640.0;
    const LEFT: f64 = 120.0;
    const RIGHT: f64 = 70.0;
    const STEP: f64 = 22.0;
    let height = STEP * bars.len() as f64 + 4.0;
    let room = WIDTH - LEFT - RIGHT;
    let mut svg = format!(
        "<figure><figcaption>{}</figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n",
        escaped(what),
        escaped(what)
    );
    for (index, (name, (value, label))) in names.iter().zip(bars).enumerate() {
        let top = STEP * index as f64 + 2.0;
        let width = if most > 0.0 {
            room * (value / most).clamp(0.0, 1.0)
        } else {
            0.0
        };
        let class = if name.starts_with("netbond") {
            "own"
        } else {
            "other"
        };
        let middle = top + 13.0;
        let _ = writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{middle:.0}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{LEFT}\" y=\"{top:.0}\" width=\"{width:.1}\" height=\"18\"/>\
             <text x=\"{:.1}\" y=\"{middle:.0}\">{}</text>",
            LEFT - 6.0,
            escaped(name),
            LEFT + width + 5.0,
            escaped(label)
        );
    }
    svg + &format!(
        "<line x1=\"{LEFT}\" y1=\"0\" x2=\"{LEFT}\" y2=\"{height}\"/>\n</svg></figure>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const STYLE: &str = "\
:root { color-scheme: light dark; --own: #1f6feb; --other: #9aa4b0; }
@media (prefers-color-scheme: dark) { :root { --own: #58a6ff; --other: #6b7684; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em; }
figure { margin: 1em 0; }
figcaption { font-weight: 600; }
svg { width: 100%; max-width: 640px; }
svg text { fill: currentColor; font-size: 12px; }
svg line { stroke: currentColor; }
.own { fill: var(--own); }
.other { fill: var(--other); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; }
th, td { padding: .25em .6em; border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
th { text-align: left; vertical-align: bottom; }
td { text-align: right; white-space: nowrap; }
";

impl fmt::Display for Report {
    /// The medians, and behind them the share of the ideal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, table) in self.tables().iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            writeln!(f, "{}", table.scenario)?;
            let mut lines = vec![vec!["".to_owned()]];
            lines[0].extend(table.systems.iter().map(|&system| system.to_owned()));
            for &(measure, unit) in &table.measures {
                let mut line = vec![format!("{measure}, {unit}")];
                for system in &table.systems {
                    line.push(match table.row(system, measure) {
                        None => "-".to_owned(),
                        Some(row) => match row.ideal_share {
                            None => cell(row),
                            Some(share) => format!("{} {:.0} %", cell(row), share * 100.0),
                        },
                    });
                }
                lines.push(line);
            }
            let columns = lines[0].len();
            let widths: Vec<usize> = (0..columns)
                .map(|column| {
                    let cells = lines.iter().map(|line| line[column].chars().count());
                    cells.max().unwrap_or(0)
                })
                .collect();
            for line in lines {
                let mut text = String::new();
                for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
                    if column == 0 {
                        let _ = write!(text, "{cell:<width$}");
                    } else {
                        let _ = write!(text, "  {cell:>width$}");
                    }
                }
                writeln!(f, "  {}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(system: &str, measure: &str, median: f64, share: Option<f64>) -> Row {
        Row {
            system: system.to_owned(),
            scenario: "equal2".to_owned(),
            measure: measure.to_owned(),
            unit: "Mbit/s".to_owned(),
            runs: 2,
            min: median,
            median,
            max: median + 1.0,
            ideal_share: share,
        }
    }

    fn report() -> Report {
        Report(vec![
            row("path", "tcp-cubic-goodput", 9.0, Some(0.5)),
            row("netbond", "tcp-cubic-goodput", 17.0, Some(0.95)),
            row("netbond", "udp-lost", 0.0, None),
        ])
    }

    #[test]
    fn text_has_a_column_for_each_system() {
        assert_eq!(
            report().to_string(),
            "equal2\n                                                 path                   netbond\n  \
             tcp-cubic-goodput, Mbit/s  9.00 (9.00 to 10.0) 50 %  17.0 (17.0 to 18.0) 95 %\n  \
             udp-lost, Mbit/s                                  -             0 (0 to 1.00)\n"
        );
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = report().html("Linux 6.12 & more");
        assert!(page.contains("Linux 6.12 &amp; more"));
        assert!(page.contains(">95.0 %</text>"), "{page}");
        assert!(page.contains("<td>17.0 (17.0 to 18.0)"), "{page}");
        for foreign in ["http", "<script", "src=", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
    }

    #[test]
    fn what_failures_and_drops_cost_is_plotted() {
        let lost = row("netbond", "failures-lost", 7.0, None);
        let back = row("netbond", "drop-recovery", 400.0, None);
        let page = Report(vec![lost, back, row("netbond", "udp-lost", 1.0, None)]).html("");
        assert_eq!(page.matches("<figure>").count(), 2, "{page}");
        assert!(page.contains(">400</text>"), "{page}");
    }

    #[test]
    fn a_bar_ends_within_its_plot() {
        let svg = plot("x", &["a"], &[(1.2, "120 %".to_owned())], 1.0);
        assert!(svg.contains("width=\"450.0\""), "{svg}");
    }
}
