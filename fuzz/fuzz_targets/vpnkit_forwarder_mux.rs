//! A peer of the multiplexer that sends anything, in pieces of any size: the pieces make no difference.
//!
//! The first byte is the side, the second the size of a piece.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vpnkit_forwarder::mux::frame::MAGIC;
use vpnkit_forwarder::mux::{Event, Multiplexer, MuxError, Side};

fn take(side: Side, bytes: &[u8], piece: usize) -> (Vec<Event>, Option<MuxError>, Vec<u8>) {
    let mut mux = Multiplexer::new(side);
    let mut events = Vec::new();
    let mut error = mux.receive(&[MAGIC, &[0, 0]].concat(), &mut events).err();
    for part in bytes.chunks(piece) {
        error = error.or_else(|| mux.receive(part, &mut events).err());
    }
    (events, error, mux.output().to_vec())
}

fuzz_target!(|bytes: &[u8]| {
    let [side, piece, bytes @ ..] = bytes else { return };
    let side = if side & 1 == 0 { Side::Host } else { Side::Guest };
    let whole = take(side, bytes, bytes.len().max(1));
    assert!(take(side, bytes, usize::from(*piece).max(1)) == whole);
});
