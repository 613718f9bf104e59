//! Architectural state in a form that every engine of an architecture can take over.

pub mod x86_64;
