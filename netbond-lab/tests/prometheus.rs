//! Metrics as the real Prometheus reads them, and what is shipped for it: alert rules, and the expressions of
//! the dashboard.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod common;

use std::env;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use common::{
    B, SOON, inside, ping, reconfigure, reload, second_bond, status, wait_proven, wait_state,
};
use netbond_lab::daemon::CONFIG;
use netbond_lab::{Lab, Router, Signal, Topology, wait_for};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../../contrib/grafana/netbond.json");
const METRICS: &str = "127.0.0.1:9469";
/// Prometheus', in the router.
const PROMETHEUS: &str = "127.0.0.1:9090";

/// Debian's program, as `cargo xtask setup` has unpacked it, or one in PATH.
fn tool(name: &str) -> PathBuf {
    // target/PROFILE/deps/TEST
    let own = env::current_exe().unwrap();
    let unpacked = own.ancestors().nth(3).unwrap().join("prometheus/usr/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = std::iter::once(unpacked).chain(env::split_paths(&path));
    let found = places.find_map(|place| Some(place.join(name)).filter(|file| file.is_file()));
    found.unwrap_or_else(|| panic!("no {name}: `cargo xtask setup` gets it"))
}

/// A file that is shipped.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../contrib")
        .join(name)
        .canonicalize()
        .unwrap()
}

/// Runs promtool, which must be content; returns what it prints.
fn promtool(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new(tool("promtool"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}: {text}");
    text
}

/// The expressions of the dashboard's panels, with their titles, Grafana's variables filled in.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let targets = panel["targets"].as_array().into_iter().flatten();
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$__rate_interval", "10s")
                .replace("$instance", ".*")
                .replace("$bond", ".*");
            assert!(!expression.contains('$'), "{expression}");
            all.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    assert!(all.len() > 20, "{all:?}");
    all
}

#[test]
#[ignore = "needs Prometheus: cargo xtask test lab"]
fn rules_are_good_and_alert_when_they_should() {
    let rules = shipped("prometheus/netbond.rules.yml");
    promtool(&["check", "rules", rules.to_str().unwrap()], "");
    let tests = shipped("prometheus/netbond.rules.test.yml");
    let tested = fs::read_to_string(&tests).unwrap();
    for line in fs::read_to_string(&rules).unwrap().lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            assert!(
                tested.contains(&format!("alertname: {alert}\n")),
                "no test of {alert}"
            );
        }
    }
    promtool(&["test", "rules", tests.to_str().unwrap()], "");
}

#[test]
#[ignore = "needs Prometheus: cargo xtask test lab"]
fn expressions_of_the_dashboard_are_good() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dashboard.yml");
    let mut rules = "groups:\n- name: dashboard\n  rules:\n".to_owned();
    for (number, (_, expression)) in panels().iter().enumerate() {
        // JSON's strings are YAML's.
        let expression = Value::from(expression.as_str());
        rules.push_str(&format!(
            "  - record: panel:{number}\n    expr: {expression}\n"
        ));
    }
    fs::write(&file, rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], "");
}

/// What the endpoint in a router answers: head and body.
fn scrape(router: &Router, accept: &'static str) -> anyhow::Result<(String, String)> {
    let answer = inside(router, move || -> anyhow::Result<String> {
        let mut stream = TcpStream::connect(METRICS)?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    });
    let answer = answer.join().unwrap()?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no body")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok((head.to_owned(), body.to_owned()))
}

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

/// The configuration with metrics and a bond that has as much to tell as this machine's kernel allows.
fn config(router: &Router) -> String {
    let text = router.default_config().unwrap();
    let text = text.replace("mode = \"round-robin\"", "mode = \"duplicate\"");
    format!(
        "{text}\n[[bond.class]]\nname = \"icmp\"\nmode = \"duplicate\"\nprotocol = \"icmp\"\n\n[metrics]\nlisten = 9469\n"
    )
}

/// Prometheus in a router; it ends with its scope.
struct Prometheus {
    child: Child,
    dir: tempfile::TempDir,
}

impl Prometheus {
    fn start(router: &Router) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("prometheus.yml");
        let rules = shipped("prometheus/netbond.rules.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\n\
             scrape_configs:\n\
             - job_name: netbond\n  static_configs: [{{targets: [\"{METRICS}\"]}}]\n",
            rules.display()
        );
        fs::write(&file, config).unwrap();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let child = router
            .command(tool("prometheus"))
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// The series that an expression gives now, with their values.
    fn query(&self, router: &Router, expression: &str) -> anyhow::Result<Vec<(Value, f64)>> {
        let promtool = tool("promtool");
        let url = format!("http://{PROMETHEUS}");
        let words = [
            promtool.to_str().unwrap(),
            "query",
            "instant",
            "-o",
            "json",
            &url,
            expression,
        ];
        let text = router.run(&words).with_context(|| self.log())?;
        let series: Vec<Value> = serde_json::from_str(&text).with_context(|| text.clone())?;
        let value = |series: Value| {
            let value = series["value"][1].as_str().unwrap().parse().unwrap();
            (series["metric"].clone(), value)
        };
        Ok(series.into_iter().map(value).collect())
    }

    /// Waits until an expression gives something.
    fn wait(&self, router: &Router, expression: &str) -> Vec<(Value, f64)> {
        wait_for(expression, SOON, || {
            let series = self.query(router, expression)?;
            Ok((!series.is_empty()).then_some(series))
        })
        .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "needs root and Prometheus: cargo xtask test lab"]
fn prometheus_reads_what_status_says() {
    let lab = Lab::up("prometheus", &Topology::reference()).unwrap();
    let (a, b) = (lab.router("A"), lab.router("B"));
    assert!(scrape(a, OPENMETRICS).is_err(), "off unless configured");
    for router in [a, b] {
        reconfigure(router, &config(router));
    }
    wait_proven(a);
    ping(a, B);

    // Both formats, by Prometheus' own parsers and its rules for names.
    let (head, plain) = scrape(a, "text/plain").unwrap();
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let said = promtool(&["check", "metrics"], &plain);
    assert_eq!(said.trim(), "", "promtool has something to say of names");
    let (head, open) = scrape(a, OPENMETRICS).unwrap();
    assert!(
        head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("metrics");
    // What is read from a file must say when it was.
    let timed = open.lines().map(|line| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000\n"),
    });
    fs::write(&file, timed.collect::<String>()).unwrap();
    let data = dir.path().join("data");
    let [file, data] = [&file, &data].map(|path| path.to_str().unwrap());
    promtool(
        &["tsdb", "create-blocks-from", "openmetrics", file, data],
        "",
    );

    let prometheus = Prometheus::start(a);
    prometheus.wait(a, "up{job=\"netbond\"} == 1");
    let samples = open.lines().filter(|line| !line.starts_with('#')).count();
    let scraped = prometheus.wait(a, "scrape_samples_scraped{job=\"netbond\"}");
    assert_eq!(scraped[0].1, samples as f64);

    // With nothing under way both say the same.
    for (metric, field) in [
        ("netbond_class_transmit_packets_total", "classes"),
        ("netbond_path_transmit_packets_total", "tx_packets"),
        ("netbond_path_transmit_bytes_total", "tx_bytes"),
        ("netbond_path_receive_copy_packets_total", "rx_copies"),
        ("netbond_path_in_use", "in_use"),
        ("netbond_path_effective_weight", "effective_weight"),
    ] {
        wait_for(&format!("{metric} as status says"), SOON, || {
            let status = status(a);
            let bond = &status["bonds"][0];
            let told: Vec<(Value, f64)> = if field == "classes" {
                let class = &bond["classes"][0];
                vec![(class["name"].clone(), class["tx_packets"].as_f64().unwrap())]
            } else {
                let paths = bond["paths"].as_array().unwrap().iter();
                let number = |value: &Value| {
                    value
                        .as_f64()
                        .or(value.as_bool().map(|is| f64::from(u8::from(is))))
                };
                paths
                    .map(|path| (path["name"].clone(), number(&path[field]).unwrap()))
                    .collect()
            };
            let label = if field == "classes" { "class" } else { "path" };
            let mut read: Vec<(Value, f64)> = prometheus
                .query(a, metric)?
                .into_iter()
                .map(|(labels, value)| (labels[label].clone(), value))
                .collect();
            read.sort_by_key(|(name, _)| name.to_string());
            ensure!(read == told, "{read:?}, not {told:?}");
            Ok(Some(()))
        })
        .unwrap();
    }

    // Every panel shows something, unless it is what this bond or a good day has nothing of.
    for (title, expression) in panels() {
        let absent = expression.contains("_in_order_") || expression.ends_with("> 0");
        let series = wait_for(&format!("{title}: {expression}"), SOON, || {
            let series = prometheus.query(a, &expression)?;
            Ok((absent || !series.is_empty()).then_some(series))
        });
        series.unwrap();
    }
    let firing = prometheus
        .query(a, "ALERTS{alertstate=\"firing\"}")
        .unwrap();
    assert!(firing.is_empty(), "{firing:?}");

    lab.fail_router("M1").unwrap();
    wait_state(a, "via-m1", "dead");
    let dead = prometheus.wait(a, "ALERTS{alertname=\"NetbondPathDead\"}");
    let [(labels, _)] = &dead[..] else {
        panic!("{dead:?}");
    };
    assert_eq!(
        (&labels["bond"], &labels["path"]),
        (&"nb0".into(), &"via-m1".into())
    );
    assert_eq!(labels["reason"], "probes unanswered");
    prometheus.wait(a, "ALERTS{alertname=\"NetbondPathsMissing\"}");
    a.kill_netbond(Signal::SIGKILL).unwrap();
    prometheus.wait(a, "ALERTS{alertname=\"NetbondControllerDown\"}");
}

#[test]
#[ignore = "needs root: cargo xtask test lab"]
fn a_reload_changes_the_endpoint_or_nothing() {
    let lab = Lab::up("endpoint", &Topology::reference()).unwrap();
    let a = lab.router("A");
    let plain = a.default_config().unwrap();
    reconfigure(a, &format!("{plain}\n[metrics]\n"));
    scrape(a, OPENMETRICS).unwrap();
    assert!(
        a.netbond_log()
            .contains("metrics served at http://127.0.0.1:9469/metrics")
    );
    let check = a.run(&["netbond", "check", "-c", CONFIG]).unwrap();
    assert!(!check.contains("warning"), "{check}");

    // Another program has the port: no bond changes, either.
    let taken = inside(a, || std::net::TcpListener::bind("127.0.0.1:9470").unwrap());
    let taken = taken.join().unwrap();
    let second = second_bond(&plain);
    let text = format!("{plain}\n{second}\n[metrics]\nlisten = 9470\n");
    let line = text.lines().count();
    reload(a, &text, "not reloaded");
    let said = format!(
        "{CONFIG}:{line}: metrics: cannot listen on 127.0.0.1:9470 (Address already in use"
    );
    assert!(a.netbond_log().contains(&said), "{}", a.netbond_log());
    assert!(a.run(&["ip", "link", "show", "nb1"]).is_err());
    assert_eq!(status(a)["bonds"].as_array().unwrap().len(), 1);
    scrape(a, OPENMETRICS).unwrap();
    drop(taken);

    // The kernel refuses a bond: nothing is taken over, and the new port given back.
    a.run(&[
        "ip", "link", "add", "name", "nb1", "type", "veth", "peer", "name", "other",
    ])
    .unwrap();
    reload(a, &text.replace("9470", "9471"), "not reloaded");
    scrape(a, OPENMETRICS).unwrap();
    let given_back = inside(a, || std::net::TcpListener::bind("127.0.0.1:9471").is_ok());
    assert!(given_back.join().unwrap());

    // For everybody: allowed, and warned of.
    reconfigure(
        a,
        &format!("{plain}\n[metrics]\nlisten = \"0.0.0.0:9469\"\n"),
    );
    scrape(a, OPENMETRICS).unwrap();
    assert!(
        a.netbond_log()
            .contains("whoever reaches 0.0.0.0:9469 may read them")
    );
    let check = a.run(&["netbond", "check", "-c", CONFIG]).unwrap();
    assert!(
        check.contains("metrics: whoever reaches 0.0.0.0:9469") && check.contains("1 warning"),
        "{check}"
    );

    reconfigure(a, &plain);
    assert!(scrape(a, OPENMETRICS).is_err(), "no longer configured");
}
