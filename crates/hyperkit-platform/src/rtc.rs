//! The CMOS clock: time of day in UTC and 114 bytes of memory, without alarms or interrupts.
//!
//! The time is the host's; what the guest sets is ignored. Spec: Motorola MC146818A data sheet.

use hyperkit_bus::{Device, RestoreError, Saved};

const INDEX_PORT: u64 = 0;
const SECONDS: usize = 0x00;
const MINUTES: usize = 0x02;
const HOURS: usize = 0x04;
const WEEKDAY: usize = 0x06;
const DAY: usize = 0x07;
const MONTH: usize = 0x08;
const YEAR: usize = 0x09;
const STATUS_A: usize = 0x0a;
const STATUS_B: usize = 0x0b;
const STATUS_C: usize = 0x0c;
const STATUS_D: usize = 0x0d;
/// Where PCs keep the century.
const CENTURY: usize = 0x32;

/// Divider for a 32.768 kHz crystal and the usual rate; no update in progress, ever.
const A_RUNNING: u8 = 0x26;
const B_24_HOURS: u8 = 0x02;
const B_BINARY: u8 = 0x04;
/// The battery is good.
const D_VALID: u8 = 0x80;

const VERSION: u8 = 1;
const CMOS_BYTES: usize = 128;

/// Tells the seconds since 1970-01-01 00:00 UTC.
type Clock = Box<dyn Fn() -> u64 + Send>;

/// An MC146818 behind its index and data port.
pub struct Rtc {
    clock: Clock,
    index: usize,
    cmos: [u8; CMOS_BYTES],
}

impl std::fmt::Debug for Rtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rtc").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Rtc {
    /// A clock that shows what `clock` tells: seconds since 1970 in UTC.
    pub fn new(clock: Clock) -> Rtc {
        let mut cmos = [0; CMOS_BYTES];
        cmos[STATUS_A] = A_RUNNING;
        cmos[STATUS_B] = B_24_HOURS;
        Rtc { clock, index: 0, cmos }
    }

    fn read_register(&self) -> u8 {
        let status_b = self.cmos[STATUS_B];
        let number = |value: u64| match status_b & B_BINARY {
            0 => ((value / 10) << 4) as u8 + (value % 10) as u8,
            _ => value as u8,
        };
        let now = || DateTime::from_unix((self.clock)());
        match self.index {
            SECONDS => number(now().second),
            MINUTES => number(now().minute),
            HOURS if status_b & B_24_HOURS != 0 => number(now().hour),
            HOURS => {
                let hour = now().hour;
                number((hour + 11) % 12 + 1) | if hour >= 12 { 0x80 } else { 0 }
            }
            WEEKDAY => number(now().weekday),
            DAY => number(now().day),
            MONTH => number(now().month),
            YEAR => number(now().year % 100),
            CENTURY => number(now().year / 100 % 100),
            STATUS_C => 0,
            STATUS_D => D_VALID,
            index => self.cmos[index],
        }
    }
}

impl Device for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let ([byte], true) = (data, offset != INDEX_PORT) {
            *byte = self.read_register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let &[value] = data else { return };
        match (offset, self.index) {
            (INDEX_PORT, _) => self.index = usize::from(value) % CMOS_BYTES, // bit 7 masks NMIs
            (_, SECONDS | MINUTES | HOURS | WEEKDAY..=YEAR | STATUS_A | STATUS_C | STATUS_D | CENTURY) => {}
            (_, index) => self.cmos[index] = value,
        }
    }
}

impl Saved for Rtc {
    fn save(&self) -> Vec<u8> {
        [&[VERSION, self.index as u8], &self.cmos[..]].concat()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        match bytes {
            [VERSION, index, cmos @ ..] if usize::from(*index) < CMOS_BYTES && cmos.len() == CMOS_BYTES => {
                self.index = usize::from(*index);
                self.cmos.copy_from_slice(cmos);
                Ok(())
            }
            _ => Err(RestoreError { device: "rtc", why: "version, length or index is wrong".into() }),
        }
    }
}

/// A time of day in the proleptic Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct DateTime {
    year: u64,
    month: u64,
    day: u64,
    /// 1 is Sunday.
    weekday: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl DateTime {
    fn from_unix(seconds: u64) -> DateTime {
        let days = seconds / 86_400;
        let of_day = seconds % 86_400;
        // Years are counted from March, so that the leap day is the last; an era is 400 of them.
        let since_era_0 = days + 719_468; // days from 0000-03-01 to 1970-01-01
        let (era, of_era) = (since_era_0 / 146_097, since_era_0 % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        DateTime {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4) % 7 + 1,
            hour: of_day / 3600,
            minute: of_day / 60 % 60,
            second: of_day % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(unix: u64) -> Rtc {
        Rtc::new(Box::new(move || unix))
    }

    fn register(rtc: &mut Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut byte = [0];
        rtc.read(1, &mut byte);
        byte[0]
    }

    /// Century, year, month, day, weekday, hours, minutes, seconds.
    fn time(rtc: &mut Rtc) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| register(rtc, index))
    }

    #[test]
    fn time_is_told_in_bcd() {
        let cases = [
            // date -u -d '…' +%s
            (0, [0x19, 0x70, 0x01, 0x01, 5, 0, 0, 0]),
            (951_782_399, [0x20, 0x00, 0x02, 0x28, 2, 0x23, 0x59, 0x59]),
            (951_782_400, [0x20, 0x00, 0x02, 0x29, 3, 0, 0, 0]),
            (1_772_323_200, [0x20, 0x26, 0x03, 0x01, 1, 0, 0, 0]),
            (4_107_542_399, [0x21, 0x00, 0x02, 0x28, 1, 0x23, 0x59, 0x59]),
            (4_107_542_400, [0x21, 0x00, 0x03, 0x01, 2, 0, 0, 0]),
        ];
        for (unix, expected) in cases {
            assert_eq!(time(&mut at(unix)), expected, "{unix}");
        }
    }

    #[test]
    fn binary_and_12_hours_can_be_asked_for() {
        let mut rtc = at(45_296); // 12:34:56
        rtc.write(0, &[0x0b]);
        rtc.write(1, &[4]);
        assert_eq!([4, 2, 0].map(|index| register(&mut rtc, index)), [0x80 | 12, 34, 56]);
    }

    #[test]
    fn memory_survives_a_snapshot_and_time_is_not_set() {
        let mut rtc = at(0);
        for (index, value) in [(0x20, 77), (9, 0x42)] {
            rtc.write(0, &[index]);
            rtc.write(1, &[value]);
        }
        let mut other = at(0);
        other.restore(&rtc.save()).unwrap();
        assert_eq!((register(&mut other, 0x20), register(&mut other, 9)), (77, 0x70));
        assert!(other.restore(&rtc.save()[1..]).is_err());
    }

    proptest! {
        #[test]
        fn any_access_at_any_time_is_survived(unix: u64, index: u8, value: u8, offset in 0u64..2) {
            let mut rtc = at(unix);
            rtc.write(0, &[index]);
            rtc.write(offset, &[value]);
            rtc.read(1, &mut [0; 1]);
            rtc.read(0, &mut [0; 8]);
        }
    }
}
