//! One TCP endpoint towards the guest, and its parts. Spec: RFC 9293.
//!
//! An endpoint knows sequence numbers, bytes and time. It knows no addresses, frames or sockets: see `crate::stack`.

mod assembler;
mod congestion;
mod endpoint;
mod input;
mod output;
mod recovery;
mod ring;
mod rtt;
mod scoreboard;
mod timer;

#[cfg(test)]
mod episodes;
#[cfg(test)]
mod violations;

pub(crate) use endpoint::{Changes, Endpoint, Phase, Settings};
pub(crate) use output::Plan;
