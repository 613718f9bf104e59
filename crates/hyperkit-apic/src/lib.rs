//! Local APIC and I/O APIC for engines that have none.
