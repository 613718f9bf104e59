//! Counters, as Prometheus reads them.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was counted since the start.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Attaches, by 9P and FUSE.
    pub attaches: AtomicU64,
    /// Transactions opened.
    pub transactions: AtomicU64,
    /// Commits that are on a branch.
    pub commits: AtomicU64,
    /// Commits refused because of conflicts.
    pub conflicts: AtomicU64,
    /// Fetches and pushes that ended well.
    pub transfers: AtomicU64,
    /// Fetches and pushes that failed.
    pub transfers_failed: AtomicU64,
}

impl Metrics {
    /// Counts one.
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// In Prometheus' text format.
    pub fn text(&self) -> String {
        let counters = [
            ("datakit_attaches_total", "Attaches by 9P and FUSE.", &self.attaches),
            ("datakit_transactions_total", "Transactions opened.", &self.transactions),
            ("datakit_commits_total", "Commits that are on a branch.", &self.commits),
            ("datakit_commit_conflicts_total", "Commits refused because of conflicts.", &self.conflicts),
            ("datakit_transfers_total", "Fetches and pushes that ended well.", &self.transfers),
            ("datakit_transfers_failed_total", "Fetches and pushes that failed.", &self.transfers_failed),
        ];
        let mut text = String::new();
        for (name, help, counter) in counters {
            let value = counter.load(Ordering::Relaxed);
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
        }
        text
    }
}
