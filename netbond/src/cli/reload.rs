//! `netbond reload`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::events::line;
use crate::{
    journal::Reader,
    lock::Lock,
    pins::Pins,
    running::{ConfigOf, Outcome, PATIENCE, Reload, Running},
    tables::Tables,
};

/// How often the journal is looked at: it cannot wake its readers.
const LISTEN: Duration = Duration::from_millis(20);

/// Has the controller read its configuration file, waits for what comes of it, and shows that.
pub(super) fn run(pins: &Pins, config_of: ConfigOf) -> Result<()> {
    let running = Running::find(pins, &Tables::open(pins)?, config_of)?;
    let mut reader = Reader::open(pins)?;
    // What it tells from now on is about this.
    reader.read();
    running.reload()?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let lives = Lock::is_taken(pins);
        for entry in reader.read() {
            match Reload::outcome(&entry) {
                None => println!("{}", line(&entry)),
                Some(Outcome::TakenOver) => {
                    println!("{}", line(&entry));
                    return Ok(());
                }
                Some(Outcome::Refused(why)) => {
                    bail!("not reloaded, all stays as it was: {why}; the log has it all")
                }
            }
        }
        ensure!(lives, "the controller has ended meanwhile: see its log");
        thread::sleep(LISTEN);
    }
    bail!(
        "the controller has not answered for {} s: see its log",
        PATIENCE.as_secs()
    )
}
