//! What the host and PID 1 of the guest say to each other.
//!
//! All of it goes over vsock, from the guest to the host (CID 2). PID 1 first connects to [`CONTROL_PORT`] and
//! sends [`FromGuest::Ready`]; the host answers with [`ToGuest::Run`]. PID 1 then connects to the three stream
//! ports ([`STDIN_PORT`] only if [`Run::stdin`]; [`STDOUT_PORT`] alone, for a terminal: both directions), starts the
//! command, and says how it ended.
//! Streams are raw bytes; end of file is a half-close. Control messages are framed by [`frame`].

#![forbid(unsafe_code)]

pub mod frame;

use serde::{Deserialize, Serialize};

/// vsock port of the host for control messages.
pub const CONTROL_PORT: u32 = 1024;
/// vsock port of the host that stdin of the command comes from.
pub const STDIN_PORT: u32 = 1025;
/// vsock port of the host that stdout of the command goes to; both directions of the terminal, if it has one.
pub const STDOUT_PORT: u32 = 1026;
/// vsock port of the host that stderr of the command goes to.
pub const STDERR_PORT: u32 = 1027;
/// All of them: what a host has to accept.
pub const PORTS: &[u32] = &[CONTROL_PORT, STDIN_PORT, STDOUT_PORT, STDERR_PORT];

/// Host to guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToGuest {
    /// Set up and run a command. Sent once.
    Run(Run),
    /// Send a signal, by its Linux x86-64 number, to the command's process group.
    Signal(i32),
    /// The terminal's size changed.
    WindowSize(WindowSize),
    /// End everything in order and power off.
    PowerOff,
}

/// Guest to host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromGuest {
    /// PID 1 is up and waits for [`ToGuest::Run`].
    Ready,
    /// The command was started.
    Started,
    /// The command exited with a code.
    Exited(i32),
    /// The command died of a signal, by its number.
    Signaled(i32),
    /// The command could not be started. `code` is the shell's convention: 127 not found, 126 not executable,
    /// 125 for everything else (a share that cannot be mounted, …).
    Failed {
        /// The exit code to give.
        code: i32,
        /// One line for the user.
        message: String,
    },
}

/// A command and the world it runs in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The command and its arguments; not empty. Bytes, as Linux has them.
    pub argv: Vec<Vec<u8>>,
    /// Environment as `KEY=VALUE`, on top of the guest's own.
    pub env: Vec<Vec<u8>>,
    /// Working directory, made if it is missing; empty for `/root`.
    pub cwd: Vec<u8>,
    /// Whether stdin of the command comes from the host; otherwise it is `/dev/null`.
    pub stdin: bool,
    /// Run on a terminal of this size.
    pub terminal: Option<WindowSize>,
    /// `TERM` and the like come in `env`; this is the host name of the guest.
    pub hostname: String,
    /// Host folders to mount.
    pub shares: Vec<Share>,
    /// The guest's network, if it has one.
    pub network: Option<Network>,
    /// The host's clock, nanoseconds since the epoch.
    pub time_ns: u64,
}

/// A host folder behind a 9P device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Mount tag of the device.
    pub tag: String,
    /// Where to mount it in the guest, absolute; made if it is missing.
    pub path: Vec<u8>,
    /// Mount read-only.
    pub read_only: bool,
    /// Set when the host side is a single file: its name inside the mounted folder, to be bound at `path`.
    pub file: Option<Vec<u8>>,
}

/// Static configuration of the guest's interface; the same values that DHCP would give.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Address, dotted.
    pub address: std::net::Ipv4Addr,
    /// Length of the prefix.
    pub prefix: u8,
    /// Default route.
    pub gateway: std::net::Ipv4Addr,
    /// Name server.
    pub dns: std::net::Ipv4Addr,
    /// Address behind which the host's own services are reached.
    pub host: std::net::Ipv4Addr,
    /// Largest IP packet.
    pub mtu: u16,
    /// Search domains.
    pub search: Vec<String>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}
