//! The tree of ports: `mkdir NAME`, open `NAME/ctl`, write `tcp:IP:PORT:tcp:IP:PORT`, read `OK …` or `ERROR …`.
//!
//! All clients see one tree. A port is exposed for as long as the file stays open on which it was asked for, so that it
//! goes with a client that dies; removing its entry hides it as well. An entry becomes a file with the port's
//! specification in it. Who only reads `ctl` may close it again, which ended the port in VPNKit.
//!
//! Spec: moby/vpnkit, `src/ofs/active_list.ml`, `src/hostnet/forward.ml`.

mod node;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p9p::Errno;
use p9p::filesystem::{Answer, Attach, Filesystem, Node};
use vpnkit::Forward;
use vpnkit_control::{Exposed, Spec, exposed};

use self::node::{Place, PortNode};

/// Most entries, exposed or about to be.
pub const ENTRIES_MAX: usize = 16 << 10;
/// Longest specification, in bytes.
const SPEC_BYTES_MAX: usize = 512;

/// What `README` says.
const README: &str = "\
Ports of this host that lead into the machine
---------------------------------------------

Each file here is a port that is exposed; what it says is where it leads. Remove the file to hide the port.

To expose one, make a directory of any name that is free, open the file `ctl` in it for reading and writing, and
write one of

    tcp:<address of the host>:<port>:tcp:<address of the machine>:<port>
    udp:<address of the host>:<port>:udp:<address of the machine>:<port>

with port 0 of the host for any that is free, and addresses of IPv6 in brackets. Then read from the start:

    OK <what was written, with the port that was chosen>
    ERROR <why not>

Keep the file open: the port is hidden when it is closed.
";

/// The service. Clones are the same tree.
#[derive(Clone)]
pub struct PortFiles(Arc<Shared>);

struct Shared {
    exposed: Arc<Exposed>,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    by_name: BTreeMap<Vec<u8>, Arc<Entry>>,
    next: u64,
}

/// A directory that somebody made.
struct Entry {
    name: Vec<u8>,
    number: u64,
    state: Mutex<State>,
}

/// What became of it.
enum State {
    Asked,
    Exposed { port: Forward, answer: String },
    Refused { answer: String },
    Removed,
}

impl PortFiles {
    /// A tree whose ports are among `exposed`.
    pub fn new(exposed: Arc<Exposed>) -> Self {
        Self(Arc::new(Shared { exposed, entries: Mutex::default() }))
    }
}

impl std::fmt::Debug for PortFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortFiles").field("entries", &self.0.entries().by_name.len()).finish()
    }
}

impl Filesystem for PortFiles {
    fn attach(&self, _attach: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(PortNode::at(&self.0, Place::Root))
    }
}

fn not_found<T>() -> Answer<T> {
    Err(Errno::ENOENT.with_text("file not found"))
}

fn refusal() -> Errno {
    Errno::EACCES.with_text("permission denied")
}

fn not_permitted<T>() -> Answer<T> {
    Err(refusal())
}

impl Shared {
    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, name: &[u8]) -> Answer<Arc<Entry>> {
        self.entries().by_name.get(name).map_or_else(not_found, |entry| Ok(Arc::clone(entry)))
    }

    fn make(&self, name: &[u8]) -> Answer<Arc<Entry>> {
        let mut entries = self.entries();
        if name == b"README" || entries.by_name.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        if entries.by_name.len() >= ENTRIES_MAX {
            return Err(Errno::ENOSPC);
        }
        let number = entries.next;
        entries.next += 1;
        let entry = Arc::new(Entry { name: name.to_vec(), number, state: Mutex::new(State::Asked) });
        entries.by_name.insert(name.to_vec(), Arc::clone(&entry));
        Ok(entry)
    }

    /// Hides what the entry exposed, and forgets it.
    fn remove(&self, entry: &Entry) {
        let before = std::mem::replace(&mut *entry.state(), State::Removed);
        if let State::Exposed { port, .. } = before {
            // The network may have stopped, and then there is nothing to hide.
            let _ = self.exposed.unexpose(port.protocol, port.bind);
        }
        let mut entries = self.entries();
        if entries.by_name.get(&entry.name).is_some_and(|now| now.number == entry.number) {
            entries.by_name.remove(&entry.name);
        }
    }

    /// Does what was written to `ctl`; what came of it is there to be read.
    fn ask(&self, entry: &Entry, bytes: &[u8]) -> Answer<()> {
        let mut state = entry.state();
        if !matches!(*state, State::Asked) {
            return not_permitted();
        }
        *state = match self.expose(bytes) {
            Ok(port) => State::Exposed { port, answer: format!("OK {}\n", Spec(port)) },
            Err(why) => State::Refused { answer: format!("ERROR {why}\n") },
        };
        Ok(())
    }

    fn expose(&self, bytes: &[u8]) -> Result<Forward, String> {
        if bytes.len() > SPEC_BYTES_MAX {
            return Err(format!("a specification has at most {SPEC_BYTES_MAX} bytes"));
        }
        let text = String::from_utf8_lossy(bytes);
        let Spec(forward) =
            text.trim().parse().map_err(|error: vpnkit_control::SpecError| error.to_string())?;
        // To expose a port twice is no error elsewhere, but here each is hidden by who exposed it.
        let taken =
            |port: &exposed::Port| port.asked.protocol == forward.protocol && port.local == forward.bind;
        if self.exposed.list().iter().any(taken) {
            return Err(exposed::already_allocated(forward.bind));
        }
        match self.exposed.expose(forward, "") {
            Ok(local) => Ok(Forward { bind: local, ..forward }),
            Err(error) => Err(error.shown()),
        }
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_exposed(&self) -> bool {
        matches!(*self.state(), State::Exposed { .. })
    }

    /// What `ctl` says.
    fn answer(&self) -> String {
        match &*self.state() {
            State::Exposed { answer, .. } | State::Refused { answer } => answer.clone(),
            State::Asked => "ERROR nothing was asked for: see README\n".to_owned(),
            State::Removed => "ERROR it was removed\n".to_owned(),
        }
    }

    /// What the entry itself says.
    fn specification(&self) -> String {
        match &*self.state() {
            State::Exposed { port, .. } => format!("{}\n", Spec(*port)),
            _ => String::new(),
        }
    }
}
