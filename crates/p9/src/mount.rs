//! `p9 mount`: a server on a directory of this machine, by FUSE.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use p9p::remote::Remote;
use p9p_fuse::{MountError, MountOptions};

use crate::failure::{Failure, chain};
use crate::target::Target;

/// How often signals are looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// `p9 mount`.
#[derive(Args)]
pub struct Mount {
    #[command(flatten)]
    target: Target,
    /// Where to mount it: an empty directory
    directory: PathBuf,
    /// Refuse every change
    #[arg(long)]
    readonly: bool,
    /// Let other users of this machine use it
    #[arg(long)]
    allow_other: bool,
}

impl Mount {
    /// Mounts, and waits until it is unmounted or a signal ends it.
    pub fn run(&self) -> Result<(), Failure> {
        let connection = self.target.how.connect(&self.target.url)?;
        let remote = Remote::new(connection, self.target.how.token()?);
        let options = MountOptions {
            source: self.target.url.to_string(),
            allow_other: self.allow_other,
            read_only: self.readonly,
            tree: self.target.how.tree.clone().into_bytes(),
            ..MountOptions::default()
        };
        let mount = p9p_fuse::Mount::new(&remote, &self.directory, options).map_err(|error| match error {
            MountError::Directory { .. } => Failure::usage(chain(&error)),
            error => Failure::new(chain(&error)),
        })?;
        eprintln!(
            "p9: {} is mounted on {}; end it with `umount` or ^C",
            self.target.url,
            mount.path().display()
        );
        let ended = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&ended))
                .map_err(|error| Failure::of("signals cannot be waited for", &error))?;
        }
        while !ended.load(Ordering::Acquire) && !mount.wait_timeout(LOOK_AGAIN) {}
        mount.unmount();
        Ok(())
    }
}
