//! The files of a guest that come from no package as they are: settings, device nodes, busybox's names.

/// Folders of every guest, with permissions. Parents first.
pub const FOLDERS: [(&str, u32); 28] = [
    ("dev", 0o755),
    ("dev/pts", 0o755),
    ("etc", 0o755),
    ("etc/coracle", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("opt", 0o755),
    ("proc", 0o555),
    ("root", 0o700),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("usr", 0o755),
    ("usr/bin", 0o755),
    ("usr/lib", 0o755),
    ("usr/lib/modules", 0o755),
    ("usr/lib64", 0o755),
    ("usr/local", 0o755),
    ("usr/local/bin", 0o755),
    ("usr/local/sbin", 0o755),
    ("usr/sbin", 0o755),
    ("usr/share", 0o755),
    ("usr/share/udhcpc", 0o755),
    ("var", 0o755),
    ("var/cache", 0o755),
    ("var/lib", 0o755),
    ("var/tmp", 0o1777),
];

/// Symbolic links of every guest: the merged `/usr`, and where programs expect run-time state.
pub const SYMLINKS: [(&str, &str); 8] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("var/run", "/run"),
    ("var/lock", "/run"),
    ("etc/mtab", "/proc/self/mounts"),
    ("var/log", "/tmp"),
];

/// Settings of every guest; a package's own file of the same name wins.
pub const SETTINGS: [(&str, &str); 8] = [
    (
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\nbin:x:2:2:bin:/bin:/usr/sbin/nologin\n\
         sys:x:3:3:sys:/dev:/usr/sbin/nologin\nmail:x:8:8:mail:/var/mail:/usr/sbin/nologin\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n\
         nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nkmem:x:15:\nsudo:x:27:\nwww-data:x:33:\n\
         shadow:x:42:\nutmp:x:43:\nstaff:x:50:\nusers:x:100:\nnogroup:x:65534:\n",
    ),
    ("etc/shadow", "root:*:19000:0:99999:7:::\n"),
    ("etc/shells", "/bin/sh\n/bin/bash\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    ),
    ("etc/profile", "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='# '\n"),
    ("etc/gitconfig", "[safe]\n\tdirectory = *\n"),
];

/// Names by which this busybox can be called, from the table inside it.
///
/// The table is a run of NUL-terminated names in ascending order that begins with `[` and `[[`.
pub fn applets(busybox: &[u8]) -> Vec<String> {
    const START: &[u8] = b"[\0[[\0";
    let Some(at) = busybox.windows(START.len()).position(|window| window == START) else { return Vec::new() };
    let mut names: Vec<String> = Vec::new();
    for name in busybox[at..].split(|&byte| byte == 0) {
        let is_name = (1..32).contains(&name.len())
            && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"[_-.+".contains(byte));
        let Ok(name) = std::str::from_utf8(name) else { break };
        if !is_name || names.last().is_some_and(|last| last.as_str() >= name) {
            break;
        }
        names.push(name.to_owned());
    }
    // busybox as these would act on the guest's own PID 1.
    names.retain(|name| !["busybox", "init", "linuxrc"].contains(&name.as_str()));
    names
}

/// Applets that live in `/sbin`: the kernel and scripts call some of them by their full path.
pub fn is_system_applet(name: &str) -> bool {
    const SYSTEM: [&str; 44] = [
        "acpid",
        "arp",
        "blkdiscard",
        "blkid",
        "blockdev",
        "brctl",
        "chroot",
        "depmod",
        "devmem",
        "fdisk",
        "freeramdisk",
        "fsfreeze",
        "fstrim",
        "getty",
        "halt",
        "hwclock",
        "ifconfig",
        "ifdown",
        "ifup",
        "insmod",
        "ip",
        "ipneigh",
        "klogd",
        "loadkmap",
        "logread",
        "losetup",
        "lsmod",
        "mkdosfs",
        "mke2fs",
        "mkswap",
        "modinfo",
        "modprobe",
        "nameif",
        "pivot_root",
        "poweroff",
        "reboot",
        "rmmod",
        "route",
        "run-init",
        "swapoff",
        "swapon",
        "switch_root",
        "sysctl",
        "udhcpc",
    ];
    SYSTEM.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_up_to_the_end_of_the_table() {
        let binary = b"junk[\0[[\0acpid\0ash\0busybox\0init\0zcat\0usage text\0";
        assert_eq!(applets(binary), ["[", "[[", "acpid", "ash", "zcat"]);
        assert!(applets(b"no table").is_empty());
    }

    #[test]
    fn parents_come_before_what_is_in_them() {
        let mut seen = vec![""];
        for (path, _) in FOLDERS {
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            assert!(seen.contains(&parent), "{path}");
            seen.push(path);
        }
    }
}
