//! Names what a file looks like that is not a kernel, so that the message says what was mixed up.

/// Magic numbers: offset, bytes, name.
const MAGICS: &[(usize, &[u8], &str)] = &[
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file (unpack it first)"),
    (0, b"\xfd7zXZ\0", "an xz file (unpack it first)"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd file (unpack it first)"),
    (0, b"BZh", "a bzip2 file (unpack it first)"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file (unpack it first)"),
    (0, b"070701", "a cpio archive (perhaps the initial RAM disk)"),
    (0, b"070702", "a cpio archive (perhaps the initial RAM disk)"),
    (0, b"!<arch>\n", "a Debian package or another ar archive"),
    (0, b"\xed\xab\xee\xdb", "an RPM package"),
    (0, b"QFI\xfb", "a qcow2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (0, b"#!", "a script"),
    (0, b"\xcf\xfa\xed\xfe", "a macOS program"),
    (0, b"hsqs", "a squashfs file system"),
    (56, b"ARM\x64", "a kernel for arm64"),
    (257, b"ustar", "a tar archive"),
    (1024, b"\xe2\xe1\xf5\xe0", "an erofs file system"),
    (1080, b"\x53\xef", "an ext4 file system"),
    (0x8001, b"CD001", "a CD image"),
    (0, b"MZ", "a Windows or EFI program"),
    (510, b"\x55\xaa", "a disk image"),
];

/// Bytes that [`name`] looks at.
pub(crate) const BYTES: usize = 0x8010;

/// What a file that starts with `start` is, with its article.
pub(crate) fn name(start: &[u8]) -> &'static str {
    let matches = |&&(offset, magic, _): &&(usize, &[u8], &str)| {
        start.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    if let Some((_, _, name)) = MAGICS.iter().find(matches) {
        return name;
    }
    let text = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e | 0x80..=0xff);
    match start {
        [] => "an empty file",
        _ if start.iter().all(text) && std::str::from_utf8(start).is_ok() => "a text file",
        _ if start.iter().all(|&byte| byte == 0) => "a file of zeros",
        _ => "a file of unknown kind",
    }
}
