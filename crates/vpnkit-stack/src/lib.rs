//! A sans-I/O user-space network.
