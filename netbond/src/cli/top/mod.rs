//! `netbond top`: what the paths carry, live, in a terminal.

mod app;
mod dialog;
#[cfg(test)]
mod tests;
mod view;

use std::fs;
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crossterm::event::{Event, EventStream, KeyEventKind};
use futures::StreamExt as _;
use netbond_common::names::map;
use ratatui::DefaultTerminal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval};

use self::app::{Action, App};
use crate::{
    config::Setting,
    journal::{Entry, Reader},
    lock::Lock,
    pins::Pins,
    running::{ConfigOf, Outcome, PATIENCE, Reload, Running},
    status::{self, Status},
    tables::Tables,
};

/// How often the maps are read: what rates are taken over.
const READ: Duration = Duration::from_secs(1);
/// How often the journal is looked at.
const LISTEN: Duration = Duration::from_millis(100);

pub(super) fn run(pins: Pins, config_of: ConfigOf) -> Result<()> {
    ensure!(
        io::stdin().is_terminal() && io::stdout().is_terminal(),
        "netbond top needs a terminal; `netbond status --watch` does without"
    );
    let status = status::collect(&Tables::open(&pins)?, &pins)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut top = Top {
        app: App::new(status.clone()),
        before: Some(status),
        journal: None,
        reload: None,
        pins,
        config_of,
    };
    let mut terminal = ratatui::try_init().context("setting up the terminal")?;
    let ended = runtime.block_on(top.serve(&mut terminal));
    ratatui::restore();
    ended
}

struct Top {
    app: App,
    /// What rates are taken from.
    before: Option<Status>,
    /// With the number of the pin that it belongs to: another netbond's maps are others.
    journal: Option<(u64, Reader)>,
    reload: Option<Pending>,
    pins: Pins,
    config_of: ConfigOf,
}

/// A change of the configuration whose outcome is awaited.
struct Pending {
    setting: Setting,
    reload: Reload,
    deadline: Instant,
}

impl Top {
    async fn serve(&mut self, terminal: &mut DefaultTerminal) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut keys = EventStream::new();
        let mut read = interval(READ);
        read.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut listen = interval(LISTEN);
        listen.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Its first tick is at once, and there is a reading already.
        read.tick().await;
        self.look_for_file();
        loop {
            terminal.draw(|frame| view::draw(frame, &self.app))?;
            tokio::select! {
                _ = read.tick() => self.read(),
                _ = listen.tick() => {
                    if !self.listen() {
                        continue;
                    }
                }
                event = keys.next() => match event {
                    Some(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => {
                        if let Some(action) = self.app.key(key) {
                            if action == Action::Quit {
                                return Ok(());
                            }
                            self.act(action);
                        }
                    }
                    // Another size: it is drawn anew.
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error).context("reading the terminal"),
                    None => return Ok(()),
                },
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            }
        }
    }

    /// A new reading, with rates since the one before.
    fn read(&mut self) {
        match self.collect() {
            Ok(mut status) => {
                if let Some(before) = self.before.replace(status.clone()) {
                    status::rates(&before, &mut status);
                }
                self.app.read(Ok(status));
            }
            Err(error) => {
                self.before = None;
                self.app.read(Err(format!("{error:#}")));
            }
        }
        self.look_for_file();
    }

    /// How everything stands after something was done; rates stay those of the last reading.
    fn look_again(&mut self) {
        let (Ok(mut now), Ok(shown)) = (self.collect(), &self.app.status) else {
            // The next reading says what is wrong.
            return;
        };
        for path in now.bonds.iter_mut().flat_map(|bond| &mut bond.paths) {
            path.rate = shown
                .path(&path.name)
                .and_then(|(_, path)| path.rate.clone());
        }
        now.rates_over_s = shown.rates_over_s;
        self.app.status = Ok(now);
    }

    /// The maps are opened each time: they may be others by then.
    fn collect(&self) -> Result<Status> {
        status::collect(&Tables::open(&self.pins)?, &self.pins)
    }

    fn look_for_file(&mut self) {
        let running = self.running();
        let file = running.map(|running| running.file().to_owned());
        self.app.file = file.map_err(|error| format!("{error:#}"));
    }

    fn running(&self) -> Result<Running> {
        Running::find(&self.pins, &Tables::open(&self.pins)?, self.config_of)?.with_our_files()
    }

    /// Looks for new entries of the journal, and for the end of a reload; tells whether there is anything
    /// to show.
    fn listen(&mut self) -> bool {
        let lives = self.reload.is_none() || Lock::is_taken(&self.pins);
        let entries = self.entries();
        let mut news = !entries.is_empty();
        if let Some(pending) = self.reload.take() {
            let outcome = entries.iter().find_map(Reload::outcome);
            if outcome.is_none() && lives && Instant::now() < pending.deadline {
                self.reload = Some(pending);
            } else {
                news = true;
                self.reloaded(&pending.setting, &pending.reload, outcome);
            }
        }
        self.app.heard(entries);
        news
    }

    /// What the journal tells that was not told yet.
    fn entries(&mut self) -> Vec<Entry> {
        let Ok(pin) = fs::metadata(self.pins.map(map::EVENTS)).map(|pin| pin.ino()) else {
            self.journal = None;
            return Vec::new();
        };
        if self.journal.as_ref().is_none_or(|(of, _)| *of != pin) {
            self.journal = Reader::open(&self.pins).ok().map(|reader| (pin, reader));
        }
        let journal = self.journal.as_mut();
        journal.map_or_else(Vec::new, |(_, reader)| reader.read())
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Quit => {}
            Action::TakeOut { path, out } => {
                let done = Tables::open(&self.pins).and_then(|mut all| all.take_out(&path, out));
                match done {
                    Ok(()) if out => self.app.say(true, format!("{path} is taken out")),
                    Ok(()) => self.app.say(true, format!("{path} is taken back in")),
                    Err(error) => self.app.say(false, format!("{error:#}")),
                }
                self.look_again();
            }
            Action::Change(setting) => {
                if self.reload.is_some() {
                    self.app
                        .say(false, "a reload is under way: wait for its end");
                    return;
                }
                // What was told before is about something else.
                let told = self.entries();
                self.app.heard(told);
                match self.running().and_then(|running| running.change(&setting)) {
                    Ok(reload) => {
                        self.app
                            .say(true, format!("{}: reloading ...", setting.text()));
                        self.reload = Some(Pending {
                            setting,
                            reload,
                            deadline: Instant::now() + PATIENCE,
                        });
                    }
                    Err(error) => {
                        let error = format!("{error:#}").replace('\n', "; ");
                        self.app.say(false, error);
                    }
                }
            }
        }
    }

    /// A reload came to an end, or to none (`None`) in its time.
    fn reloaded(&mut self, setting: &Setting, reload: &Reload, outcome: Option<Outcome>) {
        let text = setting.text();
        match outcome {
            Some(Outcome::TakenOver) => self.app.say(true, format!("{text}: taken over")),
            Some(Outcome::Refused(why)) => {
                let file = match reload.undo() {
                    Ok(true) => "the file is as it was".to_owned(),
                    Ok(false) => "the file was changed by someone else, and stays".to_owned(),
                    Err(error) => format!("and the file keeps it: {error:#}"),
                };
                self.app
                    .say(false, format!("{text}: refused, {file}: {why}"));
            }
            None => {
                let text = format!(
                    "{text}: written, but the controller says nothing of it; see `netbond events`"
                );
                self.app.say(false, text);
            }
        }
        self.look_again();
    }
}
