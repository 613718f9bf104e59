//! The 9P command line.

#![forbid(unsafe_code)]

fn main() {}
