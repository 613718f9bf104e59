//! The project's tasks: `cargo xtask test|soak|bench|fuzz|tidy|ci`.

#![forbid(unsafe_code)]

mod bench;
mod ci;
mod fuzz;
mod packages;
mod run;
mod soak;
mod test;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
usage: cargo xtask TASK

  test              every test, with what they need installed first
  soak [boots|stress|python|go|lockstep] [--count N] [--cpus N] [--seconds N] [--only NAME,…] [--engine E]
                    the long form of the tests that run Debian's own tests in a guest, or a part of it: boots, seconds
                    for each stressor, these stressors or modules
  bench 9p          our 9P server and client beside diod's
  bench boot        boot to power-off beside QEMU's TCG
  bench cpu         loops in a guest, beside QEMU's TCG and native
  bench datakit     the store's commits, watches, diffs and merges, beside git
  bench files       files through 9P and FUSE, of a directory and of DataKit, beside diod and ext4 (as root)
  bench guest       programs of Debian in a guest, beside QEMU's TCG and native
  bench net         vpnkit beside pasta and slirp4netns, and beside nothing (as root)
  bench run         `coracle run -- true`, warm: time and memory
  fuzz [TARGET] [--seconds N]
                    one target of fuzz/, or all, for 60 s each
  tidy              the rules of the house that a compiler does not know
  ci                formatting, lints, tidy, test
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["test", rest @ ..] => test::test(rest),
        ["soak", rest @ ..] => soak::soak(rest),
        ["bench", "9p", rest @ ..] => bench::ninep(rest),
        ["bench", "boot", rest @ ..] => bench::boot(rest),
        ["bench", "cpu", rest @ ..] => bench::cpu(rest),
        ["bench", "datakit", rest @ ..] => bench::datakit(rest),
        ["bench", "files", rest @ ..] => bench::files(rest),
        ["bench", "guest", rest @ ..] => bench::guest(rest),
        ["bench", "net", rest @ ..] => bench::net(rest),
        ["bench", "run", rest @ ..] => bench::run(rest),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        ["tidy"] => tidy::tidy(),
        ["ci"] => ci::ci(),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
