//! FRR's OSPF daemons by vtysh, whose replies are JSON (ospfd/ospf_vty.c; FRR 8.4 and later).

pub mod database;
pub mod six;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::lsdb::Instance;
use super::{REPLY_LIMIT, entry, state};
use crate::control::event::{OspfInterface, OspfNeighbour};

const NEIGHBOURS_AND_INTERFACES: [&str; 2] =
    ["show ip ospf neighbor json", "show ip ospf interface json"];

/// All OSPFv2 interfaces of the default VRF.
///
/// # Errors
/// The command fails, or its output cannot be read.
pub async fn interfaces(vtysh: &[String]) -> anyhow::Result<Vec<OspfInterface>> {
    parse(&run(vtysh, &NEIGHBOURS_AND_INTERFACES).await?)
}

/// OSPFv2 of the default VRF, with its link-state database; `None` where it is not configured.
///
/// # Errors
/// The command fails, or its output cannot be read.
pub async fn instance(vtysh: &[String]) -> anyhow::Result<Option<Instance>> {
    let Some(database) = database::parse(&run(vtysh, &database::COMMANDS).await?)? else {
        return Ok(None);
    };
    let interfaces = interfaces(vtysh).await?;
    Ok(Some(Instance {
        database,
        interfaces,
    }))
}

/// What vtysh prints for several commands, one after the other.
async fn run(vtysh: &[String], commands: &[&str]) -> anyhow::Result<String> {
    let (program, arguments) = vtysh.split_first().context("the vtysh command is empty")?;
    let mut child = Command::new(program)
        .args(arguments)
        // One process for all: it takes 50 ms, most of them to connect to the daemons.
        .args(commands.iter().flat_map(|&command| ["-c", command]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run '{program}'"))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, complaint) = tokio::try_join!(read(stdout), read(stderr))?;
    let status = child
        .wait()
        .await
        .with_context(|| format!("cannot wait for '{program}'"))?;
    let complaint = complaint.trim();
    ensure!(
        status.success(),
        "'{program}' failed ({status}): {complaint}"
    );
    Ok(output)
}

async fn read(pipe: Option<impl AsyncRead + Unpin>) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(REPLY_LIMIT as u64 + 1)
            .read_to_end(&mut bytes)
            .await?;
    }
    ensure!(
        bytes.len() <= REPLY_LIMIT,
        "the output exceeds {REPLY_LIMIT} bytes"
    );
    String::from_utf8(bytes).context("the output is no UTF-8")
}

/// `show ip ospf neighbor json`; empty where OSPF is not configured.
#[derive(Deserialize)]
struct Neighbours {
    /// By router id: one entry for each link to it.
    #[serde(default)]
    neighbors: BTreeMap<Ipv4Addr, Vec<Neighbour>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Neighbour {
    /// `Full/-`, `Init/DROther`, ...
    nbr_state: String,
    iface_address: IpAddr,
    /// Device and own address: `wg-a-m1:10.65.0.2`.
    iface_name: String,
}

/// `show ip ospf interface json`; empty where OSPF is not configured.
#[derive(Deserialize)]
struct Interfaces {
    #[serde(default)]
    interfaces: BTreeMap<String, Interface>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Interface {
    #[serde(default)]
    ospf_enabled: bool,
    cost: Option<u32>,
}

/// Reads the outputs of both commands, one after the other.
///
/// # Errors
/// An output that cannot be read.
pub fn parse(output: &str) -> anyhow::Result<Vec<OspfInterface>> {
    // vtysh exits with 0 also where ospfd does not know a command and answers with a line of text.
    let mut documents = serde_json::Deserializer::from_str(output);
    let neighbours = Neighbours::deserialize(&mut documents)
        .context("'show ip ospf neighbor json' cannot be read")?;
    let interfaces = Interfaces::deserialize(&mut documents)
        .context("'show ip ospf interface json' cannot be read")?;
    documents
        .end()
        .context("text after 'show ip ospf interface json'")?;

    let mut all: Vec<OspfInterface> = interfaces
        .interfaces
        .into_iter()
        .filter(|(_, interface)| interface.ospf_enabled)
        .map(|(device, interface)| OspfInterface {
            device,
            cost: interface.cost,
            neighbours: Vec::new(),
        })
        .collect();
    for (router_id, links) in neighbours.neighbors {
        for link in links {
            // A device name has no colon (dev_valid_name).
            let device = link.iface_name.split(':').next().unwrap_or_default();
            let address = link.iface_address;
            let neighbour = OspfNeighbour {
                router_id,
                address,
                state: state(&link.nbr_state),
            };
            entry(&mut all, device).neighbours.push(neighbour);
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
                "/tests/fixtures/ospf/frr-",
                $name
            ))
        };
    }

    fn interface(device: &str, cost: u32, neighbour: Option<(u8, &str, &str)>) -> OspfInterface {
        let neighbours = neighbour
            .map(|(id, address, state)| OspfNeighbour {
                router_id: [10, 65, 1, id].into(),
                address: address.parse().unwrap(),
                state: state.into(),
            })
            .into_iter()
            .collect();
        OspfInterface {
            device: device.into(),
            cost: Some(cost),
            neighbours,
        }
    }

    #[test]
    fn adjacencies_are_read() {
        let expected = [
            interface("lo", 0, None),
            interface("wg-a-m1", 10, Some((1, "10.65.0.1", "Full"))),
            interface("wg-a-m2", 25, Some((2, "10.65.0.13", "Full"))),
        ];
        assert_eq!(parse(fixture!("full.txt")).unwrap(), expected);
        let loading = &parse(fixture!("loading.txt")).unwrap()[1];
        assert_eq!(
            *loading,
            interface("wg-a-m1", 10, Some((1, "10.65.0.1", "Loading")))
        );
        let lost = &parse(fixture!("one-lost.txt")).unwrap()[2];
        assert_eq!(*lost, interface("wg-a-m2", 25, None));
        assert_eq!(parse(fixture!("no-ospf.txt")).unwrap(), []);
    }

    #[test]
    fn other_output_is_an_error() {
        let full = fixture!("full.txt");
        let half = &full[..full.len() / 2];
        for output in ["", "{}", "% Unknown command", "{}{}x", half] {
            assert!(parse(output).is_err(), "{output:?}");
        }
    }

    #[tokio::test]
    async fn a_command_that_fails_tells_why() {
        let run = async |script: &str| {
            let command = ["sh", "-c", script].map(str::to_owned);
            format!("{:#}", interfaces(&command).await.unwrap_err())
        };
        // As vtysh does.
        let error = run("echo 'ospfd is not running' >&2; exit 1").await;
        assert!(
            error.contains("ospfd is not running") && error.contains("status: 1"),
            "{error}"
        );
        let error = run("yes | head -c 5000000").await;
        assert!(error.contains("exceeds"), "{error}");
        let error = interfaces(&["/nonexistent".to_owned()]).await.unwrap_err();
        assert!(format!("{error:#}").contains("cannot run '/nonexistent'"));
        assert!(interfaces(&[]).await.is_err());
    }

    proptest! {
        #[test]
        fn mutated_output_never_panics(text in mutated::text(fixture!("full.txt"))) {
            let _ = parse(&text);
        }
    }
}
