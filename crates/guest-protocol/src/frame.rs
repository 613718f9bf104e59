//! Framing of control messages: a little-endian `u32` length, then that many bytes of JSON.

use std::io::{Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Longest message in bytes: a command line of Linux's own limit (2 MiB) fits, spelt as JSON numbers.
pub const MESSAGE_BYTES_MAX: u32 = 16 << 20;

/// Why a message could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed or ended inside a message.
    #[error("the control stream failed")]
    Io(#[from] std::io::Error),
    /// A length beyond [`MESSAGE_BYTES_MAX`].
    #[error("a control message of {0} bytes is too long")]
    TooLong(u32),
    /// Not a message of this protocol.
    #[error("a control message is not understood")]
    Json(#[from] serde_json::Error),
}

/// Writes one message.
///
/// # Errors
/// [`FrameError::Io`] when the stream fails, [`FrameError::TooLong`] when the message does not fit a frame.
pub fn write<T: Serialize>(stream: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if len > MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLong(len));
    }
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(body);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}

/// Reads one message; `None` at the end of the stream.
///
/// # Errors
/// [`FrameError`]; the stream is then of no further use.
pub fn read<T: DeserializeOwned>(stream: &mut impl Read) -> Result<Option<T>, FrameError> {
    let mut len = [0; 4];
    if stream.read(&mut len[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut len[1..])?;
    let len = u32::from_le_bytes(len);
    if len > MESSAGE_BYTES_MAX {
        return Err(FrameError::TooLong(len));
    }
    let mut body = Vec::new();
    stream.take(u64::from(len)).read_to_end(&mut body)?;
    if body.len() as u32 != len {
        return Err(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(Some(serde_json::from_slice(&body)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FromGuest, ToGuest};

    #[test]
    fn messages_come_back_in_order() {
        let mut bytes = Vec::new();
        write(&mut bytes, &ToGuest::Signal(2)).unwrap();
        write(&mut bytes, &ToGuest::PowerOff).unwrap();
        let mut stream = &bytes[..];
        assert_eq!(read(&mut stream).unwrap(), Some(ToGuest::Signal(2)));
        assert_eq!(read(&mut stream).unwrap(), Some(ToGuest::PowerOff));
        assert_eq!(read::<ToGuest>(&mut stream).unwrap(), None);
    }

    #[test]
    fn a_huge_length_is_refused_before_anything_is_allocated() {
        let result = read::<FromGuest>(&mut &u32::MAX.to_le_bytes()[..]);
        assert!(matches!(result, Err(FrameError::TooLong(u32::MAX))));
    }

    #[test]
    fn a_message_cut_short_is_an_error() {
        assert!(matches!(read::<FromGuest>(&mut &[9, 0, 0, 0, b'"'][..]), Err(FrameError::Io(_))));
    }
}
