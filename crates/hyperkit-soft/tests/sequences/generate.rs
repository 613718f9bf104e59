//! Programs like those that compilers make, from choices that are given: loads and stores on both sides of pages'
//! ends, in pages that may not be written or are not there; loops, calls, jumps; changed code. They end by themselves.
//!
//! Flags that the SDM leaves undefined are set again before anything can see them, but for AF, which nobody looks at.

use std::fmt::Write;

/// Linear addresses. Each region is followed by what the name of the next says.
pub mod layout {
    /// Code, two pages that may be written.
    pub const CODE: u64 = 0x4_0000;
    /// The first of the same pages once more.
    pub const ALIAS: u64 = 0x5_0000;
    /// Three pages of data.
    pub const DATA: u64 = 0x1_0000;
    /// A page that is not there.
    pub const HOLE: u64 = 0x1_3000;
    /// A page that may only be read.
    pub const READ_ONLY: u64 = 0x1_4000;
    /// Two more pages of data, and after them none.
    pub const MORE: u64 = 0x1_5000;
    /// Two pages of stack, with none on either side.
    pub const STACK: u64 = 0x2_0000;
    /// A page, 4096 bytes.
    pub const PAGE: u64 = 0x1000;
}

/// Most fragments of a program.
const FRAGMENTS_MAX: u64 = 28;
/// Registers that arithmetic may change: the others are pointers, the stack's and the loop's.
const SCRATCH: [u8; 9] = [0, 1, 2, 8, 9, 10, 11, 13, 14];
/// Registers that point to data: RBX, RBP, RSI, RDI, R12.
const POINTERS: [u8; 5] = [3, 5, 6, 7, 12];
/// Counts the turns of the loop around everything.
const TURNS: u8 = 15;

/// Where choices come from: bytes of a fuzzer, or of a random generator. Zeros when they are used up.
#[derive(Debug)]
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: u64) -> u64 {
        (u64::from(self.byte()) << 8 | u64::from(self.byte())) % limit
    }

    fn pick(&mut self, from: &[u8]) -> u8 {
        from[self.below(from.len() as u64) as usize]
    }

    fn number(&mut self) -> u64 {
        (0..8).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }
}

/// A program and the registers that it starts with.
#[derive(Debug, Clone)]
pub struct Program {
    /// Code for [`layout::CODE`].
    pub code: Vec<u8>,
    /// RAX … R15.
    pub registers: [u64; 16],
    /// Its fragments by name.
    pub text: String,
}

struct Writer {
    code: Vec<u8>,
    calls: Vec<Call>,
    text: String,
}

/// A call whose function is yet to be written.
struct Call {
    /// Its displacement.
    at: usize,
    /// What is pushed before it, for the function to take away.
    pushed: u8,
}

/// A memory operand: base, index, scale, displacement.
struct Memory {
    base: u8,
    index: Option<(u8, u8)>,
    disp: i32,
}

impl Writer {
    /// REX, opcode and ModRM with a register operand in place of memory.
    fn registers(&mut self, wide: bool, opcode: &[u8], reg: u8, rm: u8) {
        self.code.push(0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | rm >> 3);
        self.code.extend(opcode);
        self.code.push(0xc0 | (reg & 7) << 3 | (rm & 7));
    }

    /// The same with memory.
    fn memory(&mut self, wide: bool, opcode: &[u8], reg: u8, at: &Memory) {
        let index = at.index.map_or(4, |(index, _)| index);
        self.code.push(0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | at.base >> 3);
        self.code.extend(opcode);
        self.code.push(0x84 | (reg & 7) << 3);
        self.code.push(at.index.map_or(0, |(_, scale)| scale) << 6 | (index & 7) << 3 | (at.base & 7));
        self.code.extend(at.disp.to_le_bytes());
    }

    fn name(&mut self, name: &str) {
        let _ = write!(self.text, "{:x}:{name} ", self.code.len());
    }
}

fn operand(choices: &mut Choices<'_>) -> Memory {
    let base = if choices.below(8) == 0 { 4 } else { choices.pick(&POINTERS) };
    // R14 is kept small, see `program`.
    let index = (choices.below(4) == 0).then(|| (14, choices.below(4) as u8));
    Memory { base, index, disp: choices.below(160) as i32 - 80 }
}

/// Makes a program.
pub fn program(choices: &mut Choices<'_>) -> Program {
    let mut writer = Writer { code: Vec::new(), calls: Vec::new(), text: String::new() };
    let registers = start(choices);
    // mov r15d, turns
    writer.code.extend([0x41, 0xbf, 1 + choices.below(40) as u8, 0, 0, 0]);
    let top = writer.code.len();
    // and r14d, 15: an index
    writer.code.extend([0x41, 0x83, 0xe6, 15]);
    for _ in 0..=choices.below(FRAGMENTS_MAX) {
        fragment(&mut writer, choices);
    }
    // dec r15; jnz top; ud2
    writer.registers(true, &[0xff], 1, TURNS);
    let back = top as i64 - (writer.code.len() as i64 + 6);
    writer.code.extend([0x0f, 0x85]);
    writer.code.extend((back as i32).to_le_bytes());
    writer.code.extend([0x0f, 0x0b]);
    while let Some(Call { at, pushed }) = writer.calls.pop() {
        let distance = (writer.code.len() - (at + 4)) as i32;
        writer.code[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        function(&mut writer, choices, pushed);
    }
    Program { code: writer.code, registers, text: writer.text }
}

/// Registers at the start: pointers near the ends of pages, anything elsewhere.
fn start(choices: &mut Choices<'_>) -> [u64; 16] {
    use layout::{DATA, HOLE, MORE, PAGE, READ_ONLY, STACK};
    let mut registers: [u64; 16] = std::array::from_fn(|_| choices.number());
    for pointer in POINTERS {
        let page = match choices.below(16) {
            0 => HOLE,
            1 => READ_ONLY,
            2 => READ_ONLY + PAGE,
            3 => MORE + PAGE,
            4..=6 => MORE,
            7..=10 => DATA + 2 * PAGE,
            _ => DATA + PAGE,
        };
        let inside =
            if choices.below(2) == 0 { choices.below(PAGE) } else { choices.below(64).wrapping_sub(32) };
        registers[usize::from(pointer)] = page.wrapping_add(inside);
    }
    registers[4] = STACK + PAGE + choices.below(64) * 8;
    registers
}

fn function(writer: &mut Writer, choices: &mut Choices<'_>, pushed: u8) {
    writer.name("function");
    let keeps = choices.below(2) == 0;
    if keeps {
        writer.code.extend([0x55, 0x41, 0x54]); // push rbp; push r12
    }
    for _ in 0..choices.below(4) {
        match choices.below(16) {
            0..=8 => arithmetic(writer, choices),
            9 | 10 => load(writer, choices),
            11 => store(writer, choices),
            12 => jump(writer, choices),
            13 => vector(writer, choices),
            14 if writer.code.len() < 2000 => call(writer, choices),
            _ => arithmetic_in_memory(writer, choices),
        }
    }
    if keeps {
        writer.code.extend([0x41, 0x5c, 0x5d]); // pop r12; pop rbp
    }
    match choices.below(8) {
        1 => early_return(writer, choices, pushed),
        2 => elsewhere(writer, choices),
        3 if pushed == 0 => {
            writer.code.extend([0x58, 0xff, 0xe0]); // pop rax; jmp rax: a return that is none
            return;
        }
        _ => {}
    }
    return_with(writer, pushed);
}

fn return_with(writer: &mut Writer, pushed: u8) {
    match pushed {
        0 => writer.code.push(0xc3),
        _ => writer.code.extend([0xc2, pushed, 0]),
    }
}

/// A return that is passed by on some condition.
fn early_return(writer: &mut Writer, choices: &mut Choices<'_>, pushed: u8) {
    let length = if pushed == 0 { 1 } else { 3 };
    writer.code.extend([0x70 | condition(choices), length]);
    return_with(writer, pushed);
    arithmetic(writer, choices);
}

/// At some turns the return leads to what is behind it, and a jump from there back.
fn elsewhere(writer: &mut Writer, choices: &mut Choices<'_>) {
    // test r15b, mask; jnz behind; mov rcx, [rsp]; lea rax, [rip + 5]; mov [rsp], rax; ret; push rcx
    let mask = 1 << choices.below(3);
    writer.code.extend([0x41, 0xf6, 0xc7, mask, 0x75, 17, 0x48, 0x8b, 0x0c, 0x24]);
    writer.code.extend([0x48, 0x8d, 0x05, 5, 0, 0, 0, 0x48, 0x89, 0x04, 0x24, 0xc3, 0x51]);
}

fn fragment(writer: &mut Writer, choices: &mut Choices<'_>) {
    match choices.below(32) {
        0..=5 => load(writer, choices),
        6..=9 => store(writer, choices),
        10..=14 => arithmetic(writer, choices),
        15..=17 => arithmetic_in_memory(writer, choices),
        18..=20 => jump(writer, choices),
        21 => shift(writer, choices),
        22 => multiply(writer, choices),
        23 => stack(writer, choices),
        24 => call(writer, choices),
        25 => string(writer, choices),
        26 | 27 => vector(writer, choices),
        28 => locked(writer, choices),
        29 => change_code(writer, choices),
        30 => move_pointer(writer, choices),
        _ => inner_loop(writer, choices),
    }
}

fn load(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("load");
    let (reg, at) = (choices.pick(&SCRATCH), operand(choices));
    let forms: [(bool, &[u8]); 8] = [
        (true, &[0x8b]),
        (false, &[0x8b]),
        (false, &[0x8a]),
        (false, &[0x0f, 0xb6]),
        (true, &[0x0f, 0xbe]),
        (false, &[0x0f, 0xb7]),
        (true, &[0x63]),
        (true, &[0x8d]),
    ];
    let (wide, opcode) = forms[choices.below(8) as usize];
    writer.memory(wide, opcode, reg, &at);
}

fn store(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("store");
    let (reg, at) = (choices.pick(&SCRATCH), operand(choices));
    match choices.below(5) {
        0 => writer.memory(false, &[0x88], reg, &at),
        1 => {
            writer.code.push(0x66);
            writer.memory(false, &[0x89], reg, &at);
        }
        2 => writer.memory(false, &[0x89], reg, &at),
        3 => {
            writer.memory(true, &[0xc7], 0, &at);
            writer.code.extend((choices.number() as u32).to_le_bytes());
        }
        _ => writer.memory(true, &[0x89], reg, &at),
    }
}

/// ADD, OR, ADC, SBB, AND, SUB, XOR, CMP by number.
fn arithmetic(writer: &mut Writer, choices: &mut Choices<'_>) {
    let (to, from, wide) = (choices.pick(&SCRATCH), choices.pick(&SCRATCH), choices.below(2) == 0);
    match choices.below(8) {
        0 => {
            writer.name("immediate");
            writer.registers(wide, &[0x83], choices.below(8) as u8, to);
            writer.code.push(choices.byte());
        }
        1 => {
            writer.name("test");
            writer.registers(wide, &[0x85], from, to);
        }
        2 => {
            writer.name("incdec");
            writer.registers(wide, &[0xff], choices.below(2) as u8, to);
        }
        3 => {
            writer.name("notneg");
            writer.registers(wide, &[0xf7], 2 + choices.below(2) as u8, to);
        }
        4 => {
            writer.name("set");
            writer.registers(false, &[0x0f, 0x90 | condition(choices)], 0, to);
        }
        5 => {
            writer.name("cmov");
            writer.registers(wide, &[0x0f, 0x40 | condition(choices)], to, from);
        }
        6 => {
            writer.name("bytes");
            writer.registers(false, &[(choices.below(8) as u8) << 3], from, to);
        }
        _ => {
            writer.name("alu");
            writer.registers(wide, &[(choices.below(8) as u8) << 3 | 1], from, to);
        }
    }
}

/// Conditions by number.
fn condition(choices: &mut Choices<'_>) -> u8 {
    choices.below(16) as u8
}

fn arithmetic_in_memory(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("alumem");
    let (reg, at, operation) = (choices.pick(&SCRATCH), operand(choices), (choices.below(8) as u8) << 3);
    let form = choices.below(4) as u8;
    writer.memory(choices.below(2) == 0, &[operation | form], reg, &at);
}

fn shift(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("shift");
    let reg = choices.pick(&SCRATCH);
    let operation = choices.pick(&[0, 1, 4, 5, 7]);
    if choices.below(3) == 0 {
        writer.registers(true, &[0xd3], operation, reg);
    } else {
        writer.registers(choices.below(2) == 0, &[0xc1], operation, reg);
        writer.code.push(choices.byte());
    }
    writer.registers(true, &[0x85], reg, reg);
}

fn multiply(writer: &mut Writer, choices: &mut Choices<'_>) {
    let (to, from) = (choices.pick(&SCRATCH), choices.pick(&SCRATCH));
    if choices.below(2) == 0 {
        writer.name("imul");
        writer.registers(choices.below(2) == 0, &[0x0f, 0xaf], to, from);
    } else {
        writer.name("div");
        // xor edx, edx; or r8, 1; div r8
        writer.code.extend([0x31, 0xd2]);
        writer.registers(true, &[0x83], 1, 8);
        writer.code.push(1);
        writer.registers(choices.below(2) == 0, &[0xf7], 6, 8);
    }
    writer.registers(true, &[0x85], to, to);
}

fn stack(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("stack");
    match choices.below(3) {
        0 => writer.code.push(0x50 | choices.pick(&[0, 1, 2, 3])),
        1 => writer.code.push(0x58 | choices.pick(&[0, 1, 2])),
        _ => {
            let at = operand(choices);
            writer.memory(false, &[0xff], 6, &at);
            writer.code.push(0x58);
        }
    }
}

fn call(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("call");
    if choices.below(4) == 0 {
        // lea rax, [rip+2]: of what comes after the jump; jmp rax
        writer.code.extend([0x48, 0x8d, 0x05, 2, 0, 0, 0, 0xff, 0xe0]);
        return;
    }
    let pushed = if choices.below(4) == 1 { 8 } else { 0 };
    if pushed != 0 {
        writer.code.push(0x51); // push rcx
    }
    writer.code.push(0xe8);
    writer.calls.push(Call { at: writer.code.len(), pushed });
    writer.code.extend([0; 4]);
}

/// A jump over one fragment.
fn jump(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("jump");
    writer.code.extend([0x0f, 0x80 | condition(choices), 0, 0, 0, 0]);
    let at = writer.code.len();
    arithmetic(writer, choices);
    load(writer, choices);
    let distance = (writer.code.len() - at) as u32;
    writer.code[at - 4..at].copy_from_slice(&distance.to_le_bytes());
}

fn inner_loop(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("loop");
    // mov ecx, turns
    writer.code.extend([0xb9, 1 + choices.below(60) as u8, 0, 0, 0]);
    let top = writer.code.len();
    // add eax, [base + disp]; add edx, eax; rol eax, 5
    let at = operand(choices);
    writer.memory(false, &[0x03], 0, &at);
    writer.code.extend([0x01, 0xc2, 0xc1, 0xc0, 5]);
    // dec ecx; jnz top
    writer.code.extend([0xff, 0xc9, 0x75]);
    let back = top as i64 - (writer.code.len() as i64 + 1);
    writer.code.push(back as i8 as u8);
}

fn string(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("string");
    // mov ecx, count; cld; lea rdi, [rbx+disp]; rep movs or stos
    writer.code.extend([0xb9, choices.below(50) as u8, 0, 0, 0, 0xfc]);
    writer.memory(true, &[0x8d], 7, &Memory { base: 3, index: None, disp: choices.below(40) as i32 });
    let repeated: &[u8] = match choices.below(4) {
        0 => &[0xf3, 0xa4],
        1 => &[0xf3, 0x48, 0xa5],
        2 => &[0xf3, 0xaa],
        _ => &[0xf3, 0x48, 0xab],
    };
    writer.code.extend(repeated);
}

fn vector(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("vector");
    let (reg, at) = (choices.below(8) as u8, operand(choices));
    let from = choices.below(8) as u8;
    match choices.below(8) {
        0 => writer.memory(false, &[0x0f, 0x10], reg, &at),
        1 => writer.memory(false, &[0x0f, 0x11], reg, &at),
        // Aligned: faults otherwise.
        2 => writer.memory(false, &[0x0f, 0x28], reg, &at),
        3 => {
            writer.code.push(0x66);
            writer.registers(false, &[0x0f, choices.pick(&[0xfe, 0xef, 0xeb, 0xdb, 0x76, 0x60])], reg, from);
        }
        4 => {
            writer.code.push(0xf2);
            writer.registers(false, &[0x0f, choices.pick(&[0x58, 0x59, 0x5c, 0x5e, 0x51])], reg, from);
        }
        5 => {
            writer.code.push(0xf2);
            writer.memory(true, &[0x0f, 0x2a], reg, &at);
        }
        6 => {
            writer.code.push(0x66);
            writer.registers(true, &[0x0f, 0x7e], reg, choices.pick(&SCRATCH));
        }
        _ => {
            writer.code.push(0x66);
            writer.registers(false, &[0x0f, 0x2e], reg, from);
        }
    }
}

fn locked(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("locked");
    let (reg, at, wide) = (choices.pick(&SCRATCH), operand(choices), choices.below(2) == 0);
    match choices.below(4) {
        0 => writer.memory(wide, &[0x87], reg, &at),
        form => {
            writer.code.push(0xf0);
            let opcode: &[u8] = match form {
                1 => &[0x01],
                2 => &[0x0f, 0xc1],
                _ => &[0x0f, 0xb1],
            };
            writer.memory(wide, opcode, reg, &at);
        }
    }
}

/// Stores to the immediate of `mov eax, imm32` that was or will be executed, directly or by the other address.
fn change_code(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("change");
    let before = choices.below(2) == 0;
    let target = if before {
        writer.code.extend([0xb8, 1, 2, 3, 4]);
        writer.code.len() as u64 - 4
    } else {
        // Behind the 8 bytes of the store below.
        writer.code.len() as u64 + 9
    };
    let region = if choices.below(3) == 0 { layout::ALIAS } else { layout::CODE };
    // mov byte [address], r9b
    writer.code.extend([0x44, 0x88, 0x0c, 0x25]);
    writer.code.extend(((region + target) as u32).to_le_bytes());
    if !before {
        writer.code.extend([0xb8, 5, 6, 7, 8]);
    }
}

/// Moves a pointer a little: over the end of a page in time.
fn move_pointer(writer: &mut Writer, choices: &mut Choices<'_>) {
    writer.name("pointer");
    let pointer = choices.pick(&POINTERS);
    let at = Memory { base: pointer, index: None, disp: choices.below(48) as i32 - 16 };
    writer.memory(true, &[0x8d], pointer, &at);
}
