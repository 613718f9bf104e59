//! Puts the chips and the virtio slots on the bus, at the addresses of [`hyperkit_boot::layout`].

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use hyperkit_boot::layout;
use hyperkit_bus::{Bus, MapError};
use hyperkit_hv::Vm;
use hyperkit_mem::GuestRam;
use hyperkit_platform::{I8042Reset, Power, PowerCodes, PowerEvent, Rtc, Serial};
use hyperkit_virtio::VirtioDevice;
use hyperkit_virtio::mmio::MmioTransport;

use crate::SerialSink;
use crate::lifecycle::{Lifecycle, Outcome};

/// What the machine keeps of its board.
pub(crate) struct Board {
    pub(crate) bus: Arc<Bus>,
    pub(crate) serial: Arc<Mutex<Serial>>,
}

/// Builds the board. `devices` are no more than there are slots.
pub(crate) fn build(
    vm: &dyn Vm,
    ram: &Arc<GuestRam>,
    lifecycle: &Arc<Lifecycle>,
    serial: SerialSink,
    devices: Vec<Box<dyn VirtioDevice>>,
) -> Result<Board, MapError> {
    let mut bus = Bus::default();
    let on_power = {
        let lifecycle = Arc::clone(lifecycle);
        Arc::new(move |event| {
            lifecycle.end(match event {
                PowerEvent::Off => Outcome::PoweredOff,
                PowerEvent::Reset => Outcome::Reset,
            });
        })
    };
    let codes = PowerCodes { sleep_type_off: layout::SLEEP_TYPE_OFF, reset: layout::RESET_VALUE };
    let power = Power::new(codes, on_power.clone());
    let serial = Arc::new(Mutex::new(Serial::new(serial, vm.interrupt_line(layout::SERIAL_GSI))));
    let ports = &mut bus.ports;
    ports.insert(u64::from(layout::SERIAL_PORT), 8, Arc::clone(&serial) as _)?;
    ports.insert(u64::from(layout::POWER_PORT), 3, Arc::new(Mutex::new(power)))?;
    ports.insert(
        u64::from(layout::I8042_COMMAND_PORT),
        1,
        Arc::new(Mutex::new(I8042Reset::new(on_power))),
    )?;
    ports.insert(u64::from(layout::RTC_PORT), 2, Arc::new(Mutex::new(Rtc::new(Box::new(unix_seconds)))))?;
    for (slot, device) in devices.into_iter().enumerate() {
        let (start, gsi) = layout::virtio_mmio_slot(slot);
        let transport = MmioTransport::new(device, Arc::clone(ram), vm.interrupt_line(gsi));
        bus.mmio.insert(start, layout::VIRTIO_MMIO_BYTES, Arc::new(Mutex::new(transport)))?;
    }
    Ok(Board { bus: Arc::new(bus), serial })
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
