//! stdin, stdout, stderr, the exit code, and the world a command starts in.

use crate::{coracle, sh};

#[test]
fn a_real_debian_kernel_answers() {
    let said = coracle(&["run", "--", "uname", "-a"]).done().good();
    assert!(said.starts_with("Linux ") && said.contains("Debian"), "{said}");
}

#[test]
fn the_exit_code_is_the_commands() {
    assert_eq!(sh(&[], "exit 7").done().code, Some(7));
}

#[test]
fn a_signal_is_told_as_the_shell_does() {
    assert_eq!(sh(&[], "kill -9 $$").done().code, Some(128 + 9));
}

#[test]
fn a_command_that_is_not_there_is_127_and_one_that_cannot_be_run_126() {
    let done = coracle(&["run", "--", "no-such-command"]).done();
    assert_eq!(done.code, Some(127), "{}", done.stderr);
    assert!(done.stderr.contains("no-such-command") && done.stderr.lines().count() == 1, "{}", done.stderr);
    assert_eq!(coracle(&["run", "--", "/etc/passwd"]).done().code, Some(126));
}

#[test]
fn stdout_and_stderr_are_separate() {
    let done = sh(&[], "echo out; echo err >&2").done();
    assert_eq!((done.text().as_str(), done.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn every_byte_passes_through() {
    // Larger than every buffer on the way, and every byte value.
    let mut input: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    input.extend(0..=255);
    let done = coracle(&["run", "--", "cat"]).done_with(input.clone());
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout == input, "{} bytes came back of {}", done.stdout.len(), input.len());
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let mut started = coracle(&["run", "--timeout", "120s", "--", "yes"]).start();
    let mut stdout = started.child.stdout.take().unwrap();
    let mut line = [0; 2];
    std::io::Read::read_exact(&mut stdout, &mut line).unwrap();
    drop(stdout);
    assert_eq!(&line, b"y\n");
    assert_eq!(started.child.wait().unwrap().code(), Some(128 + 13), "SIGPIPE");
}

#[test]
fn output_that_is_written_just_before_the_end_arrives() {
    let said = sh(&[], "dd if=/dev/zero bs=1000 count=1000 2>/dev/null; printf end").done();
    assert_eq!(said.stdout.len(), 1_000_003);
    assert!(said.stdout.ends_with(b"end"));
}

#[test]
fn environment_and_working_directory() {
    let mut run =
        sh(&["-e", "A=b c", "-e", "FROM_HOST", "-w", "/tmp/deep"], "echo \"$A|$FROM_HOST|$PWD|$HOME\"");
    run.command().env("FROM_HOST", "yes");
    assert_eq!(run.done().good(), "b c|yes|/tmp/deep|/root\n");
}

#[test]
fn a_command_ends_when_its_time_is_up() {
    let done = coracle(&["run", "--timeout", "8s", "--", "sleep", "1000"]).done();
    assert_eq!(done.code, Some(124), "{}", done.stderr);
}

#[test]
fn the_clock_is_the_hosts() {
    let guest: u64 = sh(&[], "date +%s").done().good().trim().parse().unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) <= 20, "guest {guest}, host {host}");
}

#[test]
fn orphans_are_reaped_and_memory_is_what_was_asked() {
    let said = sh(
        &["--memory", "256M"],
        "(sleep 0.1 &) ; sleep 0.5; ps -o stat | grep -c Z; free -m | awk '/Mem/{print $2}'",
    )
    .done();
    let text = said.text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0"));
    let mib: u32 = lines.next().unwrap().parse().unwrap();
    assert!((180..=256).contains(&mib), "{mib}");
}

#[test]
fn a_disk_is_a_file_and_the_statistics_count_instructions() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, stats) = (folder.path().join("disk.img"), folder.path().join("stats"));
    let mut bytes = vec![0u8; 1 << 20];
    bytes[..5].copy_from_slice(b"hello");
    std::fs::write(&disk, bytes).unwrap();
    let (disk_flag, stats_flag) = (disk.display().to_string(), stats.display().to_string());
    let flags = ["--disk", disk_flag.as_str(), "--engine", "soft", "--stats", stats_flag.as_str()];
    let said =
        sh(&flags, "head -c 5 /dev/vda; printf world | dd of=/dev/vda conv=notrunc 2>/dev/null; sync").done();
    assert_eq!(said.good(), "hello");
    assert!(std::fs::read(&disk).unwrap().starts_with(b"world"));
    let text = std::fs::read_to_string(&stats).unwrap();
    let end: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(end["end"], true);
    assert!(end["retired"].as_u64().unwrap() > 100_000_000, "{end}");
    // Read-only as the host has it.
    let refused = format!("{disk_flag}:ro");
    let said =
        sh(&["--disk", refused.as_str()], "printf x | dd of=/dev/vda 2>/dev/null || echo refused").done();
    assert_eq!(said.good(), "refused\n");
}
