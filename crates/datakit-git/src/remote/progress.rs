//! What `gix` counts while it fetches, made into a [`Status`](super::Status).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use gix::progress::{Count, Id, MessageLevel, NestedProgress, Progress, Step, StepShared, UNKNOWN, Unit};

use super::transfer::{Phase, Status, Transfer};

/// `gix_pack::bundle::write::ProgressId::ReadPackBytes`.
const READ_PACK_BYTES: Id = *b"BWRB";
/// `gix_pack::index::write::ProgressId::IndexObjects`.
const INDEX_OBJECTS: Id = *b"IWIO";

/// One of the things that `gix` counts.
#[derive(Debug, Clone)]
pub struct Item {
    id: Id,
    done: StepShared,
    total: Arc<AtomicUsize>,
}

impl Item {
    /// The phase that begins when this is counted for the first time.
    pub fn phase(&self) -> Option<Phase> {
        (self.id == READ_PACK_BYTES).then_some(Phase::Receiving)
    }

    /// Adds what was counted.
    pub fn add_to(&self, status: &mut Status) {
        let done = self.done.load(Ordering::Relaxed) as u64;
        match self.id {
            READ_PACK_BYTES => status.bytes += done,
            INDEX_OBJECTS => {
                status.objects += done;
                let total = self.total.load(Ordering::Relaxed) as u64;
                status.objects_total = (total > 0).then_some(total);
            }
            _ => {}
        }
    }
}

/// Hands what `gix` counts to a transfer.
#[derive(Debug)]
pub struct Reporter {
    transfer: Arc<Transfer>,
    item: Item,
    name: String,
}

impl Reporter {
    /// The root of a transfer's progress.
    pub fn new(transfer: &Arc<Transfer>) -> Self {
        Self::child(transfer, String::new(), UNKNOWN)
    }

    fn child(transfer: &Arc<Transfer>, name: String, id: Id) -> Self {
        let item = Item { id, done: StepShared::default(), total: Arc::default() };
        if id == READ_PACK_BYTES || id == INDEX_OBJECTS {
            transfer.watch(item.clone());
        }
        Self { transfer: Arc::clone(transfer), item, name }
    }
}

impl Count for Reporter {
    fn set(&self, step: Step) {
        self.item.done.store(step, Ordering::Relaxed);
    }

    fn step(&self) -> Step {
        self.item.done.load(Ordering::Relaxed)
    }

    fn inc_by(&self, step: Step) {
        self.item.done.fetch_add(step, Ordering::Relaxed);
    }

    fn counter(&self) -> StepShared {
        self.item.done.clone()
    }
}

impl Progress for Reporter {
    fn init(&mut self, max: Option<Step>, _unit: Option<Unit>) {
        self.item.total.store(max.unwrap_or(0), Ordering::Relaxed);
    }

    fn max(&self) -> Option<Step> {
        Some(self.item.total.load(Ordering::Relaxed)).filter(|total| *total > 0)
    }

    fn set_max(&mut self, max: Option<Step>) -> Option<Step> {
        let old = self.max();
        self.item.total.store(max.unwrap_or(0), Ordering::Relaxed);
        old
    }

    fn set_name(&mut self, name: String) {
        self.name = name;
    }

    fn name(&self) -> Option<String> {
        Some(self.name.clone())
    }

    fn id(&self) -> Id {
        self.item.id
    }

    fn message(&self, _level: MessageLevel, _message: String) {}
}

impl NestedProgress for Reporter {
    type SubProgress = Self;

    fn add_child(&mut self, name: impl Into<String>) -> Self {
        Self::child(&self.transfer, name.into(), UNKNOWN)
    }

    fn add_child_with_id(&mut self, name: impl Into<String>, id: Id) -> Self {
        Self::child(&self.transfer, name.into(), id)
    }
}
