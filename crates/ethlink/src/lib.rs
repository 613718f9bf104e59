//! Carries Ethernet frames over sockets and taps.

#![forbid(unsafe_code)]
