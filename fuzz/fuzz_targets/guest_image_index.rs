//! What a mirror serves, as each of the files that are parsed: the first byte says which.
#![no_main]

use guest_image::apt::deb822::Paragraphs;
use guest_image::apt::index::{Index, relations};
use guest_image::apt::release::Release;
use guest_image::apt::signature::verified_text;
use guest_image::apt::sources::Trust;
use guest_image::apt::version;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(bytes);
    match kind % 5 {
        0 => packages(bytes, &text),
        1 => {
            let _ = Release::parse("release", &text).map(|release| release.is_expired(0));
        }
        2 => {
            let trust = Trust { unverified: true, ..Trust::default() };
            let _ = verified_text("in-release", bytes, &trust, 0);
            let _ = verified_text("in-release", bytes, &Trust::default(), 0);
        }
        3 => {
            let (a, b) = text.split_once(' ').unwrap_or((&text, ""));
            assert_eq!(version::compare(a, b), version::compare(b, a).reverse());
            version::satisfies(a, ">=", b);
        }
        _ => {
            relations(&text);
            let mut paragraphs = Paragraphs::new(bytes);
            while let Ok(Some(_)) = paragraphs.read() {}
        }
    }
});

/// Reads an index and asks for everything in it.
fn packages(bytes: &[u8], text: &str) {
    let mut index = Index::default();
    if index.add("packages", "http://mirror", "suite", bytes).is_err() {
        return;
    }
    index.finish();
    let names = text.lines().filter_map(|line| line.strip_prefix("Package: "));
    let wanted: Vec<String> = names.map(str::to_owned).take(20).collect();
    let _ = index.closure(&wanted);
}
