//! Model-specific registers.

/// The registers that are plain storage.
#[derive(Debug, Clone, Default)]
pub struct Msrs {}
