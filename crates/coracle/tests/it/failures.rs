//! What goes wrong at run time: panics, kills, several at once.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{bare, coracle, sh};

#[test]
fn a_guest_that_panics_ends_the_run_with_its_last_lines() {
    let began = Instant::now();
    let done = sh(&[], "echo c > /proc/sysrq-trigger; sleep 100").done();
    assert_eq!(done.code, Some(125), "{}", done.stderr);
    assert!(
        done.stderr.contains("Kernel panic") && done.stderr.contains("coracle: the guest's kernel panicked"),
        "{}",
        done.stderr
    );
    assert!(began.elapsed() < Duration::from_secs(90));
}

#[test]
fn a_guest_that_cannot_start_its_init_ends_the_run() {
    let done = coracle(&["run", "--append", "rdinit=/no/such/init", "--", "true"]).done();
    assert_eq!(done.code, Some(125), "{}", done.stderr);
    assert!(done.stderr.contains("Kernel panic"), "{}", done.stderr);
}

#[test]
fn a_killed_run_leaves_nothing_that_blocks_the_next() {
    let mut started = sh(&[], "echo up; sleep 1000").start();
    let mut first = [0; 3];
    std::io::Read::read_exact(started.child.stdout.as_mut().unwrap(), &mut first).unwrap();
    assert_eq!(&first, b"up\n");
    started.child.kill().unwrap();
    started.child.wait().unwrap();
    drop(started);
    assert_eq!(sh(&[], "echo again").done().good(), "again\n");
}

#[test]
fn two_machines_run_side_by_side() {
    let turn = coracle(&[]);
    let start = |word: &str| {
        let mut command = bare();
        command.args(["run", "--timeout", "180s", "--", "echo", word]).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let (one, two) = (start("one"), start("two"));
    for (child, word) in [(one, "one\n"), (two, "two\n")] {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            word,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    drop(turn);
}

#[test]
fn an_interrupt_goes_to_the_command() {
    let mut started = sh(&[], "trap 'echo caught; exit 3' INT; echo up; while :; do sleep 1; done").start();
    let mut stdout = started.child.stdout.take().unwrap();
    let mut first = [0; 3];
    std::io::Read::read_exact(&mut stdout, &mut first).unwrap();
    let pid = rustix::process::Pid::from_raw(started.child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut stdout, &mut rest).unwrap();
    assert_eq!(rest, "caught\n");
    assert_eq!(started.child.wait().unwrap().code(), Some(3));
}

#[test]
fn an_idle_guest_costs_no_processor_time() {
    let mut started = sh(&[], "echo up; sleep 6; echo down; sleep 100").start();
    let mut stdout = started.child.stdout.take().unwrap();
    let mut word = [0; 3];
    std::io::Read::read_exact(&mut stdout, &mut word).unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let before = ticks(started.child.id());
    std::thread::sleep(Duration::from_secs(4));
    let spent = ticks(started.child.id()) - before;
    assert!(spent <= 40, "{spent} ticks of 10 ms in 4 s");
}

/// User and system time of a process in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let fields: Vec<&str> =
        stat.rsplit_once(')').expect("a name in parentheses").1.split_whitespace().collect();
    let ticks = |n: usize| fields[n].parse::<u64>().expect("a number");
    ticks(11) + ticks(12)
}

#[test]
fn doctor_says_what_there_is() {
    let done = coracle(&["doctor", "--json"]).done();
    let report: serde_json::Value = serde_json::from_str(&done.good()).unwrap();
    assert_eq!(report["can_run"], true);
    let names: Vec<&str> =
        report["findings"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["soft", "kvm", "fuse", "tun", "mirror", "disk"]);
    assert!(report["findings"][0]["mips"].as_f64().unwrap() > 10.0);
}
