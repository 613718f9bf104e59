//! A machine: built, started, waited for, stopped.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hyperkit_boot::{BootConfig, BootError, layout};
use hyperkit_bus::{Bus, MapError};
use hyperkit_hv::{CpuModel, EngineKind, Exit, Tsc, Vcpu, VcpuError, Vm, VmError, X86State};
use hyperkit_mem::{GuestRam, RamError};

use crate::board::{self, Board};
use crate::lifecycle::{Lifecycle, Outcome, Stopper};
use crate::{MachineConfig, engine};

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum BuildError {
    #[error("a machine needs at least one vCPU")]
    NoVcpu,
    #[error("{asked} virtio devices asked for, the board has {max} slots")]
    TooManyDevices { asked: usize, max: usize },
    #[error("no memory for the guest")]
    Memory(#[from] RamError),
    #[error("no virtual machine")]
    Vm(#[from] VmError),
    #[error("the kernel {0}")]
    Kernel(#[source] BootError),
    #[error("the first vCPU cannot be set up")]
    Vcpu(#[from] VcpuError),
    #[error("the board's address map is wrong")]
    Map(#[from] MapError),
}

/// Why a machine did not start.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum StartError {
    #[error("the machine was started before")]
    Started,
    #[error("the host refused a thread for a vCPU")]
    Thread(#[source] std::io::Error),
}

/// A machine of this process. Dropping it stops it and waits for its threads.
pub struct Machine {
    board: Board,
    ram: Arc<GuestRam>,
    vm: Arc<dyn Vm>,
    lifecycle: Arc<Lifecycle>,
    /// Until the machine is started.
    vcpus: Mutex<Vec<Box<dyn Vcpu>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("engine", &self.engine())
            .field("ram", &self.ram)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Builds a machine with its kernel loaded, ready to start.
    ///
    /// # Errors
    /// [`BuildError`] names what in `config`, or on this host, does not allow it.
    pub fn build(config: MachineConfig) -> Result<Machine, BuildError> {
        if config.vcpus == 0 {
            return Err(BuildError::NoVcpu);
        }
        let (asked, max) = (config.devices.len(), layout::VIRTIO_MMIO_SLOTS);
        if asked > max {
            return Err(BuildError::TooManyDevices { asked, max });
        }
        let ram = Arc::new(GuestRam::new(config.memory_bytes)?);
        let boot = BootConfig {
            kernel: config.kernel,
            initrd: config.initrd,
            cmdline: config.cmdline,
            vcpus: config.vcpus,
            virtio_mmio_devices: asked,
        };
        let entry = hyperkit_boot::boot(&ram, &boot).map_err(BuildError::Kernel)?;
        let model = CpuModel { vcpus: config.vcpus, tsc: Tsc::of_host() };
        let vm = engine::make(config.engine, Arc::clone(&ram), model)?;
        let lifecycle = Arc::new(Lifecycle::new((0..config.vcpus).map(|id| vm.kick(id)).collect()));
        let board = board::build(&*vm, &ram, &lifecycle, config.serial, config.devices)?;
        let mut vcpus = (0..config.vcpus).map(|id| vm.take_vcpu(id)).collect::<Result<Vec<_>, _>>()?;
        vcpus[0].set_state(&entry)?;
        let threads = Mutex::new(Vec::new());
        Ok(Machine { board, ram, vm, lifecycle, vcpus: Mutex::new(vcpus), threads })
    }

    /// The engine that runs it.
    pub fn engine(&self) -> EngineKind {
        self.vm.engine()
    }

    /// Its memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// Starts one thread per vCPU and returns.
    ///
    /// # Errors
    /// [`StartError::Started`] the second time; [`StartError::Thread`] ends the machine.
    pub fn start(&self) -> Result<(), StartError> {
        let vcpus = std::mem::take(&mut *self.vcpus.lock().unwrap_or_else(PoisonError::into_inner));
        if vcpus.is_empty() {
            return Err(StartError::Started);
        }
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, vcpu) in (0..).zip(vcpus) {
            // Counted before it exists, so that `wait` never misses it.
            let running = Running::new(&self.lifecycle, id);
            let bus = Arc::clone(&self.board.bus);
            let spawned =
                std::thread::Builder::new().name(format!("vcpu{id}")).spawn(move || running.run(vcpu, &bus));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    self.stop();
                    return Err(StartError::Thread(error));
                }
            }
        }
        Ok(())
    }

    /// Waits until the machine has ended and its vCPUs stand still. For a machine that was never started, until
    /// it is stopped.
    pub fn wait(&self) -> Outcome {
        self.lifecycle.wait(None).expect("without a deadline there is an outcome")
    }

    /// Waits likewise for `timeout` at most.
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Outcome> {
        self.lifecycle.wait(Instant::now().checked_add(timeout))
    }

    /// Ends the machine as if its power was cut, unless it has ended already. Returns at once.
    pub fn stop(&self) {
        self.stopper().stop();
    }

    /// Stops the machine later, from anywhere.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.lifecycle))
    }

    /// Types `bytes` into the guest's serial port; returns how many were taken, fewer when the guest does not read.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.board.serial.lock().unwrap_or_else(PoisonError::into_inner).receive(bytes)
    }

    /// The state in which a vCPU was left, once the machine has ended: where a guest that was stopped hung.
    pub fn last_state(&self, vcpu: u32) -> Option<X86State> {
        self.lifecycle.last(vcpu)
    }

    /// Instructions that all vCPUs have retired, as of when each last accessed a device; exact once the machine has
    /// ended. `None` where the engine does not count.
    pub fn retired(&self) -> Option<u64> {
        self.vm.retired()
    }

    /// The same for others, such as a serial sink that wants to know when the guest said something.
    pub fn retired_counter(&self) -> Counter {
        Counter(Arc::clone(&self.vm))
    }
}

/// Counts the instructions of a machine, from any thread, even after the machine is gone. Cheap to clone.
#[derive(Clone)]
pub struct Counter(Arc<dyn Vm>);

impl Counter {
    /// As [`Machine::retired`].
    pub fn retired(&self) -> Option<u64> {
        self.0.retired()
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counter").field(&self.retired()).finish()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
        self.wait();
        let threads = self.threads.get_mut().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic was told as the outcome.
            let _joined = thread.join();
        }
    }
}

/// A vCPU's thread towards the lifecycle: counted from its making to its drop, whichever way the thread ends.
struct Running {
    lifecycle: Arc<Lifecycle>,
    vcpu: u32,
}

impl Running {
    fn new(lifecycle: &Arc<Lifecycle>, vcpu: u32) -> Running {
        lifecycle.on_vcpu_started();
        Running { lifecycle: Arc::clone(lifecycle), vcpu }
    }

    fn run(self, mut vcpu: Box<dyn Vcpu>, bus: &Bus) {
        self.run_until_end(&mut *vcpu, bus);
        self.lifecycle.set_last(self.vcpu, vcpu.state().ok());
    }

    fn run_until_end(&self, vcpu: &mut dyn Vcpu, bus: &Bus) {
        while !self.lifecycle.has_ended() {
            match vcpu.run(bus) {
                Ok(Exit::Kicked | Exit::Waiting) => {}
                Ok(Exit::TripleFault) => {
                    let state = vcpu.state().ok().map(Box::new);
                    self.lifecycle.end(Outcome::TripleFault { vcpu: self.vcpu, state });
                }
                Err(error) => {
                    self.lifecycle.end(Outcome::Failed { vcpu: self.vcpu, error: Arc::new(error) });
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.lifecycle.end(Outcome::Panicked { vcpu: self.vcpu });
        }
        self.lifecycle.on_vcpu_gone();
    }
}
