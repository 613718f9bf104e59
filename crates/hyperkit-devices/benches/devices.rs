//! What one request costs in each device, without a CPU: a driver in this process works the rings.
//!
//! Prints requests per second and MB/s. `cargo bench -p hyperkit-devices`.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperkit_devices::block::{Block, Memory};
use hyperkit_devices::net::{Net, NetBackend, NetConfig, NetPort};
use hyperkit_devices::p9::{P9, P9Request, P9Service};
use hyperkit_devices::vsock::{Ports, Vsock};
use hyperkit_mem::{GuestAddr, GuestRam};
use hyperkit_virtio::testing::{RecordingInterrupt, Ring, Used};
use hyperkit_virtio::{Activation, VirtioDevice};

const RUN: Duration = Duration::from_millis(500);

struct Driver<D> {
    rings: Vec<Ring>,
    device: D,
}

impl<D: VirtioDevice> Driver<D> {
    fn new(mut device: D) -> Driver<D> {
        let ram = Arc::new(GuestRam::new(64 << 20).expect("64 MiB are to be had"));
        let place = |i: u64| GuestAddr(0x10_0000 + i * (10 << 20));
        let sizes = device.queue_sizes().iter().enumerate();
        let rings: Vec<Ring> =
            sizes.map(|(i, &size)| Ring::new(&ram, place(i as u64), size, 8 << 20, true)).collect();
        device.activate(Activation {
            ram,
            queues: rings.iter().map(|ring| Some(ring.queue())).collect(),
            features: device.features(),
            interrupt: Arc::<RecordingInterrupt>::default(),
        });
        Driver { rings, device }
    }

    fn send(&mut self, index: u16, readable: &[&[u8]], writable: &[u32]) {
        let ring = &mut self.rings[usize::from(index)];
        ring.add(readable, writable);
        if ring.device_wants_notification() {
            self.device.notify(index);
        }
    }

    fn wait(&mut self, index: u16) -> Used {
        loop {
            if let Some(used) = self.rings[usize::from(index)].take_used() {
                return used;
            }
            std::thread::yield_now();
        }
    }
}

/// Repeats `f` for a while and prints how often it ran and how many bytes that moved.
#[expect(clippy::print_stdout, reason = "measurements go to stdout")]
fn measure(what: &str, bytes: usize, mut f: impl FnMut()) {
    let start = Instant::now();
    let mut n = 0u32;
    while start.elapsed() < RUN {
        f();
        n += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    let (rate, us) = (f64::from(n) / seconds, seconds * 1e6 / f64::from(n));
    println!("{what:44} {rate:10.0} /s {us:8.2} us {:9.1} MB/s", rate * bytes as f64 / 1e6);
}

fn block() {
    let mut driver = Driver::new(Block::new(Arc::new(Memory::new(vec![0; 1 << 20], false)), ""));
    for bytes in [4096, 128 << 10] {
        measure(&format!("block: read {bytes} bytes, one at a time"), bytes, || {
            driver.send(0, &[&[0; 16]], &[bytes as u32, 1]);
            driver.wait(0);
        });
    }
}

struct Echo;
struct EchoRequest;

impl P9Service for Echo {
    fn message_bytes_max(&self) -> usize {
        1 << 20
    }
    fn accept(self: Arc<Self>, _start: &[u8]) -> Box<dyn P9Request> {
        Box::new(EchoRequest)
    }
    fn end(&self) {}
}

impl P9Request for EchoRequest {
    fn answer(&mut self, _request: &[u8], reply: &mut [u8]) -> usize {
        reply.len()
    }
}

fn p9() {
    let mut driver =
        Driver::new(P9::new("share", Box::new(|| Arc::new(Echo))).expect("the tag is short enough"));
    for bytes in [11, 512_000] {
        measure(&format!("9p: reply of {bytes} bytes, one at a time"), bytes, || {
            driver.send(0, &[&[7, 0, 0, 0, 1, 0, 0]], &[bytes as u32]);
            driver.wait(0);
        });
    }
}

/// Counts bytes, and looks at the headers of frames only.
#[derive(Default)]
struct Sink {
    port: Mutex<Option<Arc<dyn NetPort>>>,
    bytes: AtomicU64,
}

impl NetBackend for Sink {
    fn attach(&self, port: Arc<dyn NetPort>) {
        *self.port.lock().expect("nobody panics") = Some(port);
    }
    fn transmit_ready(&self) {
        let port = self.port.lock().expect("nobody panics").clone().expect("a driver");
        while port.take(&mut |_header, frame| {
            frame.copy(0, &mut [0; 54]);
            self.bytes.fetch_add(frame.bytes() as u64, Ordering::Relaxed);
        }) {}
    }
    fn detach(&self) {}
    fn receive_ready(&self) {}
}

fn net() {
    let config = NetConfig { mac: [2, 0, 0, 0, 0, 1], mtu: 1500, offloads: true };
    let mut driver = Driver::new(Net::new(config, Arc::new(Sink::default())));
    for bytes in [1514, 65_000] {
        let frame = vec![0; bytes];
        measure(&format!("net: frame of {bytes} bytes from the guest"), bytes, || {
            driver.send(1, &[&[0; 12], &frame], &[]);
            driver.wait(1);
        });
    }
}

/// Header of a packet from port 1 of guest 3 to port 2 of the host.
fn packet(op: u16, len: u32) -> Vec<u8> {
    let ports = [&1u32.to_le_bytes()[..], &2u32.to_le_bytes(), &len.to_le_bytes()].concat();
    let kinds = [1u16.to_le_bytes(), op.to_le_bytes()].concat();
    let credit = [&[0; 4][..], &(256u32 << 10).to_le_bytes(), &[0; 4]].concat();
    [&3u64.to_le_bytes()[..], &2u64.to_le_bytes(), &ports, &kinds, &credit].concat()
}

/// What a packet to the guest says of the bytes that the host has taken.
fn fwd_cnt(used: &Used) -> u32 {
    u32::from_le_bytes(used.bytes[40..44].try_into().expect("four bytes"))
}

fn vsock() {
    let ports = Arc::new(Ports::new());
    let listener = ports.listen(2).expect("nobody listens yet");
    let (device, _handle) = Vsock::new(3, ports);
    let mut driver = Driver::new(device);
    for _ in 0..100 {
        driver.send(0, &[], &[44, 4096]);
    }
    driver.send(1, &[&packet(1, 0)], &[]);
    let mut host = listener.accept(Duration::from_secs(5)).expect("the guest connects");
    driver.wait(0);
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 64 << 10];
        while host.read(&mut bytes).expect("the connection holds") > 0 {}
    });
    let payload = vec![0; 32 << 10];
    let (mut sent, mut forwarded) = (0u32, 0u32);
    measure("vsock: 32768 bytes from the guest", payload.len(), || {
        while sent.wrapping_sub(forwarded) > (256 - 32) << 10 {
            forwarded = fwd_cnt(&driver.wait(0));
            driver.send(0, &[], &[44, 4096]);
        }
        driver.send(1, &[&packet(5, 32 << 10), &payload], &[]);
        driver.wait(1);
        sent = sent.wrapping_add(32 << 10);
    });
    drop(driver);
    reader.join().expect("the reader does not panic");
}

fn main() {
    block();
    p9();
    net();
    vsock();
}
