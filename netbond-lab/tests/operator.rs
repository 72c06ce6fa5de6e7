//! What an operator sees: `netbond top` and `netbond status --watch` in a real terminal, and what their
//! keys do to a bond that carries packets.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::terminal::Terminal;
use common::{B, SOON, path, reconfigure, status, wait_proven, wait_reason, wait_state};
use netbond_lab::{Lab, Router, Signal, Topology, daemon, traffic, wait_for};

const PACE: Duration = Duration::from_millis(2);
/// The blocks of a sparkline.
const BLOCKS: &str = "▁▂▃▄▅▆▇█";

fn up(name: &str) -> Lab {
    let lab = Lab::up(name, &Topology::reference()).unwrap();
    wait_proven(lab.router("A"));
    lab
}

/// A path's row on the screen of `netbond top`: chosen or not, its words.
fn row(screen: &str, name: &str) -> Option<Vec<String>> {
    let mut lines = screen.lines();
    let line = lines.find(|line| line.get(2..).is_some_and(|rest| rest.starts_with(name)))?;
    Some(line[2..].split_whitespace().map(str::to_owned).collect())
}

/// Its state, and what it sends, as shown.
fn state_and_rate(screen: &str, name: &str) -> Option<(String, String)> {
    let row = row(screen, name)?;
    Some((row.get(1)?.clone(), row.get(2)?.clone()))
}

/// Whether a path is up, and sends and receives, with a sparkline for each.
fn carries(screen: &str, name: &str) -> bool {
    let Some(row) = row(screen, name) else {
        return false;
    };
    let rates = row.iter().filter(|word| word.ends_with(['k', 'M']));
    let block = |word: &&String| word.chars().all(|c| BLOCKS.contains(c));
    row.get(1).is_some_and(|state| state == "up")
        && rates.count() == 2
        && row.iter().filter(block).count() >= 2
}

fn wait_use(router: &Router, name: &str, in_use: bool) {
    wait_for(&format!("{name}, in use: {in_use}"), SOON, || {
        let path = path(router, name);
        anyhow::ensure!(path["in_use"] == in_use, "it is {path}");
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn top_shows_rates_and_takes_paths_out_and_back() {
    let lab = up("top");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let _stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    let top = Terminal::run(a, "netbond top");
    top.wait("rates of both paths", |screen| {
        carries(screen, "via-m1") && carries(screen, "via-m2")
    });
    let screen = top.wait_text("probe: answered, all is well");
    let pid = a.netbond_pid().unwrap();
    assert!(
        screen.contains(&format!("controller: pid {pid}")),
        "{screen}"
    );
    assert!(
        screen.contains("nb0: up, 2/2 in use, peer reachable, round-robin"),
        "{screen}"
    );

    // Nothing happens before a yes, and nothing with a no.
    top.press(&["d"]);
    top.wait_text("Take via-m1 out?");
    top.press(&["n"]);
    top.wait("no question", |screen| !screen.contains("Take via-m1 out?"));
    assert_eq!(path(a, "via-m1")["in_use"], true);
    let carry = |taken_out: bool| {
        top.wait("rates that follow", |screen| {
            let shown = state_and_rate(screen, "via-m1");
            let silent = shown == Some(("down".to_owned(), "0".to_owned()));
            carries(screen, "via-m2")
                && (taken_out && silent || !taken_out && carries(screen, "via-m1"))
        });
    };
    top.press(&["d"]);
    top.wait_text("Take via-m1 out?");
    top.press(&["y"]);
    // The data plane obeys first, and the controller tells it then.
    wait_use(a, "via-m1", false);
    wait_reason(a, "via-m1", "taken out by the user");
    top.wait_text("up -> down (taken out by the user)");
    carry(true);
    top.press(&["u"]);
    top.wait_text("Take via-m1 back in?");
    top.press(&["y"]);
    wait_state(a, "via-m1", "up");
    carry(false);

    // The same with nobody but the data plane there.
    a.kill_netbond(Signal::SIGKILL).unwrap();
    top.wait_text("NO CONTROLLER RUNS");
    top.press(&["Down", "d"]);
    top.wait_text("Take via-m2 out?");
    top.press(&["y"]);
    wait_use(a, "via-m2", false);
    top.wait("the path that is left", |screen| {
        state_and_rate(screen, "via-m2") == Some(("down".to_owned(), "0".to_owned()))
            && carries(screen, "via-m1")
    });
    top.press(&["w"]);
    top.wait_text("cannot change that: no controller runs");
    top.press(&["u"]);
    top.wait_text("Take via-m2 back in?");
    top.press(&["y"]);
    wait_use(a, "via-m2", true);
    top.wait("both paths", |screen| {
        carries(screen, "via-m1") && carries(screen, "via-m2")
    });
    top.press(&["q"]);
    assert_eq!(top.ended(), 0);
    let screen = top.screen();
    assert!(
        !screen.contains("via-m1"),
        "the terminal is as it was: {screen}"
    );
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn top_changes_weight_and_mode_in_the_file_and_sees_to_it() {
    let lab = up("settings");
    let a = lab.router("A");
    let file = || std::fs::read_to_string(a.host_path(daemon::CONFIG)).unwrap();
    let mut config = a.default_config().unwrap();
    config.insert_str(0, "# Ours: mind the gap.\n");
    reconfigure(a, &config);
    let top = Terminal::run(a, "netbond top");
    top.wait_text("> via-m1");

    top.press(&["m"]);
    top.wait_text("new mode of nb0");
    top.press(&["Down", "Enter"]);
    top.wait_text("Write mode = \"weighted\" for nb0 into");
    top.press(&["y"]);
    top.wait_text("mode = \"weighted\": taken over");
    assert_eq!(status(a)["bonds"][0]["mode"], "weighted");
    let weighted = config.replace("\"round-robin\"", "\"weighted\"");
    assert_eq!(file(), weighted);

    top.press(&["w", "3", "Enter"]);
    top.wait_text("Write weight = 3 for via-m1 into");
    top.press(&["y"]);
    top.wait_text("weight = 3: taken over");
    assert_eq!(path(a, "via-m1")["effective_weight"], 3.0);
    top.wait("shares that are due", |screen| {
        let due = |name, share| row(screen, name).is_some_and(|row| row.last() == Some(&share));
        due("via-m1", "75.0".to_owned()) && due("via-m2", "25.0".to_owned())
    });
    let heavier = file();
    let without = heavier.replace("weight = 3\n", "");
    assert_eq!(without, weighted);

    // What would be wrong is not written.
    top.press(&["m", "Up", "Enter"]);
    top.wait_text("Write mode = \"round-robin\" for nb0 into");
    top.press(&["y"]);
    top.wait("the reason", |screen| {
        let words: Vec<&str> = screen.split_whitespace().collect();
        let text = words.join(" ");
        text.contains("is not in order, nothing was written")
            && text.contains("weight is of no use")
    });
    assert_eq!(file(), heavier);

    // What the kernel refuses is taken out of the file again.
    let device = [
        "ip", "link", "add", "name", "nb1", "type", "veth", "peer", "name", "other",
    ];
    a.run(&device).unwrap();
    let more = format!("{heavier}\n{}", common::second_bond(&config));
    a.write_config(&more).unwrap();
    top.press(&["w", "5", "Enter"]);
    top.wait_text("Write weight = 5 for via-m1 into");
    top.press(&["y"]);
    top.wait_text("weight = 5: refused, the file is as it was");
    assert_eq!(file(), more);
    assert_eq!(path(a, "via-m1")["effective_weight"], 3.0);
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn status_watches_in_place_and_in_colours() {
    const GREEN_UP: &str = "\u{1b}[32mup";
    let lab = up("watch");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let _stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    let rates = |screen: &str| {
        let row = |name: &str| {
            screen
                .lines()
                .find(|line| line.starts_with(name))
                .map(str::to_owned)
        };
        let rate = |name| Some(row(name)?.split_whitespace().nth(3)?.ends_with('k'));
        ["via-m1", "via-m2"].map(rate) == [Some(true); 2]
    };
    let seen: Vec<String> = {
        let watch = Terminal::run(a, "netbond status --watch");
        let first = watch.wait("rates", rates);
        let bytes = |screen: &str| {
            let totals = screen.split("TX PACKETS").nth(1).unwrap_or_default();
            totals.lines().nth(1).map(str::to_owned)
        };
        let second = watch.wait("other counters", |screen| {
            rates(screen) && bytes(screen) != bytes(&first)
        });
        let coloured = watch.coloured();
        assert!(coloured.contains(GREEN_UP), "{coloured:?}");
        vec![first, second]
    };
    for screen in seen {
        assert!(screen.starts_with("controller: running"), "{screen}");
        assert_eq!(screen.matches("controller:").count(), 1, "{screen}");
    }
    let plain = Terminal::run(a, "NO_COLOR=1 netbond status --watch");
    plain.wait("rates", rates);
    let coloured = plain.coloured();
    assert!(!coloured.contains(GREEN_UP), "{coloured:?}");
    let piped = a.run(&["netbond", "status"]).unwrap();
    assert!(!piped.contains('\u{1b}') && rates(&piped), "{piped}");
}

/// For programs: one reading has no rates and costs no time, two have.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn json_has_rates_where_they_are_asked_for() {
    let lab = up("rates");
    let (a, b) = (lab.router("A"), lab.router("B"));
    let _stream = traffic::Numbered::start(a, b, B, PACE).unwrap();
    assert!(status(a)["rates_over_s"].is_null());
    assert!(path(a, "via-m1")["rate"].is_null());
    let text = a.run(&["netbond", "status", "nb0", "--json", "--interval", "2"]);
    let two: serde_json::Value = serde_json::from_str(&text.unwrap()).unwrap();
    let over = two["rates_over_s"].as_f64().unwrap();
    assert!((2.0..4.0).contains(&over), "{over}");
    let rates: Vec<f64> = (0..2)
        .map(|at| {
            two["bonds"][0]["paths"][at]["rate"]["tx_packets_per_second"]
                .as_f64()
                .unwrap()
        })
        .collect();
    // 500 a second, half of them on each path.
    assert!(
        rates.iter().all(|rate| (100.0..400.0).contains(rate)),
        "{rates:?}"
    );
    let share = &two["bonds"][0]["paths"][0]["rate"]["tx_share"];
    assert!((share.as_f64().unwrap() - 0.5).abs() < 0.1, "{share}");
    let error = a
        .run(&["netbond", "status", "nb9"])
        .unwrap_err()
        .to_string();
    assert!(error.contains("no bond \"nb9\"; there are: nb0"), "{error}");
}

/// Each of them, also those that only bonds with numbered packets fill.
#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn every_map_is_dumped() {
    let lab = up("maps");
    for router in [lab.router("A"), lab.router("B")] {
        let config = router.default_config().unwrap();
        reconfigure(router, &config.replace("round-robin", "duplicate"));
    }
    let a = lab.router("A");
    let _stream = traffic::Numbered::start(a, lab.router("B"), B, PACE).unwrap();
    let json = |words: &[&str]| -> serde_json::Value {
        serde_json::from_str(&a.run(words).unwrap()).unwrap()
    };
    let listed = json(&["netbond", "maps", "list", "--json"]);
    let listed: BTreeSet<String> = listed.as_array().unwrap().iter().map(name).collect();
    wait_for("numbered packets", SOON, || {
        let dumped = json(&["netbond", "maps", "dump", "--json"]);
        let dumped = dumped.as_object().unwrap();
        assert_eq!(dumped.keys().cloned().collect::<BTreeSet<_>>(), listed);
        let filled = |map: &str| !dumped[map].as_array().unwrap().is_empty();
        Ok((filled("SEQUENCES") && filled("STRANDS")).then_some(()))
    })
    .unwrap();
    let text = a.run(&["netbond", "maps", "dump"]).unwrap();
    assert!(listed.iter().all(|map| text.contains(map)), "{text}");
}

fn name(map: &serde_json::Value) -> String {
    map["name"].as_str().unwrap().to_owned()
}
