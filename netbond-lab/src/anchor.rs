//! The process that holds a router: it lives in the router's namespaces and runs its WireGuard.
//!
//! The lab starts one per router (the hidden command `netbond-lab router`) and talks to it over a
//! socket in the lab's state directory, one request and one answer per line:
//!
//! ```text
//! create NAME MTU            a WireGuard device in user space
//! delete NAME                ... and its end
//! impair NAME SHARE DELAY    it loses a share of what it sends, and sends the rest later (us)
//! detach                     the lab's owner goes away, the router stays
//! ```
//!
//! The answer is `ok` or `error TEXT`. Standard input is the lifeline: its end means that the owner
//! died, and the anchor takes everything in its namespace along.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::sync::Mutex;

use crate::embedded::EmbeddedDevice;
use crate::impair::Impairment;
use crate::namespace;

/// What the anchor prints once it can be talked to.
pub(crate) const READY: &str = "ready";

/// How long an anchor may take to answer before it counts as frozen or dead.
const ANSWER: Duration = Duration::from_secs(10);

/// Kernel settings of every router. Those of IPv6 are left out where the kernel has no IPv6.
const SETTINGS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "1"),
    // A packet may come in by another device than its answer leaves by: detours, bonds. Set before
    // any device exists: `default` is copied at creation.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/fib_multipath_hash_policy", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    // Nobody else is on these links: addresses are usable at once.
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// The socket of the anchor of `router` in a lab's state directory.
pub(crate) fn socket_path(state: &Path, router: &str) -> PathBuf {
    state.join(format!("{router}.sock"))
}

/// Sends one request to an anchor and waits for its answer.
pub(crate) fn request(socket: &Path, line: &str) -> Result<()> {
    let at = || format!("router process at {}", socket.display());
    let mut stream =
        UnixStream::connect(socket).with_context(|| format!("cannot reach the {}", at()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    writeln!(stream, "{line}").with_context(|| format!("cannot write to the {}", at()))?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .with_context(|| format!("no answer from the {} (is it frozen?)", at()))?;
    match answer.trim_end().split_once(' ') {
        None if answer.trim_end() == "ok" => Ok(()),
        Some(("error", text)) => Err(anyhow!("{text}")),
        None | Some(_) => bail!("unexpected answer {answer:?} from the {}", at()),
    }
}

/// The life of a router: enters its namespaces, serves requests, ends with its owner.
///
/// `state` is the lab's state directory. Must be called before the process has any thread.
pub fn serve(netns: &str, router: &str, state: &Path) -> Result<()> {
    namespace::enter_private(netns, state)
        .with_context(|| format!("router {router} cannot enter its namespaces"))?;
    for (path, value) in SETTINGS {
        let path = Path::new("/proc/sys").join(path);
        match fs::write(&path, value) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            result => result.with_context(|| format!("cannot write {}", path.display()))?,
        }
    }
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    let detached = Arc::new(AtomicBool::new(false));
    hold_lifeline(netns.to_owned(), Arc::clone(&detached))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?
        .block_on(serve_requests(&socket_path(state, router), detached))
}

/// Watches standard input; when the owner's end closes, nothing of this router may survive.
fn hold_lifeline(netns: String, detached: Arc<AtomicBool>) -> Result<()> {
    // The name leads nowhere from inside the private mounts, this process's own namespace does.
    std::thread::Builder::new()
        .name("lifeline".to_owned())
        .spawn(move || {
            let mut byte = [0];
            while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
            if detached.load(Ordering::SeqCst) {
                return;
            }
            eprintln!("the owner of {netns} is gone: ending everything in it");
            let own = getpid();
            for pid in namespace::processes_beside_us().unwrap_or_default() {
                if pid != own {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            std::process::exit(0);
        })?;
    Ok(())
}

type Devices = Arc<Mutex<HashMap<String, EmbeddedDevice>>>;

async fn serve_requests(socket: &Path, detached: Arc<AtomicBool>) -> Result<()> {
    let listener = tokio::net::UnixListener::bind(socket)
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    println!("{READY}");
    let devices = Devices::default();
    loop {
        let (stream, _) = listener.accept().await.context("cannot accept a request")?;
        let (devices, detached) = (Arc::clone(&devices), Arc::clone(&detached));
        tokio::spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut lines = tokio::io::BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer = match handle(&line, &devices, &detached).await {
                    Ok(()) => "ok\n".to_owned(),
                    Err(error) => format!("error {}\n", format!("{error:#}").replace('\n', " ")),
                };
                if write.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
    }
}

async fn handle(line: &str, devices: &Devices, detached: &AtomicBool) -> Result<()> {
    let words: Vec<_> = line.split_whitespace().collect();
    match words.as_slice() {
        ["create", name, mtu] => {
            let mtu = mtu.parse().with_context(|| format!("bad MTU {mtu:?}"))?;
            let mut devices = devices.lock().await;
            if devices.contains_key(*name) {
                bail!("device {name} exists already");
            }
            devices.insert((*name).to_owned(), EmbeddedDevice::create(name, mtu).await?);
            Ok(())
        }
        ["delete", name] => {
            let device = devices.lock().await.remove(*name);
            let device = device.with_context(|| format!("there is no device {name}"))?;
            device.delete().await;
            // The interface goes with the last reference to it, which a task may still hold.
            let path = PathBuf::from(format!("/sys/class/net/{name}"));
            for _ in 0..500 {
                if !path.exists() {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bail!("interface {name} is still there 5 s after its device was stopped")
        }
        ["impair", name, loss, delay] => {
            let impairment = Impairment::parse(loss, delay)?;
            let devices = devices.lock().await;
            let device = devices.get(*name);
            device
                .with_context(|| format!("there is no device {name}"))?
                .impair(impairment);
            Ok(())
        }
        ["detach"] => {
            detached.store(true, Ordering::SeqCst);
            Ok(())
        }
        _ => bail!("unknown request {line:?}"),
    }
}
