//! The engine's contract: machine, processors, interrupt lines.

/// A machine of software processors.
#[derive(Debug)]
pub struct SoftVm {}
