//! A link whose frames are captured on their way.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vpnkit::{DropReason, Frame, HubLink, Link, LinkDrops, MacAddr, Offload, Received, Take, Waker};
use vpnkit_capture::{Direction, Recorder};

/// Passes frames on and gives each to a recorder, while anybody looks. Checksums that are left to the other side's
/// hardware are captured as they are: unfinished. Frames that are dropped have the reason as their comment.
pub struct CapturedLink {
    link: Arc<dyn Link>,
    recorder: Arc<Recorder>,
    port: u32,
}

impl std::fmt::Debug for CapturedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CapturedLink").field("port", &self.port).finish_non_exhaustive()
    }
}

impl CapturedLink {
    /// Captures what goes over `link` as a port of this name.
    pub fn new(link: Arc<dyn Link>, recorder: Arc<Recorder>, name: &str) -> Self {
        let port = recorder.add_port(name);
        Self { link, recorder, port }
    }

    /// Captures what goes from machine to machine over `switch`, or no further than that, as the same port.
    pub fn watch(&self, switch: &HubLink) {
        let (recorder, port) = (Arc::clone(&self.recorder), self.port);
        switch.watch(move |frame, dropped| {
            if recorder.is_active() {
                let comment = dropped.map_or("", DropReason::text);
                recorder.record(now_ns(), port, Direction::FromMachine, &[IoSlice::new(frame)], comment);
            }
        });
    }
}

/// Nanoseconds since 1970.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Link for CapturedLink {
    fn attach(&self, waker: Waker) {
        self.link.attach(waker);
    }

    fn receive(&self, take: &mut Take<'_>) -> Received {
        if !self.recorder.is_active() {
            return self.link.receive(take);
        }
        let mut copy = Vec::new();
        self.link.receive(&mut |offload, frame| {
            // Before it is taken: what comes of it is later.
            let time_ns = now_ns();
            let dropped = take(offload, frame);
            let comment = dropped.map_or("", DropReason::text);
            let bytes = match frame {
                Frame::Whole(bytes) => bytes,
                Frame::Volatile(_) => {
                    copy.clear();
                    frame.append_to(&mut copy);
                    &copy
                }
            };
            self.recorder.record(time_ns, self.port, Direction::FromMachine, &[IoSlice::new(bytes)], comment);
            dropped
        })
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let sent = self.link.send(offload, parts);
        if sent && self.recorder.is_active() {
            self.recorder.record(now_ns(), self.port, Direction::ToMachine, parts, "");
        }
        sent
    }

    fn flush(&self) {
        self.link.flush();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.fd()
    }

    fn departed(&self) -> Vec<MacAddr> {
        self.link.departed()
    }

    fn drops(&self) -> LinkDrops {
        self.link.drops()
    }

    fn offload(&self) -> Option<bool> {
        self.link.offload()
    }
}
