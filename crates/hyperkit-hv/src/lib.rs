//! The vCPU contract and the engines that live on the host's hypervisor.
//!
//! An engine makes a [`Vm`] from RAM; the VM makes [`Vcpu`]s and has the interrupt controllers (local APICs and
//! I/O APIC) inside, as KVM does. [`Vcpu::run`] executes until something happens that is the caller's business;
//! port and register accesses go to the [`Bus`](hyperkit_bus::Bus) that it is given, and HLT sleeps inside it.

mod contract;
mod cpu_model;
pub mod state;

#[cfg(target_os = "linux")]
pub mod kvm;

pub use contract::{EngineKind, Exit, Kick, Vcpu, VcpuError, Vm, VmError};
pub use cpu_model::{CpuModel, Tsc};
pub use state::x86_64::X86State;
