//! Operands as ops have them.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};

use super::operand;
use super::{CodeSize, Context};
use crate::op::{BLOCK, FLAT, Op, WIDE, ZERO};

const BLOCK_RIP: u64 = 0x40_0000;

fn decode(bits: u32, at: u64, bytes: &[u8]) -> (Instruction, Context) {
    let instruction = Decoder::with_ip(bits, bytes, BLOCK_RIP + at, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:x?}");
    let code_size = match bits {
        16 => CodeSize::Bits16,
        32 => CodeSize::Bits32,
        _ => CodeSize::Bits64,
    };
    (instruction, Context { block_rip: BLOCK_RIP, code_size })
}

fn op(bits: u32, at: u64, bytes: &[u8]) -> Op {
    let (instruction, context) = decode(bits, at, bytes);
    operand::op(crate::system::undefined, &instruction, &context)
}

/// (base, index, scale, disp, seg, addr_bits)
fn address(op: &Op) -> (u8, u8, u8, i32, u8, u8) {
    (op.base, op.index, op.scale, op.disp, op.seg, op.addr_bits)
}

#[test]
fn memory_operands_are_taken_apart() {
    let check =
        |bits, bytes: &[u8], expected| assert_eq!(address(&op(bits, 0, bytes)), expected, "{bytes:x?}");
    check(64, &[0x48, 0x8b, 0x44, 0xcb, 0xf8], (3, 1, 3, -8, FLAT, 64)); // mov rax,[rbx+rcx*8-8]
    check(64, &[0x67, 0x8b, 0x04, 0x24], (4, ZERO, 0, 0, FLAT, 32)); // mov eax,[esp]
    check(64, &[0x65, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80], (ZERO, ZERO, 0, i32::MIN, 5, 64)); // gs:[0xffffffff80000000]
    check(64, &[0x67, 0x8b, 0x04, 0x25, 0, 0, 0, 0x80], (ZERO, ZERO, 0, i32::MIN, FLAT, 32));
    check(64, &[0x3e, 0x43, 0x8b, 0x44, 0x65, 0], (13, 12, 1, 0, FLAT, 64)); // DS override is void
    check(32, &[0x8b, 0x45, 0x08], (5, ZERO, 0, 8, 2, 32)); // mov eax,[ebp+8]: SS
    check(32, &[0x8b, 0x04, 0x8d, 4, 0, 0, 0], (ZERO, 1, 2, 4, 3, 32)); // mov eax,[ecx*4+4]: DS
    check(32, &[0xa1, 0, 0, 0, 0x80], (ZERO, ZERO, 0, i32::MIN, 3, 32)); // mov eax,[0x80000000]
    check(32, &[0x67, 0x8b, 0x47, 0xfe], (3, ZERO, 0, 0xfffe, 3, 16)); // mov eax,[bx-2]
    check(16, &[0x26, 0x8b, 0x42, 0x10], (5, 6, 0, 0x10, 0, 16)); // mov ax,es:[bp+si+0x10]
    check(16, &[0x8b, 0x42, 0x10], (5, 6, 0, 0x10, 2, 16)); // … SS without the override
    check(64, &[0xa4], (6, ZERO, 0, 0, FLAT, 64)); // movsb: its source
    check(32, &[0x64, 0xac], (6, ZERO, 0, 0, 4, 32)); // lods fs:[esi]
    check(16, &[0xaa], (7, ZERO, 0, 0, 0, 16)); // stosb es:[di]
    check(64, &[0x90], (ZERO, ZERO, 0, 0, FLAT, 64)); // nop
}

#[test]
fn rip_relative_addresses_count_from_the_block() {
    let near = op(64, 0x10, &[0x8b, 0x05, 0x20, 0, 0, 0]); // mov eax,[rip+0x20]
    assert_eq!((near.base, near.disp, near.addr_bits, near.at, near.len), (BLOCK, 0x36, 64, 0x10, 6));
    let far = op(64, 0x10, &[0x8b, 0x05, 0xff, 0xff, 0xff, 0x7f]);
    assert_eq!((far.base, far.disp, far.addr_bits), (BLOCK, 0x7fff_ffffu32.wrapping_add(0x16) as i32, WIDE));
    let eip = op(64, 0x10, &[0x67, 0x8b, 0x05, 0, 0, 0, 0x80]);
    assert_eq!((eip.base, eip.disp, eip.addr_bits), (BLOCK, i32::MIN + 0x17, 32));
}

#[test]
fn registers_have_their_numbers() {
    use Register::{AH, AX, BH, BPL, CH, CS, DIL, DL, GS, MM3, R9, R15L, RSP, SPL, XMM11};
    let check = |register, number| assert_eq!(operand::register(register), number, "{register:?}");
    for (register, number) in
        [(AH, 1), (CH, 9), (BH, 25), (DL, 16), (SPL, 32), (BPL, 40), (DIL, 56), (R15L, 120)]
    {
        check(register, number);
    }
    for (register, number) in [(AX, 0), (RSP, 4), (R9, 9), (XMM11, 11), (MM3, 3), (CS, 1), (GS, 5)] {
        check(register, number);
    }
}

#[test]
fn immediates_and_branch_targets() {
    let (add, _) = decode(64, 0, &[0x48, 0x83, 0xc0, 0xff]);
    assert_eq!(operand::immediate(&add, 1), u64::MAX);
    let (jump, context) = decode(64, 0x20, &[0xeb, 0xfe]);
    assert_eq!(operand::branch(&jump, &context), 0x20);
    let (moffs, _) = decode(64, 0, &[0xa0, 1, 2, 3, 4, 5, 6, 7, 0x88]);
    assert_eq!(operand::absolute(&moffs), 0x8807_0605_0403_0201);
}
