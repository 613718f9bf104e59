//! Whole builds against a mirror of our own.

mod mirror;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use pgp::composed::SignedSecretKey;

use crate::{BuildError, GuestImage, Progress, Proxies, Request, build, list, prune, try_cached};
use mirror::{Deb, Fault, Mirror, base, elf, kernel, key, write_apt_root};

struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: u64) {}
    fn finish(&self) {}
}

/// A mirror, and a host that uses it.
struct Scene {
    mirror: Mirror,
    key: SignedSecretKey,
    root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { mirror: Mirror::start(), key: key(), root: tempfile::tempdir().unwrap() };
        write_apt_root(scene.root.path(), &scene.mirror.url, "stable", &scene.key);
        scene.publish("");
        scene
    }

    fn publish(&self, fields: &str) {
        self.mirror.publish("stable", &[kernel(9), base(), extra()].concat(), &self.key, fields);
    }

    fn request(&self) -> Request<'static> {
        request(self.root.path())
    }

    fn build(&self) -> Result<GuestImage, BuildError> {
        build(&self.request(), &Silent)
    }

    fn failure(&self) -> String {
        self.build().unwrap_err().to_string()
    }
}

/// Packages for root file systems.
fn extra() -> Vec<Deb> {
    vec![
        Deb::new(
            "hello",
            "2",
            "libhello (>= 1), debconf",
            &[("./usr/bin/hello", b"hello program"), ("./usr/share/doc/hello/x", b"-> ../y")],
        ),
        Deb::new("libhello", "1", "", &[("./lib/x86_64-linux-gnu/libhello.so.1", b"library")]),
    ]
}

fn request(root: &Path) -> Request<'static> {
    Request {
        mirror: None,
        suite: None,
        packages: Vec::new(),
        offline: false,
        cache_dir: root.join("cache"),
        init: b"\x7fELF the init program",
        apt_root: root.to_owned(),
        proxies: Proxies::default(),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn kernel_path() -> String {
    kernel(9)[1].pool_path()
}

#[test]
fn a_build_gives_kernel_and_initramfs_and_then_needs_no_network() {
    let scene = Scene::new();
    let image = scene.build().unwrap();
    assert!(std::fs::read(&image.kernel).unwrap() == elf(9));
    assert_eq!(image.kernel_version, "6.1.0-9-amd64");
    assert_eq!(
        image.packages,
        ["linux-image-6.1.0-9-amd64 6.1.9-1", "busybox-static 1:1.35", "base-files 12"]
    );
    let initramfs = std::fs::read(&image.initramfs).unwrap();
    let manifest = b"boot /usr/lib/modules/6.1.0-9-amd64/kernel/drivers/virtio_ring.ko\nboot /usr/lib/modules/6.1.0-9-amd64/kernel/drivers/surprise.ko\nboot /usr/lib/modules/6.1.0-9-amd64/kernel/drivers/virtio_mmio.ko\n";
    for part in [&b"the init program"[..], b"usr/bin/busybox", b"usr/bin/ash", b"ID=debian", manifest] {
        assert!(contains(&initramfs, part), "{}", String::from_utf8_lossy(part));
    }
    assert!(!contains(&initramfs, b"unwanted.ko"));
    let n_requests = scene.mirror.n_requests();
    assert_eq!(try_cached(&scene.request()).unwrap(), Some(image));
    assert_eq!(scene.mirror.n_requests(), n_requests);
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let scene = Scene::new();
    let first = scene.build().unwrap();
    let bytes = std::fs::read(&first.initramfs).unwrap();
    std::fs::remove_dir_all(scene.request().cache_dir).unwrap();
    let second = scene.build().unwrap();
    assert_eq!(second.id, first.id);
    assert!(std::fs::read(&second.initramfs).unwrap() == bytes);
}

#[test]
fn another_init_is_another_image() {
    let scene = Scene::new();
    let first = scene.build().unwrap();
    let other = Request { init: b"\x7fELF another", ..scene.request() };
    assert_eq!(try_cached(&other).unwrap(), None);
    assert_ne!(build(&other, &Silent).unwrap().id, first.id);
}

#[test]
fn the_newest_kernel_of_all_suites_is_taken() {
    let scene = Scene::new();
    scene.mirror.publish("stable-security", &kernel(10), &scene.key, "");
    write_apt_root(scene.root.path(), &scene.mirror.url, "stable stable-security", &scene.key);
    assert_eq!(scene.build().unwrap().kernel_version, "6.1.0-10-amd64");
}

#[test]
fn backports_are_not_taken_unless_they_are_all_there_is() {
    let scene = Scene::new();
    scene.mirror.publish("backports", &[kernel(20), base()].concat(), &scene.key, "NotAutomatic: yes\n");
    write_apt_root(scene.root.path(), &scene.mirror.url, "stable backports", &scene.key);
    assert_eq!(scene.build().unwrap().kernel_version, "6.1.0-9-amd64");
    let request = Request {
        mirror: Some(scene.mirror.url.clone()),
        suite: Some("backports".to_owned()),
        ..scene.request()
    };
    assert_eq!(build(&request, &Silent).unwrap().kernel_version, "6.1.0-20-amd64");
}

#[test]
fn a_damaged_cache_is_mended() {
    let scene = Scene::new();
    let image = scene.build().unwrap();
    std::fs::remove_file(&image.initramfs).unwrap();
    assert_eq!(try_cached(&scene.request()).unwrap(), None);
    assert!(scene.build().unwrap().initramfs.exists());
    std::fs::write(image.initramfs.with_file_name("image.json"), b"{").unwrap();
    assert_eq!(try_cached(&scene.request()).unwrap(), None);
    std::fs::remove_file(&image.kernel).unwrap();
    let archive = scene.request().cache_dir.join("archive");
    archive.read_dir().unwrap().flatten().for_each(|entry| std::fs::write(entry.path(), b"garbage").unwrap());
    assert_eq!(scene.build().unwrap(), image);
    assert!(std::fs::read(&image.kernel).unwrap() == elf(9));
}

#[test]
fn a_mirror_named_by_the_caller_is_used_instead_of_the_sources() {
    let scene = Scene::new();
    std::fs::write(scene.root.path().join("etc/apt/sources.list"), "deb http://127.0.0.1:1/debian x main\n")
        .unwrap();
    let request = Request {
        mirror: Some(scene.mirror.url.clone()),
        suite: Some("stable".to_owned()),
        ..scene.request()
    };
    assert!(build(&request, &Silent).is_ok());
}

#[test]
fn a_strangers_signature_is_refused() {
    let scene = Scene::new();
    let stranger = key();
    scene.mirror.publish("stable", &kernel(9), &stranger, "");
    let message = scene.failure();
    assert!(message.contains("is not good: no trusted key made it"), "{message}");
    assert!(
        !scene.request().cache_dir.join("archive").read_dir().unwrap().any(|_| true),
        "nothing was fetched"
    );
}

#[test]
fn a_text_changed_after_signing_is_refused() {
    let scene = Scene::new();
    let text = String::from_utf8(scene.mirror.get("dists/stable/InRelease")).unwrap();
    scene.mirror.put("dists/stable/InRelease", text.replace("Suite: stable", "Suite: stablf").into_bytes());
    let message = scene.failure();
    assert!(message.contains("bad signature by key"), "{message}");
    scene.mirror.put("dists/stable/InRelease", b"Suite: stable\n".to_vec());
    let message = scene.failure();
    assert!(message.contains("not a signed message"), "{message}");
}

#[test]
fn without_a_keyring_nothing_is_trusted() {
    let scene = Scene::new();
    std::fs::remove_dir_all(scene.root.path().join("etc/apt/trusted.gpg.d")).unwrap();
    assert!(matches!(scene.build(), Err(BuildError::NoKeyring { .. })));
}

#[test]
fn an_expired_list_is_refused_unless_apt_is_told_otherwise() {
    let scene = Scene::new();
    scene.publish("Valid-Until: Sat, 01 Jan 2000 00:00:00 UTC\n");
    assert!(matches!(scene.build(), Err(BuildError::Expired { .. })));
    std::fs::write(scene.root.path().join("etc/apt/apt.conf"), "Acquire::Check-Valid-Until \"false\";\n")
        .unwrap();
    assert!(scene.build().is_ok());
}

#[test]
fn a_package_that_was_changed_is_refused_and_does_not_poison_the_cache() {
    let scene = Scene::new();
    let good = scene.mirror.get(&kernel_path());
    let mut bad = good.clone();
    bad[1000] ^= 1;
    scene.mirror.put(&kernel_path(), bad);
    let message = scene.failure();
    assert!(message.contains("has the wrong SHA-256"), "{message}");
    scene.mirror.put(&kernel_path(), good);
    assert!(scene.build().is_ok());
}

#[test]
fn a_transfer_that_breaks_is_continued_where_it_stopped() {
    let scene = Scene::new();
    scene.mirror.fault(&kernel_path(), Fault::CutAfter(100_000));
    scene.mirror.fault(&kernel_path(), Fault::Busy);
    assert!(scene.build().is_ok());
    let ranges = scene.mirror.ranges(&kernel_path());
    assert_eq!(ranges[0], None);
    assert!(ranges.len() == 3 && ranges[2].as_deref() == Some("bytes=100000-"), "{ranges:?}");
}

#[test]
fn a_mirror_that_is_not_there_is_one_clear_line() {
    let scene = Scene::new();
    let request = Request {
        mirror: Some("http://127.0.0.1:1/debian".to_owned()),
        suite: Some("x".to_owned()),
        ..scene.request()
    };
    let message = build(&request, &Silent).unwrap_err().to_string();
    assert!(
        message.starts_with("http://127.0.0.1:1/debian/dists/x/InRelease cannot be fetched: "),
        "{message}"
    );
    assert!(!message.contains('\n'));
}

#[test]
fn offline_uses_the_cache_or_says_what_is_missing() {
    let scene = Scene::new();
    let offline = Request { offline: true, ..scene.request() };
    let message = build(&offline, &Silent).unwrap_err().to_string();
    assert!(message.starts_with("offline, and ") && message.contains("/dists/stable/InRelease"), "{message}");
    let image = scene.build().unwrap();
    let n_requests = scene.mirror.n_requests();
    assert_eq!(build(&offline, &Silent).unwrap(), image);
    // Another init needs another image, but nothing from the network.
    assert!(build(&Request { init: b"\x7fELF another", ..offline.clone() }, &Silent).is_ok());
    let message =
        build(&Request { packages: vec!["hello".to_owned()], ..offline }, &Silent).unwrap_err().to_string();
    assert_eq!(message, "offline, and package hello 2 is not in the cache: run once with the network");
    assert_eq!(scene.mirror.n_requests(), n_requests);
}

#[test]
fn two_builders_at_once_agree_and_fetch_once() {
    let scene = Scene::new();
    let results = std::thread::scope(|scope| {
        let builders = [(); 2].map(|()| scope.spawn(|| scene.build().unwrap()));
        builders.map(|builder| builder.join().unwrap())
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(scene.mirror.ranges(&kernel_path()).len(), 1);
}

#[test]
fn prune_keeps_what_the_last_images_need() {
    let scene = Scene::new();
    let old = scene.build().unwrap();
    scene.mirror.publish("stable", &[kernel(10), base()].concat(), &scene.key, "");
    std::thread::sleep(Duration::from_millis(20));
    let new = scene.build().unwrap();
    let cache = scene.request().cache_dir;
    assert_eq!(
        list(&cache).unwrap().iter().map(|image| image.id.as_str()).collect::<Vec<_>>(),
        [new.id.as_str(), old.id.as_str()]
    );
    assert!(prune(&cache, 1).unwrap() > 400_000);
    assert!(!old.kernel.exists() && !old.initramfs.exists());
    assert_eq!(try_cached(&scene.request()).unwrap(), Some(new));
    prune(&cache, 0).unwrap();
    assert!(list(&cache).unwrap().is_empty());
    assert_eq!(try_cached(&scene.request()).unwrap(), None);
    assert!(list(Path::new("/nonexistent/cache")).unwrap().is_empty());
}

/// Runs one of the `child_` tests below in a process of its own, against the scene.
fn child(scene: &Scene, name: &str, wrapper: &[&str]) -> Command {
    let exe = std::env::current_exe().unwrap();
    let mut words: Vec<std::ffi::OsString> = wrapper.iter().map(Into::into).collect();
    words.push(exe.into());
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args(["--exact", &format!("tests::{name}"), "--nocapture"]);
    command.env("TEST_APT_ROOT", scene.root.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[test]
fn child_builds() {
    let Some(root) = std::env::var_os("TEST_APT_ROOT") else {
        println!("SKIP: the tests that need a process to kill run this in one");
        return;
    };
    let result = build(&request(Path::new(&root)), &Silent);
    println!("RESULT {}", result.map_or_else(|error| error.to_string(), |image| image.id));
}

#[test]
fn a_builder_killed_in_the_middle_leaves_a_good_cache() {
    let scene = Scene::new();
    scene.mirror.fault(&kernel_path(), Fault::StallAfter(200_000));
    let mut child = child(&scene, "child_builds", &[]).spawn().unwrap();
    let archive = scene.request().cache_dir.join("archive");
    let has_part = || {
        let entries = archive.read_dir().into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.path().extension().is_some())
            .any(|entry| entry.metadata().is_ok_and(|metadata| metadata.len() == 200_000))
    };
    let begun = std::time::Instant::now();
    while !has_part() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the transfer did not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let image = scene.build().unwrap();
    assert!(std::fs::read(image.kernel).unwrap() == elf(9));
    assert_eq!(scene.mirror.ranges(&kernel_path())[1].as_deref(), Some("bytes=200000-"));
}

#[test]
fn a_full_disk_is_one_clear_line() {
    let scene = Scene::new();
    let cache = scene.request().cache_dir;
    std::fs::create_dir_all(&cache).unwrap();
    let mount = format!("mount -t tmpfs -o size=256k none {} && exec \"$0\" \"$@\"", cache.display());
    let output = child(&scene, "child_builds", &["unshare", "-Urm", "sh", "-c", &mount]).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        eprintln!("SKIP: this host has no user namespaces to mount a small file system in");
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("RESULT no space left on the file system of "), "{text}");
}

#[test]
fn packages_become_a_root_file_system_with_what_they_depend_on() {
    let scene = Scene::new();
    let plain = scene.build().unwrap();
    let request = Request { packages: vec!["hello".to_owned()], ..scene.request() };
    assert_eq!(try_cached(&request).unwrap(), None);
    let image = build(&request, &Silent).unwrap();
    assert_ne!(image.id, plain.id);
    assert_eq!(&image.packages[3..], ["hello 2", "libhello 1"]);
    assert_eq!(try_cached(&request).unwrap(), Some(image.clone()));
    let initramfs = std::fs::read(&image.initramfs).unwrap();
    assert!(contains(&initramfs, b"etc/coracle/root") && contains(&initramfs, b"the init program"));
    assert!(!contains(&initramfs, b"usr/bin/busybox"));
    let tree = scene.root.path().join("tree");
    let mut fsck = Command::new("fsck.erofs");
    fsck.args([&format!("--extract={}", tree.display()), "--no-preserve-owner"]).arg(image.rootfs.unwrap());
    let Ok(output) = fsck.output() else {
        eprintln!("SKIP: fsck.erofs is not installed");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |path: &str| std::fs::read(tree.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    let link = |path: &str| std::fs::read_link(tree.join(path)).unwrap().to_str().unwrap().to_owned();
    assert_eq!(read("usr/bin/hello"), b"hello program");
    assert_eq!(read("usr/lib/x86_64-linux-gnu/libhello.so.1"), b"library");
    assert_eq!(link("lib"), "usr/lib");
    assert_eq!(link("usr/bin/cat"), "/usr/bin/busybox");
    assert_eq!(read("usr/lib/os-release"), b"ID=debian\n");
    assert!(read("etc/passwd").starts_with(b"root:x:0:0:"));
    assert!(read("usr/lib/modules/6.1.0-9-amd64/modules.dep").starts_with(b"kernel/drivers/"));
    assert!(!tree.join("usr/share/doc").exists());
}

#[test]
fn a_package_that_does_not_exist_is_named() {
    let scene = Scene::new();
    let request = Request { packages: vec!["helo".to_owned()], ..scene.request() };
    assert_eq!(
        build(&request, &Silent).unwrap_err().to_string(),
        "package helo is in none of the suites stable"
    );
}
