//! A hostile 9P client of a tree in memory, in each dialect. The first byte chooses the dialect; the rest is messages,
//! each cut where its own size field says.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use p9p::memory::{Memory, Quota};
use p9p::message::{Dialect, Fid, NumericUser, Request, Tag};
use p9p::Session;

const MSIZE: u32 = 8192;
const MESSAGES_MAX: usize = 256;
const QUOTA: Quota = Quota { bytes: 1 << 20, nodes: 1000 };

fuzz_target!(|bytes: &[u8]| {
    let Some((choice, mut rest)) = bytes.split_first() else { return };
    let dialect = Dialect::ALL[usize::from(*choice) % Dialect::ALL.len()];
    let memory = Memory::new(QUOTA);
    let session = Session::new(Arc::new(memory.clone()), MSIZE);
    let mut reply = vec![0; MSIZE as usize];
    let numeric_user = NumericUser(0);
    let attach = Request::Attach { fid: Fid(0), afid: Fid::NONE, user: b"", tree: b"", numeric_user };
    let version = Request::Version { msize: MSIZE, version: dialect.name().as_bytes() };
    for (tag, request) in [(Tag::NONE, version), (Tag(1), attach)] {
        let mut message = [0; 256];
        let written = request.emit(tag, &mut message, dialect).expect("it fits");
        session.handle(&message[..written], &mut reply);
    }
    for _ in 0..MESSAGES_MAX {
        let Some(size) = rest.first_chunk::<4>() else { break };
        let size = (u32::from_le_bytes(*size) as usize).clamp(4, rest.len());
        let (message, after) = rest.split_at(size);
        let written = session.handle(message, &mut reply);
        assert!(written <= reply.len());
        rest = after;
    }
    let used = memory.used();
    assert!(used.bytes <= QUOTA.bytes && used.nodes <= QUOTA.nodes);
    session.reset();
});
