//! Between KVM's register structures and the portable state.

use std::io;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, Msrs, kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

use crate::X86State;
use crate::state::x86_64::{DescriptorTable, Segment};

/// Model-specific registers that are part of a machine's state: SYSENTER, STAR and its kin, GS base, TSC, PAT,
/// the TSC deadline, and the virtual clock.
const MSRS: [u32; 12] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0102,
    0x10,
    0x277,
    0x4b56_4d00,
    0x4b56_4d01,
];

/// Reads everything.
pub fn state(fd: &VcpuFd) -> io::Result<X86State> {
    let regs = fd.get_regs()?;
    let sregs = fd.get_sregs()?;
    let debug = fd.get_debug_regs()?;
    let mut state = X86State::after_reset();
    state.gpr = [
        regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
        regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
    ];
    (state.rip, state.rflags) = (regs.rip, regs.rflags);
    state.segments = [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment);
    (state.ldtr, state.tr) = (segment(&sregs.ldt), segment(&sregs.tr));
    state.gdtr = DescriptorTable { base: sregs.gdt.base, limit: sregs.gdt.limit };
    state.idtr = DescriptorTable { base: sregs.idt.base, limit: sregs.idt.limit };
    (state.cr0, state.cr2, state.cr3, state.cr4) = (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4);
    (state.cr8, state.efer, state.apic_base) = (sregs.cr8, sregs.efer, sregs.apic_base);
    state.debug[..4].copy_from_slice(&debug.db);
    (state.debug[4], state.debug[5]) = (debug.dr6, debug.dr7);
    (state.fxsave, state.upper) = extended(fd)?;
    state.xcr0 = xcr0(fd)?;
    state.msrs = msrs(fd)?;
    state.halted = fd.get_mp_state()?.mp_state == KVM_MP_STATE_HALTED;
    Ok(state)
}

/// Writes everything.
pub fn set_state(fd: &VcpuFd, state: &X86State) -> io::Result<()> {
    let mut sregs = fd.get_sregs()?;
    let [es, cs, ss, ds, fs, gs] = state.segments.map(|from| kvm_segment_of(&from));
    (sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs) = (es, cs, ss, ds, fs, gs);
    (sregs.ldt, sregs.tr) = (kvm_segment_of(&state.ldtr), kvm_segment_of(&state.tr));
    sregs.gdt = kvm_dtable { base: state.gdtr.base, limit: state.gdtr.limit, ..Default::default() };
    sregs.idt = kvm_dtable { base: state.idtr.base, limit: state.idtr.limit, ..Default::default() };
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4) = (state.cr0, state.cr2, state.cr3, state.cr4);
    (sregs.cr8, sregs.efer, sregs.apic_base) = (state.cr8, state.efer, state.apic_base);
    fd.set_sregs(&kvm_sregs { interrupt_bitmap: [0; 4], ..sregs })?;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    fd.set_regs(&kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    })?;
    let [db0, db1, db2, db3, dr6, dr7] = state.debug;
    fd.set_debug_regs(&kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..Default::default() })?;
    set_xcr0(fd, state.xcr0)?;
    set_extended(fd, &state.fxsave, &state.upper)?;
    set_msrs(fd, &state.msrs)?;
    let mp_state = if state.halted { KVM_MP_STATE_HALTED } else { KVM_MP_STATE_RUNNABLE };
    Ok(fd.set_mp_state(kvm_mp_state { mp_state })?)
}

fn segment(from: &kvm_segment) -> Segment {
    let rights = u16::from(from.type_)
        | u16::from(from.s) << 4
        | u16::from(from.dpl) << 5
        | u16::from(from.present) << 7
        | u16::from(from.avl) << 12
        | u16::from(from.l) << 13
        | u16::from(from.db) << 14
        | u16::from(from.g) << 15;
    Segment { selector: from.selector, base: from.base, limit: from.limit, rights }
}

fn kvm_segment_of(from: &Segment) -> kvm_segment {
    let bit = |n: u16| (from.rights >> n & 1) as u8;
    kvm_segment {
        base: from.base,
        limit: from.limit,
        selector: from.selector,
        type_: (from.rights & 0xf) as u8,
        present: bit(7),
        dpl: (from.rights >> 5 & 3) as u8,
        db: bit(14),
        s: bit(4),
        l: bit(13),
        g: bit(15),
        avl: bit(12),
        unusable: 1 - bit(7),
        padding: 0,
    }
}

/// Bytes of the legacy area that hold registers: control words, x87, XMM. The rest is software's or reserved.
const FXSAVE_USED: usize = 416;

/// Where XSTATE_BV lies in an XSAVE area, and its bits for x87 and SSE.
const XSTATE_BV: usize = 512;
const X87_AND_SSE: u32 = 0b11;
/// The bit for the upper halves of the YMM registers, where they are and how many bytes.
const AVX: u32 = 0b100;
const AVX_AT: usize = 576;
const AVX_BYTES: usize = 256;

/// XCR0, or its value after reset where KVM has no such register.
fn xcr0(fd: &VcpuFd) -> io::Result<u64> {
    let Ok(xcrs) = fd.get_xcrs() else { return Ok(1) };
    let known = xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|entry| entry.xcr == 0);
    Ok(known.map_or(1, |entry| entry.value))
}

fn set_xcr0(fd: &VcpuFd, value: u64) -> io::Result<()> {
    let Ok(mut xcrs) = fd.get_xcrs() else { return Ok(()) };
    for entry in xcrs.xcrs.iter_mut().take(xcrs.nr_xcrs as usize).filter(|entry| entry.xcr == 0) {
        entry.value = value;
    }
    Ok(fd.set_xcrs(&xcrs)?)
}

/// The x87 and SSE registers in the layout of FXSAVE64 (SDM vol. 1, table 10-2), which begins an XSAVE area, and the upper
/// halves of the YMM registers.
///
/// KVM_GET_FPU and KVM_SET_FPU will not do: they pass XSTATE_BV by, so that registers which the guest has not used yet
/// read as what was left there, and lose at the next entry what was written.
fn extended(fd: &VcpuFd) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let xsave = fd.get_xsave()?;
    let bytes: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    let mut area = bytes[..FXSAVE_USED].to_vec();
    let in_use = xsave.region[XSTATE_BV / 4] & AVX != 0;
    let upper = if in_use { bytes[AVX_AT..AVX_AT + AVX_BYTES].to_vec() } else { vec![0; AVX_BYTES] };
    area[28..32].fill(0); // MXCSR_MASK is the host's
    area.resize(512, 0);
    Ok((area, upper))
}

fn set_extended(fd: &VcpuFd, area: &[u8], upper: &[u8]) -> io::Result<()> {
    if area.len() != 512 || (!upper.is_empty() && upper.len() != AVX_BYTES) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the extended state is not 512 and 256 bytes",
        ));
    }
    let mut xsave = fd.get_xsave()?;
    for (word, bytes) in xsave.region.iter_mut().zip(area[..FXSAVE_USED].as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    xsave.region[XSTATE_BV / 4] |= X87_AND_SSE;
    if upper.iter().any(|byte| *byte != 0) {
        for (word, bytes) in xsave.region[AVX_AT / 4..].iter_mut().zip(upper.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        xsave.region[XSTATE_BV / 4] |= AVX;
    } else {
        xsave.region[XSTATE_BV / 4] &= !AVX;
    }
    // SAFETY: the kernel reads more than `xsave` only for a process that was granted AMX for its guests
    // (`arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM)`), which nobody here asks for.
    Ok(unsafe { fd.set_xsave(&xsave) }?)
}

/// The registers of [`MSRS`] that this KVM has.
fn msrs(fd: &VcpuFd) -> io::Result<Vec<(u32, u64)>> {
    let mut values = Vec::new();
    for index in MSRS {
        let entry = kvm_msr_entry { index, ..Default::default() };
        let mut one = Msrs::from_entries(&[entry]).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if fd.get_msrs(&mut one).is_ok_and(|read| read == 1) {
            values.push((index, one.as_slice()[0].data));
        }
    }
    Ok(values)
}

fn set_msrs(fd: &VcpuFd, values: &[(u32, u64)]) -> io::Result<()> {
    for &(index, data) in values {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let one = Msrs::from_entries(&[entry]).map_err(|_| io::ErrorKind::OutOfMemory)?;
        if fd.set_msrs(&one)? != 1 {
            let why = format!("KVM does not take model-specific register {index:#x}");
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
    }
    Ok(())
}
