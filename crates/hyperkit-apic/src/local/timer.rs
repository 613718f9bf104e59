//! The timer of a local APIC. Spec: SDM vol. 3A §11.5.4.

use serde::{Deserialize, Serialize};

/// What the LVT entry makes of the timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

fn mode(lvt: u32) -> Mode {
    match lvt >> 17 & 3 {
        0 => Mode::OneShot,
        1 => Mode::Periodic,
        2 => Mode::TscDeadline,
        _ => Mode::Reserved,
    }
}

/// Counts down, or waits for a time.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timer {
    /// The input clock is the time-stamp counter divided by `1 << shift`.
    shift: u32,
    initial: u32,
    divide: u32,
    /// When the count was started, in ticks of the time-stamp counter.
    started: u64,
    /// When it fires next; `None`: stopped.
    deadline: Option<u64>,
}

impl Timer {
    pub fn new(shift: u32) -> Timer {
        Timer { shift: shift & 7, initial: 0, divide: 0, started: 0, deadline: None }
    }

    pub fn shift(&self) -> u32 {
        self.shift
    }

    pub fn set_shift(&mut self, shift: u32) {
        self.shift = shift & 7;
    }

    pub fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    pub fn initial(&self) -> u32 {
        self.initial
    }

    pub fn divide(&self) -> u32 {
        self.divide
    }

    /// Ticks of the time-stamp counter per count: bits 0, 1 and 3 select 2, 4, 8, 16, 32, 64, 128, 1.
    fn ticks_per_count(&self) -> u64 {
        let selected = self.divide & 3 | self.divide >> 1 & 4;
        1 << (((selected + 1) & 7) + self.shift)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.ticks_per_count()
    }

    /// Writes the initial count: starts, or stops with 0. Ignored in TSC-deadline mode.
    pub fn start(&mut self, initial: u32, lvt: u32, now: u64) {
        if mode(lvt) == Mode::TscDeadline {
            return;
        }
        self.initial = initial;
        self.started = now;
        self.deadline = (initial != 0).then(|| now.saturating_add(self.period()));
    }

    /// Writes the divide configuration. A running count goes on from where it is, at the new rate.
    pub fn set_divide(&mut self, divide: u32, lvt: u32, now: u64) {
        let left = self.current(lvt, now);
        self.divide = divide & 0xb;
        if left != 0 && mode(lvt) != Mode::TscDeadline {
            let done = u64::from(self.initial - left) * self.ticks_per_count();
            self.started = now.wrapping_sub(done);
            self.deadline = Some(now.saturating_add(u64::from(left) * self.ticks_per_count()));
        }
    }

    /// The current count.
    pub fn current(&self, lvt: u32, now: u64) -> u32 {
        match self.deadline {
            Some(deadline) if mode(lvt) != Mode::TscDeadline && deadline > now => {
                ((deadline - now).div_ceil(self.ticks_per_count())).min(u64::from(self.initial)) as u32
            }
            _ => 0,
        }
    }

    /// Takes note of a new LVT entry: going into or out of TSC-deadline mode disarms.
    pub fn change_mode(&mut self, before: u32, after: u32) {
        if (mode(before) == Mode::TscDeadline) != (mode(after) == Mode::TscDeadline) {
            self.deadline = None;
            self.initial = 0;
        }
    }

    pub fn tsc_deadline(&self, lvt: u32) -> u64 {
        if mode(lvt) == Mode::TscDeadline { self.deadline.unwrap_or(0) } else { 0 }
    }

    pub fn set_tsc_deadline(&mut self, value: u64, lvt: u32) {
        if mode(lvt) == Mode::TscDeadline {
            self.deadline = (value != 0).then_some(value);
        }
    }

    /// Whether the time has come; arms for the next period.
    pub fn expire(&mut self, now: u64, lvt: u32) -> bool {
        let Some(deadline) = self.deadline.filter(|deadline| *deadline <= now) else { return false };
        let period = self.period();
        self.deadline = None;
        if mode(lvt) == Mode::Periodic && period != 0 {
            // Periods that passed unseen are not made up for: one interrupt stands for them.
            let missed = (now - deadline) / period;
            self.started = deadline.saturating_add(missed * period);
            self.deadline = Some(self.started.saturating_add(period));
        }
        true
    }
}
