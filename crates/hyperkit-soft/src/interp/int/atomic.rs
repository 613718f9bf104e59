//! CMPXCHG, CMPXCHG8B, CMPXCHG16B, XADD.
//!
//! With LOCK they are atomic as `width::modify_locked` says. CMPXCHG16B is so through a lock of our own between vCPUs
//! only where the host has no 16-byte compare and swap.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use super::alu::bytes;
use super::width::{Done, Int, NEXT, by_width, modify, modify_locked};
use crate::cpu::Cpu;
use crate::decode::{Context, operand};
use crate::op::Op;
use crate::trap::Trap;

/// [`modify`] or, with a LOCK prefix (`aux` 1), [`modify_locked`].
fn change<T: Int>(cpu: &mut Cpu, op: &Op, change: impl FnMut(&mut Cpu, T) -> T) -> Result<(), Trap> {
    let linear = cpu.address(op);
    if op.aux == 1 { modify_locked(cpu, linear, change) } else { modify(cpu, linear, change) }
}

fn compare<T: Int>(cpu: &mut Cpu, value: T) -> bool {
    let accumulator = T::get(cpu, 0);
    let difference = T::cut(accumulator.zx().wrapping_sub(value.zx()));
    cpu.flags.sub(accumulator.zx(), value.zx(), difference);
    accumulator == value
}

fn cmpxchg_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let value = T::get(cpu, op.dst);
    if compare(cpu, value) {
        T::set(cpu, op.dst, T::get(cpu, op.src));
    } else {
        T::set(cpu, 0, value);
    }
    NEXT
}

fn cmpxchg_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let new = T::get(cpu, op.src);
    let mut old = new;
    change::<T>(cpu, op, |cpu, value| {
        old = value;
        if compare(cpu, value) { new } else { value }
    })?;
    if old != T::get(cpu, 0) {
        T::set(cpu, 0, old);
    }
    NEXT
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Done {
    let pair =
        |cpu: &Cpu, high: u8, low: u8| u64::from(u32::get(cpu, high)) << 32 | u64::from(u32::get(cpu, low));
    let (expected, new) = (pair(cpu, 2, 0), pair(cpu, 1, 3));
    let mut old = 0;
    change::<u64>(cpu, op, |_, value| {
        old = value;
        if value == expected { new } else { value }
    })?;
    set_zf(cpu, old == expected);
    if old != expected {
        u32::set(cpu, 0, old as u32);
        u32::set(cpu, 2, (old >> 32) as u32);
    }
    NEXT
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Done {
    let linear = cpu.address(op);
    if !linear.is_multiple_of(16) {
        return Err(cpu.protection(0));
    }
    let pair = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    let expected = pair(cpu.regs[2], cpu.regs[0]);
    let new = pair(cpu.regs[1], cpu.regs[3]);
    let old = match cpu.place_to_write(linear, 16)? {
        Some(place) => {
            // SAFETY: the place is 16 bytes of RAM, and pages of RAM are aligned like pages of the guest.
            let old = unsafe { swap_if_16(place.host, expected, new) };
            cpu.has_written(place.phys, 16);
            old
        }
        None => {
            let old = cpu.load::<u128>(linear)?;
            cpu.store(linear, if old == expected { new } else { old })?;
            old
        }
    };
    set_zf(cpu, old == expected);
    if old != expected {
        cpu.regs[0] = old as u64;
        cpu.regs[2] = (old >> 64) as u64;
    }
    NEXT
}

fn set_zf(cpu: &mut Cpu, zf: bool) {
    use crate::flags::bit::ZF;
    let others = cpu.flags.arithmetic() & !ZF;
    cpu.flags.set_arithmetic(others | if zf { ZF } else { 0 });
}

/// Compares and swaps 16 bytes; what they were.
///
/// # Safety
/// `host` is the address of 16 bytes of guest RAM, aligned to 16.
unsafe fn swap_if_16(host: *mut u8, expected: u128, new: u128) -> u128 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("cmpxchg16b") {
        // SAFETY: the host has the instruction, the rest is promised by the caller.
        return unsafe { swap_if_16_host(host.cast(), expected, new) };
    }
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: as promised by the caller.
    let old = unsafe { host.cast::<u128>().read_volatile() };
    if old == expected {
        // SAFETY: as above.
        unsafe { host.cast::<u128>().write_volatile(new) };
    }
    old
}

/// # Safety
/// As for `swap_if_16`; the host has CMPXCHG16B.
#[cfg(target_arch = "x86_64")]
unsafe fn swap_if_16_host(host: *mut u128, expected: u128, new: u128) -> u128 {
    let (low, high): (u64, u64);
    // SAFETY: aligned and valid, says the caller. RBX, which the compiler keeps for itself, is put back.
    unsafe {
        std::arch::asm!(
            "xchg rbx, {new}",
            "lock cmpxchg16b xmmword ptr [{host}]",
            "mov rbx, {new}",
            host = in(reg) host,
            new = inout(reg) new as u64 => _,
            in("rcx") (new >> 64) as u64,
            inout("rax") expected as u64 => low,
            inout("rdx") (expected >> 64) as u64 => high,
            options(nostack),
        );
    }
    u128::from(high) << 64 | u128::from(low)
}

fn xadd_r<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let (a, b) = (T::get(cpu, op.dst), T::get(cpu, op.src));
    let sum = cpu.flags.add(a.zx(), b.zx(), T::cut(a.zx().wrapping_add(b.zx())));
    T::set(cpu, op.src, a);
    T::set(cpu, op.dst, sum);
    NEXT
}

fn xadd_m<T: Int>(cpu: &mut Cpu, op: &Op) -> Done {
    let b = T::get(cpu, op.src);
    let mut old = b;
    change::<T>(cpu, op, |cpu, a| {
        old = a;
        cpu.flags.add(a.zx(), b.zx(), T::cut(a.zx().wrapping_add(b.zx())))
    })?;
    T::set(cpu, op.src, old);
    NEXT
}

/// The op of an instruction of this file.
pub fn lower(instruction: &Instruction, context: &Context) -> Option<Op> {
    let memory = instruction.op0_kind() != OpKind::Register;
    let bytes = bytes(instruction);
    let run = match (instruction.code(), instruction.mnemonic()) {
        (Code::Cmpxchg8b_m64, _) => cmpxchg8b,
        (Code::Cmpxchg16b_m128, _) => cmpxchg16b,
        (_, Mnemonic::Cmpxchg) if memory => by_width!(bytes, cmpxchg_m),
        (_, Mnemonic::Cmpxchg) => by_width!(bytes, cmpxchg_r),
        (_, Mnemonic::Xadd) if memory => by_width!(bytes, xadd_m),
        (_, Mnemonic::Xadd) => by_width!(bytes, xadd_r),
        _ => return None,
    };
    let mut op = operand::op(run, instruction, context);
    if !memory {
        op.dst = operand::register(instruction.op0_register());
    }
    if instruction.op1_kind() == OpKind::Register {
        op.src = operand::register(instruction.op1_register());
    }
    op.aux = u8::from(instruction.has_lock_prefix());
    Some(op)
}
