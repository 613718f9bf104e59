//! Transactions that outlive the connection that opened them, by name, until they expire.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::name::{BranchName, FileName};
use crate::store::Store;
use crate::transaction::{Transaction, TransactionError};

/// The name of a leased transaction; unique in the store.
pub type LeaseName = FileName;

/// Why there is no such lease.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum LeaseError {
    #[error("there is a leased transaction {name} already")]
    Exists { name: LeaseName },
    #[error("there is no leased transaction {name}: it was never opened, is finished or has expired")]
    Missing { name: LeaseName },
    #[error(transparent)]
    Transaction(#[from] TransactionError),
}

struct Lease {
    transaction: Transaction,
    time_to_live: Duration,
    expires: Instant,
}

/// All leases of a store.
#[derive(Default)]
pub(crate) struct Leases {
    named: Mutex<HashMap<LeaseName, Lease>>,
}

impl Leases {
    /// The leases that have neither expired nor finished.
    fn live(&self) -> MutexGuard<'_, HashMap<LeaseName, Lease>> {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        named.retain(|_, lease| {
            let lives = lease.expires > now && lease.transaction.is_open();
            if !lives {
                lease.transaction.close();
            }
            lives
        });
        named
    }
}

impl Store {
    /// Opens a transaction on the head of a branch that stays when its opener goes, until it is committed, closed, or
    /// not been resumed for `time_to_live`.
    ///
    /// # Errors
    /// `Exists`; limits.
    pub fn lease(
        &self,
        name: &LeaseName,
        branch: &BranchName,
        time_to_live: Duration,
    ) -> Result<Transaction, LeaseError> {
        if self.leases().live().contains_key(name) {
            return Err(LeaseError::Exists { name: name.clone() });
        }
        let transaction = self.begin(branch)?;
        let mut live = self.leases().live();
        if live.contains_key(name) {
            return Err(LeaseError::Exists { name: name.clone() });
        }
        let now = Instant::now();
        let expires = now.checked_add(time_to_live).unwrap_or(now);
        live.insert(name.clone(), Lease { transaction: transaction.clone(), time_to_live, expires });
        Ok(transaction)
    }

    /// Takes a leased transaction up again; its time begins anew.
    ///
    /// # Errors
    /// `Missing`.
    pub fn resume(&self, name: &LeaseName) -> Result<Transaction, LeaseError> {
        let mut live = self.leases().live();
        let lease = live.get_mut(name).ok_or_else(|| LeaseError::Missing { name: name.clone() })?;
        let now = Instant::now();
        lease.expires = now.checked_add(lease.time_to_live).unwrap_or(now);
        Ok(lease.transaction.clone())
    }

    /// The leased transactions of a branch, sorted by name.
    pub fn leased(&self, branch: &BranchName) -> Vec<LeaseName> {
        let live = self.leases().live();
        let of_branch = live.iter().filter(|(_, lease)| lease.transaction.branch() == branch);
        let mut names: Vec<LeaseName> = of_branch.map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }
}
