//! A typed client of DataKit over 9P.

#![forbid(unsafe_code)]
