//! Builds the guest kernel and file systems from Debian packages.
