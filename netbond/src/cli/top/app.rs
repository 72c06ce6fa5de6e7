//! What `netbond top` shows and what its keys do; no terminal, no maps, no clock.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use netbond_common::names::Mode;

use crate::{
    config::Setting,
    journal::Entry,
    status::{Bond, Path, Rate, Status},
};

/// Rates that are kept of a path: more than the widest terminal shows.
const KEPT: usize = 512;
/// Entries of the journal that are kept.
const EVENTS: usize = 256;
/// The heaviest weight has two digits.
const WEIGHT_DIGITS: usize = 2;

/// What a key asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Take a path out (`out`) or back in.
    TakeOut {
        path: String,
        out: bool,
    },
    /// Write a setting into the configuration file and have it read.
    Change(Setting),
}

/// What lies over the screen and takes the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Dialog {
    Help,
    Confirm {
        question: Vec<String>,
        action: Action,
    },
    /// The digits of a new weight.
    Weight {
        path: String,
        digits: String,
    },
    /// The place of a new mode among all.
    Mode {
        bond: String,
        chosen: usize,
    },
}

/// How the last thing that was asked for went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) text: String,
    pub(super) good: bool,
}

/// What a path carried, the newest last, bytes/s; 0 where that is not known.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) tx: VecDeque<u64>,
    pub(super) rx: VecDeque<u64>,
}

impl History {
    fn add(&mut self, rate: Option<&Rate>) {
        let tx = rate.map_or(0, |rate| rate.tx_bytes_per_second);
        let rx = rate.map_or(0, |rate| rate.rx_bytes_per_second);
        for (kept, new) in [(&mut self.tx, tx), (&mut self.rx, rx)] {
            kept.push_back(new);
            if kept.len() > KEPT {
                kept.pop_front();
            }
        }
    }
}

/// All that is shown.
pub(super) struct App {
    /// The last that was read, or why nothing can be.
    pub(super) status: Result<Status, String>,
    /// By name of the path.
    pub(super) history: BTreeMap<String, History>,
    /// The newest last.
    pub(super) events: VecDeque<Entry>,
    /// The configuration file that settings are written into, or why none can be.
    pub(super) file: Result<PathBuf, String>,
    pub(super) dialog: Option<Dialog>,
    pub(super) message: Option<Message>,
    bond: usize,
    path: usize,
}

impl App {
    pub(super) fn new(status: Status) -> Self {
        Self {
            status: Ok(status),
            history: BTreeMap::new(),
            events: VecDeque::new(),
            file: Err("not looked for yet".to_owned()),
            dialog: None,
            message: None,
            bond: 0,
            path: 0,
        }
    }

    /// Takes over a new reading, with rates. Not after a failure: then only the failure is shown.
    pub(super) fn read(&mut self, status: Result<Status, String>) {
        if let Ok(status) = &status {
            let paths = status.bonds.iter().flat_map(|bond| &bond.paths);
            let mut history = BTreeMap::new();
            for path in paths {
                let mut kept = self.history.remove(&path.name).unwrap_or_default();
                kept.add(path.rate.as_ref());
                history.insert(path.name.clone(), kept);
            }
            self.history = history;
        }
        self.status = status;
    }

    pub(super) fn heard(&mut self, entries: Vec<Entry>) {
        self.events.extend(entries);
        let surplus = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..surplus);
    }

    pub(super) fn say(&mut self, good: bool, text: impl Into<String>) {
        let text = text.into();
        self.message = Some(Message { text, good });
    }

    /// The bond that is shown; its place among how many.
    pub(super) fn bond(&self) -> Option<(&Bond, usize, usize)> {
        let bonds = &self.status.as_ref().ok()?.bonds;
        let place = self.bond.min(bonds.len().saturating_sub(1));
        Some((bonds.get(place)?, place, bonds.len()))
    }

    /// The path that keys are about, and its place.
    pub(super) fn path(&self) -> Option<(&Path, usize)> {
        let (bond, ..) = self.bond()?;
        let place = self.path.min(bond.paths.len().saturating_sub(1));
        Some((bond.paths.get(place)?, place))
    }

    /// A key was pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Action> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Action::Quit);
        }
        match self.dialog.take() {
            Some(dialog) => self.answer(dialog, key.code),
            None => self.command(key.code),
        }
    }

    fn command(&mut self, code: KeyCode) -> Option<Action> {
        self.message = None;
        if let KeyCode::Char('q') = code {
            return Some(Action::Quit);
        }
        if let KeyCode::Char('?' | 'h') = code {
            self.dialog = Some(Dialog::Help);
            return None;
        }
        let (bond, bond_at, bonds) = self.bond()?;
        let (path, at) = self.path()?;
        let (last, name) = (bond.paths.len() - 1, path.name.clone());
        if let KeyCode::Up | KeyCode::Char('k') = code {
            self.path = at.saturating_sub(1);
        } else if let KeyCode::Down | KeyCode::Char('j') = code {
            self.path = (at + 1).min(last);
        } else if let KeyCode::Tab | KeyCode::Right = code {
            (self.bond, self.path) = ((bond_at + 1) % bonds, 0);
        } else if let KeyCode::BackTab | KeyCode::Left = code {
            (self.bond, self.path) = ((bond_at + bonds - 1) % bonds, 0);
        } else if let KeyCode::Char('d') = code {
            let question = question_out(bond, path);
            let action = Action::TakeOut {
                path: name,
                out: true,
            };
            self.dialog = Some(Dialog::Confirm { question, action });
        } else if let KeyCode::Char('u') = code {
            let question = vec![format!("Take {name} back in?")];
            let action = Action::TakeOut {
                path: name,
                out: false,
            };
            self.dialog = Some(Dialog::Confirm { question, action });
        } else if let KeyCode::Char('w' | 'm') = code {
            let dialog = if code == KeyCode::Char('w') {
                Dialog::Weight {
                    path: name,
                    digits: String::new(),
                }
            } else {
                let chosen = Mode::ALL.iter().position(|mode| mode.label() == bond.mode);
                Dialog::Mode {
                    bond: bond.name.clone(),
                    chosen: chosen.unwrap_or(0),
                }
            };
            match &self.file {
                Ok(_) => self.dialog = Some(dialog),
                Err(why) => {
                    let text = format!("cannot change that: {why}");
                    self.say(false, text);
                }
            }
        }
        None
    }

    /// A key while a dialog is there.
    fn answer(&mut self, dialog: Dialog, code: KeyCode) -> Option<Action> {
        if code == KeyCode::Esc {
            return None;
        }
        match dialog {
            // Any key ends it.
            Dialog::Help => {}
            Dialog::Confirm { question, action } => {
                if let KeyCode::Char('y' | 'Y') = code {
                    return Some(action);
                }
                if !matches!(code, KeyCode::Char('n' | 'N' | 'q')) {
                    self.dialog = Some(Dialog::Confirm { question, action });
                }
            }
            Dialog::Weight { path, mut digits } => {
                if let KeyCode::Char(digit @ '0'..='9') = code
                    && digits.len() < WEIGHT_DIGITS
                {
                    digits.push(digit);
                } else if code == KeyCode::Backspace {
                    digits.pop();
                } else if code == KeyCode::Enter
                    && let Ok(weight) = digits.parse()
                {
                    self.confirm(Setting::Weight { path, weight });
                    return None;
                }
                self.dialog = Some(Dialog::Weight { path, digits });
            }
            Dialog::Mode { bond, mut chosen } => {
                if let KeyCode::Up | KeyCode::Char('k') = code {
                    chosen = chosen.saturating_sub(1);
                } else if let KeyCode::Down | KeyCode::Char('j') = code {
                    chosen = (chosen + 1).min(Mode::ALL.len() - 1);
                } else if code == KeyCode::Enter
                    && let Some(&mode) = Mode::ALL.get(chosen)
                {
                    self.confirm(Setting::Mode { bond, mode });
                    return None;
                }
                self.dialog = Some(Dialog::Mode { bond, chosen });
            }
        }
        None
    }

    fn confirm(&mut self, setting: Setting) {
        let Ok(file) = &self.file else {
            return;
        };
        let whose = match &setting {
            Setting::Mode { bond, .. } => bond,
            Setting::Weight { path, .. } => path,
        };
        let question = vec![
            format!("Write {} for {whose} into", setting.text()),
            format!("{}", file.display()),
            "and reload? All of the file is read again.".to_owned(),
        ];
        let action = Action::Change(setting);
        self.dialog = Some(Dialog::Confirm { question, action });
    }
}

fn question_out(bond: &Bond, path: &Path) -> Vec<String> {
    let mut question = vec![
        format!("Take {} out?", path.name),
        "This end sends nothing on it until it is taken back.".to_owned(),
    ];
    let mut others = bond.paths.iter().filter(|other| other.name != path.name);
    if !others.any(|other| other.in_use || other.standby) {
        question.push(format!("NO OTHER PATH OF {} IS IN USE.", bond.name));
    }
    question
}
