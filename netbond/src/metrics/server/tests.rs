//! The endpoint on the loopback device of a network namespace; no netbond is there to be read.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::*;
use crate::netlink::netns::in_netns;

const FILE: &str = "/etc/netbond.toml";
const PORT: u16 = 9469;

fn config(listen: Option<&str>) -> Config {
    let text = listen.map_or_else(String::new, |listen| {
        format!("[metrics]\nlisten = \"{listen}\"\n")
    });
    Config::parse(&text, FILE).unwrap()
}

fn endpoint() -> Endpoint {
    Endpoint::new(Pins::new("/nonexistent"))
}

/// Takes a configuration over, or says why not.
fn set(endpoint: &mut Endpoint, listen: Option<&str>) -> Result<Option<String>, String> {
    let prepared = endpoint.prepare(&config(listen), Path::new(FILE));
    let prepared = prepared.map_err(|error| format!("{error:#}"))?;
    Ok(endpoint.switch(prepared))
}

/// Whether somebody listens, told by the kernel.
async fn listens(address: &str) -> bool {
    TcpStream::connect(address).await.is_ok()
}

/// What comes back for these bytes, to the end.
async fn ask(request: &[u8]) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", PORT)).await.unwrap();
    // The server may have had enough before it has all.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_reload_moves_begins_and_ends_it() {
    in_netns(|| async {
        let mut endpoint = endpoint();
        let all = "0.0.0.0:9469";
        let (one, other) = ("127.0.0.1:9469", "127.0.0.2:9469");
        assert_eq!(set(&mut endpoint, None), Ok(None));
        assert!(!listens(one).await);

        let said = set(&mut endpoint, Some(one));
        assert_eq!(
            said,
            Ok(Some(
                "metrics served at http://127.0.0.1:9469/metrics".to_owned()
            ))
        );
        assert!(listens(one).await && !listens(other).await);
        assert_eq!(set(&mut endpoint, Some(one)), Ok(None), "nothing changed");
        assert!(listens(one).await);

        // The new one is in the old one's way, and takes its place.
        set(&mut endpoint, Some(all)).unwrap();
        // The task that held the old listener ends when it is its turn.
        tokio::task::yield_now().await;
        assert!(listens(one).await && listens(other).await);
        set(&mut endpoint, Some(one)).unwrap();
        tokio::task::yield_now().await;
        assert!(listens(one).await && !listens(other).await);

        let second = std::net::TcpListener::bind(all);
        assert!(second.is_err(), "no other program gets the port");
        assert_eq!(
            set(&mut endpoint, None),
            Ok(Some("metrics no longer served".to_owned()))
        );
        tokio::task::yield_now().await;
        assert!(!listens(one).await);
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn a_port_that_is_taken_changes_nothing() {
    in_netns(|| async {
        let other = std::net::TcpListener::bind("127.0.0.1:9470").unwrap();
        let mut endpoint = endpoint();
        set(&mut endpoint, Some("127.0.0.1:9469")).unwrap();
        let refused = set(&mut endpoint, Some("0.0.0.0:9470")).unwrap_err();
        assert!(
            refused.starts_with("/etc/netbond.toml:2: metrics: cannot listen on 0.0.0.0:9470"),
            "{refused}"
        );
        assert!(
            refused.contains("another program has the port"),
            "{refused}"
        );
        assert!(listens("127.0.0.1:9469").await, "the old one goes on");
        // What was prepared and then not wanted leaves the port.
        drop(other);
        drop(
            endpoint
                .prepare(&config(Some("0.0.0.0:9470")), Path::new(FILE))
                .unwrap(),
        );
        std::net::TcpListener::bind("0.0.0.0:9470").unwrap();
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn an_address_may_come_later() {
    in_netns(|| async {
        let mut endpoint = endpoint();
        set(&mut endpoint, Some("10.65.9.1:9469")).unwrap();
        set(&mut endpoint, Some("[fd65::1]:9469")).unwrap();
        crate::netlink::netns::ip("address add fd65::1/128 dev lo nodad");
        // Without a search for duplicates, too, the kernel takes it into use a moment later.
        while !listens("[fd65::1]:9469").await {
            sleep(Duration::from_millis(5)).await;
        }
    });
}

#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn only_what_it_knows_is_answered() {
    in_netns(|| async {
        let mut endpoint = endpoint();
        set(&mut endpoint, Some("127.0.0.1:9469")).unwrap();
        let answer = ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("/metrics"),
            "{answer}"
        );
        let answer = ask(b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 405 ") && answer.contains("allow: GET, HEAD"),
            "{answer}"
        );
        // No netbond left its maps here.
        let answer = ask(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(
            answer.starts_with("HTTP/1.1 500 ") && answer.contains("no netbond here"),
            "{answer}"
        );
        for nonsense in [
            &b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n"[..],
            b"GET\r\n\r\n",
            b"\r\n\r\n",
        ] {
            let answer = ask(nonsense).await;
            assert!(
                answer.is_empty() || answer.starts_with("HTTP/1.1 400 "),
                "{answer}"
            );
        }
        let long = format!(
            "GET /metrics HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n",
            "x".repeat(2 * HEAD)
        );
        let answer = ask(long.as_bytes()).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431 "),
            "{answer}"
        );
        let many = format!(
            "GET /metrics HTTP/1.1\r\n{}\r\n",
            "X: y\r\n".repeat(HEADERS + 1)
        );
        let answer = ask(many.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    });
}

/// Clients that say nothing hold the endpoint up for the deadline at the most, and nothing beside it.
#[test]
#[ignore = "needs root: cargo xtask test netns"]
fn slow_clients_hold_nobody_up_for_long() {
    in_netns(|| async {
        let mut endpoint = endpoint();
        set(&mut endpoint, Some("127.0.0.1:9469")).unwrap();
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(("127.0.0.1", PORT)).await.unwrap();
            stream.write_all(b"GET /metr").await.unwrap();
            slow.push(stream);
        }
        let start = Instant::now();
        let answer = tokio::spawn(ask(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
        // The runtime, which is the controller's, is free all the time.
        let mut longest = Duration::ZERO;
        while !answer.is_finished() {
            let before = Instant::now();
            sleep(Duration::from_millis(10)).await;
            longest = longest.max(before.elapsed());
        }
        assert!(longest < DEADLINE / 2, "{longest:?}");
        let answer = answer.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        let took = start.elapsed();
        let limits = DEADLINE - Duration::from_secs(1)..2 * DEADLINE;
        assert!(limits.contains(&took), "{took:?}");
        for mut stream in slow {
            assert_eq!(
                stream.read(&mut [0; 64]).await.unwrap_or(0),
                0,
                "it was told to go"
            );
        }
    });
}
