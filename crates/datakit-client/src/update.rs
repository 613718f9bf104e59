//! Trying again while others change the same files.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::branch::Branch;
use crate::error::Error;
use crate::id::CommitId;
use crate::transaction::Transaction;

/// How often, and how patiently, an update is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retries {
    /// Attempts, the first included; at least one is made.
    pub attempts: u32,
    /// Longest wait after the first attempt; it doubles with each, and a random part of it is waited.
    pub wait_first: Duration,
    /// Longest wait at all.
    pub wait_max: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 20, wait_first: Duration::from_millis(5), wait_max: Duration::from_millis(500) }
    }
}

/// Has `change` change a new transaction until it can be committed.
pub fn update(
    branch: &Branch,
    retries: Retries,
    mut change: impl FnMut(&Transaction) -> Result<(), Error>,
) -> Result<CommitId, Error> {
    let mut attempt = 1;
    let mut wait = retries.wait_first;
    loop {
        let transaction = branch.transaction()?;
        let done = change(&transaction).and_then(|()| transaction.commit());
        let paths = match done {
            Err(Error::Conflict { paths }) => paths,
            done => return done,
        };
        if attempt >= retries.attempts {
            return Err(Error::Contended { attempts: attempt, paths });
        }
        thread::sleep(wait.mul_f64(random_fraction()));
        wait = (wait * 2).min(retries.wait_max);
        attempt += 1;
    }
}

/// A number from 0 up to 1, different for each call and thread: those who collided must not collide again.
fn random_fraction() -> f64 {
    let number = RandomState::new().build_hasher().finish();
    f64::from(u32::try_from(number >> 32).unwrap_or(0)) / 4_294_967_296.0
}

/// A name that no other transaction of this server has.
pub fn fresh_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let random = RandomState::new().build_hasher().finish();
    format!("client-{random:016x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
