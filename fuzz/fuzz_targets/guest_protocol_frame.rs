//! Bytes of the other side of a control connection, read as messages of either direction.
#![no_main]

use guest_protocol::{FromGuest, ToGuest, frame};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    while let Ok(Some(message)) = frame::read::<ToGuest>(&mut stream) {
        frame::write(&mut Vec::new(), &message).expect("what came in a frame goes into one");
    }
    let mut stream = bytes;
    while let Ok(Some(message)) = frame::read::<FromGuest>(&mut stream) {
        frame::write(&mut Vec::new(), &message).expect("what came in a frame goes into one");
    }
});
