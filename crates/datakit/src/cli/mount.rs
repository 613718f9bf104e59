//! `datakit mount`: a repository, or what a 9P server publishes, on a directory of this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use datakit::{Level, Service};
use datakit_store::{Options, Store};
use p9p::connection::{ConnectOptions, Connection};
use p9p::remote::Remote;
use p9p_fuse::{Caching, Mount, MountOptions};

use super::Failure;
use super::failure::chain;
use super::serve::{stderr_logs, stop_flag, tell_trouble};

/// How often we look whether we were told to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to mount, and where.
#[derive(clap::Args)]
pub struct Arguments {
    /// A git repository, which is served by this command itself; or a server: tcp://HOST:PORT, unix://PATH.
    source: String,
    /// The directory to mount on.
    directory: PathBuf,
    /// Let other users use the mount.
    #[arg(long)]
    allow_other: bool,
    /// Refuse every change.
    #[arg(long)]
    read_only: bool,
}

/// Mounts, and stays until it is unmounted or a signal comes.
///
/// # Errors
/// What is wrong with the source or the directory.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = stop_flag()?;
    let options = MountOptions {
        allow_other: arguments.allow_other,
        read_only: arguments.read_only,
        ..MountOptions::default()
    };
    let mut served = None;
    let wait: Box<dyn Fn(Duration) -> bool> = if arguments.source.contains("://") {
        let mount = remote(&arguments.source, &arguments.directory, options)?;
        Box::new(move |timeout| mount.wait_timeout(timeout))
    } else {
        let store = Store::open(&arguments.source, Options::default())
            .map_err(|error| Failure::usage(chain(&error)))?;
        let service = Service::new(store, stderr_logs(Level::Warning));
        served = Some(service.clone());
        let mount = service
            .mount(&arguments.directory, options)
            .map_err(|error| Failure::usage(error.to_string()))?;
        Box::new(move |timeout| mount.wait_timeout(timeout))
    };
    eprintln!("datakit: mounted on {}", arguments.directory.display());
    let mut trouble = None;
    while !stop.load(std::sync::atomic::Ordering::Acquire) {
        served.iter().for_each(|service| tell_trouble(service, &mut trouble));
        if wait(LOOK_EVERY) {
            break;
        }
    }
    drop(wait);
    served.iter().for_each(|service| service.store().close());
    Ok(())
}

/// Mounts what a server publishes. Nothing but its own clients tells us of changes, so the kernel keeps little.
fn remote(address: &str, directory: &Path, options: MountOptions) -> Result<Mount, Failure> {
    let address = super::serve::address(address).map_err(Failure::usage)?;
    let connection = Connection::open(&address, &ConnectOptions::default())
        .map_err(|error| Failure::other(format!("{address}: {}", chain(&error))))?;
    let options = MountOptions {
        source: address.to_string(),
        xattrs: false,
        policy: Arc::new(|_| Caching::LIVE),
        ..options
    };
    Mount::new(&Remote::new(connection, None), directory, options)
        .map_err(|error| Failure::usage(error.to_string()))
}
