//! Files beside the objects: journals and packed-refs; the first byte says which.
#![no_main]

use datakit_git::{HashKind, testing};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let kind = if choice & 2 == 0 { HashKind::Sha1 } else { HashKind::Sha256 };
    match choice & 1 {
        0 => testing::journal(kind, bytes),
        _ => testing::packed_refs(kind, bytes),
    };
});
