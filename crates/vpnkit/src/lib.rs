//! Runs the stack against links and host sockets.
