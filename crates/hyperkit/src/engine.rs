//! Chooses the engine and makes its virtual machine.

use std::sync::Arc;

use hyperkit_hv::{CpuModel, EngineKind, Vm, VmError};
use hyperkit_mem::GuestRam;

use crate::EngineChoice;

/// Makes the processors and interrupt controllers on `ram`.
pub(crate) fn make(
    choice: EngineChoice,
    ram: Arc<GuestRam>,
    model: CpuModel,
) -> Result<Arc<dyn Vm>, VmError> {
    match choice {
        EngineChoice::Exactly(EngineKind::Soft) => soft(ram, model),
        EngineChoice::Exactly(EngineKind::Kvm) => kvm(ram, &model),
        EngineChoice::Auto if kvm_is_hardware() => kvm(ram, &model),
        EngineChoice::Auto => soft(ram, model),
    }
}

fn soft(ram: Arc<GuestRam>, model: CpuModel) -> Result<Arc<dyn Vm>, VmError> {
    Ok(hyperkit_soft::SoftVm::new(ram, model)?)
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
