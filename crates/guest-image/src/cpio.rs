//! Writes initramfs archives. Deterministic: the same entries give the same bytes.
//!
//! Spec: `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux ("newc").

use std::io::{self, Write};

/// Writer of a newc archive. All files belong to root and are dated to the epoch.
pub struct CpioWriter<W> {
    output: W,
    inode: u32,
}

impl<W: Write> CpioWriter<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self { output, inode: 0 }
    }

    /// Adds a folder. Its parents must come first.
    ///
    /// # Errors
    /// What the output says.
    pub fn folder(&mut self, path: &str, permissions: u32) -> io::Result<()> {
        self.entry(path, 0o040_000 | permissions, (0, 0), &[])
    }

    /// Adds a regular file.
    ///
    /// # Errors
    /// What the output says; `InvalidInput` for 4 GiB and more.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: &[u8]) -> io::Result<()> {
        self.entry(path, 0o100_000 | permissions, (0, 0), bytes)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// What the output says.
    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.entry(path, 0o120_777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// What the output says.
    pub fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> io::Result<()> {
        self.entry(path, 0o020_000 | permissions, (major, minor), &[])
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// What the output says.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = u32::MAX;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.output)
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) -> io::Result<()> {
        let length = u32::try_from(bytes.len()).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, "a file of 4 GiB does not fit an initramfs")
        })?;
        self.inode = self.inode.wrapping_add(1);
        let links = if mode & 0o170_000 == 0o040_000 { 2 } else { 1 };
        let fields =
            [self.inode, mode, 0, 0, links, 0, length, 0, 0, device.0, device.1, path.len() as u32 + 1, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(path);
        header.push('\0');
        while header.len() % 4 != 0 {
            header.push('\0');
        }
        self.output.write_all(header.as_bytes())?;
        self.output.write_all(bytes)?;
        self.output.write_all(&[0; 3][..bytes.len().wrapping_neg() % 4])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpio_reads_back_what_was_written() {
        let mut archive = CpioWriter::new(Vec::new());
        archive.folder("d", 0o755).unwrap();
        archive.file("d/f", 0o640, b"hello").unwrap();
        archive.symlink("d/l", "f").unwrap();
        archive.char_device("d/c", 0o600, 5, 1).unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);
        let mut command = std::process::Command::new("cpio");
        command
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let Ok(mut child) = command.spawn() else {
            eprintln!("SKIP: cpio is not installed");
            return;
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let columns: Vec<_> =
            listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!((columns[0][0], columns[0][8]), ("drwxr-xr-x", "d"));
        assert_eq!((columns[1][0], columns[1][4], columns[1][8]), ("-rw-r-----", "5", "d/f"));
        assert_eq!((columns[2][0], &columns[2][8..]), ("lrwxrwxrwx", &["d/l", "->", "f"][..]));
        assert_eq!((columns[3][0], columns[3][4], columns[3][5]), ("crw-------", "5,", "1"));
    }

    #[test]
    fn padding_keeps_every_header_aligned() {
        for length in 0..9 {
            let mut archive = CpioWriter::new(Vec::new());
            archive.file("f", 0o644, &vec![b'x'; length]).unwrap();
            archive.file("g", 0o644, b"").unwrap();
            let bytes = archive.finish().unwrap();
            let second =
                bytes.windows(6).enumerate().skip(1).find(|(_, window)| *window == b"070701").unwrap().0;
            assert_eq!(second % 4, 0);
        }
    }
}
