//! Where instructions find the memory that they access: through the TLB, or through a window that was found there.

use iced_x86::Instruction;

use super::asm::{Mem, alu, cond, host};
use super::cold::{Cold, ColdKind};
use super::emit::Emit;
use super::frame::{TLB, window_of};
use super::windows::{Lasting, Member, STACK, Through};
use crate::mem::{TLB_ENTRIES, TlbEntry};

/// What is accessed when a TLB check has found it.
pub const FOUND: Mem = Mem { base: Some(host::R15), index: Some((host::R14, 0)), disp: 0 };

/// Prefix of an instruction whose memory operand is relative to the GS base.
const GS: u8 = 0x65;

/// log2 of the size of a TLB entry.
const ENTRY_SHIFT: u8 = 5;

const _: () = assert!(size_of::<TlbEntry>() == 1 << ENTRY_SHIFT);

/// Offset of an entry's part that says whether an access is allowed.
const fn tag_offset(write: bool) -> i32 {
    let offset =
        if write { std::mem::offset_of!(TlbEntry, write) } else { std::mem::offset_of!(TlbEntry, read) };
    offset as i32
}

/// An access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Its bytes.
    pub bytes: u32,
    /// Whether it writes.
    pub write: bool,
    /// Whether its address must be a multiple of its bytes.
    pub aligned: bool,
}

/// An access of a window's, when it is not to be had through the window.
#[derive(Debug, Clone, Copy)]
pub struct Single {
    /// The guest's registers that it is through.
    through: Through,
    /// Distance of its address from those.
    disp: i32,
    access: Access,
    /// Its window.
    pub member: Member,
    /// Whether it is the one that opens the window.
    opens: bool,
    /// Where the code goes on with the access, R15 being the host address of the window.
    pub back: usize,
}

/// The branches that are taken when an access is not possible on the fast way.
#[derive(Debug, Clone, Copy)]
pub struct Miss {
    /// Their displacements; 0 for none.
    pub from: [usize; 2],
    /// What is tried first then.
    pub single: Option<Single>,
}

impl From<[usize; 2]> for Miss {
    fn from(from: [usize; 2]) -> Miss {
        Miss { from, single: None }
    }
}

/// Where an access finds its memory.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// The host's memory; R15 is in use, and R14 if it is the index.
    pub at: Mem,
    /// See above.
    pub miss: Miss,
}

impl Emit<'_> {
    /// Finds the memory operand of an instruction, which is one for [`Emit::address`]. RFLAGS are overwritten.
    pub fn operand(&mut self, instruction: &Instruction, access: Access) -> Found {
        let base = instruction.memory_base();
        let disp = instruction.memory_displacement64() as i32;
        match self.member(disp) {
            Some(member) if base.is_gpr64() && !access.aligned => {
                self.through_window(member, Through::of(instruction), disp, access)
            }
            _ => {
                self.address(instruction);
                let from = self.check(access.bytes, access.write, access.aligned);
                Found { at: FOUND, miss: from.into() }
            }
        }
    }

    /// Finds the 8 bytes at this distance from RSP. RFLAGS are overwritten.
    pub fn on_stack(&mut self, disp: i32, write: bool) -> Found {
        let access = Access { bytes: 8, write, aligned: false };
        if let Some(member) = self.member(disp) {
            return self.through_window(member, STACK, disp, access);
        }
        match disp {
            0 => self.asm.mov(host::R14, host::R13),
            _ => self.asm.lea(true, host::R14, Mem::at(host::R13, disp)),
        }
        let from = self.check(access.bytes, access.write, false);
        Found { at: FOUND, miss: from.into() }
    }

    /// The window that the access of the current instruction belongs to.
    fn member(&self, disp: i32) -> Option<Member> {
        let member = self.windows.get(self.before as usize).copied().flatten();
        member.filter(|member| !self.alone && disp.checked_sub(member.shift).is_some())
    }

    fn through_window(&mut self, member: Member, through: Through, disp: i32, access: Access) -> Found {
        if self.holds(member.slot) {
            return Found { at: Mem::at(host::R15, member.shift), miss: Miss::NONE };
        }
        self.flags.before_clobber(&mut self.asm);
        let place = window_of(member.slot);
        let opens = self.opened & 1 << member.slot == 0;
        let from = if opens {
            self.opened |= 1 << member.slot;
            self.open(member, through, disp - member.shift)
        } else {
            self.asm.load(host::R15, place);
            self.asm.reg_reg(true, &[0x85], host::R15, host::R15); // test
            self.asm.jcc(cond::E, 0)
        };
        let back = self.asm.here();
        let single = Single { through, disp, access, member, opens, back };
        self.hold(from, single);
        let at = Mem::at(host::R15, member.shift);
        Found { at, miss: Miss { from: [from, 0], single: Some(single) } }
    }

    /// Looks a window up that begins `disp` bytes from what registers give, and keeps its address, in R15 and the frame. Gives
    /// the displacement of the branch that is taken if it is not to be had.
    fn open(&mut self, member: Member, through: Through, disp: i32) -> usize {
        self.address_of(through, disp);
        let from = self.probe(member.bytes, member.writes);
        self.load_host();
        self.asm.lea(true, host::R15, FOUND);
        self.asm.store(window_of(member.slot), host::R15);
        from
    }

    /// Looks the windows up that last while the trace is gone round; those that are not to be had are void.
    pub fn open_lasting(&mut self, lasting: &[Lasting]) {
        for Lasting { through, disp, member } in lasting.iter().copied() {
            self.opened |= 1 << member.slot;
            let from = self.open(member, through, disp);
            let back = self.asm.here();
            self.cold.push(Cold { from: [from, 0], kind: ColdKind::Void { slot: member.slot, back } });
        }
    }

    /// Has a window be void.
    pub fn void(&mut self, slot: u8) {
        self.asm.reg_mem(true, &[0xc7], 0, window_of(slot)); // mov qword [window], 0
        self.asm.bytes(&[0; 4]);
    }

    /// An access did not find its window: one that lasts is looked up again, and the access done; what follows is for when
    /// that fails.
    pub fn reopen(&mut self, single: &Single) {
        let Single { through, disp, member, opens, back, .. } = *single;
        if opens {
            self.void(member.slot);
        } else if member.lasts {
            let from = self.open(member, through, disp - member.shift);
            let target = self.asm.base + back;
            self.asm.jmp(target);
            self.asm.land(from);
        }
    }

    /// Tries an access by itself; what follows is for when that fails.
    pub fn single(&mut self, single: &Single) {
        let Single { through, disp, access, member, back, .. } = *single;
        self.reopen(single);
        self.address_of(through, disp);
        let outside = self.probe(access.bytes, access.write);
        self.load_host();
        self.asm.lea(true, host::R15, Mem { disp: -member.shift, ..FOUND });
        let target = self.asm.base + back;
        self.asm.jmp(target);
        self.asm.land(outside);
    }

    /// The address `disp` bytes from what registers of the guest give, to R14. May overwrite R15.
    fn address_of(&mut self, through: Through, disp: i32) {
        let base = Some(self.in_register(through.base, host::R14));
        let index = through.index.map(|(index, scale)| (self.in_register(index, host::R15), scale));
        self.asm.lea(true, host::R14, Mem { base, index, disp });
    }

    /// Looks an address in R14 up: R15 is then where the TLB's entry is, for
    /// [`Emit::load_host`], and R14 the offset in its page. Gives the displacement of the
    /// branch that is taken unless so many bytes there may be read or written.
    fn probe(&mut self, bytes: u32, write: bool) -> usize {
        let features = self.state.features;
        if features.rorx {
            self.asm.rorx32(host::R15, host::R14, 12 - ENTRY_SHIFT);
        } else {
            self.asm.mov32(host::R15, host::R14);
            self.asm.shr32(host::R15, 12 - ENTRY_SHIFT);
        }
        self.asm.alu_imm(false, alu::AND, host::R15, ((TLB_ENTRIES - 1) << ENTRY_SHIFT) as i32);
        if !features.gs_base {
            self.asm.alu_mem(true, alu::ADD, host::R15, TLB);
        }
        self.in_tlb();
        self.asm.alu_mem(true, alu::SUB, host::R14, Mem::at(host::R15, tag_offset(write)));
        self.asm.alu_imm(true, alu::CMP, host::R14, 4096 - bytes as i32);
        self.asm.jcc(cond::A, 0)
    }

    /// Has the next instruction access the TLB with its memory operand, which R15 is the base of.
    fn in_tlb(&mut self) {
        if self.state.features.gs_base {
            self.asm.out.push(GS);
        }
    }

    /// The host's page in the entry of the TLB that [`Emit::probe`] found, to R15.
    fn load_host(&mut self) {
        self.in_tlb();
        self.asm.load(host::R15, HOST);
    }

    /// Checks that `bytes` bytes at the linear address in R14 may be read or written, and are in one page of RAM. Then
    /// R15 is the host address of the page and R14 the offset in it. Otherwise the code branches to a rare way;
    /// its displacements (0 for none) are given. RFLAGS are overwritten.
    pub fn check(&mut self, bytes: u32, write: bool, aligned: bool) -> [usize; 2] {
        self.flags.before_clobber(&mut self.asm);
        let outside = self.probe(bytes, write);
        let mut crooked = 0;
        if aligned {
            self.asm.reg_reg(false, &[0xf6], 0, host::R14); // test r14b, bytes - 1
            self.asm.out.push((bytes - 1) as u8);
            crooked = self.asm.jcc(cond::NE, 0);
        }
        self.load_host();
        [outside, crooked]
    }

    /// The same memory without R14.
    pub fn fold(&mut self, at: Mem) -> Mem {
        if at.index.is_none() {
            return at;
        }
        self.asm.lea(true, host::R15, at);
        Mem::at(host::R15, 0)
    }
}

/// The host's page in a TLB entry that R15 is at.
const HOST: Mem = Mem::at(host::R15, std::mem::offset_of!(TlbEntry, host) as i32);
