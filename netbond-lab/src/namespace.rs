//! Network namespaces with a name, the private mounts of a router, and the processes inside.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::Pid;

use crate::wait::wait_for_end;

/// Where `ip netns` keeps its names.
const NETNS_DIR: &str = "/run/netns";

/// What every namespace of a lab starts with.
const PREFIX: &str = "nb-";

/// The name of the namespace of `router` in `lab`.
pub fn netns_name(lab: &str, router: &str) -> String {
    format!("{PREFIX}{lab}-{router}")
}

/// Identity of a namespace: device and inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(path: &Path) -> Result<Self> {
        let meta =
            fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        Ok(Self(meta.dev(), meta.ino()))
    }
}

/// Creates a named network namespace.
pub(crate) fn create(name: &str) -> Result<()> {
    ip(&["netns", "add", name])
        .with_context(|| format!("cannot create network namespace {name}; root is needed"))
}

/// Removes a named network namespace, killing every process in it first. None is no error.
pub(crate) fn remove(name: &str) -> Result<()> {
    let path = netns_path(name);
    if !path.exists() {
        return Ok(());
    }
    kill_all_in(name)?;
    ip(&["netns", "del", name])
}

/// The lab and router of every namespace on this machine that belongs to a lab.
pub(crate) fn all() -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Ok(found);
    };
    for entry in entries {
        let name = entry?.file_name();
        // Router names hold no dash, lab names may.
        if let Some((lab, router)) = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX))
            .and_then(|rest| rest.rsplit_once('-'))
        {
            found.push((lab.to_owned(), router.to_owned()));
        }
    }
    Ok(found)
}

/// Ends every process whose network namespace is `name` and waits until they are gone.
///
/// The namespace itself is the proof that a process is the lab's: process ids are reused, a
/// namespace of ours holds nothing but what was started in it.
fn kill_all_in(name: &str) -> Result<()> {
    let path = netns_path(name);
    let target = Identity::of(&path)?;
    let own = Identity::of(Path::new("/proc/self/ns/net"))?;
    if target == own {
        bail!("{name} is the namespace this process runs in: run the command from the host");
    }
    // A namespace whose creation was cut short is a plain file, without namespace or processes.
    wait_for_end(
        &format!("end of the processes in {name}"),
        Duration::from_secs(10),
        || {
            let pids = processes_in(target)?;
            if pids.is_empty() {
                return Ok(Some(()));
            }
            for pid in &pids {
                // It may have ended since.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            bail!("still there: {pids:?}")
        },
    )
}

/// Every process that is in the network namespace `name`.
pub(crate) fn processes(name: &str) -> Result<Vec<Pid>> {
    processes_in(Identity::of(&netns_path(name))?)
}

/// Every process in the network namespace of this one, itself included.
pub(crate) fn processes_beside_us() -> Result<Vec<Pid>> {
    processes_in(Identity::of(Path::new("/proc/self/ns/net"))?)
}

fn processes_in(target: Identity) -> Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        // A process that is just ending (or a zombie) has no namespace any more.
        if Identity::of(&entry.path().join("ns/net")).is_ok_and(|identity| identity == target) {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}

/// Moves this process into the named network namespace and a mount namespace of its own.
///
/// There, `/sys` shows the network namespace's devices, and `/sys/fs/bpf` and `/run` are empty: a
/// program with its sockets and pins at default paths meets only what belongs to the same router.
/// `keep` (a directory on the host) stays reachable at its own path. Must run before any thread is
/// started.
pub(crate) fn enter_private(name: &str, keep: &Path) -> Result<()> {
    let netns = netns_path(name);
    let file = File::open(&netns).with_context(|| format!("cannot open {}", netns.display()))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .with_context(|| format!("cannot enter network namespace {name}"))?;
    unshare(CloneFlags::CLONE_NEWNS).context("cannot get a mount namespace")?;
    // Nothing mounted here may show on the host.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("cannot make the mounts private")?;
    // Opened before /run is covered; afterwards only this descriptor leads there.
    let kept = open(
        keep,
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .with_context(|| format!("cannot open {}", keep.display()))?;
    mount_fresh("sysfs", "/sys")?;
    mount_fresh("bpf", "/sys/fs/bpf")?;
    mount_fresh("tmpfs", "/run")?;
    fs::create_dir_all(keep).with_context(|| format!("cannot create {}", keep.display()))?;
    let source = format!("/proc/self/fd/{}", kept.as_raw_fd());
    mount(
        Some(source.as_str()),
        keep,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .with_context(|| format!("cannot bind {}", keep.display()))?;
    if !fs::canonicalize("/var/run").is_ok_and(|path| path == Path::new("/run")) {
        fs::create_dir_all("/var/run").context("cannot create /var/run")?;
        mount(
            Some("/run"),
            "/var/run",
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("cannot bind /run to /var/run")?;
    }
    for directory in ["/run/wireguard", "/run/bird", "/run/netbond", "/run/lock"] {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
    }
    Ok(())
}

fn mount_fresh(kind: &str, target: &str) -> Result<()> {
    mount(
        Some("netbond-lab"),
        target,
        Some(kind),
        MsFlags::empty(),
        None::<&str>,
    )
    .with_context(|| format!("cannot mount {kind} on {target}"))
}

/// Runs `make` on a thread of its own in the named network namespace: sockets it opens belong there.
pub(crate) fn within<T: Send>(name: &str, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let path = netns_path(name);
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter network namespace {name}"))?;
            make()
        });
        thread
            .join()
            .unwrap_or_else(|_| bail!("a thread in network namespace {name} failed"))
    })
}

/// Whether process `pid` is in the network namespace `name`.
pub(crate) fn contains(name: &str, pid: Pid) -> bool {
    match (
        Identity::of(&netns_path(name)),
        Identity::of(Path::new(&format!("/proc/{pid}/ns/net"))),
    ) {
        (Ok(namespace), Ok(process)) => namespace == process,
        (Ok(_) | Err(_), Ok(_) | Err(_)) => false,
    }
}

fn netns_path(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// Runs `ip` with these arguments.
pub(crate) fn ip(args: &[&str]) -> Result<()> {
    iproute2("ip", args).map(drop)
}

/// Runs a program of iproute2, such as `tc`, with these arguments; returns what it prints.
pub(crate) fn iproute2(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot run {program} (package iproute2)"))?;
    ensure!(
        output.status.success(),
        "{program} {}: {}",
        args.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a batch of `ip` commands, one a line, in the namespace `name`.
pub(crate) fn ip_batch(name: &str, commands: &str) -> Result<()> {
    use std::io::Write as _;
    use std::process::Stdio;

    let mut child = Command::new("ip")
        .args(["-n", name, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run ip (iproute2)")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(commands.as_bytes())
            .context("cannot write to ip")?;
    }
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip in {name}: {}; the commands were:\n{commands}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
