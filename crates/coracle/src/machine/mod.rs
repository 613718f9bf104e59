//! Composes a machine from the kits: image, network, shares, vsock, console.

mod console;
mod engine;
mod image;
mod stats;

use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use guest_protocol::{Network, PORTS, Share};
use hyperkit::devices::{block, net, p9, rng, vsock};
use hyperkit::{BuildError, Image, Machine, MachineConfig, VirtioDevice, VmError};

use vpnkit::MemoryLink;

pub use self::console::{Console, PANIC};
pub use self::image::{ImageChoice, cache_folder, image};
use crate::cli::run::Arguments;
use crate::cli::value::Protocol;
use crate::failure::Failure;
use crate::glue::{self, p9::Source};

/// The guest's vsock address. The host's is 2; 3 is the first that guests have by custom.
const GUEST_CID: u32 = 3;

/// Kernel parameters of every machine: console on the serial port, no chatter, restart on panic (which ends the
/// machine), no boot-time self-tests of ciphers (two thirds of a boot).
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet panic=-1 cryptomgr.notests";

/// A machine about to be started: everything that can be refused has been.
pub struct Setup {
    config: MachineConfig,
    console: Console,
    opened: Receiver<(u32, UnixStream)>,
    engine: vpnkit::Engine,
    network: Network,
    shares: Vec<Share>,
}

/// A machine that runs.
pub struct Running {
    machine: Arc<Machine>,
    console: Console,
    opened: Option<Receiver<(u32, UnixStream)>>,
    _engine: vpnkit::Engine,
}

impl Setup {
    /// Gets the image, binds the ports, opens the shares, makes the devices.
    ///
    /// # Errors
    /// [`Failure`], with exit code 2 for what the user can put right.
    pub fn prepare(arguments: &Arguments) -> Result<Setup, Failure> {
        let (engine, cable) = network(arguments)?;
        let network = vpnkit::Network::default();
        let mut devices: Vec<Box<dyn VirtioDevice>> = Vec::new();
        let (ports, opened) = glue::vsock::Ports::new(PORTS);
        let (sockets, _) = vsock::Vsock::new(GUEST_CID, Arc::new(ports));
        devices.push(Box::new(sockets));
        devices.push(Box::new(net::Net::new(glue::net::device(&network), cable)));
        devices.push(Box::new(rng::Rng::new(Box::new(rng::HostEntropy))));
        let shares = shares(arguments, &mut devices)?;
        let files = image::files(arguments)?;
        if let Some(rootfs) = &files.rootfs {
            let disk = block::RawFile::open(rootfs, true).map_err(|error| Failure::of(&error))?;
            devices.push(Box::new(block::Block::new(Arc::new(disk), "root")));
        }
        disks(arguments, &mut devices)?;
        let own_init = arguments.initrd.is_some();
        let stats = arguments.stats.as_deref().map(stats::Stats::create).transpose()?.map(Arc::new);
        let console = Console::new(arguments.console, own_init).with_stats(stats);
        let config = MachineConfig {
            memory_bytes: arguments.memory,
            vcpus: arguments.cpus,
            engine: engine::choice(arguments.engine),
            kernel: open("--kernel", &files.kernel)?,
            initrd: files.initrd.as_deref().map(|initrd| open("--initrd", initrd)).transpose()?,
            cmdline: command_line(arguments),
            serial: console.sink(),
            devices,
        };
        let network = glue::net::guest_network(&network);
        Ok(Setup { config, console, opened, engine, network, shares })
    }

    /// The shares as the guest mounts them.
    pub fn guest_shares(&self) -> Vec<Share> {
        self.shares.clone()
    }

    /// The guest's network.
    pub fn guest_network(&self) -> Network {
        self.network.clone()
    }

    /// Starts the machine.
    ///
    /// # Errors
    /// [`Failure`]; exit code 2 when the kernel or the size of the memory is to blame.
    pub fn start(self) -> Result<Running, Failure> {
        let machine = Machine::build(self.config).map_err(|error| {
            let failure = Failure::of(&error);
            let of_user = matches!(
                error,
                BuildError::Kernel(_)
                    | BuildError::NoVcpu
                    | BuildError::TooManyDevices { .. }
                    | BuildError::Vm(VmError::TooManyVcpus { .. } | VmError::Unavailable { .. })
            );
            if of_user { Failure::usage(&failure.message) } else { failure }
        })?;
        if let Some(stats) = self.console.stats() {
            stats.count_with(machine.retired_counter());
        }
        machine.start().map_err(|error| Failure::of(&error))?;
        Ok(Running {
            machine: Arc::new(machine),
            console: self.console,
            opened: Some(self.opened),
            _engine: self.engine,
        })
    }
}

impl Running {
    /// Connections that PID 1 opens; can be taken once.
    pub fn take_opened(&mut self) -> Receiver<(u32, UnixStream)> {
        self.opened.take().expect("a session takes it once")
    }

    /// What the guest wrote to its console.
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// The machine, to wait for its end.
    pub fn machine(&self) -> Arc<Machine> {
        self.machine.clone()
    }

    /// Ends the machine, whatever it is doing.
    pub fn stop(&self) {
        self.machine.stop();
        self.machine.wait();
        if let Some(stats) = self.console.stats() {
            stats.end();
        }
    }
}

/// Opens a file to boot.
fn open(flag: &str, path: &std::path::Path) -> Result<Image, Failure> {
    let refused = |why: String| Failure::usage(&format!("{flag} {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| refused(error.to_string()))?;
    Image::from_file(file).map_err(|error| refused(crate::failure::chain(&error)))
}

/// The kernel's command line. With an initramfs of the user's it is the user's alone.
fn command_line(arguments: &Arguments) -> String {
    if arguments.initrd.is_some() {
        return arguments.append.clone();
    }
    let loud = if arguments.console {
        KERNEL_PARAMETERS.replace("quiet ", "")
    } else {
        KERNEL_PARAMETERS.to_owned()
    };
    format!("{loud} {}", arguments.append).trim_end().to_owned()
}

/// Starts the network and binds the forwarded ports, so that a port in use is told before anything is built.
fn network(arguments: &Arguments) -> Result<(vpnkit::Engine, Arc<glue::net::Cable>), Failure> {
    let link = Arc::new(MemoryLink::new());
    let config = vpnkit::Config::default();
    let guest = config.network.guest;
    let engine =
        vpnkit::Engine::start(config, Arc::clone(&link) as _).map_err(|error| Failure::of(&error))?;
    for port in &arguments.ports {
        let protocol = match port.protocol {
            Protocol::Tcp => vpnkit::Protocol::Tcp,
            Protocol::Udp => vpnkit::Protocol::Udp,
        };
        let guest = SocketAddr::new(guest.into(), port.guest);
        engine
            .forward(vpnkit::Forward { protocol, bind: port.bind, guest })
            .map_err(|error| Failure::usage(&format!("-p: {}", crate::failure::chain(&error))))?;
    }
    Ok((engine, Arc::new(glue::net::Cable::new(link))))
}

/// Opens the images of further disks.
fn disks(arguments: &Arguments, devices: &mut Vec<Box<dyn VirtioDevice>>) -> Result<(), Failure> {
    for (n, disk) in arguments.disks.iter().enumerate() {
        let file = block::RawFile::open(&disk.image, disk.read_only)
            .map_err(|error| Failure::usage(&format!("--disk: {}", crate::failure::chain(&error))))?;
        devices.push(Box::new(block::Block::new(Arc::new(file), &format!("disk{n}"))));
    }
    Ok(())
}

/// Opens the host side of every share and makes its device.
fn shares(arguments: &Arguments, devices: &mut Vec<Box<dyn VirtioDevice>>) -> Result<Vec<Share>, Failure> {
    let mut shares = Vec::new();
    for (n, share) in arguments.shares.iter().enumerate() {
        let tag = format!("share{n}");
        let source = glue::p9::source(&share.host).map_err(|why| Failure::usage(&why))?;
        let sessions = glue::p9::sessions(&source, share.read_only).map_err(|why| Failure::usage(&why))?;
        devices.push(Box::new(p9::P9::new(&tag, sessions).map_err(|error| Failure::of(&error))?));
        shares.push(Share {
            tag,
            path: share.guest.as_os_str().as_bytes().to_vec(),
            read_only: share.read_only,
            file: match source {
                Source::Host { file, .. } => file.map(|name| name.as_bytes().to_vec()),
                Source::Server(_) => None,
            },
        });
    }
    Ok(shares)
}
