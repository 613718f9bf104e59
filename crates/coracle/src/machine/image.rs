//! What the machine boots: the cached guest image, or files of the user's.

use std::path::{Path, PathBuf};

use guest_image::{BuildError, GuestImage, Proxies, Request};

use crate::cli::run::Arguments;
use crate::failure::Failure;
use crate::progress::Bar;

/// PID 1 of the guest, built with this program.
const INIT: &[u8] = include_bytes!(env!("GUEST_INIT"));

/// What decides which image it is.
#[derive(Debug, Clone, Default)]
pub struct ImageChoice {
    /// Debian packages besides busybox.
    pub packages: Vec<String>,
    /// Mirror to use instead of the host's apt sources.
    pub mirror: Option<String>,
    /// Use nothing but the cache.
    pub offline: bool,
}

/// The files to boot.
#[derive(Debug)]
pub struct Files {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs, if there is one.
    pub initrd: Option<PathBuf>,
    /// A root file system for the first disk.
    pub rootfs: Option<PathBuf>,
}

/// Where images and downloads are kept: `coracle` in `$XDG_CACHE_HOME`, or in `~/.cache`.
pub fn cache_folder() -> PathBuf {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir);
    base.join("coracle")
}

/// The image of that choice: from the cache, or built with progress on stderr.
///
/// # Errors
/// [`Failure`], one line that says what is missing and what to do.
pub fn image(choice: &ImageChoice) -> Result<GuestImage, Failure> {
    let request = Request {
        mirror: choice.mirror.clone(),
        suite: None,
        packages: choice.packages.clone(),
        offline: choice.offline,
        cache_dir: cache_folder(),
        init: INIT,
        apt_root: PathBuf::from("/"),
        proxies: proxies(),
    };
    match guest_image::try_cached(&request).map_err(|error| failure(&error))? {
        Some(image) => Ok(image),
        None => guest_image::build(&request, &Bar::default()).map_err(|error| failure(&error)),
    }
}

fn failure(error: &BuildError) -> Failure {
    let failure = Failure::of(error);
    match error {
        BuildError::NoPackage { .. } | BuildError::BadMirror(_) => Failure::usage(&failure.message),
        _ => failure,
    }
}

/// The proxies of the environment.
fn proxies() -> Proxies {
    let of = |names: [&str; 2]| {
        names.into_iter().find_map(|name| std::env::var(name).ok()).filter(|url| !url.is_empty())
    };
    Proxies { http: of(["http_proxy", "HTTP_PROXY"]), https: of(["https_proxy", "HTTPS_PROXY"]) }
}

/// What to boot for a run. The user's files win over the image's.
pub fn files(arguments: &Arguments) -> Result<Files, Failure> {
    if let (Some(kernel), Some(initrd)) = (&arguments.kernel, &arguments.initrd) {
        return Ok(Files { kernel: kernel.clone(), initrd: Some(initrd.clone()), rootfs: None });
    }
    let choice = ImageChoice {
        packages: arguments.packages.clone(),
        mirror: arguments.mirror.clone(),
        offline: arguments.offline,
    };
    let image = image(&choice)?;
    let of_user = |file: &Option<PathBuf>, ours: &Path| file.clone().unwrap_or_else(|| ours.to_owned());
    Ok(Files {
        kernel: of_user(&arguments.kernel, &image.kernel),
        initrd: Some(of_user(&arguments.initrd, &image.initramfs)),
        rootfs: if arguments.initrd.is_some() { None } else { image.rootfs },
    })
}
