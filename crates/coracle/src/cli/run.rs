//! What `coracle run` accepts.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::value::{self, Disk, Port, Share};

/// Which engine the user asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// The fastest one that works here.
    Auto,
    /// Our own CPU in software, which translates what runs often.
    Soft,
    /// The same without translation.
    #[value(name = "soft:interp")]
    SoftInterpreter,
    /// Both in step, many times slower: the first difference between them ends the machine.
    #[value(name = "soft:lockstep")]
    SoftLockstep,
    /// The Linux kernel's hypervisor.
    Kvm,
}

/// Run a command in a machine made for it.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Share a host folder or file, or what a 9P server (tcp://…, unix://…) has: HOST:GUEST, or HOST:GUEST:ro
    #[arg(short = 'v', long = "volume", value_name = "HOST:GUEST[:ro]", value_parser = clap::builder::ValueParser::new(ShareParser))]
    pub shares: Vec<Share>,
    /// Forward a host port to the guest: [ADDR:]HOSTPORT:GUESTPORT, with /udp for UDP
    #[arg(short = 'p', long = "publish", value_name = "[ADDR:]HOST:GUEST[/udp]", value_parser = value::port)]
    pub ports: Vec<Port>,
    /// Set a variable of the command's environment; KEY alone takes the host's value
    #[arg(short = 'e', long = "env", value_name = "KEY=VALUE")]
    pub env: Vec<OsString>,
    /// Working directory of the command
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    pub workdir: Option<OsString>,
    /// Connect stdin even if it is a terminal (pipes and files always are)
    #[arg(short = 'i', long = "interactive")]
    pub interactive: bool,
    /// Give the command a terminal
    #[arg(short = 't', long = "tty")]
    pub tty: bool,
    /// Remove the machine afterwards; always the case, accepted for habit's sake
    #[arg(long = "rm")]
    pub remove: bool,
    /// What runs the processor
    #[arg(long, value_enum, default_value = "auto")]
    pub engine: Engine,
    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// Memory of the machine
    #[arg(long, short = 'm', value_name = "SIZE", default_value = "512M", value_parser = value::size)]
    pub memory: u64,
    /// Debian packages to have in the guest besides busybox; can be given several times
    #[arg(long = "package", value_name = "NAME", value_delimiter = ',')]
    pub packages: Vec<String>,
    /// Boot this kernel (ELF with a PVH entry, or bzImage)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Boot with this initramfs; its init is then in charge, and no command is needed
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Add to the kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub append: String,
    /// Attach a raw disk image, after the root file system's if there is one: FILE, or FILE:ro
    #[arg(long = "disk", value_name = "FILE[:ro]", value_parser = value::disk)]
    pub disks: Vec<Disk>,
    /// Write a JSON object for each line of the guest's console: when it came, and instructions retired by then
    #[arg(long, value_name = "FILE")]
    pub stats: Option<PathBuf>,
    /// End the command after this long, with exit code 124
    #[arg(long, value_name = "DURATION", value_parser = value::duration)]
    pub timeout: Option<Duration>,
    /// Take Debian packages from this mirror instead of the host's apt sources
    #[arg(long, value_name = "URL")]
    pub mirror: Option<String>,
    /// Use nothing but what is already here
    #[arg(long)]
    pub offline: bool,
    /// Show the guest's console on stderr
    #[arg(long)]
    pub console: bool,
    /// The command and its arguments
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// clap wants a type for parsers of `OsStr`.
#[derive(Debug, Clone)]
struct ShareParser;

impl clap::builder::TypedValueParser for ShareParser {
    type Value = Share;

    fn parse_ref(
        &self,
        _command: &clap::Command,
        _argument: Option<&clap::Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<Share, clap::Error> {
        value::share(value)
            .map_err(|why| clap::Error::raw(clap::error::ErrorKind::ValueValidation, why + "\n\n"))
    }
}
