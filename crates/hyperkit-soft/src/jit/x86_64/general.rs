//! Instructions that are encoded again, with the host's registers for the guest's and with the memory operand where the
//! TLB check found it.

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};

use super::access::Access;
use super::asm::{Mem, host};
use super::classify::{self, FlagUse, Writes, flag_use};
use super::emit::Emit;
use super::encoding::{Encoding, Fields, Rm, fields};
use super::flags::{Place, Recipe, Tracker};
use super::helpers::Kind;
use super::places::Places;

/// A register operand that is not in a host register.
#[derive(Debug, Clone, Copy)]
struct Spill {
    guest: u8,
    host: u8,
    reads: bool,
    writes: bool,
}

/// A plan for the operands.
#[derive(Default)]
struct Plan {
    reg: Option<u8>,
    rm: Option<Rm>,
    vvvv: Option<u8>,
    spills: [Option<Spill>; 2],
    /// RAX to RBX, whose two low bytes change places around the instruction: it is on the high one, which no encoding with a
    /// REX prefix has.
    swapped: Option<u8>,
    memory: bool,
    writes_memory: bool,
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::CH | Register::DH | Register::BH)
}

/// Whether a register can be encoded with a REX prefix only.
fn is_rex_register(register: Register) -> bool {
    matches!(register, Register::SPL | Register::BPL | Register::SIL | Register::DIL)
        || (register.is_gpr() && !is_high_byte(register) && register.full_register().number() >= 8)
        || register.is_gpr64()
}

impl Emit<'_> {
    /// Emits an instruction by encoding it again. False, with nothing emitted, if it is none of those.
    pub fn general(&mut self, instruction: &Instruction, bytes: &[u8]) -> bool {
        let avx = classify::is_avx(instruction);
        let sse = avx || classify::is_sse(instruction);
        if !sse && !classify::is_integer(instruction) {
            return false;
        }
        let Some(fields) = fields(instruction) else { return false };
        let Some(encoding) = Encoding::of(instruction, bytes, fields) else { return false };
        let info = self.info.info_options(instruction, iced_x86::InstructionInfoOptions::NO_MEMORY_USAGE);
        let mut written: u16 = 0;
        for used in info.used_registers() {
            let access = used.access();
            let writes = matches!(
                access,
                OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
            );
            if writes && used.register().is_gpr() {
                written |= 1 << used.register().full_register().number();
            }
        }
        let accesses: [OpAccess; 5] = std::array::from_fn(|n| info.op_access(n as u32));
        let Some(plan) = plan(&self.places, instruction, fields, encoding.has_rex(), &accesses) else {
            return false;
        };
        if plan.memory {
            let size = instruction.memory_size().size();
            if !(1..=32).contains(&size) || !self.addressable(instruction) {
                return false;
            }
        }
        if sse {
            self.need_vectors(instruction, avx);
        }
        let usage = flag_use(instruction);
        if plan.memory {
            self.with_memory(instruction, &encoding, &plan, usage, written);
        } else {
            self.with_registers(instruction, &encoding, fields, &plan, usage, written);
        }
        true
    }

    /// Whether an instruction has no memory operand and [`Emit::general`] can encode it again.
    pub fn is_on_registers(&mut self, instruction: &Instruction) -> bool {
        let Some(fields) = fields(instruction) else { return false };
        let info = self.info.info_options(instruction, iced_x86::InstructionInfoOptions::NO_REGISTER_USAGE);
        let accesses: [OpAccess; 5] = std::array::from_fn(|n| info.op_access(n as u32));
        let has_rex = |n: &u32| {
            instruction.op_kind(*n) == OpKind::Register && is_rex_register(instruction.op_register(*n))
        };
        let has_rex = (0..instruction.op_count()).any(|n| has_rex(&n));
        matches!(instruction.encoding(), iced_x86::EncodingKind::Legacy | iced_x86::EncodingKind::VEX)
            && plan(&self.places, instruction, fields, has_rex, &accesses).is_some_and(|plan| !plan.memory)
    }

    /// Whether [`Emit::address`] knows the memory operand.
    pub fn addressable(&self, instruction: &Instruction) -> bool {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        if base == Register::EIP || index.is_vector_register() {
            return false;
        }
        if base.is_ip() {
            let distance = instruction.memory_displacement64().wrapping_sub(self.page) as i64;
            return i32::try_from(distance).is_ok();
        }
        let disp = instruction.memory_displacement64();
        base != Register::None || index != Register::None || disp as i32 as i64 as u64 == disp
    }

    fn with_registers(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding,
        fields: Fields,
        plan: &Plan,
        usage: FlagUse,
        written: u16,
    ) {
        if !self.counted && usage.writes == Writes::All && usage.reads == 0 {
            self.count(instruction, Kind::DueWithoutFlags);
        }
        if usage.reads != 0 {
            self.flags.need_host(&mut self.asm, usage.reads);
        }
        if usage.writes == Writes::Nothing {
            self.before_write(written);
        }
        self.fill(plan);
        self.encode(encoding, plan, plan.rm);
        self.spill(plan);
        match usage.writes {
            Writes::Nothing => {}
            Writes::All if plan.spills[0].is_some() => self.flags.overwritten(None),
            Writes::All => {
                let recipe = recipe(&self.places, instruction, encoding, fields, plan);
                self.flags.overwritten(recipe);
            }
            Writes::Some => self.flags.overwritten(None),
        }
    }

    fn with_memory(
        &mut self,
        instruction: &Instruction,
        encoding: &Encoding,
        plan: &Plan,
        usage: FlagUse,
        written: u16,
    ) {
        let size = instruction.memory_size().size() as u32;
        let locked = instruction.has_lock_prefix() || instruction.mnemonic() == Mnemonic::Xchg;
        let aligned = size > 1 && (locked || classify::must_be_aligned(instruction));
        let loads = usage.writes == Writes::Nothing && usage.reads == 0;
        // What makes them again is there until the load is done: for its rare way that is enough.
        let last = loads && self.flags.needs(written) && self.flags_die();
        if loads && !last {
            self.flags.before_write(&mut self.asm, written);
        }
        let found = self.operand(instruction, Access { bytes: size, write: plan.writes_memory, aligned });
        let recipe = self.slow_recipe();
        let folds = plan.spills[0].is_some() || self.flags.needs_scratch(usage.reads);
        let rm = if folds { self.fold(found.at) } else { found.at };
        if usage.reads != 0 {
            self.flags.need_host(&mut self.asm, usage.reads);
            if usage.writes == Writes::Nothing {
                self.flags.before_write(&mut self.asm, written);
            }
        }
        self.fill(plan);
        self.encode(encoding, plan, Some(Rm::Memory(rm)));
        self.spill(plan);
        if usage.writes != Writes::Nothing {
            self.flags.overwritten(None);
        } else if last {
            self.flags = Tracker::at(Place::Frame);
        }
        self.slow(found.miss, instruction, recipe);
    }

    /// Emits the instruction itself.
    fn encode(&mut self, encoding: &Encoding, plan: &Plan, rm: Option<Rm>) {
        // xchg al, ah; or with CL, DL, BL
        let swap = plan.swapped.map(|register| [0x86, 0xe0 | register << 3 | register]);
        swap.iter().for_each(|swap| self.asm.bytes(swap));
        encoding.emit(&mut self.asm, plan.reg, rm, plan.vvvv);
        swap.iter().for_each(|swap| self.asm.bytes(swap));
    }

    /// Loads the operands that are not in host registers.
    fn fill(&mut self, plan: &Plan) {
        for spill in plan.spills.into_iter().flatten().filter(|spill| spill.reads) {
            self.load_spilled(spill.host, spill.guest);
        }
    }

    /// Stores those that were written.
    fn spill(&mut self, plan: &Plan) {
        for spill in plan.spills.into_iter().flatten().filter(|spill| spill.writes) {
            self.store_spilled(spill.guest, spill.host);
        }
    }

    /// LEA.
    pub fn lea(&mut self, instruction: &Instruction) -> bool {
        if !self.addressable(instruction) {
            return false;
        }
        let target = instruction.op0_register();
        let guest = target.full_register().number() as u8;
        if target.size() == 2 {
            return false;
        }
        self.before_write(1 << guest);
        let place = self.host_of(guest);
        let to = place.unwrap_or(host::R14);
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let short_address = base.is_gpr32() || index.is_gpr32();
        let wide = target.is_gpr64() && !short_address;
        if base.is_ip() {
            let distance = instruction.memory_displacement64().wrapping_sub(self.page) as i32;
            self.asm.load(to, super::frame::PAGE);
            self.asm.lea(target.is_gpr64(), to, Mem::at(to, distance));
        } else {
            let mem = self.plain_operand(instruction);
            self.asm.lea(wide, to, mem);
        }
        if place.is_none() {
            self.store_spilled(guest, to);
        }
        true
    }
}

/// Which host register or memory each operand is; `None` if it cannot be encoded.
fn plan(
    places: &Places,
    instruction: &Instruction,
    fields: Fields,
    has_rex: bool,
    accesses: &[OpAccess; 5],
) -> Option<Plan> {
    let mut plan = Plan::default();
    let mut spills = 0;
    plan.memory = fields.rm.is_some_and(|n| instruction.op_kind(n) == OpKind::Memory);
    if has_implied_memory(instruction) {
        return None;
    }
    let mut needs_rex = plan.memory;
    let mut high_byte = None;
    for n in [fields.reg, fields.rm, fields.opcode, fields.vvvv].into_iter().flatten() {
        let access = accesses[n as usize];
        if instruction.op_kind(n) == OpKind::Memory {
            plan.writes_memory =
                !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
            continue;
        }
        let register = instruction.op_register(n);
        let number = if register.is_xmm() || register.is_ymm() {
            register.number() as u8
        } else if is_high_byte(register) {
            high_byte = Some(n);
            register.number() as u8 // 4 to 7, as encoded
        } else if register.is_gpr() {
            let guest = register.full_register().number() as u8;
            places.host_of(guest).or_else(|| {
                let host = if spills == 0 { host::R14 } else { host::R15 };
                let reads = access != OpAccess::Write || register.size() < 4;
                let writes = !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
                *plan.spills.get_mut(spills)? = Some(Spill { guest, host, reads, writes });
                spills += 1;
                Some(host)
            })?
        } else {
            return None;
        };
        needs_rex |= number >= 8 || (has_rex && register.is_gpr8());
        if fields.reg == Some(n) {
            plan.reg = Some(number);
        } else if fields.vvvv == Some(n) {
            plan.vvvv = Some(number);
        } else if fields.rm == Some(n) {
            plan.rm = Some(Rm::Register(number));
        } else {
            plan.rm = Some(Rm::Opcode(number));
        }
    }
    let same_twice =
        spills == 2 && plan.spills[0].zip(plan.spills[1]).is_some_and(|(a, b)| a.guest == b.guest);
    if same_twice && fields.vvvv.is_some() {
        return None;
    }
    if same_twice {
        // Both fields name one register, so both get one host register.
        let (first, second) = (plan.spills[0]?, plan.spills[1]?);
        plan.spills[0] = Some(Spill {
            reads: first.reads || second.reads,
            writes: first.writes || second.writes,
            ..first
        });
        plan.spills[1] = None;
        plan.rm = Some(Rm::Register(first.host));
        spills = 1;
    }
    if plan.memory && spills > 1 {
        return None;
    }
    match high_byte {
        Some(n) if needs_rex && !plan.swap(instruction, fields, n) => None,
        _ => Some(plan),
    }
}

fn has_implied_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|n| {
        !matches!(instruction.op_kind(n), OpKind::Register | OpKind::Memory)
            && instruction.try_immediate(n).is_err()
    })
}

impl Plan {
    /// Has operand `n`, a high byte, be encoded as the low one. False if that cannot be.
    fn swap(&mut self, instruction: &Instruction, fields: Fields, n: u32) -> bool {
        let low = instruction.op_register(n).full_register().number() as u8;
        let implied = instruction.mnemonic() == Mnemonic::Cmpxchg && low == Register::AL.number() as u8;
        let others = (0..instruction.op_count()).filter(|other| *other != n);
        let twice = others.into_iter().any(|other| {
            let register = instruction.op_register(other);
            register.is_gpr() && register.full_register().number() as u8 == low
        });
        if implied || twice {
            return false;
        }
        if fields.reg == Some(n) {
            self.reg = Some(low);
        } else {
            self.rm = Some(Rm::Register(low));
        }
        self.swapped = Some(low);
        true
    }
}

/// How the flags of an instruction on registers can be made again after it, if they can.
fn recipe(
    places: &Places,
    instruction: &Instruction,
    encoding: &Encoding,
    fields: Fields,
    plan: &Plan,
) -> Option<Recipe> {
    use Mnemonic as M;
    let mut asm = super::asm::Asm::default();
    let mut reads = 0;
    let mut numbers = [u8::MAX; 2];
    for (slot, n) in (0..instruction.op_count().min(2)).enumerate() {
        if instruction.op_kind(n) == OpKind::Register {
            let register = instruction.op_register(n);
            if is_high_byte(register) {
                return None;
            }
            numbers[slot] = register.full_register().number() as u8;
            reads |= 1 << numbers[slot];
        }
    }
    match instruction.mnemonic() {
        M::Cmp | M::Test => encoding.emit(&mut asm, plan.reg, plan.rm, None),
        M::And | M::Or | M::Xor => {
            let register = places.host_of(numbers[0])?;
            reads = 1 << numbers[0];
            let size = instruction.op0_register().size();
            if size == 2 {
                asm.out.push(0x66);
            }
            if size == 1 {
                if register >= 4 {
                    asm.out.push(0x40 | register >> 3 << 2 | register >> 3);
                }
                asm.bytes(&[0x84, 0xc0 | (register & 7) << 3 | register & 7]);
            } else {
                asm.reg_reg(size == 8, &[0x85], register, register);
            }
        }
        M::Add | M::Sub if numbers[0] != numbers[1] => {
            let by_extension = fields.reg.is_none() && fields.rm.is_some();
            let (flip, bits) = if by_extension { (5, 0) } else { (0, 0x28) };
            encoding.emit_changed(&mut asm, plan.reg, plan.rm, |opcode| opcode ^ bits, flip);
            encoding.emit(&mut asm, plan.reg, plan.rm, None);
        }
        _ => return None,
    }
    Recipe::new(&asm.out, reads)
}
