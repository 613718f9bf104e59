//! A guest without a processor: it works the rings of a network device that is plugged into vpnkit.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyperkit::devices::net::{GSO_TCPV4, NEEDS_CSUM, Net};
use hyperkit::{GuestRam, VirtioDevice};
use hyperkit_mem::GuestAddr;
use hyperkit_virtio::Activation;
use hyperkit_virtio::testing::{RecordingInterrupt, Ring, Used};
use vpnkit::{Config, Counters, Engine, MemoryLink, Network};
use vpnkit_wire::tcp::{ACK, FIN, Header, SYN, Seq};
use vpnkit_wire::{ethernet, ipv4, tcp};

use crate::net::{Cable, device};

/// Bytes of `virtio_net_hdr`.
const VIRTIO_HEADER_BYTES: usize = 12;
/// Bytes of the headers of a segment without options.
pub const HEADER_BYTES: usize = 14 + 20 + 20;
/// Data in each buffer of a frame: a page.
const PAGE_BYTES: usize = 4096;
const MAC: ethernet::MacAddr = ethernet::MacAddr([2, 0x63, 0x6f, 0x72, 0x61, 0x63]);
const LOCAL_PORT: u16 = 40_000;
const PATIENCE: Duration = Duration::from_secs(20);

/// The guest, with at most one connection.
pub struct Guest {
    device: Net,
    receive: Ring,
    transmit: Ring,
    engine: Engine,
    network: Network,
    port: u16,
    /// The next sequence number, and what is acknowledged.
    numbers: (Seq, Seq),
    /// Processor time of notifications.
    notifying: Duration,
}

impl Guest {
    pub fn new() -> Guest {
        let link = Arc::new(MemoryLink::new());
        let config = Config::default();
        let network = config.network.clone();
        let engine = Engine::start(config, link.clone()).unwrap();
        let mut device = Net::new(device(&network), Arc::new(Cable::new(link)));
        let ram = Arc::new(GuestRam::new(32 << 20).unwrap());
        let mut receive = Ring::new(&ram, GuestAddr(1 << 20), 256, 4 << 20, true);
        let transmit = Ring::new(&ram, GuestAddr(8 << 20), 256, 16 << 20, true);
        for _ in 0..128 {
            receive.add(&[], &[PAGE_BYTES as u32]);
        }
        let features = device.features();
        device.activate(Activation {
            ram,
            queues: vec![Some(receive.queue()), Some(transmit.queue())],
            features,
            interrupt: Arc::<RecordingInterrupt>::default(),
        });
        let port = 0;
        let numbers = (Seq(1), Seq(0));
        Guest { device, receive, transmit, engine, network, port, numbers, notifying: Duration::ZERO }
    }

    pub fn counters(&self) -> Counters {
        self.engine.counters()
    }

    /// Processor time that notifications took.
    pub fn notifying(&self) -> Duration {
        self.notifying
    }

    /// Connects to a port of the host.
    pub fn connect(&mut self, port: u16) {
        self.port = port;
        self.segment(SYN, &[]);
        self.numbers.0 += 1;
        let answer = self.receive();
        let packet = ipv4::parse(&answer.bytes[VIRTIO_HEADER_BYTES + ethernet::HEADER_BYTES..]).unwrap();
        let segment = tcp::parse(packet.payload, None).unwrap();
        assert_eq!(segment.flags, SYN | ACK);
        self.numbers.1 = segment.seq + 1;
        self.segment(ACK, &[]);
    }

    /// Sends data in one frame; over 1460 bytes that is a super-frame. Returns when it is in the ring.
    pub fn send(&mut self, data: &[u8]) {
        self.segment(ACK, data);
        self.numbers.0 += data.len() as u32;
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        self.segment(ACK | FIN, &[]);
    }

    fn segment(&mut self, flags: u8, data: &[u8]) {
        let virtio = self.virtio_header(data.len());
        let headers = self.headers(flags, data.len());
        let pages = data.chunks(PAGE_BYTES);
        let parts: Vec<&[u8]> = [&virtio[..], &headers].into_iter().chain(pages).collect();
        until("the ring has room", || {
            while self.transmit.take_used().is_some() {}
            self.transmit.n_pending() < 8
        });
        while self.receive.take_used().is_some() {
            self.receive.add(&[], &[PAGE_BYTES as u32]);
        }
        if self.receive.device_wants_notification() {
            self.notify(0);
        }
        self.transmit.add(&parts, &[]);
        if self.transmit.device_wants_notification() {
            self.notify(1);
        }
    }

    /// Notifies the device of buffers, as a write to its register does on a vCPU's thread.
    fn notify(&mut self, queue: u16) {
        let before = thread_time();
        self.device.notify(queue);
        self.notifying += thread_time() - before;
    }

    fn virtio_header(&self, data_bytes: usize) -> [u8; VIRTIO_HEADER_BYTES] {
        let mss = self.network.mtu - 40;
        let mut header = [0; VIRTIO_HEADER_BYTES];
        header[0] = NEEDS_CSUM;
        if data_bytes > usize::from(mss) {
            header[1] = GSO_TCPV4;
            header[2] = HEADER_BYTES as u8;
            header[4..6].copy_from_slice(&mss.to_le_bytes());
        }
        header[6] = 34; // where TCP's header begins
        header[8] = 16; // and the checksum in it
        header
    }

    fn headers(&self, flags: u8, data_bytes: usize) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        ethernet::emit(&mut bytes, self.network.gateway_mac, MAC, ethernet::TYPE_IPV4);
        let (guest, host): (Ipv4Addr, Ipv4Addr) = (self.network.guest, self.network.host);
        ipv4::Header::new(guest, host, ipv4::PROTOCOL_TCP, 20 + data_bytes).emit(&mut bytes[14..]);
        let (seq, ack) = self.numbers;
        let (src_port, dst_port) = (LOCAL_PORT, self.port);
        let mut header = [0; tcp::HEADER_BYTES_MAX];
        Header { src_port, dst_port, seq, ack, flags, window: 65_535, options: &[] }.emit(&mut header);
        bytes[34..].copy_from_slice(&header[..20]);
        bytes
    }

    fn receive(&mut self) -> Used {
        let mut used = None;
        until("the network answers", || {
            used = self.receive.take_used();
            used.is_some()
        });
        used.unwrap()
    }
}

fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits for what other threads do.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_micros(20));
    }
}
