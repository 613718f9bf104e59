//! What apt knows: sources, configuration, signed indexes and packages.

pub mod config;
pub mod deb822;
pub mod index;
pub mod release;
pub mod signature;
pub mod sources;
pub mod version;
