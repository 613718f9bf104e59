//! Which engine runs the processors.

use hyperkit::EngineKind;

use crate::cli::run::Engine;

/// The engine that the user asked for, or the best one here.
pub fn of(asked: Engine) -> EngineKind {
    match asked {
        Engine::Auto => choose_engine(),
        Engine::Soft => EngineKind::Soft,
        Engine::Kvm => EngineKind::Kvm,
    }
}

/// KVM if there is hardware behind it, our own processor otherwise. Takes up to 20 ms where there is a KVM.
pub fn choose_engine() -> EngineKind {
    match hyperkit_hv::kvm::speed() {
        Ok(speed) if speed.is_hardware() => EngineKind::Kvm,
        _ => EngineKind::Soft,
    }
}
