//! Chooses the engine and makes its virtual machine.

use std::sync::Arc;

use hyperkit_hv::{CpuModel, EngineKind, Vm, VmError};
use hyperkit_mem::GuestRam;
use hyperkit_soft::jit::Tiers;

use crate::EngineChoice;

/// Makes the processors and interrupt controllers on `ram`.
pub(crate) fn make(
    choice: EngineChoice,
    ram: Arc<GuestRam>,
    model: CpuModel,
) -> Result<Arc<dyn Vm>, VmError> {
    let kind = match choice {
        EngineChoice::Exactly(kind) => kind,
        EngineChoice::Auto => best_engine(),
    };
    match kind {
        EngineKind::Soft => soft(ram, model, Tiers::BOTH),
        EngineKind::SoftInterpreter => soft(ram, model, Tiers::INTERPRETER),
        EngineKind::SoftLockstep => Ok(hyperkit_soft::SoftVm::in_lockstep(ram, model)?),
        EngineKind::Kvm => kvm(ram, &model),
    }
}

/// What [`EngineChoice::Auto`] takes here: KVM if there is hardware behind it, our own processor otherwise. Takes
/// up to 20 ms where there is a KVM.
pub fn best_engine() -> EngineKind {
    if kvm_is_hardware() { EngineKind::Kvm } else { EngineKind::Soft }
}

fn soft(ram: Arc<GuestRam>, model: CpuModel, tiers: Tiers) -> Result<Arc<dyn Vm>, VmError> {
    Ok(hyperkit_soft::SoftVm::with_tiers(ram, model, tiers)?)
}

#[cfg(target_os = "linux")]
fn kvm(ram: Arc<GuestRam>, model: &CpuModel) -> Result<Arc<dyn Vm>, VmError> {
    Ok(hyperkit_hv::kvm::KvmVm::new(ram, model)?)
}

#[cfg(not(target_os = "linux"))]
fn kvm(_: Arc<GuestRam>, _: &CpuModel) -> Result<Arc<dyn Vm>, VmError> {
    Err(VmError::Unavailable { engine: EngineKind::Kvm, why: "it is part of Linux".to_owned() })
}

#[cfg(target_os = "linux")]
fn kvm_is_hardware() -> bool {
    hyperkit_hv::kvm::speed().is_ok_and(hyperkit_hv::kvm::Speed::is_hardware)
}

#[cfg(not(target_os = "linux"))]
fn kvm_is_hardware() -> bool {
    false
}
