//! RDRAND and RDSEED, from the host's random number generator.

use crate::cpu::Cpu;
use crate::flags::bit;
use crate::op::{Flow, Op};
use crate::system::operand::{put, size};
use crate::trap::Trap;

/// `rdrand`, `rdseed`: CF says whether a number came.
pub fn rdrand(cpu: &mut Cpu, op: &Op) -> Result<Flow, Trap> {
    let mut bytes = [0u8; 8];
    let wanted = size(op) as usize;
    // SAFETY: `bytes` is writable for `wanted` <= 8 bytes; the call keeps no pointer.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), wanted, 0) };
    let came = usize::try_from(got).is_ok_and(|got| got == wanted);
    put(cpu, op, if came { u64::from_le_bytes(bytes) } else { 0 })?;
    cpu.write_flags(if came { bit::CF } else { 0 }, bit::ARITHMETIC);
    Ok(Flow::Next)
}
