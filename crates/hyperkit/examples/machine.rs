//! Builds a machine around a kernel and runs it; its serial port is this program's standard output and input.
//!
//! `cargo run --release -p hyperkit --example machine -- --kernel vmlinux --append console=ttyS0`

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to its user")]

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hyperkit::devices::block::{Block, RawFile};
use hyperkit::devices::rng::{HostEntropy, Rng};
use hyperkit::{EngineChoice, EngineKind, Image, Machine, MachineConfig, Outcome};

#[derive(Parser)]
struct Arguments {
    /// ELF with a PVH entry, or bzImage
    #[arg(long)]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long)]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0")]
    append: String,
    /// RAM in MiB
    #[arg(long, default_value_t = 512)]
    memory: u64,
    /// Number of processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Disk images, as virtio-blk devices
    #[arg(long)]
    disk: Vec<PathBuf>,
    /// Give the guest a virtio-rng device
    #[arg(long)]
    rng: bool,
    /// What runs the processors
    #[arg(long, value_enum, default_value_t = Engine::Soft)]
    engine: Engine,
    /// Stop after this many seconds
    #[arg(long)]
    timeout: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Auto,
    Soft,
    #[value(name = "soft:interp")]
    SoftInterpreter,
    /// Both in step.
    #[value(name = "soft:lockstep")]
    SoftLockstep,
    Kvm,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let open = |path: &PathBuf| -> Result<Image, Box<dyn Error>> { Ok(Image::from_file(File::open(path)?)?) };
    let mut config = MachineConfig::new(open(&arguments.kernel)?);
    config.initrd = arguments.initrd.as_ref().map(open).transpose()?;
    config.cmdline = arguments.append;
    config.memory_bytes = arguments.memory << 20;
    config.vcpus = arguments.cpus;
    for path in &arguments.disk {
        let disk = RawFile::open(path, false)?;
        config.devices.push(Box::new(Block::new(Arc::new(disk), &path.to_string_lossy())));
    }
    if arguments.rng {
        config.devices.push(Box::new(Rng::new(Box::new(HostEntropy))));
    }
    config.engine = match arguments.engine {
        Engine::Auto => EngineChoice::Auto,
        Engine::Soft => EngineChoice::Exactly(EngineKind::Soft),
        Engine::SoftInterpreter => EngineChoice::Exactly(EngineKind::SoftInterpreter),
        Engine::SoftLockstep => EngineChoice::Exactly(EngineKind::SoftLockstep),
        Engine::Kvm => EngineChoice::Exactly(EngineKind::Kvm),
    };
    config.serial = Box::new(|bytes| {
        let mut stdout = std::io::stdout();
        let _nobody_listens = stdout.write_all(bytes).and_then(|()| stdout.flush());
    });
    let began = Instant::now();
    let machine = Arc::new(Machine::build(config)?);
    machine.start()?;
    let typist = Arc::downgrade(&machine);
    std::thread::spawn(move || {
        let mut bytes = [0; 256];
        while let Ok(n @ 1..) = std::io::stdin().read(&mut bytes) {
            let Some(machine) = typist.upgrade() else { return };
            machine.serial_input(&bytes[..n]);
        }
    });
    let outcome = match arguments.timeout {
        Some(seconds) => machine.wait_timeout(Duration::from_secs(seconds)),
        None => Some(machine.wait()),
    };
    machine.stop();
    machine.wait();
    if outcome.is_none() {
        for state in (0..arguments.cpus).filter_map(|vcpu| machine.last_state(vcpu)) {
            eprintln!("\nrip {:#x} rsp {:#x} rflags {:#x}", state.rip, state.gpr[4], state.rflags);
        }
    }
    eprintln!(
        "\n{outcome:?} after {:.3} s, {:?} instructions",
        began.elapsed().as_secs_f64(),
        machine.retired()
    );
    Ok(match outcome {
        Some(Outcome::PoweredOff | Outcome::Reset) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
