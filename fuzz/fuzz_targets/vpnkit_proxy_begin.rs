//! What a proxy looks at before it knows where a connection goes: TLS's first message, the target of a request, rules.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vpnkit_proxy::ProxyConfig;
use vpnkit_proxy::hello::{Hello, look};
use vpnkit_proxy::route::Target;
use vpnkit_proxy::rules::Hosts;

fuzz_target!(|bytes: &[u8]| {
    let whole = look(bytes);
    for end in [bytes.len() / 2, bytes.len().saturating_sub(1)] {
        let part = look(&bytes[..end]);
        assert!(
            part == Hello::Incomplete || part == whole,
            "more bytes change nothing that was said: {part:?}"
        );
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = (Target::parse(text, 80), ProxyConfig::from_json(text));
        let rules = Hosts::parse(text);
        rules.contains(text);
        rules.contains("a.b");
    }
});
