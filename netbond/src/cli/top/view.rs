//! What `netbond top` draws. It needs 80 columns and 24 lines to be at ease.

use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use netbond_common::names::Mode;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Paragraph, Sparkline},
};

use super::{app::App, dialog};
use crate::{
    cli::{
        events::line,
        format::{clock, count, number, percent, since},
        merit::{self, Merit},
    },
    status::{Bond, Path},
};

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const FAINT: Style = Style::new().add_modifier(Modifier::DIM);
const GOOD: Style = Style::new().fg(Color::Green);
const DOUBTFUL: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const TX: Style = Style::new().fg(Color::Cyan);
const RX: Style = Style::new().fg(Color::Magenta);

const fn style(merit: Merit) -> Style {
    match merit {
        Merit::Good => GOOD,
        Merit::Plain => Style::new(),
        Merit::Doubtful => DOUBTFUL,
        Merit::Bad => BAD,
    }
}

/// Lines of events that are left where there are many paths.
const LEAST_EVENTS: u16 = 3;
/// Lines about the chosen path, under its name.
const DETAILS: u16 = 5;
/// Lines of what the last action led to.
const LONGEST_MESSAGE: u16 = 6;
/// Columns of the shortest name that is shown as it is, and of the longest where there is room.
const NAME: (u16, u16) = (8, 31);
/// Columns of everything in a path's row but its name and its two sparklines.
const FIXED: u16 = 1 + 1 + 9 + 9 + 1 + 9 + 1 + 8 + 7 + 7;
/// Columns of a sparkline.
const SPARK: (u16, u16) = (6, 40);

const KEYS: &str =
    "q quit  ? help  \u{2191}\u{2193} path  Tab bond  d take out  u take back  w weight  m mode";

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App) {
    let columns = usize::from(frame.area().width);
    let said = app.message.as_ref();
    let words = said.map_or_else(Vec::new, |said| wrapped(&said.text, columns));
    let height = u16::try_from(words.len()).unwrap_or(u16::MAX);
    let [header, body, message, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(height.clamp(1, LONGEST_MESSAGE)),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(headline(app, header.width), header);
    match &app.status {
        Ok(_) => draw_bond(frame, app, body),
        Err(why) => frame.render_widget(Paragraph::new(why.as_str()).style(BAD), body),
    }
    if let Some(said) = said {
        let style = if said.good { GOOD } else { BAD };
        frame.render_widget(Paragraph::new(words.join("\n")).style(style), message);
    }
    frame.render_widget(Line::styled(KEYS, FAINT), keys);
    if let Some(dialog) = &app.dialog {
        dialog::draw(frame, dialog);
    }
}

/// Who keeps the maps true, and when they were read.
fn headline(app: &App, width: u16) -> Line<'_> {
    let mut spans = vec![Span::styled("netbond top", BOLD), Span::raw("  ")];
    if let Ok(status) = &app.status {
        let read = UNIX_EPOCH + Duration::from_secs_f64(status.at.max(0.0));
        // To the second: that is how often it is read.
        let at: String = clock(read).chars().take_while(|&c| c != '.').collect();
        spans.push(if status.controller.running {
            Span::raw(format!("controller: pid {}", status.controller.pid))
        } else {
            let text = "NO CONTROLLER RUNS: states, RTT and losses are the last one's word";
            Span::styled(text, BAD)
        });
        let used: usize = spans.iter().map(Span::width).sum();
        let rest = usize::from(width).saturating_sub(used);
        if rest > at.len() {
            spans.push(Span::raw(format!("{at:>rest$}")));
        }
    }
    Line::from(spans)
}

fn draw_bond(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let Some((bond, at, bonds)) = app.bond() else {
        frame.render_widget(Line::raw("There is no bond."), area);
        return;
    };
    let complaints = u16::from(!bond.disagreements.is_empty());
    let others = 1 + complaints + 1 + 1 + DETAILS + 1 + LEAST_EVENTS;
    let rows = u16::try_from(bond.paths.len()).unwrap_or(u16::MAX);
    let rows = rows.min(area.height.saturating_sub(others).max(1));
    let [heading, complaint, paths, details, events] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(complaints),
        Constraint::Length(1 + rows),
        Constraint::Length(1 + DETAILS),
        Constraint::Fill(1),
    ])
    .areas(area);
    frame.render_widget(bond_line(bond, at, bonds), heading);
    frame.render_widget(Line::styled(bond.disagreements.join("; "), BAD), complaint);
    draw_paths(frame, app, bond, paths);
    draw_details(frame, app, details);
    draw_events(frame, app, events);
}

fn bond_line(bond: &Bond, at: usize, bonds: usize) -> Line<'_> {
    let used = bond.paths.iter().filter(|path| path.in_use).count();
    let (state, merit) = merit::of_bond(bond);
    let style = style(merit);
    let mut spans = vec![
        Span::styled(bond.name.as_str(), BOLD),
        Span::raw(": "),
        Span::styled(state, style),
    ];
    if bonds > 1 {
        spans.insert(1, Span::raw(format!(" ({}/{bonds})", at + 1)));
    }
    let total = |of: fn(&Path) -> Option<u64>| {
        let rates: Option<u64> = bond.paths.iter().map(of).sum();
        rates.map_or_else(|| "-".to_owned(), |bytes| count(8 * bytes))
    };
    if !bond.device_up {
        spans.push(Span::styled(", device not up", BAD));
    }
    spans.push(Span::raw(format!(", {used}/{} in use", bond.paths.len())));
    match &bond.peer {
        Some(peer) if peer.reachable => spans.push(Span::raw(", peer reachable")),
        Some(_) => spans.push(Span::styled(", peer UNREACHABLE", BAD)),
        None => {}
    }
    spans.push(Span::raw(format!(
        ", {}, TX {} RX {} bit/s",
        bond.mode,
        total(|path| Some(path.rate.as_ref()?.tx_bytes_per_second)),
        total(|path| Some(path.rate.as_ref()?.rx_bytes_per_second)),
    )));
    Line::from(spans)
}

/// How the paths' rows are divided.
struct Columns {
    name: u16,
    spark: u16,
}

impl Columns {
    fn of(bond: &Bond, width: u16) -> Self {
        let longest = bond
            .paths
            .iter()
            .map(|path| path.name.chars().count())
            .max();
        let longest = u16::try_from(longest.unwrap_or(0)).unwrap_or(NAME.1);
        // What is too narrow for both is cut at the right.
        let room = width.saturating_sub(FIXED + 2 * SPARK.0);
        let name = longest.clamp(NAME.0, room.clamp(NAME.0, NAME.1));
        let spark = (width.saturating_sub(FIXED + name) / 2).clamp(SPARK.0, SPARK.1);
        Self { name, spark }
    }

    /// Mark and name, state, TX, its sparkline, RX, its sparkline, the rest.
    fn split(&self, row: Rect) -> [Rect; 7] {
        let widths = [2 + self.name, 9, 9, 1 + self.spark, 9, 1 + self.spark, 22];
        Layout::horizontal(widths.map(Constraint::Length)).areas(row)
    }
}

fn draw_paths(frame: &mut Frame<'_>, app: &App, bond: &Bond, area: Rect) {
    let columns = Columns::of(bond, area.width);
    let [heading, rows] =
        Layout::vertical([Constraint::Length(1), Constraint::Fill(1)]).areas(area);
    let cells = columns.split(heading);
    for (cell, title) in cells.into_iter().zip([
        "  PATH".to_owned(),
        "STATE".to_owned(),
        " TX bit/s".to_owned(),
        String::new(),
        " RX bit/s".to_owned(),
        String::new(),
        format!("{:>8}{:>7}{:>7}", "RTT ms", "LOST %", "DUE %"),
    ]) {
        frame.render_widget(Line::styled(title, FAINT), cell);
    }
    let shown = usize::from(rows.height);
    let chosen = app.path().map_or(0, |(_, at)| at);
    // The chosen one is always among those that are shown.
    let first = chosen.saturating_sub(shown.saturating_sub(1));
    let history = |path: &Path| app.history.get(&path.name);
    let highest = |kept: &VecDeque<u64>| {
        kept.iter()
            .rev()
            .take(usize::from(columns.spark))
            .max()
            .copied()
    };
    let of_both = |path| {
        let kept = history(path)?;
        highest(&kept.tx).max(highest(&kept.rx))
    };
    let scale = bond
        .paths
        .iter()
        .filter_map(of_both)
        .max()
        .unwrap_or(0)
        .max(1);
    let paths = bond.paths.iter().enumerate().skip(first).take(shown);
    for ((at, path), row) in paths.zip(rows.rows()) {
        let [name, state, tx, tx_line, rx, rx_line, rest] = columns.split(row);
        let mark = if at == chosen { "> " } else { "  " };
        let style = if at == chosen { BOLD } else { Style::new() };
        let short = shortened(&path.name, usize::from(columns.name));
        frame.render_widget(Line::styled(format!("{mark}{short}"), style), name);
        frame.render_widget(state_of(path), state);
        let rate = path.rate.as_ref();
        let bits = |bytes: Option<u64>| {
            let bits = bytes.map_or_else(|| "-".to_owned(), |bytes| count(8 * bytes));
            Line::raw(format!("{bits:>9}"))
        };
        frame.render_widget(bits(rate.map(|rate| rate.tx_bytes_per_second)), tx);
        frame.render_widget(bits(rate.map(|rate| rate.rx_bytes_per_second)), rx);
        if let Some(kept) = history(path) {
            draw_spark(frame, &kept.tx, scale, TX, tx_line);
            draw_spark(frame, &kept.rx, scale, RX, rx_line);
        }
        let probe = path.probe_now();
        let rest_of_row = format!(
            "{:>8}{:>7}{:>7}",
            number(probe.map(|probe| probe.rtt_ms), 2),
            percent(probe.map(|probe| probe.loss_there)),
            percent(path.due_share)
        );
        frame.render_widget(Line::raw(rest_of_row), rest);
    }
}

/// The newest at the right; one column is left free before it.
fn draw_spark(frame: &mut Frame<'_>, kept: &VecDeque<u64>, scale: u64, style: Style, area: Rect) {
    let width = usize::from(area.width.saturating_sub(1));
    let missing = width.saturating_sub(kept.len());
    let newest = kept.iter().skip(kept.len().saturating_sub(width)).copied();
    let values: Vec<u64> = std::iter::repeat_n(0, missing).chain(newest).collect();
    let area = Rect {
        x: area.x + 1,
        width: area.width.saturating_sub(1),
        ..area
    };
    frame.render_widget(
        Sparkline::default().data(values).max(scale).style(style),
        area,
    );
}

fn shortened(text: &str, columns: usize) -> String {
    if text.chars().count() <= columns {
        return text.to_owned();
    }
    let kept: String = text.chars().take(columns.saturating_sub(1)).collect();
    kept + "\u{2026}"
}

fn state_of(path: &Path) -> Span<'_> {
    let (state, merit) = merit::of_path(path);
    Span::styled(state, style(merit))
}

/// The chosen path's facts.
fn draw_details(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let (Some((bond, ..)), Some((path, _))) = (app.bond(), app.path()) else {
        return;
    };
    let by_priority = [Mode::ActiveBackup, Mode::Duplicate].map(Mode::label);
    let weight = if by_priority.contains(&bond.mode) {
        format!("priority {}", path.priority)
    } else {
        format!("weight {}", path.effective_weight)
    };
    let mut lines = vec![
        format!(
            "{} for {}: {}",
            path.state,
            since(path.changed),
            path.reason
        ),
        route(path),
        format!(
            "{weight}; TX % {} now, {} due, {} in all; RX % {} now, {} in all",
            percent(path.rate.as_ref().and_then(|rate| rate.tx_share)),
            percent(path.due_share),
            percent(path.tx_share),
            percent(path.rate.as_ref().and_then(|rate| rate.rx_share)),
            percent(path.rx_share),
        ),
        format!(
            "in all TX {} packets {} bytes, RX {} packets {} bytes",
            count(path.tx_packets),
            count(path.tx_bytes),
            count(path.rx_packets),
            count(path.rx_bytes)
        ),
    ];
    lines.extend(path.probe.as_ref().map(|probe| {
        format!(
            "RTT least {:.2} jitter {:.2} ms; lost back {} %, data {} %; {} reordered",
            probe.least_ms,
            probe.jitter_ms,
            percent(path.probe_now().map(|probe| probe.loss_back)),
            percent(probe.data_loss),
            probe.reordered
        )
    }));
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    let block = titled(&path.name);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// A rule with a title, and what is below it.
fn titled(title: &str) -> Block<'_> {
    Block::new()
        .borders(Borders::TOP)
        .border_style(FAINT)
        .title(Span::styled(format!(" {title} "), BOLD))
}

fn route(path: &Path) -> String {
    let route = path.route.as_ref().map_or_else(
        || format!("no route to {}", path.remote),
        |route| {
            let via = route.via.map(|via| format!(" via {via}"));
            let via = via.unwrap_or_default();
            format!(
                "{} by {}{via} dev {}",
                path.remote, route.protocol, route.device
            )
        },
    );
    let cost = path.ospf_cost.map(|cost| format!(", cost {cost}"));
    let cost = cost.unwrap_or_default();
    let neighbour = path.neighbour.as_ref().map_or_else(
        || "no OSPF neighbour known".to_owned(),
        |neighbour| format!("neighbour {} {}", neighbour.router_id, neighbour.state),
    );
    format!("{route}; {neighbour}{cost}")
}

/// A text in lines of so many columns; all but the first are set in.
fn wrapped(text: &str, columns: usize) -> Vec<String> {
    const INDENT: &str = "    ";
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let indent = if lines.is_empty() { "" } else { INDENT };
        let room = columns.saturating_sub(indent.len()).max(1);
        let end = rest
            .char_indices()
            .nth(room)
            .map_or(rest.len(), |(at, _)| at);
        let (line, later) = rest.split_at(end);
        // Between words where that is not far off.
        let space = line
            .rfind(' ')
            .filter(|&at| !later.is_empty() && at > end / 2);
        let (line, later) = space.map_or((line, later), |at| rest.split_at(at));
        lines.push(format!("{indent}{line}"));
        rest = later.trim_start();
    }
    lines
}

/// As many of the newest as there is room for.
fn draw_events(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let room = usize::from(area.height.saturating_sub(1));
    let columns = usize::from(area.width);
    let newest = app.events.iter().rev().take(room).rev();
    let lines: Vec<String> = newest
        .flat_map(|entry| wrapped(&line(entry), columns))
        .collect();
    let first = lines.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = lines.into_iter().skip(first).map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).block(titled("events")), area);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_wrapped_between_words() {
        assert_eq!(wrapped("one two three", 80), ["one two three"]);
        assert_eq!(wrapped("one two three", 9), ["one two", "    three"]);
        assert_eq!(
            wrapped("\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", 6),
            ["\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}", "    \u{e9}"]
        );
        assert!(!wrapped("abc", 0).is_empty());
    }
}
