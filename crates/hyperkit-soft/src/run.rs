//! The loop over blocks.
