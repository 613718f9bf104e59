//! Names that the host itself asks about, as a guest would: for proxies, which are to see what guests see.

use std::collections::HashMap;
use std::net::IpAddr;

use vpnkit_wire::dns::{self, TYPE_A, TYPE_AAAA};

use super::Host;

/// Names that are being looked up at once; further ones are not found.
const LOOKUPS_MAX: usize = 1024;

/// Called with what was found.
pub type Answer = Box<dyn FnOnce(Vec<IpAddr>) + Send>;

struct Lookup {
    name: String,
    answer: Answer,
    /// IPv6 is asked for when there is nothing of IPv4.
    qtype: u16,
}

/// The names that are being looked up.
#[derive(Default)]
pub struct Lookups {
    under_way: HashMap<u64, Lookup>,
    next: u64,
}

impl Host {
    pub(super) fn lookup(&mut self, name: &str, answer: Answer) {
        if self.lookups.under_way.len() >= LOOKUPS_MAX {
            return answer(Vec::new());
        }
        self.lookup_ask(Lookup { name: name.to_owned(), answer, qtype: TYPE_A });
    }

    fn lookup_ask(&mut self, lookup: Lookup) {
        let number = self.lookups.next;
        self.lookups.next += 1;
        let Some(query) = dns::query(number as u16, &lookup.name, lookup.qtype) else {
            return (lookup.answer)(Vec::new());
        };
        self.lookups.under_way.insert(number, lookup);
        self.stack.dns_ask(self.now(), number, &query);
    }

    pub(super) fn lookup_answered(&mut self, number: u64, message: &[u8]) {
        let Some(lookup) = self.lookups.under_way.remove(&number) else { return };
        let found = dns::addresses(message);
        if found.is_empty() && lookup.qtype == TYPE_A {
            return self.lookup_ask(Lookup { qtype: TYPE_AAAA, ..lookup });
        }
        (lookup.answer)(found);
    }
}
