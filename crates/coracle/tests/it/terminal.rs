//! `-t`: a real terminal, driven through `script`, which gives us one on the host.

use std::process::Command;

use crate::coracle;

/// Runs `coracle run -t …` on a terminal of 33 lines and 101 columns; what appeared on it.
fn on_a_terminal(script: &str, keys: &str) -> Option<(i32, String)> {
    if Command::new("script").arg("--version").output().is_err() {
        println!("SKIP: script(1) is not installed");
        return None;
    }
    let turn = coracle(&[]);
    let inner = format!(
        "stty rows 33 cols 101; {} run --timeout 120s -t -- sh -c '{script}'",
        env!("CARGO_BIN_EXE_coracle")
    );
    let mut command = Command::new("script");
    command.args(["-qec", &inner, "/dev/null"]).stdin(std::process::Stdio::piped());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let keys = keys.to_owned();
    let typist = std::thread::spawn(move || {
        use std::io::Write;
        for key in keys.split_inclusive('~') {
            let _ = stdin.write_all(key.trim_end_matches('~').as_bytes());
            let _ = stdin.flush();
            std::thread::sleep(std::time::Duration::from_secs(12));
        }
        stdin
    });
    let output = child.wait_with_output().unwrap();
    drop(typist);
    drop(turn);
    Some((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn the_command_has_a_terminal_of_our_size() {
    let Some((code, said)) = on_a_terminal("tty && stty size && echo $TERM-ok", "~") else { return };
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("/dev/pts/") && said.contains("33 101") && said.contains("-ok"), "{said}");
}

#[test]
fn ctrl_c_goes_to_the_command() {
    let script = "trap \"echo caught; exit 9\" INT; echo waiting; while :; do sleep 1; done";
    let Some((code, said)) = on_a_terminal(script, "~\u{3}~") else { return };
    assert!(said.contains("caught"), "{said}");
    assert_eq!(code, 9, "{said}");
}

#[test]
fn no_terminal_is_said_in_one_line() {
    let done = coracle(&["run", "-t", "--", "true"]).done();
    assert_eq!(done.code, Some(2));
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
}
