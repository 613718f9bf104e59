//! `datakit serve`: publishes a repository over 9P and by FUSE.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use datakit::{FuseMount, Level, Logs, Service, Source};
use datakit_store::{Durability, Options, Store};
use p9p::net::{Address, AddressError, Server, ServerOptions};
use p9p_fuse::MountOptions;

use super::Failure;
use super::auto_push::AutoPushing;
use super::failure::chain;
use super::prometheus;

/// Where we listen when nothing else is said, as DataKit did.
const LISTEN_DEFAULT: &str = "tcp://127.0.0.1:5640";
/// The port of an address that names none.
const PORT_DEFAULT: u16 = 5640;
/// How often a server without anything to do looks whether it was told to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to serve, and how.
#[derive(clap::Args)]
pub struct Arguments {
    /// Serve this repository, bare or not, in place; a bare one is made where there is nothing.
    #[arg(long, value_name = "PATH", conflicts_with = "memory")]
    git: Option<PathBuf>,
    /// Serve an empty store in memory, gone at the end. So it is without --git.
    #[arg(long)]
    memory: bool,
    /// Listen for 9P: tcp://HOST:PORT, unix://PATH, fd://N or vsock://CID:PORT; several, or separated by commas.
    /// [default: tcp://127.0.0.1:5640, or nothing with --fuse]
    #[arg(long, visible_alias = "listen-9p", value_name = "URL", value_delimiter = ',')]
    listen: Vec<String>,
    /// Mount it by FUSE on this directory.
    #[arg(long, value_name = "DIR")]
    fuse: Option<PathBuf>,
    /// Let other users use the mount.
    #[arg(long, requires = "fuse")]
    allow_other: bool,
    /// Push every branch that changes to this repository, as `git push --force` does.
    #[arg(long, value_name = "URL", requires = "git")]
    auto_push: Option<String>,
    /// Answer Prometheus on this port of 127.0.0.1, or on HOST:PORT.
    #[arg(long, value_name = "PORT")]
    listen_prometheus: Option<String>,
    /// What an acknowledged commit has survived: `fsync` power failures; `visible` the end of this process; `behind`
    /// nothing until git sees it, some 10 ms later.
    #[arg(long, value_name = "WHEN", default_value = "fsync")]
    durability: String,
    /// Memory for directories and commits lately used.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    cache: u32,
    /// Say more: once what happens, twice every detail.
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Where that goes: `stderr` or a file, which is appended to.
    #[arg(long, value_name = "WHERE", default_value = "stderr")]
    log_destination: String,
}

/// Serves until a signal, or until the only mount is unmounted.
///
/// # Errors
/// What is wrong with the arguments, the repository or an address.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = stop_flag()?;
    let addresses = addresses(arguments)?;
    let service = Service::new(open(arguments)?, logs(arguments)?);
    let server = Server::start(Arc::new(service.clone()), ServerOptions::default())
        .map_err(|error| Failure::other(format!("the server cannot start: {error}")))?;
    for address in &addresses {
        let at = server.listen(address).map_err(|error| Failure::usage(chain(&error)))?;
        eprintln!("datakit: listening at {at}");
    }
    let _metrics =
        arguments.listen_prometheus.as_deref().map(|at| serve_metrics(&service, at)).transpose()?;
    let pushing = arguments.auto_push.as_deref().map(|url| AutoPushing::start(&service, url)).transpose()?;
    let mount =
        arguments.fuse.as_deref().map(|path| mount(&service, path, arguments.allow_other)).transpose()?;
    let mut trouble = None;
    while !stop.load(Ordering::Acquire) {
        tell_trouble(&service, &mut trouble);
        match &mount {
            Some(mount) if mount.wait_timeout(LOOK_EVERY) && addresses.is_empty() => break,
            Some(mount) if mount.wait_timeout(Duration::ZERO) => thread::sleep(LOOK_EVERY),
            Some(_) => {}
            None => thread::sleep(LOOK_EVERY),
        }
    }
    // In this order, so that what is committed last is pushed, too, and everything is on disk in the end.
    drop(mount);
    drop(server);
    drop(pushing);
    service.store().close();
    for address in &addresses {
        if let Address::Unix(path) = address {
            let _ = std::fs::remove_file(path);
        }
    }
    Ok(())
}

/// Logs what goes wrong behind the commits when it begins, changes and ends, and which objects are damaged.
pub fn tell_trouble(service: &Service, known: &mut Option<String>) {
    for damage in service.store().damage().take() {
        service.logs().log(Source::Store, Level::Error, || damage);
    }
    let now = service.store().trouble();
    if now == *known {
        return;
    }
    service.logs().log(Source::Store, Level::Warning, || match &now {
        Some(trouble) => format!("{trouble}; it is tried again"),
        None => "what went wrong behind the commits has been made up for".to_owned(),
    });
    *known = now;
}

/// Becomes true on SIGINT, SIGTERM and SIGHUP; the second of them ends the process at once. A SIGHUP that nohup(1) had
/// ignored stays so.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let hangup = Some(signal_hook::consts::SIGHUP).filter(|_| !hangup_is_ignored());
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM].into_iter().chain(hangup) {
        let registered = signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stop))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)));
        registered.map_err(|error| Failure::other(format!("signals cannot be caught: {error}")))?;
    }
    Ok(stop)
}

/// What proc_pid_status(5) says.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

fn addresses(arguments: &Arguments) -> Result<Vec<Address>, Failure> {
    let mut texts = arguments.listen.clone();
    if texts.is_empty() && arguments.fuse.is_none() {
        texts.push(LISTEN_DEFAULT.to_owned());
    }
    let named = |text: &String| address(text).map_err(|error| Failure::usage(format!("--listen: {error}")));
    texts.iter().map(named).collect()
}

/// An address, whose port is DataKit's unless it names one.
pub fn address(text: &str) -> Result<Address, AddressError> {
    let mut address: Address = text.parse()?;
    let names_port =
        text.trim_end_matches('/').rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if let Address::Tcp { port, .. } = &mut address
        && !names_port
    {
        *port = PORT_DEFAULT;
    }
    Ok(address)
}

fn open(arguments: &Arguments) -> Result<Store, Failure> {
    let durability = match arguments.durability.as_str() {
        "fsync" => Durability::Fsync,
        "visible" => Durability::Visible,
        "behind" => Durability::Behind,
        other => return Err(Failure::usage(format!("--durability {other}: use fsync, visible or behind"))),
    };
    match &arguments.git {
        None => Ok(Store::memory()),
        Some(path) => {
            let cache_bytes = usize::try_from(u64::from(arguments.cache) << 20).unwrap_or(usize::MAX);
            let options = Options { durability, cache_bytes, create: true, ..Options::default() };
            Store::open(path, options).map_err(|error| Failure::usage(chain(&error)))
        }
    }
}

fn logs(arguments: &Arguments) -> Result<Logs, Failure> {
    let level = match arguments.verbose {
        0 => Level::Warning,
        1 => Level::Info,
        _ => Level::Debug,
    };
    if arguments.log_destination == "stderr" {
        return Ok(stderr_logs(level));
    }
    let path = Path::new(&arguments.log_destination);
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let mut file =
        file.map_err(|error| Failure::usage(format!("--log-destination {}: {error}", path.display())))?;
    Ok(Logs::new(level, move |line| {
        // A full disk must not stop the service.
        let _ = std::io::Write::write_all(&mut file, format!("{line}\n").as_bytes());
    }))
}

/// Lines that go to stderr.
pub fn stderr_logs(level: Level) -> Logs {
    Logs::new(level, |line| eprintln!("datakit: {line}"))
}

fn mount(service: &Service, path: &Path, allow_other: bool) -> Result<FuseMount, Failure> {
    let options = MountOptions { allow_other, ..MountOptions::default() };
    let mount = service.mount(path, options).map_err(|error| Failure::usage(format!("--fuse: {error}")))?;
    eprintln!("datakit: mounted on {}", mount.path().display());
    Ok(mount)
}

fn serve_metrics(service: &Service, at: &str) -> Result<(), Failure> {
    let at = if at.contains(':') { at.to_owned() } else { format!("127.0.0.1:{at}") };
    let listener = TcpListener::bind(&at)
        .map_err(|error| Failure::usage(format!("--listen-prometheus {at}: {error}")))?;
    eprintln!("datakit: metrics at http://{}/metrics", listener.local_addr().map_or(at, |at| at.to_string()));
    let service = service.clone();
    let spawned = thread::Builder::new()
        .name("prometheus".into())
        .spawn(move || prometheus::serve(&listener, || service.metrics().text()));
    spawned.map(drop).map_err(|error| Failure::other(format!("no thread for --listen-prometheus: {error}")))
}
