//! Expressions that choose frames, and frames of any bytes under them: text, a zero, a frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vpnkit_capture::Filter;

fuzz_target!(|bytes: &[u8]| {
    let (text, frame) = bytes.split_at(bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len()));
    let Ok(text) = std::str::from_utf8(text) else { return };
    let Ok(filter) = text.parse::<Filter>() else { return };
    let wanted = filter.matches(frame);
    if !filter.is_everything()
        && let Ok(other) = format!("not ({text})").parse::<Filter>()
    {
        assert_ne!(other.matches(frame), wanted, "{text}");
    }
});
