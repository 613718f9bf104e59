//! `-t`: a real terminal, on a pseudo-terminal of the test's.

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::{Run, coracle};

/// A user at a terminal.
struct Screen {
    child: Child,
    keyboard: File,
    shown: Arc<Mutex<String>>,
    _turn: Run,
}

impl Screen {
    /// Runs a script in a machine, on a terminal of 33 lines and 101 columns.
    fn run(script: &str) -> Screen {
        let turn = coracle(&[]);
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let slave = || File::options().read(true).write(true).open(&name).unwrap();
        let keyboard = File::from(master);
        resize(&keyboard, 33, 101);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait", env!("CARGO_BIN_EXE_coracle"), "run", "--timeout", "120s", "-t"]);
        command.args(["--", "sh", "-c", script]).env("TERM", "vt100");
        let child = command.stdin(slave()).stdout(slave()).stderr(Stdio::null()).spawn().unwrap();
        drop(command); // and with it our ends of the terminal, so that reading ends with the run
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut reader, screen) = (keyboard.try_clone().unwrap(), shown.clone());
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut bytes) {
                screen.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
            }
        });
        Screen { child, keyboard, shown, _turn: turn }
    }

    fn shown(&self) -> String {
        self.shown.lock().unwrap().clone()
    }

    fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(90);
        while !self.shown().contains(text) {
            assert!(Instant::now() < deadline, "`{text}` did not appear in: {}", self.shown());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn code(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

#[test]
fn the_command_has_a_terminal_that_follows_the_size_of_ours() {
    let mut screen = Screen::run("tty; echo term $TERM; stty size; read x; stty size; echo got $x; exit 4");
    screen.wait_for("33 101");
    let shown = screen.shown();
    assert!(shown.contains("/dev/pts/") && shown.contains("term vt100"), "{shown}");
    resize(&screen.keyboard, 44, 120);
    std::thread::sleep(Duration::from_millis(500));
    screen.press("hello\r");
    screen.wait_for("44 120");
    screen.wait_for("got hello");
    assert_eq!(screen.code(), Some(4));
}

#[test]
fn ctrl_c_goes_to_the_command() {
    let mut screen = Screen::run("trap 'echo caught; exit 9' INT; echo waiting; while :; do sleep 1; done");
    screen.wait_for("waiting");
    screen.press("\u{3}");
    screen.wait_for("caught");
    assert_eq!(screen.code(), Some(9));
}

#[test]
fn no_terminal_is_said_in_one_line() {
    let done = coracle(&["run", "-t", "--", "true"]).done();
    assert_eq!(done.code, Some(2));
    assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
}
