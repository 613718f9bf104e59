//! The engine's contract: machine, processors, interrupt lines.
