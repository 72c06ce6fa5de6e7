//! The speaker against BIRD and FRR, in network namespaces.

use std::path::{Path, PathBuf};
use std::process::Command;

use tokio::time::{Instant, interval, timeout};

use super::super::packet::tests::packet;
use super::*;
use crate::netlink::netns::{Process, in_netns, ip};

/// What may pass until something awaited: a daemon that starts, three slow packets.
const SOON: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(50);
/// Of a session with `INTERVAL` three times.
const DETECTION: Duration = Duration::from_millis(150);

fn config(local: &str, remote: &str, device: Option<&str>) -> SessionConfig {
    SessionConfig {
        id: 7,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
        hops: Hops::Single,
        device: device.map(str::to_owned),
        tx_interval: INTERVAL,
        rx_interval: INTERVAL,
        multiplier: 3,
    }
}

/// Over several hops.
fn multi_hop(local: &str, remote: &str, device: Option<&str>) -> SessionConfig {
    SessionConfig {
        hops: Hops::Multi,
        ..config(local, remote, device)
    }
}

fn refused(sessions: &[SessionConfig]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let _runtime = runtime.enter();
    let (sender, _reports) = mpsc::channel(1);
    match Speaker::spawn(sessions.to_vec(), sender) {
        Ok(_) => panic!("accepted: {sessions:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn sessions_that_make_no_sense_are_refused() {
    let good = config("10.65.0.2", "10.65.0.1", None);
    let other = |change: fn(&mut SessionConfig)| {
        let mut session = good.clone();
        change(&mut session);
        session
    };
    let cases = [
        (other(|s| s.remote = [0; 16].into()), "one family"),
        (other(|s| s.multiplier = 0), "multiplier 0"),
        (
            other(|s| s.tx_interval = Duration::from_micros(999)),
            "transmit interval of 999µs",
        ),
        (
            other(|s| s.rx_interval = Duration::from_secs(4295)),
            "receive interval of 4295s",
        ),
        (config("fd00::1", "fe80::1", None), "needs a device"),
        (
            multi_hop("fe80::2", "fe80::1", Some("near")),
            "use a single hop",
        ),
    ];
    for (session, says) in cases {
        let error = refused(&[session]);
        assert!(error.contains(says), "{error}");
    }
    let error = refused(&[good.clone(), good.clone()]);
    assert!(error.contains("the id 7"), "{error}");
    let error = refused(&[good.clone(), other(|s| s.id = 8)]);
    assert!(error.contains("two BFD sessions go from"), "{error}");
    // Over several hops nothing but the addresses tells whose packets arrive.
    let error = refused(&[
        multi_hop("10.65.0.2", "10.65.9.1", Some("near")),
        SessionConfig {
            id: 8,
            ..multi_hop("10.65.0.2", "10.65.9.1", Some("near2"))
        },
    ]);
    assert!(error.contains("two BFD sessions go from"), "{error}");
}

#[test]
fn a_packet_from_several_hops_away_is_taken_only_by_a_session_over_several() {
    let single = config("10.65.0.2", "10.65.0.1", Some("near"));
    let sessions = vec![
        single.clone(),
        SessionConfig {
            id: 8,
            hops: Hops::Multi,
            ..single.clone()
        },
        SessionConfig {
            id: 9,
            ..multi_hop("10.65.0.2", "10.65.9.1", Some("near2"))
        },
    ];
    let mut tasks = tasks(sessions, &Arc::default()).unwrap();
    tasks.sort_by_key(|task| task.local.hops);
    let [single_hop, several] = &mut tasks[..] else {
        panic!("not two tasks: {}", tasks.len());
    };
    assert_eq!((single_hop.peers.len(), several.peers.len()), (1, 2));
    let hello = Packet {
        your_discriminator: 0,
        ..packet(State::Down)
    }
    .encode();
    let from = |source: &str, ttl| Datagram {
        length: hello.len(),
        source: Some(source.parse().unwrap()),
        ttl,
    };
    let states = |task: &Task| -> Vec<State> {
        let peers = task.peers.iter();
        peers.map(|peer| peer.session.state()).collect()
    };

    for ttl in [None, Some(0), Some(254)] {
        let got = single_hop.accept(&from("10.65.0.1", ttl), &hello);
        assert_eq!(got, Err(Reject::Ttl));
    }
    assert_eq!(states(single_hop), [State::Down]);
    let got = single_hop.accept(&from("10.65.0.1", Some(255)), &hello);
    assert_eq!((got, states(single_hop)), (Ok(()), vec![State::Init]));

    let got = several.accept(&from("10.65.9.2", Some(254)), &hello);
    assert_eq!(got, Err(Reject::UnknownSource));
    assert_eq!(states(several), [State::Down, State::Down]);
    let got = several.accept(&from("10.65.9.1", Some(1)), &hello);
    let expected = vec![State::Down, State::Init];
    assert_eq!((got, states(several)), (Ok(()), expected));
    let got = several.accept(&from("10.65.0.1", Some(254)), &hello);
    let expected = vec![State::Init, State::Init];
    assert_eq!((got, states(several)), (Ok(()), expected));
}

#[test]
fn source_ports_are_those_of_the_rfc() {
    let mut random = Random(1);
    for _ in 0..100_000 {
        assert!(random.source_port() >= 49152);
    }
}

/// A speaker and what it reports.
struct Heard {
    speaker: Speaker,
    reports: mpsc::Receiver<Report>,
}

impl Heard {
    fn start(session: SessionConfig) -> Self {
        let (sender, reports) = mpsc::channel(8);
        let speaker = Speaker::spawn(vec![session], sender).unwrap();
        Self { speaker, reports }
    }

    async fn next(&mut self) -> Report {
        let report = timeout(SOON, self.reports.recv());
        let report = report.await.expect("no report").expect("the speaker ended");
        assert_eq!(report.id, 7);
        report
    }

    /// Waits until the session is up, whatever was reported before.
    async fn up(&mut self) {
        while !self.next().await.up || !self.reports.is_empty() {}
    }

    /// Waits until a session that was up is down; how long it took, and why it went.
    async fn down(&mut self) -> (Duration, Diagnostic) {
        let start = Instant::now();
        let report = self.next().await;
        assert!(!report.up, "{report:?}");
        (start.elapsed(), report.diag)
    }

    async fn rejected(&self, reason: Reject) {
        until(reason.label(), async || self.speaker.rejected(reason) > 0).await;
    }
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        let mut ticks = interval(Duration::from_millis(20));
        while !holds().await {
            ticks.tick().await;
        }
    };
    timeout(SOON, wait)
        .await
        .unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

/// Runs a command while sessions go on; what it prints.
async fn output(command: &str) -> String {
    let mut words = command.split_whitespace();
    let mut process = tokio::process::Command::new(words.next().unwrap());
    let output = process.args(words).kill_on_drop(true).output();
    String::from_utf8(output.await.unwrap().stdout).unwrap()
}

/// Another network namespace, in which daemons live and die.
struct Far(Process);

impl Far {
    fn new() -> Self {
        Self(Process::in_other_netns("true"))
    }

    /// Another namespace, behind this one, which forwards. It has 10.65.9.1, to which the
    /// routes of this thread's namespace lead over the link `net`, by the device `near`.
    async fn new_behind(&self, near: &str, net: u8) -> Self {
        let far = Self::new();
        far.join_to(|arguments| self.0.ip(arguments), "behind", "far", 9);
        ip(&format!(
            "route add 10.65.9.0/30 via 10.65.{net}.1 dev {near}"
        ));
        ip(&format!(
            "route add fd65:9::/64 via fd65:{net}::1 dev {near}"
        ));
        far.0.ip("route add default via 10.65.9.2");
        far.0.ip("route add default via fd65:9::2");
        self.forward(true).await;
        far
    }

    /// Joins `near` here and `far` there: 10.65.`net`.2 and 10.65.`net`.1.
    fn join(&self, near: &str, far: &str, net: u8) {
        self.join_to(ip, near, far, net);
    }

    /// [`Self::join`] with another namespace, in which `ip` runs.
    fn join_to(&self, ip: impl Fn(&str), near: &str, far: &str, net: u8) {
        ip(&format!(
            "link add {near} type veth peer name {far} netns {}",
            self.0.id()
        ));
        ip(&format!("addr add 10.65.{net}.2/30 dev {near}"));
        ip(&format!("addr add fd65:{net}::2/64 dev {near} nodad"));
        ip(&format!("link set {near} up"));
        self.0.ip(&format!("addr add 10.65.{net}.1/30 dev {far}"));
        self.0
            .ip(&format!("addr add fd65:{net}::1/64 dev {far} nodad"));
        self.0.ip(&format!("link set {far} up"));
    }

    fn enter(&self, command: &str) -> String {
        format!("nsenter -t {} -n {command}", self.0.id())
    }

    fn spawn(&self, command: &str) -> Process {
        spawn(&self.enter(command))
    }

    /// Lets everything that `device` sends vanish, or no more.
    async fn black_hole(&self, device: &str, on: bool) {
        let command = if on {
            format!("tc qdisc add dev {device} root blackhole")
        } else {
            format!("tc qdisc del dev {device} root")
        };
        output(&self.enter(&command)).await;
    }

    /// Forwards packets, or no more.
    async fn forward(&self, on: bool) {
        let on = u8::from(on);
        self.sysctl(&format!("net.ipv4.ip_forward={on}")).await;
        self.sysctl(&format!("net.ipv6.conf.all.forwarding={on}"))
            .await;
    }

    async fn sysctl(&self, setting: &str) {
        output(&self.enter(&format!("sysctl -w {setting}"))).await;
    }
}

fn spawn(command: &str) -> Process {
    let mut words = command.split_whitespace();
    Process::spawn(Command::new(words.next().unwrap()).args(words))
}

/// The command that starts BIRD with BFD to these neighbours, and its control socket.
fn bird(directory: &Path, name: &str, neighbours: &[&str]) -> (String, PathBuf) {
    let neighbours: String = neighbours
        .iter()
        .map(|neighbour| format!("neighbor {neighbour};"))
        .collect();
    let config = format!(
        "router id 10.65.0.1;
         protocol device {{}}
         protocol bfd {{
           interface \"*\" {{ interval 50 ms; multiplier 3; }};
           multihop {{ interval 50 ms; multiplier 3; }};
           {neighbours}
         }}"
    );
    let file = directory.join(format!("{name}.conf"));
    std::fs::write(&file, config).unwrap();
    let socket = directory.join(format!("{name}.ctl"));
    let command = format!("bird -f -c {} -s {}", file.display(), socket.display());
    (command, socket)
}

/// Waits until BIRD has the session up and at full pace.
async fn bird_is_up(socket: &Path, neighbour: &str) {
    let command = format!("birdc -s {} show bfd sessions", socket.display());
    until("BIRD has the session up", async || {
        let sessions = output(&command).await;
        sessions.lines().any(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.first() == Some(&neighbour)
                && words.contains(&"Up")
                && words.ends_with(&["0.050", "0.150"])
        })
    })
    .await;
}

/// What a session must stand with a peer that can be started again and again, on a way that can
/// be cut off (`true`) and mended (`false`).
async fn outages<Peer>(
    here: &mut Heard,
    cut: impl AsyncFn(bool),
    start: impl Fn() -> Peer,
    is_up: impl AsyncFn(),
) {
    let peer = start();
    here.up().await;
    is_up().await;
    while here.reports.try_recv().is_ok() {}

    drop(peer);
    let (took, why) = here.down().await;
    assert!(took < 3 * DETECTION, "killed: {took:?}");
    assert_eq!(why, Diagnostic::DetectionTimeExpired);
    let _peer = start();
    here.up().await;
    is_up().await;

    cut(true).await;
    let (took, why) = here.down().await;
    assert!(took < 3 * DETECTION, "cut off: {took:?}");
    assert_eq!(why, Diagnostic::DetectionTimeExpired);
    cut(false).await;
    here.up().await;
    is_up().await;
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn bird_is_a_peer() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let far = Far::new();
        let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
        // The device and its address come later.
        far.join("near", "far", 0);
        let neighbour = "10.65.0.2 dev \"far\" local 10.65.0.1";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let cut = async |on| far.black_hole("far", on).await;
        let start = || far.spawn(&command);
        outages(&mut here, cut, start, async || {
            bird_is_up(&socket, "10.65.0.2").await;
        })
        .await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn bird_is_a_peer_over_several_hops() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let middle = Far::new();
        middle.join("near", "near", 0);
        let far = middle.new_behind("near", 0).await;
        let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
        let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let cut = async |on: bool| middle.forward(!on).await;
        let start = || far.spawn(&command);
        outages(&mut here, cut, start, async || {
            bird_is_up(&socket, "10.65.0.2").await;
        })
        .await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn bird_is_a_peer_over_several_hops_of_ipv6() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let middle = Far::new();
        middle.join("near", "near", 0);
        let far = middle.new_behind("near", 0).await;
        let mut here = Heard::start(multi_hop("fd65:0::2", "fd65:9::1", Some("near")));
        let neighbour = "fd65:0::2 local fd65:9::1 multihop yes";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let _peer = far.spawn(&command);
        here.up().await;
        bird_is_up(&socket, "fd65::2").await;
        middle.forward(false).await;
        let (_, why) = here.down().await;
        assert_eq!(why, Diagnostic::DetectionTimeExpired);
    });
}

/// As with the packets of a path: they leave by its device wherever the route leads, and come
/// in by whichever the peer's route leads to.
#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn over_several_hops_packets_leave_by_the_device_and_come_in_on_any() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let middle = Far::new();
        middle.join("near", "near", 0);
        middle.join("near2", "near2", 1);
        // The route leads over `near2`, there and back, but nothing gets there that way.
        let far = middle.new_behind("near2", 1).await;
        middle.0.ip("route add 10.65.0.2/32 via 10.65.1.2");
        middle.0.ip("rule add iif near2 blackhole");
        for device in ["all", "near"] {
            let setting = format!("net.ipv4.conf.{device}.rp_filter=0");
            middle.sysctl(&setting).await;
        }
        ip("route add 10.65.9.0/30 via 10.65.0.1 dev near metric 100");
        let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let _peer = far.spawn(&command);
        let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
        here.up().await;
        bird_is_up(&socket, "10.65.0.2").await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_speaker_has_sessions_over_one_hop_and_over_several() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let middle = Far::new();
        middle.join("near", "near", 0);
        let far = middle.new_behind("near", 0).await;
        let neighbour = "10.65.0.2 dev \"near\" local 10.65.0.1";
        let (command, _) = bird(directory.path(), "middle", &[neighbour]);
        let _middle_bird = middle.spawn(&command);
        let neighbour = "10.65.0.2 local 10.65.9.1 multihop yes";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let _far_bird = far.spawn(&command);
        let sessions = vec![
            config("10.65.0.2", "10.65.0.1", Some("near")),
            SessionConfig {
                id: 8,
                ..multi_hop("10.65.0.2", "10.65.9.1", Some("near"))
            },
        ];
        let (sender, mut reports) = mpsc::channel(8);
        let _speaker = Speaker::spawn(sessions, sender).unwrap();
        let mut next = async || timeout(SOON, reports.recv()).await.unwrap().unwrap();
        let mut up = BTreeMap::new();
        while up != BTreeMap::from([(7, true), (8, true)]) {
            let report = next().await;
            up.insert(report.id, report.up);
        }
        bird_is_up(&socket, "10.65.0.2").await;
        middle.forward(false).await;
        let report = next().await;
        let down = (8, false, Diagnostic::DetectionTimeExpired);
        assert_eq!((report.id, report.up, report.diag), down);
        middle.forward(true).await;
        let report = next().await;
        assert_eq!((report.id, report.up), (8, true));
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn bird_is_a_peer_over_ipv6() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let far = Far::new();
        far.join("near", "far", 0);
        let mut here = Heard::start(config("fd65:0::2", "fd65:0::1", Some("near")));
        let neighbour = "fd65:0::2 dev \"far\" local fd65:0::1";
        let (command, socket) = bird(directory.path(), "far", &[neighbour]);
        let peer = far.spawn(&command);
        here.up().await;
        bird_is_up(&socket, "fd65::2").await;
        drop(peer);
        here.down().await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_device_that_is_made_anew_is_bound_again() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let far = Far::new();
        far.join("near", "far", 0);
        let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
        let neighbour = "10.65.0.2 dev \"far\" local 10.65.0.1";
        let (command, _) = bird(directory.path(), "far", &[neighbour]);
        let _peer = far.spawn(&command);
        here.up().await;
        ip("link del near");
        here.down().await;
        far.join("near", "far", 0);
        here.up().await;
    });
}

/// [`outages`] with bfdd as the peer, which has `peer` in its configuration.
async fn outages_of_frr(here: &mut Heard, far: &Far, peer: &str, cut: impl AsyncFn(bool)) {
    // zebra and bfdd run as user frr.
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().display();
    let file = directory.path().join("bfdd.conf");
    let config_of_bfdd = format!(
        "bfd\n peer {peer}\n  detect-multiplier 3\n  receive-interval 50\n  \
         transmit-interval 50\n exit\nexit\n"
    );
    std::fs::write(&file, config_of_bfdd).unwrap();
    output(&format!("chown -R frr:frr {place}")).await;
    let daemon = |name: &str, more: String| {
        far.spawn(&format!(
            "/usr/lib/frr/{name} -A 127.0.0.1 -P 0 -z {place}/zserv.api \
             --vty_socket {place} -i {place}/{name}.pid {more}"
        ))
    };
    let _zebra = daemon("zebra", "-f /dev/null".into());
    // Without it bfdd tries again only after 10 s.
    let zserv = directory.path().join("zserv.api");
    until("zebra listens", async || zserv.exists()).await;
    let start = || {
        let more = format!("-f {} --bfdctl {place}/bfdd.sock", file.display());
        daemon("bfdd", more)
    };
    let show = "show bfd peers json";
    let is_up = async || {
        until("bfdd has the session up", async || {
            let mut vtysh = tokio::process::Command::new("vtysh");
            vtysh.args(["--vty_socket", &place.to_string(), "-c", show]);
            let output = vtysh.kill_on_drop(true).output().await.unwrap().stdout;
            let peers: serde_json::Value = serde_json::from_slice(&output).unwrap_or_default();
            let peer = &peers[0];
            peer["status"] == "up"
                && peer["transmit-interval"] == 50
                && peer["remote-transmit-interval"] == 50
        })
        .await;
    };
    outages(here, cut, start, is_up).await;
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn frr_is_a_peer() {
    in_netns(async || {
        let far = Far::new();
        far.join("near", "far", 0);
        let mut here = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
        let peer = "10.65.0.2 local-address 10.65.0.1 interface far";
        let cut = async |on| far.black_hole("far", on).await;
        outages_of_frr(&mut here, &far, peer, cut).await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn frr_is_a_peer_over_several_hops() {
    in_netns(async || {
        let middle = Far::new();
        middle.join("near", "near", 0);
        let far = middle.new_behind("near", 0).await;
        let mut here = Heard::start(multi_hop("10.65.0.2", "10.65.9.1", Some("near")));
        let peer = "10.65.0.2 multihop local-address 10.65.9.1";
        let cut = async |on: bool| middle.forward(!on).await;
        outages_of_frr(&mut here, &far, peer, cut).await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn bird_on_the_same_host_keeps_its_own_addresses() {
    in_netns(async || {
        let directory = tempfile::tempdir().unwrap();
        let far = Far::new();
        far.join("near", "far", 0);
        far.join("near2", "far2", 1);
        let (command, far_socket) = bird(
            directory.path(),
            "far",
            &[
                "10.65.0.2 dev \"far\" local 10.65.0.1",
                "10.65.1.2 dev \"far2\" local 10.65.1.1",
            ],
        );
        let _far_bird = far.spawn(&command);
        let neighbour = "10.65.1.1 dev \"near2\" local 10.65.1.2";
        let (command, near_socket) = bird(directory.path(), "near", &[neighbour]);
        // Whoever comes first.
        let mut first = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
        first.up().await;
        let _near_bird = spawn(&command);
        bird_is_up(&near_socket, "10.65.1.1").await;
        drop(first);
        let mut second = Heard::start(config("10.65.0.2", "10.65.0.1", Some("near")));
        second.up().await;
        bird_is_up(&far_socket, "10.65.0.2").await;
        bird_is_up(&far_socket, "10.65.1.2").await;
    });
}

/// Two addresses of one host.
fn two_addresses() -> [SessionConfig; 2] {
    ip("addr add 10.65.0.1/32 dev lo");
    ip("addr add 10.65.0.2/32 dev lo");
    [
        config("10.65.0.1", "10.65.0.2", None),
        config("10.65.0.2", "10.65.0.1", None),
    ]
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_speaker_that_is_dropped_says_so() {
    in_netns(async || {
        let [mut one, two] = two_addresses().map(Heard::start);
        one.up().await;
        drop(two);
        let (took, why) = one.down().await;
        assert!(took < DETECTION, "{took:?}");
        assert_eq!(why, Diagnostic::NeighborSignaledDown);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_slow_receiver_delays_no_session_and_gets_the_newest_report() {
    in_netns(async || {
        let [one, two] = two_addresses();
        let (sender, mut reports) = mpsc::channel(1);
        let speaker = Speaker::spawn(vec![one], sender.clone()).unwrap();
        let full = Report {
            id: 0,
            up: false,
            ended: false,
            diag: Diagnostic::None,
            at: 0,
        };
        sender.try_send(full).unwrap();
        // Twice up and once down, as seen from the other end.
        let mut other = Heard::start(two.clone());
        other.up().await;
        drop(other);
        let restarted = now_ns();
        let mut other = Heard::start(two);
        other.up().await;
        assert_eq!(reports.recv().await, Some(full));
        // That end may be up a little earlier; its first time up is not told any more.
        let up = loop {
            let report = timeout(SOON, reports.recv()).await.unwrap().unwrap();
            if report.up {
                break report;
            }
        };
        assert!(up.at >= restarted, "{up:?} {restarted}");
        drop(speaker);
        let (_, why) = other.down().await;
        assert_eq!(why, Diagnostic::NeighborSignaledDown);
        assert!(reports.is_empty());
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn packets_are_marked_and_checked_as_the_rfc_says() {
    in_netns(async || {
        let [session, _] = two_addresses();
        let peer = Local {
            address: session.remote,
            device: None,
            hops: session.hops,
        };
        let (to, remote) = (
            socket_address(session.local, session.hops.port(), 0),
            session.remote,
        );
        let listener = tokio::net::UdpSocket::from_std(peer.listen(0).unwrap()).unwrap();
        let here = Heard::start(session);
        let mut bytes = [0; PAYLOAD];
        let got = listener.async_io(Interest::READABLE, || receive(&listener, &mut bytes));
        let got = timeout(SOON, got).await.unwrap().unwrap();
        assert_eq!((got.length, got.ttl), (24, Some(255)));
        assert!(Packet::decode(&bytes[..got.length]).is_ok());
        let (_, from) = timeout(SOON, listener.recv_from(&mut bytes))
            .await
            .unwrap()
            .unwrap();
        assert!(from.port() >= 49152, "{from}");

        let hello = Packet {
            your_discriminator: 0,
            ..packet(State::Down)
        };
        let sender = UdpSocket::bind((remote, 0)).unwrap();
        let send = |packet: Packet| sender.send_to(&packet.encode(), to).unwrap();
        sender.set_ttl(254).unwrap();
        send(hello);
        here.rejected(Reject::Ttl).await;
        sender.set_ttl(255).unwrap();
        send(Packet {
            multiplier: 0,
            ..hello
        });
        here.rejected(Reject::MultiplierZero).await;
        send(Packet {
            your_discriminator: 1,
            ..hello
        });
        here.rejected(Reject::UnknownDiscriminator).await;
        let stranger = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        stranger.set_ttl(255).unwrap();
        stranger.send_to(&hello.encode(), to).unwrap();
        here.rejected(Reject::UnknownSource).await;

        // The same packet from the peer is welcome: it is answered at once.
        send(hello);
        until("an answer", async || {
            let (length, _) = listener.recv_from(&mut bytes).await.unwrap();
            let answer = Packet::decode(&bytes[..length]).unwrap();
            (answer.state, answer.your_discriminator) == (State::Init, hello.my_discriminator)
        })
        .await;
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_port_that_is_taken_is_named_and_waited_for() {
    in_netns(async || {
        let sessions = two_addresses();
        let taken = UdpSocket::bind(("0.0.0.0", sessions[0].hops.port())).unwrap();
        let local = Local {
            address: sessions[0].local,
            device: None,
            hops: sessions[0].hops,
        };
        let error = local.listen(0).unwrap_err();
        let error = local.explain(&error).to_string();
        assert!(error.contains("10.65.0.1 (UDP port 3784)"), "{error}");
        assert!(
            error.contains("another program has the port to itself"),
            "{error}"
        );

        let [mut one, _two] = sessions.map(Heard::start);
        // They have tried by the time another task of this thread comes to its turn.
        tokio::task::yield_now().await;
        drop(taken);
        one.up().await;
    });
}
