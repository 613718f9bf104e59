//! One processor on KVM.

use std::io;
use std::sync::Arc;

use hyperkit_bus::Bus;
use hyperkit_mem::GuestRam;
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};

use super::kick::Kicker;
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

    fn step(&mut self, bus: &Bus) -> Result<Option<Exit>, VcpuError> {
        // A signal that came before KVM_RUN is lost to it, so the flag is looked at with the signal's own order:
        // `kick` sets it first.
        if self.kicker.due() {
            self.fd.set_kvm_immediate_exit(1);
        }
        let stopped = match self.fd.run() {
            Ok(exit) => on_exit(exit, bus),
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => Ok(None),
            Err(error) => Err(Stop::Host(error.into())),
        };
        self.fd.set_kvm_immediate_exit(0);
        match stopped {
            Ok(None) => Ok(self.kicker.take().then_some(Exit::Kicked)),
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
        self.kicker.enter();
        let exit = loop {
            match self.step(bus) {
                Ok(None) => {}
                Ok(Some(exit)) => break Ok(exit),
                Err(error) => break Err(error),
            }
        };
        self.kicker.leave();
        exit
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
