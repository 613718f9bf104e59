//! The server name in a TLS ClientHello: read, never changed.
//!
//! Spec: RFC 8446 §4.1.2 and §5.1, RFC 6066 §3. The hello may be spread over several records.

/// Most bytes of a hello that are looked at.
pub const HELLO_BYTES_MAX: usize = 16 << 10;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;

/// What the beginning of a connection says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hello {
    /// It is for this host.
    Name(String),
    /// It names nobody, or is no hello at all.
    Nameless,
    /// More bytes are needed to tell.
    Incomplete,
}

/// Looks at the first bytes of a connection. Never [`Hello::Incomplete`] from [`HELLO_BYTES_MAX`] bytes on.
pub fn look(bytes: &[u8]) -> Hello {
    match name(bytes) {
        Ok(Some(name)) => Hello::Name(name),
        Ok(None) => Hello::Nameless,
        Err(Short) if bytes.len() < HELLO_BYTES_MAX => Hello::Incomplete,
        Err(Short) => Hello::Nameless,
    }
}

/// The bytes end too soon.
struct Short;

fn name(bytes: &[u8]) -> Result<Option<String>, Short> {
    let mut records = Cursor(bytes);
    let mut handshake = Vec::new();
    loop {
        if records.u8()? != RECORD_HANDSHAKE || records.u16()? >> 8 != 3 {
            return Ok(None);
        }
        let length = usize::from(records.u16()?);
        let is_whole = records.0.len() >= length;
        handshake.extend_from_slice(&records.0[..length.min(records.0.len())]);
        match Message::of(&handshake) {
            Message::Hello(body) => return Ok(server_name(body)),
            Message::Other => return Ok(None),
            Message::Part if is_whole && length > 0 => records.0 = &records.0[length..],
            Message::Part if length == 0 => return Ok(None),
            Message::Part => return Err(Short),
        }
    }
}

enum Message<'a> {
    Hello(&'a [u8]),
    Other,
    Part,
}

impl<'a> Message<'a> {
    fn of(handshake: &'a [u8]) -> Self {
        match handshake {
            [] => Self::Part,
            [kind, ..] if *kind != CLIENT_HELLO => Self::Other,
            [_, high, middle, low, rest @ ..] => {
                let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
                if length > HELLO_BYTES_MAX {
                    return Self::Other;
                }
                rest.get(..length).map_or(Self::Part, Self::Hello)
            }
            _ => Self::Part,
        }
    }
}

/// A hello that is cut off or malformed inside names nobody.
fn server_name(body: &[u8]) -> Option<String> {
    find_name(body).ok().flatten()
}

fn find_name(body: &[u8]) -> Result<Option<String>, Short> {
    let mut hello = Cursor(body);
    // legacy_version and random; session id, cipher suites, compression methods.
    hello.take(34)?;
    let session = usize::from(hello.u8()?);
    hello.take(session)?;
    let suites = usize::from(hello.u16()?);
    hello.take(suites)?;
    let methods = usize::from(hello.u8()?);
    hello.take(methods)?;
    let length = usize::from(hello.u16()?);
    let mut extensions = Cursor(hello.take(length)?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = usize::from(extensions.u16()?);
        let mut extension = Cursor(extensions.take(length)?);
        if kind == EXTENSION_SERVER_NAME {
            extension.u16()?;
            if extension.u8()? != NAME_HOST {
                return Ok(None);
            }
            let length = usize::from(extension.u16()?);
            return Ok(host_name(extension.take(length)?));
        }
    }
    Ok(None)
}

/// A name that may go into a request line.
fn host_name(bytes: &[u8]) -> Option<String> {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(byte);
    let name = std::str::from_utf8(bytes).ok()?.trim_end_matches('.');
    (!name.is_empty() && name.len() <= 253 && bytes.iter().all(good)).then(|| name.to_ascii_lowercase())
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Short> {
        let (front, rest) = self.0.split_at_checked(count).ok_or(Short)?;
        self.0 = rest;
        Ok(front)
    }

    fn u8(&mut self) -> Result<u8, Short> {
        self.take(1).map(|bytes| bytes[0])
    }

    fn u16(&mut self) -> Result<u16, Short> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A hello for `name`, in records of at most `record` bytes.
    fn hello(name: &str, record: usize) -> Vec<u8> {
        let mut extension = vec![0, 0];
        extension.extend((name.len() as u16 + 5).to_be_bytes());
        extension.extend((name.len() as u16 + 3).to_be_bytes());
        extension.push(0);
        extension.extend((name.len() as u16).to_be_bytes());
        extension.extend(name.as_bytes());
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([2, 1, 1, 0, 2, 0x13, 0x01, 1, 0]);
        // An extension that is not ours, then ours.
        body.extend((extension.len() as u16 + 6).to_be_bytes());
        body.extend([0, 10, 0, 2, 0, 0]);
        body.extend(extension);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
            .chunks(record)
            .flat_map(|part| {
                let mut record = vec![22, 3, 1];
                record.extend((part.len() as u16).to_be_bytes());
                record.extend(part);
                record
            })
            .collect()
    }

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        for record in [1, 7, 4000] {
            let bytes = hello("Example.com", record);
            assert_eq!(look(&bytes), Hello::Name("example.com".into()), "records of {record}");
            for end in 0..bytes.len() {
                assert_eq!(look(&bytes[..end]), Hello::Incomplete, "records of {record}, {end} bytes");
            }
        }
    }

    #[test]
    fn names_that_could_break_a_request_are_no_names() {
        for name in ["a b", "a\r\nX: y", "", "ex/ample"] {
            assert_eq!(look(&hello(name, 4000)), Hello::Nameless, "{name:?}");
        }
    }

    #[test]
    fn what_is_no_hello_is_known_at_once() {
        assert_eq!(look(b"GET / HTTP/1.1\r\n"), Hello::Nameless);
        assert_eq!(look(b"SSH-2.0-OpenSSH\r\n"), Hello::Nameless);
        assert_eq!(look(&[22, 3, 1, 0, 0]), Hello::Nameless);
        assert_eq!(look(&[22, 3, 1, 0, 4, 2, 0, 0, 0]), Hello::Nameless);
        assert_eq!(look(&[22, 3, 1, 0xff]), Hello::Incomplete);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_enough_of_them_decide(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0usize..400) {
            let _ = look(&bytes);
            let mut long = hello("example.com", 16);
            let end = cut.min(long.len());
            long.truncate(end);
            long.extend(&bytes);
            let _ = look(&long);
            long.resize(HELLO_BYTES_MAX, 0);
            prop_assert_ne!(look(&long), Hello::Incomplete);
        }
    }
}
