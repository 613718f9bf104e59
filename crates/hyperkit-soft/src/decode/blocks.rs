//! Decoded blocks, keyed by physical address and mode.

/// The block cache of one vCPU.
#[derive(Debug, Default)]
pub struct Blocks {}

impl Blocks {
    /// Bytes `first..=last` (offsets in the page) of RAM page `page` were written: drops the blocks that overlap
    /// them. Safe to call from inside a block that is itself dropped.
    pub fn written(&mut self, page: usize, first: u64, last: u64) {
        let _ = (page, first, last);
    }

    /// Linear addresses may mean other pages than before: forgets what is keyed by them.
    pub fn translations_changed(&mut self) {}
}
