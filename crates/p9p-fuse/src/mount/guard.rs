//! A helper process that outlives this one, so that a killed server leaves no dead mount behind.
//!
//! It is a shell that waits for the end of its input, which comes when this process is gone however that happened.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::kernel::Unmounter;

const SCRIPT: &str = r#"read -r _ || "$@" >/dev/null 2>&1"#;

/// The helper; dismissed when the mount was unmounted properly.
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// `None` when there is no shell: then nobody tidies up.
    pub fn start(path: &Path, unmounter: &Unmounter) -> Option<Self> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "unmount-when-the-server-dies"]);
        match unmounter {
            Unmounter::Direct => command.args(["umount", "-l", "--"]),
            Unmounter::Fusermount(program) => command.args([program, "-u", "-z", "-q", "--"]),
        };
        command.arg(path).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        // Out of reach of the terminal's Ctrl-C.
        command.process_group(0);
        command.spawn().ok().map(|child| Self { child })
    }

    pub fn dismiss(mut self) {
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(b"dismissed\n");
        }
        let _ = self.child.wait();
    }
}
