//! Bytes of host instructions: the few forms that translations are made of besides the guest's own instructions.
//!
//! Spec: SDM vol. 2A §2.1 (ModRM, SIB) and §2.2.1 (REX).

/// Host registers by encoding.
#[allow(missing_docs, reason = "the names are the registers'")]
pub mod host {
    pub const RAX: u8 = 0;
    pub const RDX: u8 = 2;
    pub const RSP: u8 = 4;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    pub const R13: u8 = 13;
    pub const R14: u8 = 14;
    pub const R15: u8 = 15;
}

/// A memory operand of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mem {
    /// Base register.
    pub base: Option<u8>,
    /// Index register and log2 of its factor.
    pub index: Option<(u8, u8)>,
    /// Displacement.
    pub disp: i32,
}

impl Mem {
    /// `[base + disp]`
    pub const fn at(base: u8, disp: i32) -> Mem {
        Mem { base: Some(base), index: None, disp }
    }

    /// A place in the frame.
    pub const fn frame(disp: i32) -> Mem {
        Mem::at(host::RSP, disp)
    }
}

/// Condition codes, as the low four bits of Jcc, SETcc and CMOVcc have them.
#[allow(missing_docs, reason = "the names are the SDM's")]
pub mod cond {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

/// Two-operand arithmetic by the number that its opcodes have (0x00 + 8 n …).
#[allow(missing_docs, reason = "the names are the instructions'")]
pub mod alu {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
}

/// Code that is being made, at a known address.
#[derive(Debug, Default)]
pub struct Asm {
    /// The code.
    pub out: Vec<u8>,
    /// Where its first byte will be executed.
    pub base: usize,
}

impl Asm {
    /// Empty code that will be at `base`.
    pub fn new(base: *const u8) -> Asm {
        Asm { out: Vec::with_capacity(1024), base: base as usize }
    }

    /// Offset of what comes next.
    pub fn here(&self) -> usize {
        self.out.len()
    }

    /// Address of what comes next.
    pub fn address(&self) -> usize {
        self.base + self.out.len()
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    /// An instruction with register `reg` and a register as the other operand; `opcode` without prefixes.
    pub fn reg_reg(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.out.push(rex);
        }
        self.bytes(opcode);
        self.out.push(0xc0 | (reg & 7) << 3 | rm & 7);
    }

    /// An instruction with register `reg` (or an opcode extension) and a memory operand.
    pub fn reg_mem(&mut self, wide: bool, opcode: &[u8], reg: u8, mem: Mem) {
        let rex = rex_of(mem) | u8::from(wide) << 3 | (reg >> 3) << 2;
        if rex != 0 {
            self.out.push(0x40 | rex);
        }
        self.bytes(opcode);
        self.modrm(reg, mem);
    }

    /// ModRM, SIB and displacement.
    pub fn modrm(&mut self, reg: u8, mem: Mem) {
        let reg = (reg & 7) << 3;
        let Some(base) = mem.base else {
            let (index, scale) = mem.index.unwrap_or((4, 0));
            self.bytes(&[reg | 4, scale << 6 | (index & 7) << 3 | 5]);
            self.imm32(mem.disp);
            return;
        };
        let short = i8::try_from(mem.disp);
        let mode = match (mem.disp, short) {
            (0, _) if base & 7 != 5 => 0,
            (_, Ok(_)) => 0x40,
            _ => 0x80,
        };
        match mem.index {
            Some((index, scale)) => {
                self.bytes(&[mode | reg | 4, scale << 6 | (index & 7) << 3 | base & 7]);
            }
            None if base & 7 == 4 => self.bytes(&[mode | reg | 4, 0x24]),
            None => self.out.push(mode | reg | base & 7),
        }
        match mode {
            0x40 => self.out.push(mem.disp as i8 as u8),
            0x80 => self.imm32(mem.disp),
            _ => {}
        }
    }

    /// `mov to, from`, 64 bits
    pub fn mov(&mut self, to: u8, from: u8) {
        if to != from {
            self.reg_reg(true, &[0x89], from, to);
        }
    }

    /// `mov to, from`, 32 bits
    pub fn mov32(&mut self, to: u8, from: u8) {
        self.reg_reg(false, &[0x89], from, to);
    }

    /// `mov to, [mem]`, 64 bits
    pub fn load(&mut self, to: u8, mem: Mem) {
        self.reg_mem(true, &[0x8b], to, mem);
    }

    /// `mov to, [mem]`, 32 bits
    pub fn load32(&mut self, to: u8, mem: Mem) {
        self.reg_mem(false, &[0x8b], to, mem);
    }

    /// `mov [mem], from`, 64 bits
    pub fn store(&mut self, mem: Mem, from: u8) {
        self.reg_mem(true, &[0x89], from, mem);
    }

    /// `mov [mem], from`, 32 bits
    pub fn store32(&mut self, mem: Mem, from: u8) {
        self.reg_mem(false, &[0x89], from, mem);
    }

    /// `mov dword [mem], value`
    pub fn store_imm32(&mut self, mem: Mem, value: u32) {
        self.reg_mem(false, &[0xc7], 0, mem);
        self.bytes(&value.to_le_bytes());
    }

    /// `mov to, value`, 32 bits
    pub fn mov_imm32(&mut self, to: u8, value: u32) {
        if to >= 8 {
            self.out.push(0x41);
        }
        self.out.push(0xb8 | to & 7);
        self.bytes(&value.to_le_bytes());
    }

    /// `mov to, value`, 64 bits
    pub fn mov_imm64(&mut self, to: u8, value: u64) {
        self.bytes(&[0x48 | to >> 3, 0xb8 | to & 7]);
        self.bytes(&value.to_le_bytes());
    }

    /// `lea to, [mem]`
    pub fn lea(&mut self, wide: bool, to: u8, mem: Mem) {
        self.reg_mem(wide, &[0x8d], to, mem);
    }

    /// `op reg, [mem]`
    pub fn alu_mem(&mut self, wide: bool, op: u8, reg: u8, mem: Mem) {
        self.reg_mem(wide, &[op << 3 | 3], reg, mem);
    }

    /// `op to, from`
    pub fn alu(&mut self, wide: bool, op: u8, to: u8, from: u8) {
        self.reg_reg(wide, &[op << 3 | 1], from, to);
    }

    /// `op reg, value`
    pub fn alu_imm(&mut self, wide: bool, op: u8, reg: u8, value: i32) {
        match i8::try_from(value) {
            Ok(short) => {
                self.reg_reg(wide, &[0x83], op, reg);
                self.out.push(short as u8);
            }
            Err(_) => {
                self.reg_reg(wide, &[0x81], op, reg);
                self.imm32(value);
            }
        }
    }

    /// `op [mem], value`
    pub fn alu_mem_imm(&mut self, wide: bool, op: u8, mem: Mem, value: i32) {
        match i8::try_from(value) {
            Ok(short) => {
                self.reg_mem(wide, &[0x83], op, mem);
                self.out.push(short as u8);
            }
            Err(_) => {
                self.reg_mem(wide, &[0x81], op, mem);
                self.imm32(value);
            }
        }
    }

    /// `shr reg, count`, 32 bits
    pub fn shr32(&mut self, reg: u8, count: u8) {
        self.reg_reg(false, &[0xc1], 5, reg);
        self.out.push(count);
    }

    /// `rorx to, from, count`, 32 bits
    pub fn rorx32(&mut self, to: u8, from: u8, count: u8) {
        let rxb = (!to >> 3 & 1) << 7 | 0x40 | (!from >> 3 & 1) << 5;
        self.bytes(&[0xc4, rxb | 3, 0x7b, 0xf0, 0xc0 | (to & 7) << 3 | from & 7, count]);
    }

    /// `imul to, from, value`, 32 bits
    pub fn imul32(&mut self, to: u8, from: u8, value: u32) {
        self.reg_reg(false, &[0x69], to, from);
        self.bytes(&value.to_le_bytes());
    }

    /// `wrgsbase reg`, 64 bits
    pub fn write_gs_base(&mut self, reg: u8) {
        self.out.push(0xf3);
        self.reg_reg(true, &[0x0f, 0xae], 3, reg);
    }

    /// `shl reg, count`, 32 bits
    pub fn shl32(&mut self, reg: u8, count: u8) {
        self.reg_reg(false, &[0xc1], 4, reg);
        self.out.push(count);
    }

    /// `test` of the byte in `mem` that the bits of `value` are in: the first one, or the second
    pub fn test_mem(&mut self, mem: Mem, value: u16) {
        let second = value > 0xff;
        self.reg_mem(false, &[0xf6], 0, Mem { disp: mem.disp + i32::from(second), ..mem });
        self.out.push(if second { value >> 8 } else { value } as u8);
    }

    /// `jmp target`; gives the offset of the displacement.
    pub fn jmp(&mut self, target: usize) -> usize {
        self.out.push(0xe9);
        self.relative(target)
    }

    /// `jcc target`; gives the offset of the displacement.
    pub fn jcc(&mut self, condition: u8, target: usize) -> usize {
        self.bytes(&[0x0f, 0x80 | condition & 15]);
        self.relative(target)
    }

    /// `call target`
    pub fn call(&mut self, target: usize) -> usize {
        self.out.push(0xe8);
        self.relative(target)
    }

    fn relative(&mut self, target: usize) -> usize {
        let at = self.out.len();
        let next = self.base + at + 4;
        self.imm32(target.wrapping_sub(next) as i32);
        at
    }

    /// Has the branch with its displacement at offset `at` lead to an address.
    pub fn aim(&mut self, at: usize, target: usize) {
        let distance = target.wrapping_sub(self.base + at + 4) as i32;
        self.out[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// Has the branch with its displacement at offset `at` lead to what comes next.
    pub fn land(&mut self, at: usize) {
        let distance = (self.out.len() - at - 4) as i32;
        self.out[at..at + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// `jmp [mem]`
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.reg_mem(false, &[0xff], 4, mem);
    }
}

/// REX.X and REX.B of a memory operand.
pub fn rex_of(mem: Mem) -> u8 {
    let base = mem.base.map_or(0, |base| base >> 3);
    let index = mem.index.map_or(0, |(index, _)| index >> 3 << 1);
    base | index
}

/// Displacement of a branch at `from` (the address of its displacement) to `target`.
pub fn displacement(from: *const u8, target: *const u8) -> [u8; 4] {
    let next = (from as usize).wrapping_add(4);
    ((target as usize).wrapping_sub(next) as i32).to_le_bytes()
}
