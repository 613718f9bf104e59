//! Debian's kernels as machines: DHCP, DNS, TCP, ping and SLAAC as a machine does them. In QEMU, attached by its `stream`,
//! `dgram` and `vhost-user` back ends, and in user mode, attached by packets.
//!
//! The kernel for QEMU and the userland are those that `coracle` keeps once it has run; without them, without QEMU, or
//! without user-mode Linux, a test says SKIP and why.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says why it did not run"
)]

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a machine may take from power on to power off; alone it needs ten seconds.
const PATIENCE: Duration = Duration::from_secs(240);

/// Debian's user-mode Linux.
const UML: &str = "linux.uml";
/// Modules that a machine of QEMU needs to see its network device on PCI.
const VIRTIO: &str = "virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci failover net_failover virtio_net";

/// PID 1 of the machine; `DEVICE` is its network device, `MODULES` what that needs, `PORT4` and `PORT6` are servers of the
/// host.
const SCRIPT: &str = r#"#!/bin/sh
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
exec > /dev/console 2>&1
for m in MODULES; do insmod $(find /extra /usr/lib/modules -name $m.ko | head -n 1); done
ip link set lo up; ip link set DEVICE up
udhcpc -i DEVICE -q -n -t 60 -T 1 -f -s /lease && echo "LEASED $(cat /etc/resolv.conf)"
ping -c 1 -W 30 192.168.65.2 && echo PING4
nslookup host.internal 192.168.65.1
echo "FOUR $(nc 192.168.65.2 PORT4 < /dev/null)"
for i in $(seq 300); do
  ip -6 address show dev DEVICE scope global | grep inet6 | grep -qv tentative && break; sleep 0.1
done
ping -6 -c 1 -W 30 fd76:706e:6b69:7400::2 && echo PING6
echo "SIX $(nc fd76:706e:6b69:7400::2 PORT6 < /dev/null)"
traceroute -n -w 20 -q 1 -m 3 192.168.65.2
echo END-OF-SCRIPT
poweroff -f
"#;

/// What the machine's DHCP client does with its lease.
const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
echo nameserver $dns > /etc/resolv.conf
"#;

#[test]
fn a_machine_of_qemu_is_at_home_on_a_stream() {
    check_qemu("a_machine_of_qemu_is_at_home_on_a_stream", "--listen-qemu", |folder| {
        format!("stream,id=n,server=off,addr.type=unix,addr.path={}/vpnkit", folder.display())
    });
}

#[test]
fn a_machine_of_qemu_is_at_home_on_datagrams() {
    check_qemu("a_machine_of_qemu_is_at_home_on_datagrams", "--listen-vfkit", |folder| {
        let folder = folder.display();
        format!(
            "dgram,id=n,local.type=unix,local.path={folder}/qemu,remote.type=unix,remote.path={folder}/vpnkit"
        )
    });
}

#[test]
fn a_machine_of_qemu_is_at_home_over_vhost_user() {
    check_qemu("a_machine_of_qemu_is_at_home_over_vhost_user", "--vhost-user", |_| {
        "vhost-user,id=n,chardev=c".into()
    });
}

#[test]
fn user_mode_linux_is_at_home_on_packets() {
    let test = "user_mode_linux_is_at_home_on_packets";
    let Some((_, initramfs)) = kept(test, UML) else { return };
    let folder = tempfile::tempdir().unwrap();
    let modules =
        ["lib/crc-ccitt.ko", "net/ipv6/ipv6.ko"].map(|name| format!("/usr/lib/uml/modules/*/kernel/{name}"));
    let image = image(folder.path(), &modules.join(" "), &initramfs, &script("vec0", "crc-ccitt ipv6"));
    let _vpnkit = vpnkit(folder.path(), "--listen-bess");
    check(&boot_in_user_mode(folder.path(), &image));
}

/// Boots a machine of QEMU on the socket of this flag.
fn check_qemu(test: &str, listen: &str, netdev: impl Fn(&Path) -> String) {
    let Some((kernel, initramfs)) = kept(test, "qemu-system-x86_64") else { return };
    let folder = tempfile::tempdir().unwrap();
    let modules = format!("{}/modules/virtio_pci*.ko", kernel.display());
    let image = image(folder.path(), &modules, &initramfs, &script("eth0", VIRTIO));
    let _vpnkit = vpnkit(folder.path(), listen);
    check(&boot(folder.path(), &kernel.join("vmlinux"), &image, &netdev(folder.path())));
}

/// What `coracle` keeps, if it does and `program` is there.
fn kept(test: &str, program: &str) -> Option<(PathBuf, PathBuf)> {
    let machine = machine();
    if machine.is_none() {
        println!("SKIP {test}: coracle keeps no kernel and userland here; `coracle run -- true` makes them");
    } else if Command::new(program).arg("--version").output().is_err() {
        println!("SKIP {test}: no {program}");
        return None;
    }
    machine
}

fn script(device: &str, modules: &str) -> String {
    let (four, six) = (serve("127.0.0.1:0", "ashore"), serve("[::1]:0", "ahoy"));
    let script = SCRIPT.replace("PORT4", &four.to_string()).replace("PORT6", &six.to_string());
    script.replace("DEVICE", device).replace("MODULES", modules)
}

/// Looks at what a machine wrote to its console.
fn check(told: &str) {
    for line in [
        "LEASED nameserver 192.168.65.1",
        "PING4",
        "Address: 192.168.65.2",
        "Address: fd76:706e:6b69:7400::2",
        "FOUR ashore",
        "PING6",
        "SIX ahoy",
        "END-OF-SCRIPT",
    ] {
        assert!(told.lines().any(|told| told.trim() == line), "{line} is not in {told}");
    }
    assert!(told.contains(" 1  192.168.65.2 "), "the host is one hop away: {told}");
}

/// The folder of a kernel, and an initramfs, that coracle keeps.
fn machine() -> Option<(PathBuf, PathBuf)> {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?.join("coracle");
    let folders = |of: &str| std::fs::read_dir(base.join(of)).ok().into_iter().flatten().flatten();
    let kernel = folders("kernel").map(|entry| entry.path()).find(|path| path.join("vmlinux").exists())?;
    // An image with a disk has its programs there, and no shell in its initramfs.
    let image = folders("images")
        .map(|entry| entry.path())
        .find(|path| path.join("initramfs.cpio").exists() && !path.join("rootfs.erofs").exists())?;
    Some((kernel, image.join("initramfs.cpio")))
}

/// Starts a server of the host that says `word` to everybody; returns its port.
fn serve(address: &'static str, word: &'static str) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(word.as_bytes());
        }
    });
    port
}

/// Makes an initramfs of coracle's and one more archive, with the script and `modules` that coracle's own machines do
/// without, after it.
fn image(folder: &Path, modules: &str, initramfs: &Path, script: &str) -> PathBuf {
    let root = folder.join("root");
    std::fs::create_dir_all(root.join("extra")).unwrap();
    for (name, text) in [("script", script), ("lease", LEASE)] {
        std::fs::write(root.join(name), text).unwrap();
        shell(&root, &format!("chmod 755 {name}"));
    }
    shell(&root, &format!("cp {modules} extra/"));
    shell(&root, "find . | cpio -o -H newc --quiet > ../extra.cpio");
    let image = folder.join("initrd");
    shell(folder, &format!("cat {} extra.cpio > {}", initramfs.display(), image.display()));
    image
}

fn shell(folder: &Path, line: &str) {
    let output = Command::new("sh").args(["-c", line]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// The command, ended with the test.
struct Vpnkit(Child);

impl Drop for Vpnkit {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn vpnkit(folder: &Path, listen: &str) -> Vpnkit {
    let socket = folder.join("vpnkit");
    let path = socket.display().to_string();
    let path = if listen == "--listen-qemu" { format!("unix:{path}") } else { path };
    let vpnkit = Vpnkit(Command::new(env!("CARGO_BIN_EXE_vpnkit")).args([listen, &path]).spawn().unwrap());
    let began = Instant::now();
    while !socket.exists() {
        assert!(began.elapsed() < PATIENCE, "{path} does not appear");
        thread::sleep(Duration::from_millis(20));
    }
    vpnkit
}

/// Runs a machine of QEMU until it switches itself off; returns what it wrote to its console.
fn boot(folder: &Path, kernel: &Path, image: &Path, netdev: &str) -> String {
    let console = folder.join("console");
    let mut qemu = Command::new("qemu-system-x86_64");
    let mut device = String::from("virtio-net-pci,netdev=n,romfile=");
    if netdev.starts_with("vhost-user") {
        // QEMU 7.2 crashes when vhost's interrupts are to be MSI-X and there is no KVM.
        device += ",vectors=0";
        let socket = folder.join("vpnkit");
        qemu.args([
            "-object",
            "memory-backend-memfd,id=m,size=256M,share=on",
            "-machine",
            "memory-backend=m",
        ]);
        qemu.args(["-chardev", &format!("socket,id=c,path={}", socket.display())]);
    }
    qemu.args(["-M", "pc", "-accel", "tcg", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot"])
        .args(["-display", "none", "-serial", &format!("file:{}", console.display())])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        // On a busy machine the check of the timer sees too few ticks, and the kernel gives up.
        .args(["-append", "console=ttyS0 quiet no_timer_check panic=-1 rdinit=/script", "-netdev", netdev])
        .args(["-device", &device]);
    wait(&mut qemu, &console)
}

/// The same for one in user mode.
fn boot_in_user_mode(folder: &Path, image: &Path) -> String {
    let console = folder.join("console");
    let folder = folder.display();
    let mut machine = Command::new(UML);
    machine
        .args(["mem=128M", "con0=null,fd:1", "con=null", "quiet", "panic=-1", "rdinit=/script"])
        .arg(format!("initrd={}", image.display()))
        .arg(format!("uml_dir={folder}/uml"))
        .arg(format!("vec0:transport=bess,src={folder}/uml-socket,dst={folder}/vpnkit,mac=02:00:00:00:00:07"))
        // Its memory is a file there.
        .env("TMPDIR", folder.to_string())
        .stdout(std::fs::File::create(&console).unwrap());
    wait(&mut machine, &console)
}

/// Runs a machine until it ends; returns what it wrote to its console.
fn wait(machine: &mut Command, console: &Path) -> String {
    // In user mode a machine is many processes.
    let mut machine = machine.process_group(0).stdin(Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    let ended = loop {
        if machine.try_wait().unwrap().is_some() {
            break true;
        }
        if began.elapsed() > PATIENCE {
            let group = format!("-{}", machine.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = machine.wait();
            break false;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let told = String::from_utf8_lossy(&std::fs::read(console).unwrap_or_default()).into_owned();
    assert!(ended, "the machine does not end: {told}");
    told
}
