//! A hostile 9P client of a host directory. The input is messages as they are on the wire, each cut where its own size
//! field says.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use p9p::{HostDir, Session};

const MSIZE: u32 = 8192;
const MESSAGES_MAX: usize = 64;

/// Agreed on before the input, so that the input reaches the file system: Tversion, then Tattach of fid 0 as root.
const VERSION: &[u8] = b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\x009P2000.L";
const ATTACH: &[u8] = b"\x17\0\0\0\x68\x01\0\0\0\0\0\xff\xff\xff\xff\0\0\0\0\0\0\0\0";

fuzz_target!(|bytes: &[u8]| {
    // In memory where that can be had: disks are slow.
    let outside = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let outside = outside.expect("a temporary directory can be made");
    let shared = outside.path().join("share");
    std::fs::create_dir(&shared).expect("a directory can be made");
    std::fs::write(shared.join("f"), b"content").expect("a file can be written");
    std::fs::write(outside.path().join("secret"), b"secret").expect("a file can be written");
    let session = Session::new(Arc::new(HostDir::new(&shared, false).expect("it is a directory")), MSIZE);
    let mut reply = vec![0; MSIZE as usize];
    for setup in [VERSION, ATTACH] {
        session.handle(setup, &mut reply);
    }
    let mut rest = bytes;
    for _ in 0..MESSAGES_MAX {
        let Some(size) = rest.first_chunk::<4>() else { break };
        let size = (u32::from_le_bytes(*size) as usize).clamp(4, rest.len());
        let (message, after) = rest.split_at(size);
        let written = session.handle(message, &mut reply);
        assert!(written <= reply.len());
        rest = after;
    }
    session.reset();
    let secret = std::fs::read(outside.path().join("secret")).expect("it is still there");
    assert_eq!(secret, b"secret");
    let beside = std::fs::read_dir(outside.path()).expect("it is still there").count();
    assert_eq!(beside, 2, "the client made something outside of its share");
});
