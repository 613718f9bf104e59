//! NTP, as far as a server needs it whose clock others keep right. Spec: RFC 5905 §7.3, §8 (server mode).

use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of a message without extensions.
pub const MESSAGE_BYTES: usize = 48;
/// Seconds from NTP's epoch, 1900, to Unix's.
const EPOCH_SECONDS: u64 = 2_208_988_800;
/// Two, as of a server that has its time from elsewhere: the host's clock is kept right by others.
const STRATUM: u8 = 2;
/// Microseconds, about: 2^-20 s.
const PRECISION: i8 = -20;
/// What a server says that has its time from its own clock.
const REFERENCE: [u8; 4] = [127, 127, 1, 0];
const MODE_CLIENT: u8 = 3;
const MODE_SERVER: u8 = 4;

/// The answer to a client whose request was received at one time of the server's clock and is answered at another; `None`
/// when the bytes are no request of a client: short, of another mode, or of a version other than 1 to 4.
pub fn answer(request: &[u8], received: SystemTime, sent: SystemTime) -> Option<[u8; MESSAGE_BYTES]> {
    let request: &[u8; MESSAGE_BYTES] = request.get(..MESSAGE_BYTES)?.try_into().ok()?;
    let (version, mode) = (request[0] >> 3 & 7, request[0] & 7);
    if mode != MODE_CLIENT || !(1..=4).contains(&version) {
        return None;
    }
    let mut out = [0; MESSAGE_BYTES];
    out[0] = version << 3 | MODE_SERVER;
    out[1] = STRATUM;
    out[2] = request[2];
    out[3] = PRECISION.cast_unsigned();
    // Delay and dispersion to the reference: a millisecond of 2^-16 s each.
    out[7] = 66;
    out[11] = 66;
    out[12..16].copy_from_slice(&REFERENCE);
    out[16..24].copy_from_slice(&timestamp(received));
    out[24..32].copy_from_slice(&request[40..48]);
    out[32..40].copy_from_slice(&timestamp(received));
    out[40..48].copy_from_slice(&timestamp(sent));
    Some(out)
}

/// 32 bits of seconds, which wrap in 2036 as they are to, and 32 of their parts.
fn timestamp(time: SystemTime) -> [u8; 8] {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().wrapping_add(EPOCH_SECONDS);
    let parts = (u64::from(since.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32 | parts).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_client_gets_its_own_time_back_and_ours() {
        let mut request = [0; MESSAGE_BYTES];
        request[0] = 4 << 3 | 3;
        request[40..48].copy_from_slice(b"whatever");
        let at = UNIX_EPOCH + Duration::from_millis(1_500);
        let out = answer(&request, at, at).unwrap();
        assert_eq!(out[..4], [0x24, 2, 0, 0xec]);
        assert_eq!(&out[24..32], b"whatever");
        assert_eq!(out[40..48], [0x83, 0xaa, 0x7e, 0x81, 0x80, 0, 0, 0]);
        request[0] = 4 << 3 | 4;
        assert_eq!(answer(&request, at, at), None, "a server is not answered");
        assert_eq!(answer(&request[..47], at, at), None);
    }
}
