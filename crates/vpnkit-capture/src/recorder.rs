//! All captures of a network behind one call per frame.
//!
//! With no ring and no subscription a frame costs one relaxed load.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::filter::Filter;
use crate::frame::{Captured, Direction};
use crate::ring::Ring;
use crate::{pcap, pcapng};

/// Bytes of frames that wait for a subscriber that does not take them; then frames are lost to it.
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Subscriptions at once.
pub const SUBSCRIPTIONS_MAX: usize = 64;

/// What a subscriber wants to see.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Which frames.
    pub filter: Filter,
    /// Most bytes of each; 0 means all.
    pub snap_bytes: u32,
    /// How they are written.
    pub format: Format,
}

/// How frames are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// With the names of ports, directions and comments.
    #[default]
    Pcapng,
    /// As VPNKit did.
    Pcap,
}

impl Format {
    fn begin(self, out: &mut Vec<u8>, snap_bytes: u32) {
        match self {
            Self::Pcapng => pcapng::section(out, "vpnkit"),
            Self::Pcap => pcap::header(out, snap_bytes),
        }
    }

    fn port(self, out: &mut Vec<u8>, name: &str, snap_bytes: u32) {
        if self == Self::Pcapng {
            pcapng::interface(out, name, snap_bytes);
        }
    }

    fn frame(self, out: &mut Vec<u8>, frame: &Captured) {
        match self {
            Self::Pcapng => pcapng::packet(out, frame),
            Self::Pcap => pcap::packet(out, frame),
        }
    }
}

/// Where frames go to be captured.
#[derive(Debug, Default)]
pub struct Recorder {
    active: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ports: Vec<String>,
    ring: Option<Ring>,
    ring_snap_bytes: usize,
    subscribers: Vec<Arc<Queue>>,
}

#[derive(Debug)]
struct Queue {
    wanted: Wanted,
    pending: Mutex<Pending>,
    more: Condvar,
}

#[derive(Debug)]
struct Pending {
    ring: Ring,
    /// Names of ports that the subscriber has not been told of.
    ports: Vec<String>,
    ended: bool,
}

impl Recorder {
    /// A recorder that keeps the first `snap_bytes` (0: all) of the last frames, in `ring_bytes` of memory; 0 of those
    /// keeps none.
    pub fn new(ring_bytes: usize, snap_bytes: u32) -> Self {
        let ring = (ring_bytes > 0).then(|| Ring::new(ring_bytes));
        Self {
            active: AtomicBool::new(ring.is_some()),
            state: Mutex::new(State { ring, ring_snap_bytes: snap_bytes as usize, ..State::default() }),
        }
    }

    /// Names the next port; returns its number.
    pub fn add_port(&self, name: &str) -> u32 {
        let mut state = lock(&self.state);
        state.ports.push(name.to_owned());
        for queue in &state.subscribers {
            lock(&queue.pending).ports.push(name.to_owned());
        }
        (state.ports.len() - 1) as u32
    }

    /// Whether anybody wants frames: whoever must do work to give one asks before.
    #[inline]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Captures the frame that `parts` make together.
    #[inline]
    pub fn record(
        &self,
        time_ns: u64,
        port: u32,
        direction: Direction,
        parts: &[IoSlice<'_>],
        comment: &str,
    ) {
        if self.is_active() {
            self.record_active(time_ns, port, direction, parts, comment);
        }
    }

    #[cold]
    fn record_active(
        &self,
        time_ns: u64,
        port: u32,
        direction: Direction,
        parts: &[IoSlice<'_>],
        comment: &str,
    ) {
        let mut state = lock(&self.state);
        let wire_bytes = parts.iter().map(|part| part.len()).sum::<usize>();
        // With nobody else looking, no more is copied than the ring keeps.
        let alone = state.subscribers.is_empty() && state.ring_snap_bytes != 0;
        let most = if alone { state.ring_snap_bytes.min(wire_bytes) } else { wire_bytes };
        let mut bytes = Vec::with_capacity(most);
        for part in parts {
            let room = most - bytes.len();
            bytes.extend_from_slice(&part[..part.len().min(room)]);
        }
        let wire_bytes = wire_bytes as u32;
        let whole = Captured { time_ns, port, direction, wire_bytes, bytes, comment: comment.to_owned() };
        for queue in &state.subscribers {
            queue.offer(&whole);
        }
        let snap = state.ring_snap_bytes;
        if let Some(ring) = &mut state.ring {
            ring.push(snapped(&whole, snap));
        }
    }

    /// Subscribes: frames from now on. `None` when there are [`SUBSCRIPTIONS_MAX`] already.
    pub fn subscribe(self: &Arc<Self>, wanted: Wanted) -> Option<Subscription> {
        let mut state = lock(&self.state);
        if state.subscribers.len() >= SUBSCRIPTIONS_MAX {
            return None;
        }
        let pending = Pending { ring: Ring::new(QUEUE_BYTES_MAX), ports: state.ports.clone(), ended: false };
        let queue = Arc::new(Queue { wanted, pending: Mutex::new(pending), more: Condvar::new() });
        state.subscribers.push(Arc::clone(&queue));
        self.active.store(true, Ordering::Relaxed);
        Some(Subscription { recorder: Arc::clone(self), queue, begun: false })
    }

    /// The ring as a pcapng file, of the frames that `filter` lets through.
    pub fn ring_pcapng(&self, filter: &Filter) -> Vec<u8> {
        self.ring(filter, Format::Pcapng)
    }

    /// The ring as a file, of the frames that `filter` lets through.
    pub fn ring(&self, filter: &Filter, format: Format) -> Vec<u8> {
        let state = lock(&self.state);
        let snap_bytes = state.ring_snap_bytes as u32;
        let mut out = Vec::new();
        format.begin(&mut out, snap_bytes);
        for name in &state.ports {
            format.port(&mut out, name, snap_bytes);
        }
        for frame in state.ring.iter().flat_map(Ring::frames) {
            if filter.matches(&frame.bytes) {
                format.frame(&mut out, frame);
            }
        }
        out
    }

    /// Ends all subscriptions, once they have given what they have.
    pub fn end(&self) {
        for queue in &lock(&self.state).subscribers {
            lock(&queue.pending).ended = true;
            queue.more.notify_all();
        }
    }

    fn remove(&self, queue: &Arc<Queue>) {
        let mut state = lock(&self.state);
        state.subscribers.retain(|other| !Arc::ptr_eq(other, queue));
        let active = state.ring.is_some() || !state.subscribers.is_empty();
        self.active.store(active, Ordering::Relaxed);
    }
}

impl Queue {
    fn offer(&self, frame: &Captured) {
        if !self.wanted.filter.matches(&frame.bytes) {
            return;
        }
        lock(&self.pending).ring.push(snapped(frame, self.wanted.snap_bytes as usize));
        self.more.notify_one();
    }
}

/// Somebody's view of the frames, as a file without end. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    recorder: Arc<Recorder>,
    queue: Arc<Queue>,
    begun: bool,
}

impl Subscription {
    /// Appends what there is to `out`, waiting until there is something or `timeout` has passed. Returns false when
    /// nothing will come any more.
    pub fn take(&mut self, out: &mut Vec<u8>, timeout: Duration) -> bool {
        let Wanted { format, snap_bytes, .. } = self.queue.wanted;
        let mut pending = lock(&self.queue.pending);
        if self.begun && pending.ring.is_empty() && pending.ports.is_empty() && !pending.ended {
            let idle = |pending: &mut Pending| pending.ring.is_empty() && !pending.ended;
            pending = self
                .queue
                .more
                .wait_timeout_while(pending, timeout, idle)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        if !self.begun {
            self.begun = true;
            format.begin(out, snap_bytes);
        }
        for name in pending.ports.drain(..) {
            format.port(out, &name, snap_bytes);
        }
        let live = !(pending.ended && pending.ring.is_empty());
        for frame in pending.ring.drain() {
            format.frame(out, &frame);
        }
        live
    }

    /// Frames that were lost because nobody took them in time.
    pub fn lost(&self) -> u64 {
        lock(&self.queue.pending).ring.lost()
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.recorder.remove(&self.queue);
    }
}

fn snapped(frame: &Captured, snap_bytes: usize) -> Captured {
    let end = if snap_bytes == 0 { frame.bytes.len() } else { snap_bytes.min(frame.bytes.len()) };
    Captured { bytes: frame.bytes[..end].to_vec(), comment: frame.comment.clone(), ..*frame }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
