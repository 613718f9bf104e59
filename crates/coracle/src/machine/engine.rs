//! Which engine runs the processors.

use hyperkit::{EngineChoice, EngineKind};

use crate::cli::run::Engine;

/// The library's word for what the user asked for.
pub fn choice(asked: Engine) -> EngineChoice {
    match asked {
        Engine::Auto => EngineChoice::Auto,
        Engine::Soft => EngineChoice::Exactly(EngineKind::Soft),
        Engine::SoftInterpreter => EngineChoice::Exactly(EngineKind::SoftInterpreter),
        Engine::SoftLockstep => EngineChoice::Exactly(EngineKind::SoftLockstep),
        Engine::Kvm => EngineChoice::Exactly(EngineKind::Kvm),
    }
}
