//! What lies over the screen of `netbond top`: help, questions, choices.

use netbond_common::names::Mode;
use ratatui::{
    Frame,
    layout::Constraint,
    style::{Modifier, Style},
    text::Line,
    widgets::{Block, Clear, Padding, Paragraph},
};

use super::app::Dialog;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const MARKED: Style = Style::new().add_modifier(Modifier::REVERSED);

const HELP: &[&str] = &[
    "\u{2191} \u{2193}     choose a path         Tab   the next bond",
    "d       take the path out     u     take it back in",
    "w       change its weight     m     change the bond's mode",
    "q       quit                  ?     this",
    "",
    "d and u write what `netbond path down` and `up` write: the data",
    "plane obeys at once, with no controller, too. w and m write into",
    "the configuration file of the controller that runs and have it",
    "reload. Each asks first.",
    "",
    "TX % now is of the bond's bytes in the last second; DUE % is what by",
    "weights and states it should be. All sparklines of a bond have one",
    "scale: a full block is the highest rate among them.",
];

/// Draws a dialog in the middle.
pub(super) fn draw(frame: &mut Frame<'_>, dialog: &Dialog) {
    let plain = |lines: &[&str]| lines.iter().map(|&line| line.to_owned().into()).collect();
    let (title, lines): (String, Vec<Line<'_>>) = match dialog {
        Dialog::Help => ("keys (any key ends this)".to_owned(), plain(HELP)),
        Dialog::Confirm { question, .. } => {
            let mut lines: Vec<Line<'_>> =
                question.iter().map(|line| line.as_str().into()).collect();
            lines.extend([Line::raw(""), Line::styled("y yes    n no", BOLD)]);
            ("sure?".to_owned(), lines)
        }
        Dialog::Weight { path, digits } => {
            let entry = format!("weight = {digits}_");
            let lines = vec![
                Line::styled(entry, BOLD),
                Line::raw(""),
                Line::raw("1 to 64    Enter go on    Esc leave it"),
            ];
            (format!("new weight of {path}"), lines)
        }
        Dialog::Mode { bond, chosen } => {
            let row = |(at, mode): (usize, &Mode)| {
                let style = if at == *chosen { MARKED } else { Style::new() };
                Line::styled(format!(" {} ", mode.label()), style)
            };
            let mut lines: Vec<Line<'_>> = Mode::ALL.iter().enumerate().map(row).collect();
            lines.extend(plain(&[
                "",
                "\u{2191}\u{2193} choose    Enter go on    Esc leave it",
            ]));
            (format!("new mode of {bond}"), lines)
        }
    };
    let title = format!(" {title} ");
    let widest = lines.iter().map(Line::width).max().unwrap_or(0);
    let widest = widest.max(title.chars().count());
    let size = |inner: usize, frame: usize| u16::try_from(inner + frame).unwrap_or(u16::MAX);
    let area = frame.area().centered(
        Constraint::Length(size(widest, 4)),
        Constraint::Length(size(lines.len(), 2)),
    );
    let block = Block::bordered()
        .title(title)
        .padding(Padding::horizontal(1));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
