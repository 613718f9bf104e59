//! The thread that moves packets between the queues and the connections.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::budget::WINDOW_BYTES_MAX;
use super::muxer::{Muxer, WAKE_TOKEN};
use super::packet::{HEADER_BYTES, Header};
use crate::queue::{self, DeviceQueue};

/// Packets moved in one direction before the other gets its turn.
const BATCH: usize = 256;

/// Socket events taken at a time.
const EVENTS: usize = 256;

/// Longest payload of a packet to the guest; its buffers are smaller.
const TO_GUEST_BYTES_MAX: u64 = 64 << 10;

/// The event that tells the guest that its connections are gone (virtio 1.2 §5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The queues of an active device.
pub(super) struct Rings {
    pub(super) receive: Option<DeviceQueue>,
    pub(super) transmit: Option<DeviceQueue>,
    pub(super) event: Option<DeviceQueue>,
    /// The guest is to be told that its connections are gone.
    pub(super) reset_due: bool,
}

/// A connection that somebody on the host wants.
struct Request {
    guest_port: u32,
    stream: UnixStream,
    answer: SyncSender<io::Result<()>>,
}

/// Messages to the thread.
pub(super) struct Mailbox {
    /// `None` when the thread takes no more.
    requests: Mutex<Option<Vec<Request>>>,
    stop: AtomicBool,
    wake: OwnedFd,
}

/// A running thread. Dropping it takes the queues away from it; the thread itself goes on until the host has
/// taken what the guest sent.
pub(super) struct Worker {
    pub(super) mailbox: Arc<Mailbox>,
    rings: Arc<Mutex<Rings>>,
    stopped: Receiver<()>,
}

/// What lives on the thread.
struct Thread {
    mailbox: Arc<Mailbox>,
    rings: Arc<Mutex<Rings>>,
    muxer: Muxer,
    payload: Vec<u8>,
}

impl Worker {
    /// Starts the thread; `muxer` gets an epoll descriptor.
    ///
    /// # Errors
    /// When the host has no descriptors or no thread to give.
    pub(super) fn start(rings: Rings, muxer: impl FnOnce(OwnedFd) -> Muxer) -> io::Result<Worker> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE_TOKEN), EventFlags::IN)?;
        let requests = Mutex::new(Some(Vec::new()));
        let mailbox = Arc::new(Mailbox { requests, stop: AtomicBool::new(false), wake });
        let rings = Arc::new(Mutex::new(rings));
        let thread = Thread {
            mailbox: Arc::clone(&mailbox),
            rings: Arc::clone(&rings),
            muxer: muxer(epoll),
            payload: vec![0; WINDOW_BYTES_MAX as usize],
        };
        let (send_stopped, stopped) = sync_channel(1);
        let body = move || thread.run(&send_stopped);
        std::thread::Builder::new().name("virtio-vsock".into()).spawn(body)?;
        Ok(Worker { mailbox, rings, stopped })
    }

    /// Says that there may be buffers in a queue.
    pub(super) fn kick(&self) {
        self.mailbox.wake();
    }

    /// Where the queues stand, between two batches.
    pub(super) fn positions(&self) -> Vec<(u16, u16)> {
        let rings = lock(&self.rings);
        [&rings.receive, &rings.transmit, &rings.event].map(|queue| queue::positions(queue.as_ref())).to_vec()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.mailbox.stop.store(true, Ordering::SeqCst);
        self.mailbox.wake();
        // An error says that the thread is gone already, which is as good.
        let _ = self.stopped.recv();
    }
}

impl Mailbox {
    /// Asks for a connection; `answer` hears what became of it, or is dropped with the thread.
    pub(super) fn request(
        &self,
        guest_port: u32,
        stream: UnixStream,
        answer: SyncSender<io::Result<()>>,
    ) -> io::Result<()> {
        let mut requests = lock(&self.requests);
        requests.as_mut().ok_or(io::ErrorKind::NotConnected)?.push(Request { guest_port, stream, answer });
        drop(requests);
        self.wake();
        Ok(())
    }

    fn wake(&self) {
        // It can only fail when the counter is at its end, and then the thread will wake as well.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

impl Thread {
    fn run(mut self, stopped: &SyncSender<()>) {
        let rings = Arc::clone(&self.rings);
        let mut busy = false;
        while !self.mailbox.stop.load(Ordering::SeqCst) {
            self.wait(busy);
            self.take_requests();
            let mut rings = lock(&rings);
            busy = self.transmit(&mut rings);
            busy |= self.receive(&mut rings);
            // RST packets may have stood in the way of more from the guest.
            busy |=
                rings.transmit.as_ref().is_some_and(DeviceQueue::has_available) && self.muxer.can_answer();
            self.events(&mut rings);
        }
        *lock(&self.mailbox.requests) = None;
        self.end(&mut lock(&rings));
        // The device may be gone without waiting.
        let _ = stopped.try_send(());
        while !self.muxer.is_empty() {
            self.wait(false);
        }
    }

    /// Waits for something to happen (unless `busy`) and tells the connections.
    fn wait(&mut self, busy: bool) {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut events = Vec::with_capacity(EVENTS);
        let timeout = busy.then_some(&now);
        // The only error that can happen is a signal's, after which we look as usual.
        let _ = epoll::wait(self.muxer.epoll().as_fd(), spare_capacity(&mut events), timeout);
        for event in events {
            match event.data.u64() {
                WAKE_TOKEN => {
                    let _ = rustix::io::read(&self.mailbox.wake, &mut [0; 8][..]);
                }
                token => self.muxer.on_ready(token, event.flags),
            }
        }
    }

    fn take_requests(&mut self) {
        let requests = lock(&self.mailbox.requests).as_mut().map(std::mem::take).unwrap_or_default();
        for Request { guest_port, stream, answer } in requests {
            self.muxer.request(guest_port, stream, answer);
        }
    }

    /// Takes packets from the guest. Returns whether there are more.
    fn transmit(&mut self, rings: &mut Rings) -> bool {
        let Some(queue) = &mut rings.transmit else { return false };
        let mut n_taken = 0;
        while n_taken < BATCH && self.muxer.can_answer() {
            let Some(chain) = queue.pop() else { break };
            if !self.take_packet(queue, &chain) {
                queue.refuse();
                return false;
            }
            queue.push(chain, 0);
            n_taken += 1;
        }
        queue.interrupt();
        n_taken == BATCH
    }

    /// Takes one packet; `false` when the chain is too short for one.
    fn take_packet(&mut self, queue: &DeviceQueue, chain: &hyperkit_virtio::Chain) -> bool {
        let mut reader = queue.reader(chain);
        let Ok(header) = reader.read_array::<HEADER_BYTES>() else { return false };
        let header = Header::parse(&header);
        let payload = self.payload.get_mut(..header.len as usize);
        match payload.filter(|payload| payload.len() as u64 <= reader.remaining()) {
            Some(payload) => {
                reader.read(payload);
                self.muxer.on_packet(&header, payload);
            }
            None => self.muxer.refuse(&header),
        }
        true
    }

    /// Gives packets to the guest. Returns whether there are more, and room for them.
    fn receive(&mut self, rings: &mut Rings) -> bool {
        let Some(queue) = &mut rings.receive else { return false };
        let mut n_given = 0;
        while n_given < BATCH && self.muxer.has_outgoing() {
            let Some(chain) = queue.pop() else { break };
            let room = chain.writable_bytes().saturating_sub(HEADER_BYTES as u64).min(TO_GUEST_BYTES_MAX);
            if room == 0 {
                queue.refuse();
                return false;
            }
            let Some(header) = self.muxer.next_packet(&mut self.payload[..room as usize]) else {
                queue.put_back(chain);
                break;
            };
            let mut writer = queue.writer(&chain);
            writer.write(&header.emit());
            writer.write(&self.payload[..header.len as usize]);
            let written = writer.written();
            queue.push(chain, written);
            n_given += 1;
        }
        queue.interrupt();
        n_given == BATCH
    }

    fn events(&mut self, rings: &mut Rings) {
        let Some(queue) = rings.event.as_mut().filter(|_| rings.reset_due) else { return };
        let Some(chain) = queue.pop() else { return };
        if queue.writer(&chain).write_all(&TRANSPORT_RESET).is_err() {
            return queue.refuse();
        }
        queue.push(chain, TRANSPORT_RESET.len() as u32);
        queue.interrupt();
        rings.reset_due = false;
    }

    /// Takes what the guest had sent before it went, and gives the queues up.
    fn end(&mut self, rings: &mut Rings) {
        if let Some(queue) = &mut rings.transmit {
            for _ in 0..queue.size() {
                let Some(chain) = queue.pop() else { break };
                if !self.take_packet(queue, &chain) {
                    break;
                }
                queue.push(chain, 0);
                // Nobody is left to answer.
                self.muxer.drop_resets();
            }
        }
        *rings = Rings { receive: None, transmit: None, event: None, reset_due: false };
        self.muxer.orphan();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
