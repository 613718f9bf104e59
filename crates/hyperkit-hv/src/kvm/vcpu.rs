//! One processor on KVM.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU8;

use hyperkit_bus::Bus;
use hyperkit_mem::GuestRam;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::kick::{Entered, Kicker};
use super::registers;
use crate::{EngineKind, Exit, Vcpu, VcpuError, X86State};

/// A vCPU and what must outlive it.
pub struct KvmVcpu {
    fd: VcpuFd,
    kicker: Arc<Kicker>,
    _ram: Arc<GuestRam>,
    _vm: Arc<VmFd>,
}

impl KvmVcpu {
    pub fn new(fd: VcpuFd, kicker: Arc<Kicker>, ram: Arc<GuestRam>, vm: Arc<VmFd>) -> KvmVcpu {
        KvmVcpu { fd, kicker, _ram: ram, _vm: vm }
    }

    /// Enters the guest once. A kick ends the run only when KVM_RUN has ended for it: then no access of the guest is
    /// half done, and the registers may be read.
    fn step(&mut self, entered: &Entered<'_>, bus: &Bus) -> Result<Option<Exit>, VcpuError> {
        entered.arm();
        let stopped = match self.fd.run() {
            Ok(exit) => on_exit(exit, bus),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                Ok(entered.take().then_some(Exit::Kicked))
            }
            Err(error) => Err(Stop::Host(error.into())),
        };
        match stopped {
            Ok(exit) => Ok(exit),
            Err(Stop::Host(source)) => Err(VcpuError::Host { what: "KVM_RUN", source }),
            Err(Stop::Engine(why)) => {
                let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
                Err(VcpuError::Engine { engine: EngineKind::Kvm, rip, why })
            }
        }
    }
}

enum Stop {
    Host(io::Error),
    Engine(String),
}

fn on_exit(exit: VcpuExit<'_>, bus: &Bus) -> Result<Option<Exit>, Stop> {
    match exit {
        VcpuExit::IoIn(port, data) => {
            for part in data.chunks_mut(port_width(data.len())) {
                bus.port_read(port, part);
            }
        }
        VcpuExit::IoOut(port, data) => {
            for part in data.chunks(port_width(data.len())) {
                bus.port_write(port, part);
            }
        }
        VcpuExit::MmioRead(addr, data) => bus.mmio_read(addr, data),
        VcpuExit::MmioWrite(addr, data) => bus.mmio_write(addr, data),
        VcpuExit::Hlt | VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        VcpuExit::Shutdown => return Ok(Some(Exit::TripleFault)),
        VcpuExit::InternalError => return Err(Stop::Engine("it cannot emulate the instruction".to_owned())),
        VcpuExit::FailEntry(reason, _) => {
            return Err(Stop::Engine(format!("entry failed, reason {reason:#x}")));
        }
        other => return Err(Stop::Engine(format!("unexpected exit {other:?}"))),
    }
    Ok(None)
}

/// Width of one access of a port exit. The kernel hands string instructions over as one run of accesses; longer
/// runs than a doubleword are taken as bytes, which is how strings are moved through ports in practice.
fn port_width(len: usize) -> usize {
    if matches!(len, 2 | 4) { len } else { 1 }
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, bus: &Bus) -> Result<Exit, VcpuError> {
        let flag = &raw mut self.fd.get_kvm_run().immediate_exit;
        // SAFETY: the page is mapped as long as `fd`, which `self` borrowed for this call holds; one byte needs no
        // alignment, and the kernel reads it as one.
        let flag = unsafe { AtomicU8::from_ptr(flag) };
        let kicker = self.kicker.clone();
        let entered = kicker.enter(flag);
        loop {
            if let Some(exit) = self.step(&entered, bus)? {
                return Ok(exit);
            }
        }
    }

    fn state(&mut self) -> Result<X86State, VcpuError> {
        registers::state(&self.fd).map_err(|source| VcpuError::Host { what: "the vCPU's registers", source })
    }

    fn set_state(&mut self, state: &X86State) -> Result<(), VcpuError> {
        registers::set_state(&self.fd, state)
            .map_err(|source| VcpuError::Host { what: "the vCPU's registers", source })
    }

    fn retired(&self) -> Option<u64> {
        None
    }
}
