//! A link whose frames are captured on their way.

use std::io::IoSlice;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use vpnkit::{Link, Offload, Received, Waker};
use vpnkit_capture::{Direction, Recorder};

/// Passes frames on and gives each to a recorder, while anybody looks. Checksums that are left to the other side's
/// hardware are captured as they are: unfinished.
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

    fn record(&self, direction: Direction, parts: &[IoSlice<'_>]) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
        self.recorder.record(time_ns, self.port, direction, parts, "");
    }
}

impl Link for CapturedLink {
    fn attach(&self, waker: Waker) {
        self.link.attach(waker);
    }

    fn receive(&self, take: &mut dyn FnMut(Offload, &[u8])) -> Received {
        if !self.recorder.is_active() {
            return self.link.receive(take);
        }
        self.link.receive(&mut |offload, frame| {
            self.record(Direction::FromMachine, &[IoSlice::new(frame)]);
            take(offload, frame);
        })
    }

    fn send(&self, offload: Offload, parts: &[IoSlice<'_>]) -> bool {
        let sent = self.link.send(offload, parts);
        if sent && self.recorder.is_active() {
            self.record(Direction::ToMachine, parts);
        }
        sent
    }

    fn flush(&self) {
        self.link.flush();
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.link.fd()
    }

    fn offload(&self) -> Option<bool> {
        self.link.offload()
    }
}
