//! Power-off and reset: ACPI's sleep and reset registers, and the reset line of the keyboard controller.
//!
//! Sleep states other than power-off do not exist. Spec: ACPI 6.4 §4.8.3.6 and §4.8.3.7.

use std::sync::Arc;

use hyperkit_bus::Device;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerEvent {
    /// Switch the machine off.
    Off,
    /// Reset it.
    Reset,
}

/// Is told what the guest asked for, on the vCPU's thread; must not block.
type OnPower = Arc<dyn Fn(PowerEvent) + Send + Sync>;

/// Values that the ACPI tables promise to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PowerCodes {
    /// Sleep type of power-off, 0 to 7.
    pub sleep_type_off: u8,
    /// What resets the machine when written to the reset register.
    pub reset: u8,
}

/// Three 8-bit registers: sleep control, sleep status, reset. Without state.
pub struct Power {
    codes: PowerCodes,
    on_power: OnPower,
}

const SLEEP_CONTROL: u64 = 0;
const RESET: u64 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

impl Power {
    /// Registers that answer to `codes`.
    pub fn new(codes: PowerCodes, on_power: OnPower) -> Power {
        Power { codes, on_power }
    }

    fn is_off(&self, sleep_control: u8) -> bool {
        (sleep_control >> SLEEP_TYPE_SHIFT) & 7 == self.codes.sleep_type_off
    }
}

impl Device for Power {
    /// The guest is awake, which is status 0; control and reset are write-only.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        match offset {
            SLEEP_CONTROL if value & SLEEP_ENABLE != 0 && self.is_off(value) => {
                (self.on_power)(PowerEvent::Off)
            }
            RESET if value == self.codes.reset => (self.on_power)(PowerEvent::Reset),
            _ => {}
        }
    }
}

/// Command port of a keyboard controller that has nothing but its reset line.
pub struct I8042Reset {
    on_power: OnPower,
}

/// "Pulse output port" with the reset line low.
const PULSE_RESET: u8 = 0xfe;

impl I8042Reset {
    /// A controller whose reset line leads to `on_power`.
    pub fn new(on_power: OnPower) -> I8042Reset {
        I8042Reset { on_power }
    }
}

impl Device for I8042Reset {
    /// Nothing to read, ready for a command.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [PULSE_RESET] {
            (self.on_power)(PowerEvent::Reset);
        }
    }
}

impl std::fmt::Debug for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Power").field("codes", &self.codes).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for I8042Reset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("I8042Reset")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes each (offset, bytes) and expects these events.
    fn check(make: impl Fn(OnPower) -> Box<dyn Device>, writes: &[(u64, &[u8])], expected: &[PowerEvent]) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&events);
        let mut device = make(Arc::new(move |event| log.lock().unwrap().push(event)));
        for (offset, bytes) in writes {
            device.write(*offset, bytes);
        }
        assert_eq!(*events.lock().unwrap(), expected);
    }

    fn power(on_power: OnPower) -> Box<dyn Device> {
        Box::new(Power::new(PowerCodes { sleep_type_off: 5, reset: 1 }, on_power))
    }

    #[test]
    fn sleep_type_of_power_off_with_enable_switches_off() {
        check(power, &[(0, &[5 << 2 | 0x20])], &[PowerEvent::Off]);
    }

    #[test]
    fn other_sleep_types_and_a_missing_enable_do_nothing() {
        check(power, &[(0, &[5 << 2]), (0, &[3 << 2 | 0x20]), (1, &[0x80]), (0, &[0x34, 0]), (2, &[0])], &[]);
    }

    #[test]
    fn reset_register_and_keyboard_controller_reset() {
        check(power, &[(2, &[1])], &[PowerEvent::Reset]);
        check(
            |on_power| Box::new(I8042Reset::new(on_power)),
            &[(0, &[0xd1]), (0, &[0xfe])],
            &[PowerEvent::Reset],
        );
    }
}
