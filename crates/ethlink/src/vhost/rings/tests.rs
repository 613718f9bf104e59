//! Queues of a driver that behaves, and of one that does not.

use rustix::event::{EventfdFlags, eventfd};

use super::*;

const SIZE: u16 = 16;
const MEMORY_BYTES: u64 = 1 << 20;
/// Where the parts of a queue are: descriptors, available, used.
const PARTS: [[u64; 3]; QUEUES] = [[0x1000, 0x2000, 0x3000], [0x4000, 0x5000, 0x6000]];
/// Where buffers begin.
const BUFFERS: u64 = 0x10000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Driver {
    memory: GuestMemoryMmap,
    rings: Rings,
    available: [u16; QUEUES],
}

impl Driver {
    fn new(features: u64) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        let mut rings = Rings::new(eventfd(0, EventfdFlags::NONBLOCK).unwrap());
        rings.set_features(features).unwrap();
        rings.set_memory(memory.clone());
        for (index, [descriptors, available, used]) in PARTS.into_iter().enumerate() {
            rings.set_size(index, SIZE).unwrap();
            let [descriptors, available, used] = [descriptors, available, used].map(GuestAddress);
            rings.set_addresses(index, descriptors, available, used).unwrap();
            rings.set_base(index, 0);
            rings.enable(index, true);
            rings.start(index).unwrap();
        }
        Self { memory, rings, available: [0; QUEUES] }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn read(&self, at: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Makes a chain of one descriptor available.
    fn offer(&mut self, queue: usize, descriptor: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let [descriptors, available, _] = PARTS[queue];
        let entry =
            [&address.to_le_bytes()[..], &bytes.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.write(descriptors + 16 * u64::from(descriptor), &entry.concat());
        let slot = u64::from(self.available[queue] % SIZE);
        self.write(available + 4 + 2 * slot, &descriptor.to_le_bytes());
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.write(available + 2, &self.available[queue].to_le_bytes());
    }

    fn used(&self, queue: usize) -> u16 {
        u16::from_le_bytes(self.read(PARTS[queue][2] + 2, 2).try_into().unwrap())
    }

    fn receive(&mut self) -> Vec<(Vnet, Vec<u8>)> {
        let (mut frames, mut scratch) = (Vec::new(), vec![0; FRAME_BYTES_MAX]);
        self.rings.receive(&mut scratch, &mut |vnet, frame| frames.push((*vnet, frame.to_vec())));
        frames
    }
}

#[test]
fn a_frame_of_the_machine_arrives_with_its_header() {
    let mut driver = Driver::new(VERSION_1);
    let header = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
    driver.write(BUFFERS, &[&header[..], b"a frame"].concat());
    driver.offer(FROM_MACHINE, 0, BUFFERS, 12 + 7, 0, 0);
    assert_eq!(driver.receive(), [(Vnet(header), b"a frame".to_vec())]);
    assert_eq!(driver.used(FROM_MACHINE), 1);
    assert_eq!(driver.receive(), []);
}

#[test]
fn a_frame_fills_as_many_buffers_as_it_takes_and_waits_for_them() {
    let mut driver = Driver::new(VERSION_1 | MRG_RXBUF);
    let frame: Vec<u8> = (0..250u8).collect();
    for index in 0..2 {
        driver.offer(TO_MACHINE, index, BUFFERS + 0x1000 * u64::from(index), 100, WRITE, 0);
    }
    assert_eq!(driver.rings.put(&Vnet::WHOLE, &[&frame[..20], &frame[20..]]), Sent::NoRoom);
    assert!(driver.rings.is_full() && driver.used(TO_MACHINE) == 0, "nothing is used in part");
    driver.offer(TO_MACHINE, 2, BUFFERS + 0x2000, 100, WRITE, 0);
    driver.receive();
    assert!(!driver.rings.is_full());
    assert_eq!(driver.rings.put(&Vnet::WHOLE, &[&frame[..20], &frame[20..]]), Sent::Done);
    assert_eq!(driver.used(TO_MACHINE), 3);
    let mut written = driver.read(BUFFERS, 100);
    written.extend(driver.read(BUFFERS + 0x1000, 100));
    written.extend(driver.read(BUFFERS + 0x2000, 62));
    assert_eq!(written[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0], "three buffers");
    assert_eq!(written[12..], frame);
}

#[test]
fn a_driver_without_offloads_gets_whole_frames() {
    let mut driver = Driver::new(VERSION_1);
    for index in 0..SIZE {
        driver.offer(TO_MACHINE, index, BUFFERS + 0x1000 * u64::from(index), 2000, WRITE, 0);
    }
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0];
    frame.extend_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend_from_slice(&[0, 80, 0xc0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0x50, 0x10, 0x20, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&[7; 3000]);
    assert!(driver.rings.send(&Vnet([1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 1, 0]), &[&frame]));
    assert_eq!(driver.used(TO_MACHINE), 3, "3000 bytes are three segments of 1460");
    assert_eq!(driver.read(BUFFERS, 2), [0, 0], "nothing is left to the driver");
}

#[test]
fn chains_that_loop_or_lead_nowhere_hurt_nobody() {
    let mut driver = Driver::new(VERSION_1 | MRG_RXBUF | EVENT_IDX | INDIRECT_DESC);
    // A loop of two, an address beyond the memory, one that wraps, and a buffer for the other direction.
    driver.offer(FROM_MACHINE, 0, BUFFERS, 100, NEXT, 1);
    driver.offer(FROM_MACHINE, 1, BUFFERS, 100, NEXT, 0);
    driver.offer(FROM_MACHINE, 2, MEMORY_BYTES - 4, 100, 0, 0);
    driver.offer(FROM_MACHINE, 3, u64::MAX - 4, 100, 0, 0);
    driver.offer(FROM_MACHINE, 4, BUFFERS, 100, WRITE, 0);
    driver.offer(FROM_MACHINE, 5, BUFFERS, u32::MAX, 0, 0);
    // The loop, from either end, is a frame of as many pieces as the queue has entries; the others are none.
    let frames: Vec<usize> = driver.receive().iter().map(|(_, frame)| frame.len()).collect();
    assert_eq!(frames, [16 * 100 - 12; 2]);
    assert_eq!(driver.used(FROM_MACHINE), 6, "all are given back");
    driver.offer(TO_MACHINE, 0, MEMORY_BYTES - 4, 100, WRITE, 0);
    assert!(!driver.rings.send(&Vnet::WHOLE, &[&[7; 60]]));
    driver.write(BUFFERS, &[0; 60]);
    driver.offer(FROM_MACHINE, 6, BUFFERS, 60, 0, 0);
    assert_eq!(driver.receive().len(), 1, "the queue goes on");
}

#[test]
fn any_bytes_in_the_memory_end() {
    let mut state = 1u64;
    let mut draw = move || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        state >> 33
    };
    for round in 0..300u64 {
        let features = [VERSION_1, VERSION_1 | MRG_RXBUF | EVENT_IDX, 0, FEATURES];
        let mut driver = Driver::new(features[round as usize % 4]);
        for _ in 0..20 {
            for part in PARTS.concat() {
                // Small numbers point at one another more often than large ones.
                let bits = [2, 6, 16, 31][draw() as usize % 4];
                let bytes: Vec<u8> =
                    (0..64).flat_map(|_| ((draw() & ((1 << bits) - 1)) as u32).to_le_bytes()).collect();
                driver.write(part, &bytes);
            }
            driver.receive();
            let frame = vec![round as u8; draw() as usize % 3000];
            driver.rings.send(&Vnet::WHOLE, &[&frame]);
            driver.rings.flush();
        }
    }
}
