//! Builds from the mirror that this host's apt uses. The cache is kept between runs, below cargo's target folder.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use guest_image::{BuildError, GuestImage, Progress, Proxies, Request, build, try_cached};

/// Largest initramfs without PID 1, in bytes: a software processor has to unpack it.
const INITRAMFS_BYTES_MAX: u64 = 6 << 20;

struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}

fn request(packages: &[&str]) -> Request<'static> {
    let of = |name: &str| std::env::var(name).ok();
    Request {
        mirror: None,
        suite: None,
        packages: packages.iter().map(|&name| name.to_owned()).collect(),
        offline: false,
        cache_dir: Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-image"),
        init: b"\x7fELF not much of an init",
        apt_root: PathBuf::from("/"),
        proxies: Proxies { http: of("http_proxy"), https: of("https_proxy") },
    }
}

/// Builds; `None`, with the reason said, when this host cannot reach an archive.
fn built(request: &Request<'_>) -> Option<GuestImage> {
    match build(request, &Silent) {
        Ok(image) => Some(image),
        Err(error @ (BuildError::NoSources(_) | BuildError::NoKeyring { .. } | BuildError::Fetch { .. })) => {
            eprintln!("SKIP: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

#[test]
fn the_hosts_archive_gives_a_kernel_and_a_lean_initramfs() {
    let request = request(&[]);
    let Some(image) = built(&request) else { return };
    let kernel = std::fs::read(&image.kernel).unwrap();
    assert!(
        kernel.starts_with(b"\x7fELF")
            && contains(&kernel, &format!("Linux version {} ", image.kernel_version))
    );
    let initramfs = std::fs::read(&image.initramfs).unwrap();
    assert!(initramfs.len() as u64 <= INITRAMFS_BYTES_MAX, "{} bytes", initramfs.len());
    for part in [
        "not much of an init",
        "usr/bin/busybox",
        "usr/bin/sh",
        "usr/sbin/modprobe",
        "/vmw_vsock_virtio_transport.ko\n",
        "/9p.ko\n",
    ] {
        assert!(contains(&initramfs, part), "{part}");
    }
    let begun = Instant::now();
    assert_eq!(try_cached(&request).unwrap(), Some(image));
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
}

#[test]
fn packages_of_the_hosts_archive_become_a_root_file_system() {
    let Some(image) = built(&request(&["make"])) else { return };
    assert!(image.packages.iter().any(|package| package.starts_with("libc6 ")), "{:?}", image.packages);
    let tree = tempfile::tempdir().unwrap();
    let mut fsck = std::process::Command::new("fsck.erofs");
    fsck.args([&format!("--extract={}", tree.path().join("t").display()), "--no-preserve-owner"]);
    let Ok(output) = fsck.arg(image.rootfs.unwrap()).output() else {
        eprintln!("SKIP: fsck.erofs is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = std::process::Command::new(tree.path().join("t/usr/lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(tree.path().join("t/usr/lib/x86_64-linux-gnu"))
        .arg(tree.path().join("t/usr/bin/make"))
        .arg("--version")
        .output();
    let run = run.unwrap();
    assert!(String::from_utf8_lossy(&run.stdout).starts_with("GNU Make"), "{run:?}");
}
