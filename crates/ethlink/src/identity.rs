//! Which machine has which address, by the identity that clients of VPNKit's protocol give: the same for as long as the
//! process lives, so that a machine that comes back finds its own.

use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use crate::greeting::UUID_BYTES;
use crate::switch::Mac;

/// Identities remembered; there are not many more addresses in a usual network.
const IDENTITIES_MAX: usize = 4096;

/// Told of each address that is promised.
type Promise = Box<dyn Fn(Mac, Ipv4Addr) + Send + Sync>;

#[derive(Debug)]
struct Identity {
    uuid: [u8; UUID_BYTES],
    mac: Mac,
    address: Ipv4Addr,
}

/// The addresses that machines prefer and have.
pub struct Identities {
    first: Ipv4Addr,
    last: Ipv4Addr,
    taken: Vec<Ipv4Addr>,
    promise: Promise,
    known: Mutex<Vec<Identity>>,
}

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identities")
            .field("first", &self.first)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Identities {
    /// Machines may prefer addresses from `first` to `last`, but those `taken`. `promise` is told what they get, in the
    /// thread that serves them.
    pub fn new(
        (first, last): (Ipv4Addr, Ipv4Addr),
        taken: Vec<Ipv4Addr>,
        promise: impl Fn(Mac, Ipv4Addr) + Send + Sync + 'static,
    ) -> Self {
        Self { first, last, taken, promise: Box::new(promise), known: Mutex::default() }
    }

    /// Gives a machine the address that it prefers, or says in VPNKit's words why not.
    ///
    /// # Errors
    /// When it has another one, or the address is out of range or another machine's.
    pub fn prefer(&self, uuid: &[u8; UUID_BYTES], mac: Mac, wish: Ipv4Addr) -> Result<(), &'static str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = known.iter().find(|identity| identity.uuid == *uuid) {
            return if identity.address == wish {
                Ok(())
            } else {
                Err("UUID already assigned to a different IP than the IP requested by the client.")
            };
        }
        if wish < self.first || wish > self.last {
            return Err("Preferred IP address out of range.");
        }
        if self.taken.contains(&wish) || known.iter().any(|identity| identity.address == wish) {
            return Err("Preferred IP address already used.");
        }
        if known.len() >= IDENTITIES_MAX {
            return Err("No IP addresses available.");
        }
        known.push(Identity { uuid: *uuid, mac, address: wish });
        (self.promise)(mac, wish);
        Ok(())
    }

    /// The address that was promised to a machine.
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|identity| identity.mac == mac).map(|identity| identity.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_keeps_its_address_and_others_get_none_of_it() {
        let address = |last| Ipv4Addr::new(10, 0, 0, last);
        let identities = Identities::new((address(3), address(9)), vec![address(4)], |_, _| {});
        let prefer =
            |uuid: u8, last| identities.prefer(&[uuid; UUID_BYTES], [2, 0, 0, 0, 0, uuid], address(last));
        assert_eq!(prefer(1, 5), Ok(()));
        assert_eq!(prefer(1, 5), Ok(()), "it came back");
        assert!(prefer(1, 6).unwrap_err().starts_with("UUID already assigned to a different IP"));
        assert_eq!(prefer(2, 5), Err("Preferred IP address already used."));
        assert_eq!(prefer(2, 4), Err("Preferred IP address already used."));
        assert_eq!(prefer(2, 10), Err("Preferred IP address out of range."));
        assert_eq!(identities.address_of([2, 0, 0, 0, 0, 1]), Some(address(5)));
    }
}
