//! BIRD 2's control socket (nest/cli.c, proto/ospf/ospf.c).
//!
//! A reply is lines of `NNNN-text` (more follow), ` text` (the code of the line before) and at last
//! `NNNN text`. Codes from 8000 are errors.

pub mod state;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use super::lsdb::Instance;
use super::{REPLY_LIMIT, entry};
use crate::control::event::{OspfInterface, OspfNeighbour};

/// Sent on connecting.
const GREETING: u16 = 1;
/// The lines of `show protocols`.
const PROTOCOL: u16 = 1002;
/// The lines of `show ospf neighbors`.
const NEIGHBOURS: u16 = 1013;
/// The lines of `show ospf interface`.
const INTERFACES: u16 = 1015;
/// From here on codes are errors: at run time (8000), of syntax (9000).
const ERRORS: u16 = 8000;

/// All OSPF interfaces of all OSPF instances, v2 and v3. A device on which several instances run
/// comes once for each.
///
/// # Errors
/// No connection, an error of BIRD, or a reply that cannot be read.
pub async fn interfaces(socket: &Path) -> anyhow::Result<Vec<OspfInterface>> {
    let mut client = Client::connect(socket).await?;
    let mut all = Vec::new();
    for name in client.protocols().await? {
        all.extend(client.interfaces(&name).await?);
    }
    Ok(all)
}

/// All OSPF instances, v2 and v3, with their link-state databases; without those that are down.
///
/// # Errors
/// No connection, an error of BIRD, or a reply that cannot be read.
pub async fn instances(socket: &Path) -> anyhow::Result<Vec<Instance>> {
    let mut client = Client::connect(socket).await?;
    let mut all = Vec::new();
    for name in client.protocols().await? {
        // Without `all` only what is reachable.
        let reply = client.ask(&format!("show ospf state '{name}'")).await?;
        if let Some(database) = state::parse(&reply)? {
            let interfaces = client.interfaces(&name).await?;
            all.push(Instance {
                database,
                interfaces,
            });
        }
    }
    Ok(all)
}

struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    async fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket)
            .await
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        let mut client = Self {
            stream: BufReader::new(stream),
        };
        let greeting = client.reply().await.context("no greeting")?;
        let lines = lines(&greeting)?;
        ensure!(
            lines.first().is_some_and(|line| line.code == GREETING),
            "the greeting is not BIRD's: {greeting:?}"
        );
        Ok(client)
    }

    /// The names of all OSPF instances.
    async fn protocols(&mut self) -> anyhow::Result<Vec<String>> {
        parse_protocols(&self.ask("show protocols").await?)
    }

    async fn interfaces(&mut self, name: &str) -> anyhow::Result<Vec<OspfInterface>> {
        // Without a name these fail as soon as there are several instances.
        let interfaces = self.ask(&format!("show ospf interface '{name}'")).await?;
        let neighbours = self.ask(&format!("show ospf neighbors '{name}'")).await?;
        parse_instance(&interfaces, &neighbours)
    }

    async fn ask(&mut self, command: &str) -> anyhow::Result<String> {
        let sent = self
            .stream
            .write_all(format!("{command}\n").as_bytes())
            .await;
        sent.with_context(|| format!("cannot send '{command}'"))?;
        self.reply()
            .await
            .with_context(|| format!("no reply to '{command}'"))
    }

    /// Reads up to the line that ends a reply.
    async fn reply(&mut self) -> anyhow::Result<String> {
        let mut reply = Vec::new();
        loop {
            let start = reply.len();
            let left = (REPLY_LIMIT - start) as u64;
            let read = (&mut self.stream)
                .take(left)
                .read_until(b'\n', &mut reply)
                .await?;
            ensure!(
                read > 0,
                "BIRD closed the connection, or the reply exceeds {REPLY_LIMIT} bytes"
            );
            let line = &reply[start..];
            ensure!(line.ends_with(b"\n"), "the reply ends within a line");
            match line_kind(line) {
                LineKind::Last => {
                    return String::from_utf8(reply).context("the reply is no UTF-8");
                }
                LineKind::More => {}
                LineKind::Malformed => bail!(malformed(&String::from_utf8_lossy(line))),
            }
        }
    }
}

/// What the start of a line says of the reply.
#[derive(Debug, PartialEq, Eq)]
enum LineKind {
    Last,
    More,
    Malformed,
}

fn line_kind(line: &[u8]) -> LineKind {
    match line {
        [b' ', ..] => LineKind::More,
        [a, b, c, d, separator @ (b' ' | b'-'), ..]
            if [a, b, c, d].into_iter().all(u8::is_ascii_digit) =>
        {
            if *separator == b' ' {
                LineKind::Last
            } else {
                LineKind::More
            }
        }
        _ => LineKind::Malformed,
    }
}

/// A line of a reply.
#[derive(Debug, PartialEq, Eq)]
struct Line<'a> {
    code: u16,
    text: &'a str,
}

/// Splits a reply; fails where it is malformed, incomplete, or an error of BIRD.
fn lines(reply: &str) -> anyhow::Result<Vec<Line<'_>>> {
    let mut lines = Vec::new();
    let mut code = None;
    let mut ended = false;
    for raw in reply.lines() {
        ensure!(!ended, "text after the end of the reply: {raw:?}");
        let text = match raw.strip_prefix(' ') {
            Some(text) => text,
            // `+` and `*` are asynchronous output, of which netbond asks for none.
            None => {
                let (digits, text) = raw.split_at_checked(4).ok_or_else(|| malformed(raw))?;
                ensure!(
                    digits.bytes().all(|byte| byte.is_ascii_digit()),
                    malformed(raw)
                );
                code = Some(digits.parse().map_err(|_| malformed(raw))?);
                ended = text.starts_with(' ');
                text.strip_prefix([' ', '-'])
                    .ok_or_else(|| malformed(raw))?
            }
        };
        let code = code.ok_or_else(|| malformed(raw))?;
        ensure!(code < ERRORS, "BIRD says: {text}");
        lines.push(Line { code, text });
    }
    ensure!(ended, "the reply ends too early");
    Ok(lines)
}

fn malformed(line: &str) -> anyhow::Error {
    anyhow!("a line of BIRD's reply cannot be read: {line:?}")
}

/// The names of the OSPF instances that are up, from the reply to `show protocols`.
///
/// # Errors
/// An error of BIRD, or a reply that cannot be read.
pub fn parse_protocols(reply: &str) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for line in lines(reply)? {
        let mut words = line.text.split_whitespace();
        let (Some(name), Some("OSPF"), _, Some(status)) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            continue;
        };
        // One that is down has no interfaces.
        if line.code == PROTOCOL && status == "up" {
            // It goes into a command between quotes.
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.:".contains(&byte);
            ensure!(name.bytes().all(plain), malformed(line.text));
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// One instance, from the replies to `show ospf interface` and `show ospf neighbors`.
///
/// # Errors
/// An error of BIRD, or a reply that cannot be read.
pub fn parse_instance(interfaces: &str, neighbours: &str) -> anyhow::Result<Vec<OspfInterface>> {
    let mut all = parse_interfaces(interfaces)?;
    for line in lines(neighbours)? {
        if line.code != NEIGHBOURS {
            continue;
        }
        // Before them a line with the instance's name and one with the columns' names.
        let words: Vec<&str> = line.text.split_whitespace().collect();
        let Some(router_id) = words.first().and_then(|word| word.parse::<Ipv4Addr>().ok()) else {
            continue;
        };
        // Router ID, Pri, State, DTime, Interface, Router IP
        let [_, _, status, _, device, address] = words[..] else {
            bail!(malformed(line.text));
        };
        let address: IpAddr = address.parse().map_err(|_| malformed(line.text))?;
        let neighbour = OspfNeighbour {
            router_id,
            address,
            state: super::state(status),
        };
        entry(&mut all, device).neighbours.push(neighbour);
    }
    Ok(all)
}

/// `Interface NAME (PREFIX)`, then indented `Key: value` lines. A device with several prefixes
/// comes several times; the cheapest counts.
fn parse_interfaces(reply: &str) -> anyhow::Result<Vec<OspfInterface>> {
    let mut all = Vec::new();
    let mut device = None;
    for line in lines(reply)? {
        if line.code != INTERFACES {
            continue;
        }
        if let Some(rest) = line.text.strip_prefix("Interface ") {
            let name = rest
                .split_whitespace()
                .next()
                .ok_or_else(|| malformed(line.text))?;
            entry(&mut all, name);
            device = Some(name);
        } else if let Some(cost) = line.text.trim_start().strip_prefix("Cost:") {
            let cost: u32 = cost.trim().parse().map_err(|_| malformed(line.text))?;
            let device = device.ok_or_else(|| malformed(line.text))?;
            let interface = entry(&mut all, device);
            interface.cost = Some(interface.cost.map_or(cost, |other| other.min(cost)));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::mutated;

    macro_rules! fixture {
        ($name:literal) => {
            include_str!(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/fixtures/ospf/bird-",
                $name
            ))
        };
    }

    fn neighbour(id: [u8; 4], address: &str) -> OspfNeighbour {
        let address = address.parse().unwrap();
        OspfNeighbour {
            router_id: id.into(),
            address,
            state: "Full".into(),
        }
    }

    fn interface(device: &str, cost: u32, neighbours: &[OspfNeighbour]) -> OspfInterface {
        let neighbours = neighbours.to_vec();
        OspfInterface {
            device: device.into(),
            cost: Some(cost),
            neighbours,
        }
    }

    #[test]
    fn one_instance_is_read() {
        assert_eq!(
            parse_protocols(fixture!("protocols.txt")).unwrap(),
            ["seed"]
        );
        let read = parse_instance(fixture!("interface.txt"), fixture!("neighbors.txt")).unwrap();
        let expected = [
            interface("lo", 10, &[]),
            interface("wg-a-m1", 10, &[neighbour([10, 65, 1, 1], "10.65.0.1")]),
            interface("wg-a-m2", 10, &[neighbour([10, 65, 1, 2], "10.65.0.13")]),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn several_instances_are_read() {
        let names = parse_protocols(fixture!("multi-protocols.txt")).unwrap();
        assert_eq!(names, ["one", "two.b", "six"]);
        let two = parse_instance(
            fixture!("multi-interface-two.b.txt"),
            fixture!("multi-neighbors-two.b.txt"),
        );
        let expected = interface("wg-a-m2", 25, &[neighbour([10, 65, 1, 2], "10.65.0.13")]);
        assert_eq!(two.unwrap(), [expected]);
        // OSPFv3: link-local neighbours.
        let six = parse_instance(
            fixture!("multi-interface-six.txt"),
            fixture!("multi-neighbors-six.txt"),
        );
        let address = "fe80::6484:51ff:fe0c:a82d";
        let expected = [
            interface("wg-a-m1", 7, &[neighbour([10, 65, 1, 1], address)]),
            interface("wg-a-m2", 7, &[]),
        ];
        assert_eq!(six.unwrap(), expected);
    }

    #[test]
    fn an_instance_that_is_down_or_missing_has_no_interfaces() {
        assert_eq!(
            parse_protocols(fixture!("protocols-down.txt")).unwrap(),
            [""; 0]
        );
        assert_eq!(
            parse_protocols(fixture!("none-protocols.txt")).unwrap(),
            [""; 0]
        );
        // It went down between two commands.
        let down = parse_instance(
            fixture!("interface-down.txt"),
            fixture!("neighbors-down.txt"),
        )
        .unwrap();
        assert_eq!(down, []);
    }

    #[test]
    fn a_device_with_two_prefixes_comes_once() {
        let reply = "1015-seed:\n Interface e0 (10.0.0.0/30)\n \tCost: 20\n \
                     Interface e0 (10.0.1.0/30)\n \tCost: 10\n0000 \n";
        assert_eq!(parse_interfaces(reply).unwrap(), [interface("e0", 10, &[])]);
    }

    #[test]
    fn errors_of_bird_and_malformed_replies_are_errors() {
        let says = |reply: &str| parse_interfaces(reply).unwrap_err().to_string();
        let syntax = "BIRD says: syntax error, unexpected CF_SYM_UNDEFINED";
        assert_eq!(says(fixture!("syntax.txt")), syntax);
        assert_eq!(says("1015-seed:\n"), "the reply ends too early");
        assert_eq!(says(""), "the reply ends too early");
        assert!(says("0000 \n0000 \n").contains("after the end"));
        for reply in ["10é5 x\n", " first\n0000 \n", "abc\n", "1015+x\n0000 \n"] {
            assert!(says(reply).contains("cannot be read"), "{reply:?}");
        }
        let unreadable = [
            "1015-\tCost: 10\n0000 \n",
            "1015-Interface e0 (-)\n \tCost: x\n0000 \n",
        ];
        for reply in unreadable {
            assert!(says(reply).contains("cannot be read"), "{reply:?}");
        }
        let short = "1013-seed:\n 10.0.0.1 1 Full/PtP 3.5 e0\n0000 \n";
        assert!(parse_instance("0000 \n", short).is_err());
        // A name that would end the quotes.
        assert!(parse_protocols("1002-a'b OSPF t up now\n0000 \n").is_err());
    }

    #[test]
    fn the_last_line_is_told_from_the_others() {
        for last in ["0000 \n", "9001 syntax error\n"] {
            assert_eq!(line_kind(last.as_bytes()), LineKind::Last);
        }
        for more in ["1015-seed:\n", " 0000 x\n"] {
            assert_eq!(line_kind(more.as_bytes()), LineKind::More);
        }
        for malformed in ["0000\n", "SSH-2.0\n", "\n", ""] {
            assert_eq!(line_kind(malformed.as_bytes()), LineKind::Malformed);
        }
    }

    /// Greets and answers each command with the next reply, whatever it is; then hangs up.
    async fn serve(replies: &'static [&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bird.ctl");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            for (n, reply) in replies.iter().enumerate() {
                if n > 0 {
                    stream.read_line(&mut String::new()).await.unwrap();
                }
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        (directory, path)
    }

    #[tokio::test]
    async fn the_client_asks_for_every_instance() {
        let (_directory, path) = serve(&[
            fixture!("greeting.txt"),
            fixture!("multi-protocols.txt"),
            fixture!("multi-interface-one.txt"),
            fixture!("multi-neighbors-one.txt"),
            fixture!("multi-interface-two.b.txt"),
            fixture!("multi-neighbors-two.b.txt"),
            fixture!("multi-interface-six.txt"),
            fixture!("multi-neighbors-six.txt"),
        ])
        .await;
        let read = interfaces(&path).await.unwrap();
        let costs: Vec<_> = read
            .iter()
            .map(|i| (i.device.as_str(), i.cost.unwrap()))
            .collect();
        assert_eq!(
            costs,
            [
                ("wg-a-m1", 10),
                ("wg-a-m2", 25),
                ("wg-a-m1", 7),
                ("wg-a-m2", 7)
            ]
        );
    }

    #[tokio::test]
    async fn a_socket_that_is_not_birds_is_an_error() {
        for replies in [
            &["SSH-2.0\n"][..],
            &["0000 \n"],
            &["0001 BIRD\n", "1002-x\n"],
            &[],
        ] {
            let (_directory, path) = serve(replies).await;
            assert!(interfaces(&path).await.is_err(), "{replies:?}");
        }
        let error = interfaces(Path::new("/nonexistent")).await.unwrap_err();
        assert_eq!(error.to_string(), "cannot connect to /nonexistent");
    }

    proptest! {
        #[test]
        fn mutated_replies_never_panic(
            text in prop_oneof![
                mutated::text(fixture!("protocols.txt")),
                mutated::text(fixture!("interface.txt")),
                mutated::text(fixture!("neighbors.txt")),
                mutated::text(fixture!("syntax.txt")),
            ],
        ) {
            let _ = (parse_protocols(&text), parse_instance(&text, &text));
        }
    }
}
