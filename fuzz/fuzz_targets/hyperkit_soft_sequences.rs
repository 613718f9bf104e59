//! Programs like compilers' from the fuzzer's choices: interpreted and translated they must end alike.
#![no_main]

#[path = "../../crates/hyperkit-soft/tests/sequences/generate.rs"]
mod generate;
#[path = "../../crates/hyperkit-soft/tests/sequences/machine.rs"]
mod machine;

use hyperkit_soft::jit::Tiers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|choices: &[u8]| {
    let program = generate::program(&mut generate::Choices(choices));
    let expected = machine::run(&program, Tiers::INTERPRETER);
    for tiers in [Tiers::FORCED, Tiers { translate_after: Some(3), ..Tiers::BOTH }] {
        assert!(machine::run(&program, tiers) == expected, "{tiers:?}: {}\n{:02x?}", program.text, program.code);
    }
});
