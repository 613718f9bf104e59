//! Lockstep over generated programs: it finds nothing where the tiers agree, whatever the program does, and finds every
//! translation that is wrong. `LOCKSTEP` says how many programs.

use hyperkit_soft::cpu::Cpu;
use hyperkit_soft::jit::Tiers;
use hyperkit_soft::lockstep::Counts;

use crate::generate::{self, Choices};
use crate::{choices, machine, setting};

/// Programs by default: about five seconds.
const PROGRAMS: u64 = 500;

fn report(cpu: &Cpu) -> Option<String> {
    let lockstep = cpu.lockstep.as_ref().expect("it was asked for");
    lockstep.report.as_ref().map(ToString::to_string)
}

#[test]
fn generated_programs_agree_block_by_block() {
    let seed = setting("SEQUENCES_SEED", 1);
    let mut all = Counts::default();
    for n in 0..setting("LOCKSTEP", PROGRAMS) {
        let bytes = choices(seed + n);
        let program = generate::program(&mut Choices(&bytes));
        let mut cpu = machine::ready(&program);
        cpu.set_lockstep();
        let end = machine::end(&mut cpu);
        if let Some(report) = report(&cpu) {
            panic!("program {n} of seed {seed}: {}\n{report}", program.text);
        }
        let expected = machine::run(&program, Tiers::INTERPRETER);
        assert!(end == expected, "program {n} of seed {seed}: {}", program.text);
        let counts = cpu.lockstep.as_ref().expect("it was asked for").counts;
        all.agreed += counts.agreed;
        all.instructions += counts.instructions;
        all.alone += counts.alone;
        all.again += counts.again;
    }
    assert_eq!(all.again, 0, "nothing but the processor writes, so nothing is to be tried again");
    assert!(all.instructions > 10 * all.alone, "most is compared: {all:?}");
}

/// Runs `code` with translations made of what `change` makes of it; gives the report.
fn planted(code: &[u8], change: fn(&mut [u8])) -> Option<String> {
    let bytes = choices(1);
    let mut program = generate::program(&mut Choices(&bytes));
    program.code = code.to_vec();
    program.registers = [0x1111; 16];
    program.registers[3] = generate::layout::DATA + 0x100;
    program.registers[4] = generate::layout::STACK + 0x800;
    let mut cpu = machine::ready(&program);
    cpu.set_lockstep();
    cpu.plant(change);
    machine::end(&mut cpu);
    report(&cpu)
}

/// The report names what the wrong translation left wrong, the block and its bytes.
fn found(code: &[u8], change: fn(&mut [u8]), words: &[&str]) {
    assert_eq!(planted(code, |_| {}), None, "{code:02x?} is translated well");
    let report = planted(code, change).expect("a wrong translation is found");
    let bytes = format!("{code:02x?}");
    for word in words.iter().chain(&["0x40000", bytes.as_str()]) {
        assert!(report.contains(word), "{word} is not in: {report}");
    }
}

#[test]
fn a_wrong_register_is_found() {
    // add eax, ecx; ud2, translated as sub
    found(&[0x01, 0xc8, 0x0f, 0x0b], |code| code[0] = 0x29, &["RAX: interpreted 0x2222, translated 0x0"]);
}

#[test]
fn wrong_flags_are_found() {
    // cmp eax, ecx; ud2, translated as test
    found(&[0x39, 0xc8, 0x0f, 0x0b], |code| code[0] = 0x85, &["RFLAGS: interpreted 0x46, translated 0x6"]);
}

#[test]
fn a_wrong_store_is_found() {
    // mov [rbx], eax; ud2, translated as mov [rbx], ax
    let wrong: fn(&mut [u8]) = |code| code[0] = 0x88;
    found(&[0x89, 0x03, 0x0f, 0x0b], wrong, &["byte at 0x10101"]);
}

#[test]
fn a_store_to_the_wrong_place_is_found() {
    // mov [rbx+4], eax; ud2, translated as mov [rbx+8], eax: in the same page
    let code = [0x89, 0x43, 0x04, 0x0f, 0x0b];
    found(&code, |code| code[2] = 8, &["byte at 0x10104", "byte at 0x10108"]);
    // and as mov [rsp], eax: in another
    let code = [0x89, 0x04, 0x63, 0x0f, 0x0b]; // mov [rbx], eax: an index register of 4 is none
    found(&code, |code| code[2] = 0x24, &["a page that the interpreter does not"]);
}

#[test]
fn a_wrong_branch_is_found() {
    // je +1; nop; ud2, translated as jne
    found(&[0x74, 0x01], |code| code[0] = 0x75, &["RIP: interpreted 0x40002, translated 0x40003"]);
}

#[test]
fn a_missing_exception_is_found() {
    // mov al, [0x13000]: of the page that is not there; translated as a page that is
    let code = [0x8a, 0x04, 0x25, 0x00, 0x30, 0x01, 0x00, 0x0f, 0x0b];
    found(&code, |code| code[4] = 0x10, &["exception at: interpreted Some(40000), translated None"]);
}

#[test]
fn a_wrong_vector_is_found() {
    // pxor xmm0, xmm0 is 0 whatever it was; translated as pcmpeqd
    let code = [0x66, 0x0f, 0xef, 0xc0, 0x0f, 0x0b];
    found(&code, |code| code[2] = 0x76, &["XMM0"]);
}
