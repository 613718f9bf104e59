//! The 9P protocol: codec, server, host directory.
