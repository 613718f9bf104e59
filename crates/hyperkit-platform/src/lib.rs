//! The chips of the board: serial port, clock, power.
