//! An x86-64 processor in software, behind the same contract as hardware engines.
//!
//! Guest code is decoded once, with `iced-x86`, into [`op::Op`]s grouped in blocks that are keyed by physical
//! page, and interpreted; guest RAM is host memory behind a software TLB. What CPUID offers works as the SDM
//! says, what it does not offer faults as the SDM says.
//!
//! - [`cpu`], [`flags`], [`op`], [`trap`], [`mem`]: the state and the seams between the parts below;
//! - [`decode`]: bytes to ops to blocks; [`interp`]: what each op does; `run`: the loop over blocks;
//! - [`jit`]: translation of hot blocks to code of the host; [`lockstep`]: both in step, to prove it;
//! - [`mmu`]: page walks and TLB fills; [`system`]: everything privileged; `vm`: the contract's traits.

#![allow(clippy::missing_errors_doc, reason = "every Err is a `Trap`: an exception of the guest")]

pub mod attention;
pub mod cpu;
pub mod decode;
pub mod flags;
pub mod interp;
pub mod jit;
pub mod lockstep;
pub mod mem;
pub mod mmu;
pub mod op;
mod run;
pub mod system;
pub mod trap;
mod vm;

pub use vm::SoftVm;
