//! The screen of 80x24, and what keys make of it.

use std::path::PathBuf;
use std::time::UNIX_EPOCH;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use netbond_common::names::{EventKind, Mode, PathState, StateReason};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    app::{Action, App},
    view,
};
use crate::{
    config::Setting,
    journal::Entry,
    status::{self, sample},
};

fn app() -> App {
    let mut app = App::new(sample::status());
    app.file = Ok(PathBuf::from("/etc/netbond/netbond.toml"));
    app
}

/// What stands on the screen, a string a line.
fn screen_of(app: &App, columns: u16, lines: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
    terminal.draw(|frame| view::draw(frame, app)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y| {
        (0..columns)
            .map(|x| buffer[(x, y)].symbol())
            .collect::<String>()
    };
    (0..lines).map(|y| line(y).trim_end().to_owned()).collect()
}

fn screen(app: &App) -> String {
    screen_of(app, 80, 24).join("\n")
}

fn press(app: &mut App, codes: &[KeyCode]) -> Option<Action> {
    let mut action = None;
    for &code in codes {
        action = app.key(KeyEvent::new(code, KeyModifiers::NONE));
    }
    action
}

fn keys(text: &str) -> Vec<KeyCode> {
    text.chars().map(KeyCode::Char).collect()
}

/// A second in which via-m2 sends and receives so many Mbit/s.
fn second(app: &mut App, tx_mbit: u64, rx_mbit: u64) {
    let before = app.status.clone().unwrap();
    let mut now = before.clone();
    now.read_ns += 1_000_000_000;
    let path = &mut now.bonds[0].paths[1];
    path.tx_bytes += tx_mbit * 125_000;
    path.rx_bytes += rx_mbit * 125_000;
    status::rates(&before, &mut now);
    app.read(Ok(now));
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is missing in:\n{text}");
    }
}

#[test]
fn rates_states_and_events_on_a_screen() {
    let mut app = app();
    for mbit in [1, 2, 4, 8] {
        second(&mut app, mbit, 2 * mbit);
    }
    app.heard(vec![Entry {
        sequence: 1,
        at: UNIX_EPOCH,
        kind: Some(EventKind::Saw),
        bond: "nb0".to_owned(),
        path: "via-m1".to_owned(),
        change: None,
        text: "route to 10.65.0.6 withdrawn by bird".to_owned(),
    }]);
    let lines = screen_of(&app, 80, 24);
    let text = lines.join("\n");
    has(
        &text,
        &[
            "controller: pid 25865",
            "nb0: up, 1/2 in use, peer reachable, round-robin, TX 8.00M RX 16.0M bit/s",
            "neighbour 10.65.1.1 Full, cost 10",
            "nb0 via-m1: route to 10.65.0.6 withdrawn by bird",
            "probes unanswered",
            "q quit  ? help",
        ],
    );
    let row = |name: &str| {
        let rows = &mut lines.iter();
        rows.find(|line| line.get(2..).is_some_and(|rest| rest.starts_with(name)))
            .unwrap_or_else(|| panic!("no row of {name} in:\n{text}"))
            .clone()
    };
    // The highest of all is a full block, half of it half a block.
    has(
        &row("via-m2"),
        &[
            "up",
            "8.00M",
            "\u{2582}\u{2584}",
            "16.0M",
            "\u{2584}\u{2588}",
            "1.50",
            "50.0",
            "100.0",
        ],
    );
    // Of a dead path no round trip of the past is shown.
    let of_dead = row("via-m1");
    let words: Vec<&str> = of_dead.split_whitespace().collect();
    assert_eq!(words, [">", "via-m1", "dead", "0", "0", "-", "-", "0.0"]);
}

#[test]
fn no_controller_and_no_maps_are_said() {
    let mut app = app();
    let mut status = sample::status();
    status.controller.running = false;
    status.bonds[0].disagreements = vec!["the peer's encap is gretap"];
    app.read(Ok(status));
    has(
        &screen(&app),
        &["NO CONTROLLER RUNS", "the peer's encap is gretap"],
    );
    app.read(Err("no netbond here".to_owned()));
    has(&screen(&app), &["no netbond here"]);
    assert_eq!(press(&mut app, &keys("dwm")), None);
    assert_eq!(press(&mut app, &keys("q")), Some(Action::Quit));
}

#[test]
fn a_path_is_taken_out_only_after_a_yes() {
    let mut app = app();
    let out = |path: &str, out| Action::TakeOut {
        path: path.to_owned(),
        out,
    };
    assert_eq!(press(&mut app, &keys("d")), None);
    let text = screen(&app);
    has(&text, &["Take via-m1 out?", "y yes    n no"]);
    assert!(!text.contains("NO OTHER PATH"), "{text}");
    assert_eq!(press(&mut app, &keys("x")), None);
    has(&screen(&app), &["Take via-m1 out?"]);
    assert_eq!(press(&mut app, &keys("n")), None);
    assert!(!screen(&app).contains("Take via-m1 out?"));
    assert_eq!(press(&mut app, &keys("dy")), Some(out("via-m1", true)));
    // The other one is the only one that carries anything.
    press(&mut app, &[KeyCode::Down]);
    press(&mut app, &keys("d"));
    has(
        &screen(&app),
        &["Take via-m2 out?", "NO OTHER PATH OF nb0 IS IN USE."],
    );
    assert_eq!(press(&mut app, &[KeyCode::Esc]), None);
    assert_eq!(press(&mut app, &keys("uy")), Some(out("via-m2", false)));
}

#[test]
fn weight_and_mode_are_asked_for_and_confirmed() {
    let mut app = app();
    press(&mut app, &keys("w12x34"));
    has(&screen(&app), &["new weight of via-m1", "weight = 12_"]);
    press(&mut app, &[KeyCode::Backspace, KeyCode::Enter]);
    has(
        &screen(&app),
        &[
            "Write weight = 1 for via-m1 into",
            "/etc/netbond/netbond.toml",
        ],
    );
    let weight = Setting::Weight {
        path: "via-m1".to_owned(),
        weight: 1,
    };
    assert_eq!(press(&mut app, &keys("y")), Some(Action::Change(weight)));
    // Nothing was typed: nothing is asked.
    press(&mut app, &[KeyCode::Char('w'), KeyCode::Enter]);
    has(&screen(&app), &["weight = _"]);
    press(&mut app, &[KeyCode::Esc, KeyCode::Char('m'), KeyCode::Down]);
    has(&screen(&app), &["new mode of nb0", "active-backup"]);
    press(&mut app, &[KeyCode::Enter]);
    has(&screen(&app), &["Write mode = \"weighted\" for nb0 into"]);
    let mode = Setting::Mode {
        bond: "nb0".to_owned(),
        mode: Mode::Weighted,
    };
    assert_eq!(press(&mut app, &keys("y")), Some(Action::Change(mode)));
}

#[test]
fn without_a_controller_settings_cannot_be_changed() {
    let mut app = app();
    app.file = Err("no controller runs".to_owned());
    for key in ["w", "m"] {
        assert_eq!(press(&mut app, &keys(key)), None);
        assert_eq!(app.dialog, None);
        has(&screen(&app), &["cannot change that: no controller runs"]);
    }
}

/// As many paths as a bond may have, and then some bonds: the chosen one is always to be seen.
#[test]
fn sixteen_paths_in_24_lines() {
    let mut status = sample::status();
    let named = |at| sample::path(&format!("path-{at:02}"), PathState::Up, StateReason::Route);
    status.bonds[0].paths = (0..16).map(named).collect();
    status.bonds.push(sample::bond());
    status.bonds[1].name = "nb1".to_owned();
    let mut app = app();
    app.read(Ok(status));
    let text = screen(&app);
    has(&text, &["nb0 (1/2): up", "> path-00", "events", "q quit"]);
    assert!(!text.contains("path-15"), "{text}");
    for _ in 0..20 {
        press(&mut app, &[KeyCode::Down]);
    }
    has(&screen(&app), &["> path-15", "events"]);
    press(&mut app, &[KeyCode::Tab]);
    has(&screen(&app), &["nb1 (2/2): up", "> via-m1"]);
    press(&mut app, &[KeyCode::Tab]);
    has(&screen(&app), &["nb0 (1/2): up", "> path-00"]);
}

#[test]
fn help_fits_and_ends_with_any_key() {
    let mut app = app();
    press(&mut app, &keys("?"));
    let text = screen(&app);
    has(
        &text,
        &[
            "take the path out",
            "a full block is the highest rate among them.",
        ],
    );
    assert_eq!(press(&mut app, &keys("q")), None, "it only ends the help");
    assert!(!screen(&app).contains("take the path out"));
}

/// Why something was refused is told to the end.
#[test]
fn long_messages_are_wrapped() {
    let mut app = app();
    let why = "word ".repeat(40) + "END";
    app.say(false, why);
    let text = screen(&app);
    has(&text, &["END", "> via-m1", "events", "q quit"]);
    press(&mut app, &[KeyCode::Down]);
    assert!(!screen(&app).contains("END"), "until the next key");
}

/// No size is too small to be drawn.
#[test]
fn any_size() {
    let mut app = app();
    second(&mut app, 1, 1);
    for (columns, lines) in [(1, 1), (10, 3), (20, 10), (79, 8), (300, 100)] {
        screen_of(&app, columns, lines);
        press(&mut app, &keys("?"));
        screen_of(&app, columns, lines);
        press(&mut app, &keys("n"));
    }
}
