//! Turns a kernel, a command line and a machine into RAM contents and registers.
