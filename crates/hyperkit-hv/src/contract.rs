//! The traits that every engine implements.

use std::sync::Arc;

use hyperkit_bus::{Bus, InterruptLine, RestoreError};

use crate::X86State;

/// Which engine runs the vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Our own CPU in software, which translates what runs often where the host lets it.
    Soft,
    /// The same without translation.
    #[serde(rename = "soft:interp")]
    SoftInterpreter,
    /// The interpreter beside translation: the first difference between them ends the machine.
    #[serde(rename = "soft:lockstep")]
    SoftLockstep,
    /// The Linux kernel's hypervisor.
    Kvm,
}

impl std::fmt::Display for EngineKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            EngineKind::Soft => "soft",
            EngineKind::SoftInterpreter => "soft:interp",
            EngineKind::SoftLockstep => "soft:lockstep",
            EngineKind::Kvm => "kvm",
        })
    }
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Somebody called [`Kick::kick`]. Run again, or do not.
    Kicked,
    /// A triple fault: the processor is in shutdown (SDM vol. 3A §6.15, double fault).
    TripleFault,
    /// The vCPU waits for INIT and SIPI and was kicked. Run again, or do not.
    Waiting,
}

/// Why a vCPU cannot go on. Host faults and engine limits, never something a guest is entitled to do.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// The host's hypervisor gave up on an instruction or refused a call.
    #[error("{engine} cannot go on at {rip:#x}: {why}")]
    Engine {
        /// The engine.
        engine: EngineKind,
        /// Where the guest was.
        rip: u64,
        /// What the engine said.
        why: String,
    },
    /// The host refused a system call.
    #[error("the host refused {what}")]
    Host {
        /// Which call.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// Why a virtual machine or a vCPU could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The engine is not to be had here.
    #[error("the engine {engine} is not available: {why}")]
    Unavailable {
        /// The engine.
        engine: EngineKind,
        /// What is missing.
        why: String,
    },
    /// More vCPUs than the engine runs.
    #[error("{asked} vCPUs asked for, the engine {engine} runs at most {max}")]
    TooManyVcpus {
        /// The engine.
        engine: EngineKind,
        /// How many were asked for.
        asked: u32,
        /// How many there can be.
        max: u32,
    },
    /// The host refused a system call.
    #[error("the host refused {what}")]
    Host {
        /// Which call.
        what: &'static str,
        /// What it said.
        source: std::io::Error,
    },
}

/// A machine's processors, RAM view and interrupt controllers.
pub trait Vm: Send + Sync {
    /// The engine behind it.
    fn engine(&self) -> EngineKind;

    /// Takes the vCPU with APIC id `id`, below the count the VM was made with; each can be taken once.
    /// Number 0 is the bootstrap processor; the others wait for INIT and SIPI.
    ///
    /// # Errors
    /// [`VmError::Host`] when the host refuses; [`VmError::TooManyVcpus`] when there is no such vCPU.
    fn take_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, VmError>;

    /// Makes `run` of vCPU `id` return; usable from any thread at any time, before and during `run`.
    fn kick(&self, id: u32) -> Arc<dyn Kick>;

    /// Instructions retired by all vCPUs, each as of its last access to the board, from any thread; `None` where the
    /// engine does not count.
    fn retired(&self) -> Option<u64> {
        None
    }

    /// The input `gsi` of the I/O APIC, 0 to 23.
    fn interrupt_line(&self, gsi: u32) -> Arc<dyn InterruptLine>;

    /// State of the interrupt controllers and clocks, while no vCPU runs.
    fn save(&self) -> Vec<u8>;

    /// Takes over what `save` made.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not such a state.
    fn restore(&self, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// One processor. Runs on whichever thread calls it, one at a time.
pub trait Vcpu: Send {
    /// Executes guest code until there is an [`Exit`]. Sleeps on HLT until an interrupt or a kick.
    ///
    /// # Errors
    /// [`VcpuError`]; the vCPU is then of no further use but its state can be read.
    fn run(&mut self, bus: &Bus) -> Result<Exit, VcpuError>;

    /// The architectural state.
    ///
    /// # Errors
    /// [`VcpuError::Host`] when the host refuses to give it.
    fn state(&mut self) -> Result<X86State, VcpuError>;

    /// Replaces the architectural state.
    ///
    /// # Errors
    /// [`VcpuError`] when the engine cannot represent it.
    fn set_state(&mut self, state: &X86State) -> Result<(), VcpuError>;

    /// Guest instructions retired so far; `None` where the engine does not count.
    fn retired(&self) -> Option<u64>;
}

/// Interrupts a vCPU's `run` from another thread.
pub trait Kick: Send + Sync {
    /// Makes the current or the next `run` return soon. Kicks before `run` are not lost; several may merge.
    fn kick(&self);
}
