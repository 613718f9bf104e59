//! What a process gives up, step by step: each makes the next one safer, the filter of system calls comes last.

use std::fmt;
use std::io;

use landlock::{ABI, Access, AccessFs, Compatible, Ruleset, RulesetAttr, RulesetStatus, Scope};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::{filter, sys};

/// A folder to put the empty root on for a moment: every system has one of them.
const PLACES: [&str; 3] = ["/tmp", "/run", "/proc"];

/// Why the process is not confined. It must not go on as if it were.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum ConfineError {
    #[error("this process cannot give up new privileges")]
    Privileges(#[source] io::Error),
    #[error("capabilities cannot be dropped")]
    Capabilities(#[source] io::Error),
    #[error("this kernel has no filter of system calls")]
    Seccomp(#[source] seccompiler::Error),
    #[error("the filter of system calls cannot be made")]
    Filter(#[source] seccompiler::BackendError),
}

/// What was given up. The parts that a kernel may lack say why they are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Namespaces of its own.
    pub namespaces: Result<&'static str, String>,
    /// An empty root.
    pub root: Result<(), String>,
    /// Landlock, which refuses all of the file system.
    pub landlock: Result<(), String>,
    /// Capabilities that it kept: to bind ports below 1024.
    pub keeps_ports: bool,
}

impl Report {
    /// The parts with what became of them, for people and for JSON.
    pub fn parts(&self) -> [(&'static str, String); 6] {
        let said = |result: &Result<(), String>| match result {
            Ok(()) => "yes".to_owned(),
            Err(why) => format!("no: {why}"),
        };
        let namespaces = self.namespaces.clone().map_or_else(|why| format!("no: {why}"), str::to_owned);
        let capabilities = if self.keeps_ports { "cap_net_bind_service" } else { "none" };
        [
            ("seccomp", "yes".to_owned()),
            ("landlock", said(&self.landlock)),
            ("namespaces", namespaces),
            ("empty_root", said(&self.root)),
            ("capabilities", capabilities.to_owned()),
            ("no_new_privileges", "yes".to_owned()),
        ]
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = self.parts().map(|(name, state)| format!("{name} {state}"));
        f.write_str(&parts.join(", "))
    }
}

/// Confines this process, which has one thread; those that it starts later are confined alike. With `answers_paths` it
/// keeps its root: datagrams go to Unix sockets by their paths, which are all that it can do with a path.
///
/// # Errors
/// When a part that every kernel has fails. What some lack is in the report instead.
pub fn confine(answers_paths: bool) -> Result<Report, ConfineError> {
    rustix::thread::set_no_new_privs(true).map_err(|error| ConfineError::Privileges(error.into()))?;
    let held = rustix::thread::capabilities(None)
        .map_err(|error| ConfineError::Capabilities(error.into()))?
        .permitted;
    let namespaces = leave_namespaces(held);
    let root = match &namespaces {
        Ok(_) if answers_paths => Err("datagrams are answered by path".to_owned()),
        Ok(_) => empty_root().map_err(|error| error.to_string()),
        Err(_) => Err("it needs a namespace".to_owned()),
    };
    let landlock = refuse_files();
    let keeps_ports = held.contains(CapabilitySet::NET_BIND_SERVICE) && !joined_user_namespace(&namespaces);
    drop_capabilities(keeps_ports).map_err(ConfineError::Capabilities)?;
    for program in filter::programs().map_err(ConfineError::Filter)? {
        seccompiler::apply_filter(&program).map_err(ConfineError::Seccomp)?;
    }
    Ok(Report { namespaces, root, landlock, keeps_ports })
}

const WITH_USER: &str = "user, mount, ipc, uts";
const WITHOUT_USER: &str = "mount, ipc, uts";

fn joined_user_namespace(namespaces: &Result<&'static str, String>) -> bool {
    *namespaces == Ok(WITH_USER)
}

/// Leaves the namespaces of the host, but for the network's, whose sockets are used, and the processes', which would
/// take one more process and hide nothing that the filter does not refuse.
fn leave_namespaces(held: CapabilitySet) -> Result<&'static str, String> {
    let others = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return sys::unshare(others).map(|()| WITHOUT_USER).map_err(|error| error.to_string());
    }
    if held.contains(CapabilitySet::NET_BIND_SERVICE) {
        return Err("the right to ports below 1024 would be lost".to_owned());
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    sys::unshare(others | UnshareFlags::NEWUSER).map_err(|error| error.to_string())?;
    // The same numbers inside: without them the process is nobody, which works as well.
    let _ = std::fs::write("/proc/self/setgroups", "deny");
    let _ = std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"));
    let _ = std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"));
    Ok(WITH_USER)
}

/// Makes an empty folder, in which nothing can be made, the root of everything.
fn empty_root() -> io::Result<()> {
    use rustix::mount::{mount, mount_change, unmount};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let place = PLACES
        .into_iter()
        .find(|place| std::path::Path::new(place).is_dir())
        .ok_or(io::ErrorKind::NotFound)?;
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::RDONLY;
    mount("vpnkit", place, "tmpfs", flags, c"nr_inodes=2,nr_blocks=0")?;
    rustix::process::chdir(place)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    Ok(rustix::process::chdir("/")?)
}

/// Refuses every access to files, signals to processes outside, and abstract Unix sockets of others.
fn refuse_files() -> Result<(), String> {
    let restricted = Ruleset::default()
        .set_compatibility(landlock::CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V6))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.restrict_self())
        .map_err(|error| error.to_string())?;
    match restricted.ruleset {
        RulesetStatus::NotEnforced => Err("this kernel has no Landlock".to_owned()),
        // What an older kernel cannot refuse is refused by the empty root and the filter.
        RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
    }
}

fn drop_capabilities(keeps_ports: bool) -> io::Result<()> {
    let kept = if keeps_ports { CapabilitySet::NET_BIND_SERVICE } else { CapabilitySet::empty() };
    let held = rustix::thread::capabilities(None)?.effective;
    if held.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().iter() {
            // A kernel that does not know one has nothing to drop.
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    // Kernels before 4.3 have none to clear.
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}
