//! `netbond status --watch`.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write};
use std::thread;
use std::time::Instant;

use anyhow::Result;

use super::{Args, WATCH, read, text};
use crate::{
    pins::Pins,
    status::{self, Status},
};

/// Prints the status again and again, with what the paths carried meanwhile.
pub(super) fn run(args: &Args, pins: &Pins, out: &mut impl Write) -> Result<()> {
    let interval = args.interval().unwrap_or(WATCH);
    let in_place = std::io::stdout().is_terminal() && !args.json;
    let mut before: Option<Status> = None;
    let mut next = Instant::now();
    loop {
        let mut status = read(args, pins)?;
        if let Some(before) = &before {
            status::rates(before, &mut status);
        }
        if args.json {
            serde_json::to_writer(&mut *out, &status)?;
            writeln!(out)?;
        } else if in_place {
            let text = text::render(&status, args.all);
            let (_, lines) = crossterm::terminal::size().unwrap_or((80, 24));
            write!(out, "{}", screen(&text, usize::from(lines)))?;
        } else {
            writeln!(out, "{}", text::render(&status, args.all))?;
        }
        out.flush()?;
        before = Some(status);
        next += interval;
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// As much of a text as a terminal of so many lines shows, over what is there: each line is cut at the
/// right, not wrapped, and what stood behind it or below is wiped away (ECMA-48; DECAWM of the VT100).
fn screen(text: &str, lines: usize) -> String {
    const NO_WRAP: &str = "\x1b[?7l";
    const WRAP: &str = "\x1b[?7h";
    let mut screen = format!("{NO_WRAP}\x1b[H");
    let all = text.lines().count();
    let shown = lines.saturating_sub(1).max(1);
    let cut = all > shown;
    for line in text.lines().take(if cut { shown - 1 } else { all }) {
        // Writing to a string cannot fail.
        let _ = write!(screen, "{line}\x1b[K\r\n");
    }
    if cut {
        let _ = write!(screen, "... {} more lines\x1b[K\r\n", all - (shown - 1));
    }
    screen + "\x1b[J" + WRAP
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_takes_what_it_has_lines_for() {
        let shown = |text, lines| {
            let screen = screen(text, lines);
            let inner = screen.strip_prefix("\x1b[?7l\x1b[H").unwrap().to_owned();
            let inner = inner.strip_suffix("\x1b[J\x1b[?7h").unwrap().to_owned();
            inner.replace("\x1b[K\r\n", "|")
        };
        assert_eq!(shown("a\nb\nc\n", 4), "a|b|c|");
        assert_eq!(shown("a\nb\nc\nd\n", 4), "a|b|... 2 more lines|");
    }
}
