//! The library: configuration to machine to run.
