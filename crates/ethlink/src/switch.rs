//! A learning switch: which port a frame goes to. Spec: IEEE 802.1D-2004 §7.7, §7.8.
//!
//! An address belongs to the port that used it first, as long as that is attached: nobody takes over another's
//! address, nor the engine's.

use std::collections::HashMap;

/// A hardware address.
pub type Mac = [u8; 6];
/// A port, numbered by its owner.
pub type PortId = usize;

/// Addresses that one port may have.
const PORT_ADDRESSES_MAX: usize = 64;
/// Bytes of the addresses and the type before the data.
const HEADER_BYTES: usize = 14;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// To the engine.
    Engine,
    /// To a machine.
    Port(PortId),
    /// To the engine and every other machine.
    Everybody,
    /// To every other machine: nobody knows where the address is.
    Others,
    /// Nowhere: it is too short, or would go back to where it came from.
    Nowhere,
    /// Nowhere: its sender uses an address that is not its own.
    Forged,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    engine: Mac,
    owners: HashMap<Mac, PortId>,
    /// Who was looked up last, and mostly is next: frames come in bursts.
    last: Option<(Mac, PortId)>,
}

impl Switch {
    /// A switch on which the engine has an address.
    pub fn new(engine: Mac) -> Self {
        Self { engine, owners: HashMap::new(), last: None }
    }

    /// Learns from a frame of `port` and says where it goes.
    pub fn of_port(&mut self, port: PortId, frame: &[u8]) -> Verdict {
        let (Some(to), Some(from)) = (mac_at(frame, 0), mac_at(frame, 6)) else { return Verdict::Nowhere };
        if frame.len() < HEADER_BYTES {
            return Verdict::Nowhere;
        }
        if !self.may_use(port, from) {
            return Verdict::Forged;
        }
        if to == self.engine {
            Verdict::Engine
        } else if to[0] & 1 == 1 {
            Verdict::Everybody
        } else {
            match self.owners.get(&to) {
                Some(owner) if *owner == port => Verdict::Nowhere,
                Some(owner) => Verdict::Port(*owner),
                None => Verdict::Others,
            }
        }
    }

    /// Says where a frame of the engine goes: [`Verdict::Port`] or [`Verdict::Others`].
    pub fn of_engine(&mut self, frame: &[u8]) -> Verdict {
        mac_at(frame, 0).and_then(|to| self.owner_of(to)).map_or(Verdict::Others, Verdict::Port)
    }

    /// The port where an address is.
    pub fn owner_of(&mut self, mac: Mac) -> Option<PortId> {
        if let Some((last, owner)) = self.last
            && last == mac
        {
            return Some(owner);
        }
        let owner = *self.owners.get(&mac)?;
        self.last = Some((mac, owner));
        Some(owner)
    }

    fn may_use(&mut self, port: PortId, from: Mac) -> bool {
        if from[0] & 1 == 1 || from == self.engine || from == [0; 6] {
            return false;
        }
        if let Some(owner) = self.owner_of(from) {
            return owner == port;
        }
        if self.owners.values().filter(|owner| **owner == port).count() >= PORT_ADDRESSES_MAX {
            return false;
        }
        self.owners.insert(from, port);
        true
    }

    /// The addresses that are known, each with its port.
    pub fn owners(&self) -> impl Iterator<Item = (Mac, PortId)> {
        self.owners.iter().map(|(mac, port)| (*mac, *port))
    }

    /// Forgets a port's addresses, which are added to `gone`: it is gone.
    pub fn forget(&mut self, port: PortId, gone: &mut Vec<Mac>) {
        self.owners.retain(|mac, owner| {
            let stays = *owner != port;
            gone.extend((!stays).then_some(*mac));
            stays
        });
        self.last = None;
    }
}

fn mac_at(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..at + 6)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGINE: Mac = [2, 0, 0, 0, 0, 0xfe];
    const A: Mac = [2, 0, 0, 0, 0, 1];
    const B: Mac = [2, 0, 0, 0, 0, 2];

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [&to[..], &from, &[8, 0]].concat()
    }

    #[test]
    fn frames_go_where_their_address_was_seen() {
        let mut switch = Switch::new(ENGINE);
        assert_eq!(switch.of_port(1, &frame(B, A)), Verdict::Others);
        assert_eq!(switch.of_port(2, &frame(A, B)), Verdict::Port(1));
        assert_eq!(switch.of_port(1, &frame(B, A)), Verdict::Port(2));
        assert_eq!(switch.of_port(1, &frame(ENGINE, A)), Verdict::Engine);
        assert_eq!(switch.of_port(1, &frame([0xff; 6], A)), Verdict::Everybody);
        assert_eq!(switch.of_engine(&frame(B, ENGINE)), Verdict::Port(2));
        let mut gone = Vec::new();
        switch.forget(2, &mut gone);
        assert_eq!(gone, [B]);
        assert_eq!(switch.of_engine(&frame(B, ENGINE)), Verdict::Others);
        assert_eq!(switch.of_port(3, &frame(ENGINE, B)), Verdict::Engine, "it comes back elsewhere");
        assert_eq!(switch.of_engine(&frame(B, ENGINE)), Verdict::Port(3));
        assert_eq!(switch.of_port(1, &frame(ENGINE, B)), Verdict::Forged, "it is another's now");
    }

    #[test]
    fn nobody_uses_an_address_of_another() {
        let mut switch = Switch::new(ENGINE);
        switch.of_port(1, &frame(ENGINE, A));
        for from in [A, ENGINE, [0xff; 6], [0; 6]] {
            assert_eq!(switch.of_port(2, &frame(ENGINE, from)), Verdict::Forged, "{from:?}");
        }
        assert_eq!(switch.of_port(2, &[1, 2, 3]), Verdict::Nowhere);
    }

    #[test]
    fn one_port_cannot_fill_the_table() {
        let mut switch = Switch::new(ENGINE);
        for number in 0..1000u16 {
            let [high, low] = number.to_be_bytes();
            switch.of_port(1, &frame(ENGINE, [2, 1, 0, 0, high, low]));
        }
        assert_eq!(switch.owners.len(), PORT_ADDRESSES_MAX);
    }
}
