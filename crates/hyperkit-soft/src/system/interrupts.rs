//! How interrupts reach a vCPU: its local APIC, timers, the I/O APIC, the other vCPUs.

/// A vCPU's side of the interrupt system.
#[derive(Debug, Default)]
pub struct Interrupts {}
