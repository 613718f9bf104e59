//! Checked little-endian cursors over the bytes of one message.
//!
//! [`Reader`] never reads past its slice and [`Writer`] never past its buffer: both return a [`WireError`]
//! instead. No allocation, no I/O. Spec: intro(5), "numbers are little-endian, strings are `n[2] bytes[n]`".

use crate::message::Dialect;

/// Why bytes are not a message, or a message does not fit into its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum WireError {
    #[error("message ends {missing} bytes early")]
    Truncated { missing: usize },
    #[error("message says it has {said} bytes and has {actual}")]
    SizeMismatch { said: u32, actual: usize },
    #[error("{extra} bytes follow the last field")]
    TrailingBytes { extra: usize },
    #[error("message type {code} is not one of {dialect:?}")]
    UnknownType { code: u8, dialect: Dialect },
    #[error("message of {needed} bytes does not fit into {room}")]
    NoRoom { needed: usize, room: usize },
    #[error("string of {bytes} bytes is longer than 65535")]
    StringTooLong { bytes: usize },
    #[error("walk of {count} names is longer than 16")]
    TooManyNames { count: usize },
}

/// Reads fields from the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    dialect: Dialect,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub fn new(bytes: &'a [u8], dialect: Dialect) -> Self {
        Self { rest: bytes, dialect }
    }

    /// The dialect, on which the presence of some fields depends.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.rest.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes the next `count` bytes.
    ///
    /// # Errors
    /// [`WireError::Truncated`] when fewer are left.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(WireError::Truncated { missing: count - self.rest.len() }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        match self.rest.split_first_chunk::<N>() {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(*taken)
            }
            None => Err(WireError::Truncated { missing: N - self.rest.len() }),
        }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`WireError::TrailingBytes`].
    pub fn finish(self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(WireError::TrailingBytes { extra }),
        }
    }
}

/// Writes fields one after the other into a buffer of fixed size.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    len: usize,
    dialect: Dialect,
}

impl<'a> Writer<'a> {
    /// Starts at the first byte of `buffer`.
    pub fn new(buffer: &'a mut [u8], dialect: Dialect) -> Self {
        Self { buffer, len: 0, dialect }
    }

    /// The dialect, on which the presence of some fields depends.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can still be written.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.len
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`WireError::NoRoom`] when they do not fit; nothing is written then.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), WireError> {
        let no_room = WireError::NoRoom { needed: self.len + bytes.len(), room: self.buffer.len() };
        self.buffer[self.len..].get_mut(..bytes.len()).ok_or(no_room)?.copy_from_slice(bytes);
        self.len += bytes.len();
        Ok(())
    }

    /// The bytes not yet written, to be filled by a read; [`Writer::advance`] then takes what was filled.
    pub fn unwritten(&mut self) -> &mut [u8] {
        &mut self.buffer[self.len..]
    }

    /// Takes `count` bytes of [`Writer::unwritten`] as written; more than there are is all of them.
    pub fn advance(&mut self, count: usize) {
        self.len += count.min(self.room());
    }

    /// Replaces bytes already written at `offset`.
    ///
    /// # Panics
    /// When `offset + bytes.len()` is more than was written: a bug of the caller.
    pub fn patch(&mut self, offset: usize, bytes: &[u8]) {
        self.buffer[..self.len][offset..offset + bytes.len()].copy_from_slice(bytes);
    }
}

/// A value with one encoding in a message.
pub trait Field<'a>: Sized {
    /// Takes the value from the front of `reader`.
    ///
    /// # Errors
    /// [`WireError`] when the bytes are not such a value.
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError>;

    /// Appends the value to `writer`.
    ///
    /// # Errors
    /// [`WireError`] when it does not fit.
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError>;
}

macro_rules! integer_field {
    ($($integer:ty),*) => {$(
        impl Field<'_> for $integer {
            fn parse(reader: &mut Reader<'_>) -> Result<Self, WireError> {
                Ok(Self::from_le_bytes(reader.array()?))
            }
            fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
                writer.bytes(&self.to_le_bytes())
            }
        }
    )*};
}
integer_field!(u8, u16, u32, u64);

/// A string: `n[2]` and that many bytes. File names are bytes on Linux, so this is not `str`.
impl<'a> Field<'a> for &'a [u8] {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u16::parse(reader)?;
        reader.bytes(count.into())
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        let too_long = WireError::StringTooLong { bytes: self.len() };
        u16::try_from(self.len()).map_err(|_| too_long)?.emit(writer)?;
        writer.bytes(self)
    }
}

/// The payload of a read, write or readdir: `count[4]` and that many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload<'a>(pub &'a [u8]);

impl<'a> Field<'a> for Payload<'a> {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = u32::parse(reader)?;
        // A count that no slice can have is as truncated as any other.
        reader.bytes(usize::try_from(count).unwrap_or(usize::MAX)).map(Self)
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        let no_room = WireError::NoRoom { needed: self.0.len(), room: writer.room() };
        u32::try_from(self.0.len()).map_err(|_| no_room)?.emit(writer)?;
        writer.bytes(self.0)
    }
}

/// Up to `N` small values with their count in two bytes before them; `N` is 16 in Twalk and Rwalk.
#[derive(Debug, Clone, Copy)]
pub struct List<T, const N: usize> {
    items: [T; N],
    len: usize,
}

impl<T: Copy + Default, const N: usize> List<T, N> {
    /// An empty list.
    pub fn new() -> Self {
        Self { items: [T::default(); N], len: 0 }
    }

    /// A list of these items.
    ///
    /// # Errors
    /// [`WireError::TooManyNames`] when there are more than `N`.
    pub fn from_slice(items: &[T]) -> Result<Self, WireError> {
        let mut list = Self::new();
        items.iter().try_for_each(|item| list.push(*item))?;
        Ok(list)
    }

    /// Appends `item`.
    ///
    /// # Errors
    /// [`WireError::TooManyNames`] when there are `N` already.
    pub fn push(&mut self, item: T) -> Result<(), WireError> {
        let too_many = WireError::TooManyNames { count: self.len + 1 };
        *self.items.get_mut(self.len).ok_or(too_many)? = item;
        self.len += 1;
        Ok(())
    }
}

impl<T: Copy + Default, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> std::ops::Deref for List<T, N> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.items[..self.len]
    }
}

impl<T: PartialEq, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq, const N: usize> Eq for List<T, N> {}

impl<'a, T: Field<'a> + Copy + Default, const N: usize> Field<'a> for List<T, N> {
    fn parse(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        let count = usize::from(u16::parse(reader)?);
        if count > N {
            return Err(WireError::TooManyNames { count });
        }
        let mut list = Self::new();
        for _ in 0..count {
            list.push(T::parse(reader)?)?;
        }
        Ok(list)
    }
    fn emit(&self, writer: &mut Writer<'_>) -> Result<(), WireError> {
        let count = u16::try_from(self.len).map_err(|_| WireError::TooManyNames { count: self.len })?;
        count.emit(writer)?;
        self.iter().try_for_each(|item| item.emit(writer))
    }
}
