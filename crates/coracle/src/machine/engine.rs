//! Which engine runs the processors.

use hyperkit::{EngineChoice, EngineKind};

use crate::cli::run::Engine;

/// The library's word for what the user asked for.
pub fn choice(asked: Engine) -> EngineChoice {
    match asked {
        Engine::Auto => EngineChoice::Auto,
        Engine::Soft => EngineChoice::Exactly(EngineKind::Soft),
        Engine::Kvm => EngineChoice::Exactly(EngineKind::Kvm),
    }
}

/// What `auto` takes here. Takes up to 20 ms where there is a KVM.
pub fn choose_engine() -> EngineKind {
    match hyperkit_hv::kvm::speed() {
        Ok(speed) if speed.is_hardware() => EngineKind::Kvm,
        _ => EngineKind::Soft,
    }
}
