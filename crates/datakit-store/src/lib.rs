//! Branches, transactions, merges and watches over a git repository.

#![forbid(unsafe_code)]
