//! What stream clients say before frames: nothing, VPNKit's handshake, or an HTTP request.
//!
//! vmnet 22 is VPNKit's (src/hostnet/vmnet.ml there): hello of 49 bytes both ways, a command of 41, a reply of 258.

use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::framing::Unframer;
use crate::identity::Identities;
use crate::switch::Mac;

const HELLO_BYTES: usize = 49;
const COMMAND_BYTES: usize = 41;
const REPLY_BYTES: usize = 258;
const MAGIC: &[u8] = b"VMN3T";
const VERSION: u32 = 22;
const COMMAND_ETHERNET: u8 = 1;
const COMMAND_PREFERRED_IPV4: u8 = 8;
/// Bytes of a machine's identity.
pub const UUID_BYTES: usize = 36;
/// What a frame may have beyond the MTU, as VPNKit says it.
const PACKET_EXTRA_BYTES: u16 = 50;
/// Bytes of the longest request.
const REQUEST_BYTES_MAX: usize = 8192;

/// What a client is told.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// Its number: a client that does not say who it is gets the address that goes with it.
    pub serial: u64,
    /// Who has which address; without it none may be preferred.
    pub identities: Option<Arc<Identities>>,
}

/// Where a client is before its frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// Frames begin.
    Done,
    /// vmnet: the hello is to come.
    Hello,
    /// vmnet: the command is to come.
    Command,
    /// gvproxy: `POST /connect` is to come.
    Request,
}

/// What a client's words led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// It has to say more.
    Wait,
    /// Frames may come.
    Ready,
    /// The answer is all that it gets.
    Refused,
}

impl Greeting {
    /// Takes what is whole of the client's words and appends the answers to `out`.
    pub fn advance(&mut self, input: &mut Unframer, terms: &Terms, out: &mut Vec<u8>) -> Progress {
        loop {
            match self {
                Greeting::Done => return Progress::Ready,
                Greeting::Hello => {
                    let Some(hello) = input.take(HELLO_BYTES) else { return Progress::Wait };
                    let known = hello.starts_with(MAGIC) && hello[5..9] == VERSION.to_le_bytes();
                    // Another version gets our hello, so that it can say what it lacks.
                    out.extend_from_slice(MAGIC);
                    out.extend_from_slice(&VERSION.to_le_bytes());
                    out.extend_from_slice(&[b'0'; HELLO_BYTES - 9]);
                    if !known {
                        return Progress::Refused;
                    }
                    *self = Greeting::Command;
                }
                Greeting::Command => {
                    let Some(command) = input.take(COMMAND_BYTES) else { return Progress::Wait };
                    let Some(command) = command.first_chunk::<COMMAND_BYTES>() else { return Progress::Wait };
                    match answer_command(command, terms) {
                        Ok(mac) => accept(out, terms.mtu, mac),
                        Err(reason) => {
                            refuse(out, reason);
                            return Progress::Refused;
                        }
                    }
                    *self = Greeting::Done;
                }
                Greeting::Request => {
                    let waiting = input.waiting();
                    let Some(end) = waiting.windows(4).position(|four| four == b"\r\n\r\n") else {
                        let long = waiting.len() > REQUEST_BYTES_MAX;
                        return if long { Progress::Refused } else { Progress::Wait };
                    };
                    let known =
                        waiting.starts_with(b"POST /connect ") || waiting.starts_with(b"GET /connect ");
                    input.take(end + 4);
                    if !known {
                        out.extend_from_slice(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                        return Progress::Refused;
                    }
                    *self = Greeting::Done;
                }
            }
        }
    }
}

/// The hardware address that a machine gets, or why it gets none.
fn answer_command(command: &[u8; COMMAND_BYTES], terms: &Terms) -> Result<Mac, &'static str> {
    let mut uuid = [0; UUID_BYTES];
    uuid.copy_from_slice(&command[1..=UUID_BYTES]);
    if uuid == [0; UUID_BYTES] {
        // It does not say who it is: it is somebody new each time.
        uuid[..8].copy_from_slice(&terms.serial.to_le_bytes());
    }
    let mac = mac_of(&uuid);
    match (command[0], &terms.identities) {
        (COMMAND_ETHERNET, _) => Ok(mac),
        (COMMAND_PREFERRED_IPV4, Some(identities)) => {
            let [.., d, c, b, a] = *command;
            identities.prefer(&uuid, mac, Ipv4Addr::new(a, b, c, d)).map(|()| mac)
        }
        (COMMAND_PREFERRED_IPV4, None) => Err("addresses are given by DHCP only"),
        _ => Err("this command is not known"),
    }
}

fn accept(out: &mut Vec<u8>, mtu: u16, mac: Mac) {
    let whole = out.len() + REPLY_BYTES;
    out.push(1);
    out.extend_from_slice(&mtu.to_le_bytes());
    out.extend_from_slice(&mtu.saturating_add(PACKET_EXTRA_BYTES).to_le_bytes());
    out.extend_from_slice(&mac);
    out.resize(whole, 0);
}

fn refuse(out: &mut Vec<u8>, reason: &str) {
    let whole = out.len() + REPLY_BYTES;
    out.push(2);
    out.push(reason.len() as u8);
    out.extend_from_slice(reason.as_bytes());
    out.resize(whole, 0);
}

/// The hardware address that goes with a machine's identity: the same for the same, in every run. FNV-1a.
fn mac_of(uuid: &[u8]) -> Mac {
    let hash = uuid.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    [2, a, b, c, d, e]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::Framing;

    fn advance(greeting: &mut Greeting, words: &[u8]) -> (Progress, Vec<u8>) {
        let mut input = Unframer::new(Framing::Le16);
        input.room()[..words.len()].copy_from_slice(words);
        input.filled(words.len());
        let mut out = Vec::new();
        let terms = Terms { mtu: 1500, serial: 1, identities: None };
        (greeting.advance(&mut input, &terms, &mut out), out)
    }

    fn hello(version: u32) -> Vec<u8> {
        [&b"VMN3T"[..], &version.to_le_bytes(), &[0; 40]].concat()
    }

    #[test]
    fn a_client_of_vmnet_gets_the_bytes_that_vpnkit_sends() {
        let mut greeting = Greeting::Hello;
        let command = [&[1][..], b"12345678-1234-1234-1234-123456789abc", &[0; 4]].concat();
        let (progress, out) = advance(&mut greeting, &[hello(22), command].concat());
        assert_eq!(progress, Progress::Ready);
        assert_eq!(out.len(), 49 + 258);
        assert_eq!(out[..9], *b"VMN3T\x16\0\0\0");
        assert_eq!(out[49..54], [1, 0xdc, 5, 0x0e, 6], "type, MTU 1500, packets of 1550");
        assert_eq!(out[54] & 3, 2, "an address of its own, of one station");
        assert!(out[60..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn another_version_gets_our_hello_and_no_more() {
        let (progress, out) = advance(&mut Greeting::Hello, &hello(1));
        assert_eq!((progress, out.len()), (Progress::Refused, 49));
    }

    #[test]
    fn another_command_is_refused_with_a_reason() {
        let (progress, out) = advance(&mut Greeting::Command, &[&[8][..], &[0; 40]].concat());
        assert_eq!((progress, out.len(), out[0]), (Progress::Refused, 258, 2));
    }

    #[test]
    fn a_request_to_connect_is_followed_by_frames() {
        let request = b"POST /connect HTTP/1.1\r\nHost: x\r\n\r\n";
        for cut in 0..request.len() {
            assert_eq!(advance(&mut Greeting::Request, &request[..cut]).0, Progress::Wait, "{cut}");
        }
        assert_eq!(advance(&mut Greeting::Request, request), (Progress::Ready, vec![]));
        assert_eq!(advance(&mut Greeting::Request, b"GET / HTTP/1.1\r\n\r\n").0, Progress::Refused);
    }
}
