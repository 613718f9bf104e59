//! The engine's contract: machine, processors, interrupt lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyperkit_apic::SavedSet;
use hyperkit_bus::{Bus, InterruptLine, RestoreError};
use hyperkit_hv::{CpuModel, EngineKind, Exit, Kick, Vcpu, VcpuError, Vm, VmError, X86State};
use hyperkit_mem::GuestRam;
use serde::{Deserialize, Serialize};

use crate::attention::{Attention, want};
use crate::cpu::Cpu;
use crate::jit::Tiers;
use crate::system::clock::Source;
use crate::system::interrupts::Processors;

/// Most vCPUs of a machine.
const VCPUS_MAX: u32 = hyperkit_mem::watch::WATCHERS_MAX;

/// First byte of a saved state.
const VERSION: u8 = 1;

/// A machine of software processors.
#[derive(Debug)]
pub struct SoftVm {
    ram: Arc<GuestRam>,
    processors: Arc<Processors>,
    taken: Vec<AtomicBool>,
    tiers: Tiers,
    lockstep: bool,
}

/// What [`Vm::save`] holds, after the version.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    apics: SavedSet,
    /// The time-stamp counter.
    ticks: u64,
    /// Which vCPUs wait for start-up.
    waiting: Vec<bool>,
}

impl SoftVm {
    /// A machine with this RAM and these processors, switched on.
    ///
    /// # Errors
    /// [`VmError::TooManyVcpus`].
    pub fn new(ram: Arc<GuestRam>, model: CpuModel) -> Result<Arc<SoftVm>, VmError> {
        SoftVm::with_tiers(ram, model, Tiers::BOTH)
    }

    /// The same with a choice of tiers.
    ///
    /// # Errors
    /// [`VmError::TooManyVcpus`].
    pub fn with_tiers(ram: Arc<GuestRam>, model: CpuModel, tiers: Tiers) -> Result<Arc<SoftVm>, VmError> {
        let asked = model.vcpus;
        if !(1..=VCPUS_MAX).contains(&asked) {
            return Err(VmError::TooManyVcpus { engine: EngineKind::Soft, asked, max: VCPUS_MAX });
        }
        Ok(Arc::new(SoftVm::made(ram, model, tiers, false)))
    }

    /// The same with both tiers in step ([`crate::lockstep`]), for one vCPU, whose time follows what it executes.
    ///
    /// # Errors
    /// [`VmError::TooManyVcpus`], and [`VmError::Unavailable`] where there is no translation.
    pub fn in_lockstep(ram: Arc<GuestRam>, model: CpuModel) -> Result<Arc<SoftVm>, VmError> {
        let engine = EngineKind::SoftLockstep;
        if model.vcpus != 1 {
            return Err(VmError::TooManyVcpus { engine, asked: model.vcpus, max: 1 });
        }
        if !crate::jit::Jit::new(Tiers::FORCED).is_on() {
            let why = "this host lets nobody translate, so there is nothing to compare".to_owned();
            return Err(VmError::Unavailable { engine, why });
        }
        Ok(Arc::new(SoftVm::made(ram, model, Tiers::FORCED, true)))
    }

    /// The interpreter alone makes no code of the host, and AVX and its kin need some.
    fn made(ram: Arc<GuestRam>, model: CpuModel, tiers: Tiers, lockstep: bool) -> SoftVm {
        let taken = (0..model.vcpus).map(|_| AtomicBool::new(false)).collect();
        let source = if lockstep { Source::executed() } else { Source::Host };
        let processors = Processors::offering(model, tiers.translate_after.is_some(), source);
        SoftVm { ram, processors, taken, tiers, lockstep }
    }

    /// Takes a processor out of the machine; each once.
    pub(crate) fn take(&self, id: u32) -> Result<SoftVcpu, VmError> {
        let free = self.taken.get(id as usize).is_some_and(|taken| !taken.swap(true, Ordering::SeqCst));
        if !free {
            let max = self.taken.len() as u32;
            return Err(VmError::TooManyVcpus { engine: EngineKind::Soft, asked: id.saturating_add(1), max });
        }
        let mut cpu = Cpu::member(Arc::clone(&self.ram), Arc::clone(&self.processors), id);
        cpu.set_tiers(self.tiers);
        if self.lockstep {
            cpu.set_lockstep();
        }
        Ok(SoftVcpu { cpu })
    }

    fn refuse(why: impl ToString) -> RestoreError {
        RestoreError { device: "interrupt controllers", why: why.to_string() }
    }
}

impl Vm for SoftVm {
    fn engine(&self) -> EngineKind {
        match (self.lockstep, self.tiers.translate_after) {
            (true, _) => EngineKind::SoftLockstep,
            (false, None) => EngineKind::SoftInterpreter,
            (false, Some(_)) => EngineKind::Soft,
        }
    }

    fn take_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, VmError> {
        Ok(Box::new(self.take(id)?))
    }

    fn kick(&self, id: u32) -> Arc<dyn Kick> {
        Arc::new(Kicker(self.processors.attention.get(id as usize).cloned()))
    }

    fn retired(&self) -> Option<u64> {
        Some(self.processors.attention.iter().map(|attention| attention.retired()).sum())
    }

    fn interrupt_line(&self, gsi: u32) -> Arc<dyn InterruptLine> {
        Arc::new(Line { processors: Arc::clone(&self.processors), gsi })
    }

    fn save(&self) -> Vec<u8> {
        let waiting = (0..self.taken.len() as u32).map(|id| self.processors.is_waiting(id)).collect();
        let saved = Saved { apics: self.processors.apics.save(), ticks: self.processors.ticks(), waiting };
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, &saved).expect("a structure of integers and lists has a JSON form");
        bytes
    }

    fn restore(&self, bytes: &[u8]) -> Result<(), RestoreError> {
        let Some((&VERSION, body)) = bytes.split_first() else {
            return Err(SoftVm::refuse("of another version"));
        };
        let saved: Saved = serde_json::from_slice(body).map_err(SoftVm::refuse)?;
        if saved.waiting.len() != self.taken.len() || !self.processors.apics.restore(&saved.apics) {
            return Err(SoftVm::refuse("of a machine with other processors"));
        }
        self.processors.set_ticks(saved.ticks);
        for (id, waiting) in saved.waiting.iter().enumerate() {
            self.processors.set_waiting(id as u32, *waiting);
        }
        Ok(())
    }
}

/// Kicks a vCPU; one that does not exist is not kicked.
struct Kicker(Option<Arc<Attention>>);

impl Kick for Kicker {
    fn kick(&self) {
        if let Some(attention) = &self.0 {
            attention.ask(want::KICK);
        }
    }
}

/// An input of the I/O APIC.
struct Line {
    processors: Arc<Processors>,
    gsi: u32,
}

impl InterruptLine for Line {
    fn set(&self, high: bool) {
        self.processors.apics.set_line(self.gsi, high);
    }
}

/// A processor taken out of its machine.
pub(crate) struct SoftVcpu {
    /// Its state.
    pub(crate) cpu: Box<Cpu>,
}

/// Takes the board away from the processor when `run` returns, however it does.
struct Boarded<'a>(&'a mut Cpu);

impl Drop for Boarded<'_> {
    fn drop(&mut self) {
        self.0.step_aside();
        self.0.attention.publish_retired(self.0.retired);
        self.0.bus = std::ptr::null();
    }
}

impl Vcpu for SoftVcpu {
    fn run(&mut self, bus: &Bus) -> Result<Exit, VcpuError> {
        self.cpu.bus = bus;
        let boarded = Boarded(&mut self.cpu);
        boarded.0.resume();
        boarded.0.join();
        let exit = crate::run::run(boarded.0);
        let report = boarded.0.lockstep.as_ref().and_then(|lockstep| lockstep.report.as_ref());
        match report {
            Some(report) => Err(VcpuError::Engine {
                engine: EngineKind::SoftLockstep,
                rip: report.rip,
                why: report.to_string(),
            }),
            None => Ok(exit),
        }
    }

    fn state(&mut self) -> Result<X86State, VcpuError> {
        Ok(self.cpu.give_state())
    }

    fn set_state(&mut self, state: &X86State) -> Result<(), VcpuError> {
        self.cpu.replace_state(state);
        Ok(())
    }

    fn retired(&self) -> Option<u64> {
        Some(self.cpu.retired)
    }
}
