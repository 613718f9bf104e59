//! An instruction of the guest taken apart into the pieces of its encoding, to be put together with other registers and
//! another memory operand.
//!
//! Spec: SDM vol. 2A §2.1 to §2.3.

use iced_x86::{EncodingKind, Instruction, OpCodeOperandKind as Kind};

use super::asm::{Asm, Mem, rex_of};

/// What an instruction is encoded with, but for registers and the memory operand.
#[derive(Debug, Clone, Copy)]
pub struct Encoding<'a> {
    /// Prefixes that change the operation: operand size, LOCK, REP. Those of address size and segment are left out.
    prefixes: [u8; 4],
    prefix_count: usize,
    rex: u8,
    has_rex: bool,
    opcode: &'a [u8],
    modrm: Option<u8>,
    imm: &'a [u8],
    vex: Option<Vex>,
}

/// What a VEX prefix says besides registers.
#[derive(Debug, Clone, Copy)]
struct Vex {
    map: u8,
    wide: u8,
    vvvv: u8,
    /// L and pp.
    low: u8,
}

/// Which register operand is encoded where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fields {
    /// Number of the operand in ModRM.reg.
    pub reg: Option<u32>,
    /// Number of the operand in ModRM.rm.
    pub rm: Option<u32>,
    /// Number of the operand in the opcode.
    pub opcode: Option<u32>,
    /// Number of the operand in VEX.vvvv.
    pub vvvv: Option<u32>,
}

/// Where the operands of an instruction are encoded; `None` if it has some that are not understood here.
pub fn fields(instruction: &Instruction) -> Option<Fields> {
    let info = instruction.op_code();
    let mut fields = Fields::default();
    for n in 0..info.op_count() {
        match info.op_kind(n) {
            Kind::r8_reg | Kind::r16_reg | Kind::r32_reg | Kind::r64_reg | Kind::xmm_reg | Kind::ymm_reg => {
                fields.reg = Some(n)
            }
            Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::xmm_or_mem
            | Kind::mem
            | Kind::r16_rm
            | Kind::r32_rm
            | Kind::r64_rm
            | Kind::ymm_or_mem
            | Kind::ymm_rm
            | Kind::xmm_rm => fields.rm = Some(n),
            Kind::r8_opcode | Kind::r16_opcode | Kind::r32_opcode | Kind::r64_opcode => {
                fields.opcode = Some(n)
            }
            Kind::r32_vvvv | Kind::r64_vvvv | Kind::xmm_vvvv | Kind::ymm_vvvv => fields.vvvv = Some(n),
            Kind::xmm_is4 | Kind::ymm_is4 => {}
            Kind::imm8
            | Kind::imm8_const_1
            | Kind::imm16
            | Kind::imm32
            | Kind::imm32sex64
            | Kind::imm64
            | Kind::imm8sex16
            | Kind::imm8sex32
            | Kind::imm8sex64
            | Kind::al
            | Kind::cl
            | Kind::ax
            | Kind::eax
            | Kind::rax => {}
            _ => return None,
        }
    }
    Some(fields)
}

impl<'a> Encoding<'a> {
    /// Takes `bytes`, the whole of `instruction`, apart. `None` for encodings other than the legacy one.
    pub fn of(instruction: &Instruction, bytes: &'a [u8], fields: Fields) -> Option<Encoding<'a>> {
        if !matches!(instruction.encoding(), EncodingKind::Legacy | EncodingKind::VEX) {
            return None;
        }
        let mut this = Encoding {
            prefixes: [0; 4],
            prefix_count: 0,
            rex: 0,
            has_rex: false,
            opcode: &[],
            modrm: None,
            imm: &[],
            vex: None,
        };
        let mut at = 0;
        loop {
            match *bytes.get(at)? {
                prefix @ (0x66 | 0xf0 | 0xf2 | 0xf3) => {
                    if !this.prefixes[..this.prefix_count].contains(&prefix) {
                        *this.prefixes.get_mut(this.prefix_count)? = prefix;
                        this.prefix_count += 1;
                    }
                    (this.rex, this.has_rex) = (0, false);
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => (this.rex, this.has_rex) = (0, false),
                rex @ 0x40..=0x4f => (this.rex, this.has_rex) = (rex & 15, true),
                _ => break,
            }
            at += 1;
        }
        if instruction.encoding() == EncodingKind::VEX {
            at = this.vex_prefix(bytes, at)?;
        }
        let opcode_bytes = match bytes.get(at..at + 2) {
            _ if this.vex.is_some() => 1,
            Some([0x0f, 0x38 | 0x3a]) => 3,
            Some([0x0f, _]) => 2,
            _ => 1,
        };
        this.opcode = bytes.get(at..at + opcode_bytes)?;
        at += opcode_bytes;
        if fields.reg.is_some() || fields.rm.is_some() {
            let modrm = *bytes.get(at)?;
            this.modrm = Some(modrm);
            at += 1 + address_bytes(modrm, bytes.get(at + 1).copied().unwrap_or(0));
        }
        this.imm = bytes.get(at..)?;
        Some(this)
    }

    /// Takes in a VEX prefix; gives where the opcode is.
    fn vex_prefix(&mut self, bytes: &[u8], at: usize) -> Option<usize> {
        match *bytes.get(at..at + 3)? {
            [0xc5, low, _] => {
                self.vex = Some(Vex { map: 1, wide: 0, vvvv: !low >> 3 & 15, low: low & 7 });
                Some(at + 2)
            }
            [0xc4, map, low] => {
                self.vex = Some(Vex { map: map & 31, wide: low & 0x80, vvvv: !low >> 3 & 15, low: low & 7 });
                Some(at + 3)
            }
            _ => None,
        }
    }

    /// Whether there is a REX prefix, without which byte registers 4 to 7 are AH to BH.
    pub fn has_rex(&self) -> bool {
        self.has_rex
    }

    /// Emits the instruction with `reg` in ModRM.reg (if that is a register), `rm` as the other operand, `vvvv` as the third.
    pub fn emit(&self, asm: &mut Asm, reg: Option<u8>, rm: Option<Rm>, vvvv: Option<u8>) {
        match self.vex {
            Some(vex) => self.emit_vex(asm, reg, rm, Vex { vvvv: vvvv.unwrap_or(vex.vvvv), ..vex }),
            None => self.emit_changed(asm, reg, rm, |opcode| opcode, 0),
        }
    }

    fn emit_vex(&self, asm: &mut Asm, reg: Option<u8>, rm: Option<Rm>, vex: Vex) {
        let rex = match rm {
            Some(Rm::Register(register) | Rm::Opcode(register)) => register >> 3,
            Some(Rm::Memory(mem)) => rex_of(mem),
            None => 0,
        };
        let rex = rex | reg.map_or(0, |reg| reg >> 3 << 2);
        asm.bytes(&[0xc4, (!rex & 7) << 5 | vex.map, vex.wide | (!vex.vvvv & 15) << 3 | vex.low]);
        asm.bytes(self.opcode);
        let field = reg.unwrap_or(self.modrm.map_or(0, |modrm| modrm >> 3 & 7));
        match rm {
            Some(Rm::Register(register)) => asm.out.push(0xc0 | (field & 7) << 3 | register & 7),
            Some(Rm::Memory(mem)) => asm.modrm(field, mem),
            _ => {}
        }
        asm.bytes(self.imm);
    }

    /// The same with the last byte of the opcode changed, and with bits of ModRM.reg, an opcode extension, flipped.
    pub fn emit_changed(
        &self,
        asm: &mut Asm,
        reg: Option<u8>,
        rm: Option<Rm>,
        change: impl Fn(u8) -> u8,
        flip: u8,
    ) {
        asm.bytes(&self.prefixes[..self.prefix_count]);
        let extension = self.modrm.map_or(0, |modrm| modrm >> 3 & 7) ^ flip;
        let field = reg.unwrap_or(extension);
        let rm_rex = match rm {
            Some(Rm::Register(register) | Rm::Opcode(register)) => register >> 3,
            Some(Rm::Memory(mem)) => rex_of(mem),
            None => 0,
        };
        let rex = self.rex & 8 | reg.map_or(0, |reg| reg >> 3 << 2) | rm_rex;
        if rex != 0 || self.has_rex {
            asm.out.push(0x40 | rex);
        }
        let last = self.opcode.len() - 1;
        asm.bytes(&self.opcode[..last]);
        let opcode = change(self.opcode[last]);
        match rm {
            Some(Rm::Opcode(register)) => asm.out.push(opcode & !7 | register & 7),
            _ => asm.out.push(opcode),
        }
        match rm {
            Some(Rm::Register(register)) => asm.out.push(0xc0 | (field & 7) << 3 | register & 7),
            Some(Rm::Memory(mem)) => asm.modrm(field, mem),
            _ => {}
        }
        asm.bytes(self.imm);
    }
}

/// The operand that is not in ModRM.reg.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rm {
    /// A register in ModRM.rm.
    Register(u8),
    /// Memory.
    Memory(Mem),
    /// A register in the low bits of the opcode.
    Opcode(u8),
}

/// Bytes of SIB and displacement after a ModRM byte with 64-bit or 32-bit addresses.
fn address_bytes(modrm: u8, sib: u8) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return 0;
    }
    let sib_bytes = usize::from(rm == 4);
    let no_base = mode == 0 && (rm == 5 || (rm == 4 && sib & 7 == 5));
    sib_bytes
        + match mode {
            1 => 1,
            2 => 4,
            _ if no_base => 4,
            _ => 0,
        }
}
