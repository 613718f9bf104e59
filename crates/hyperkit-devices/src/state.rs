//! Small pieces of saved state and of configuration space that every device needs.

use hyperkit_bus::RestoreError;

/// Copies what lies at `offset` of a configuration space into `data`; past its end there are zeros.
pub(crate) fn read_config(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(space.len());
    let len = data.len().min(space.len() - start);
    data[..len].copy_from_slice(&space[start..start + len]);
}

/// Takes the version byte off a saved state.
///
/// # Errors
/// [`RestoreError`] when the state is empty or of another version.
pub(crate) fn body<'a>(device: &'static str, version: u8, bytes: &'a [u8]) -> Result<&'a [u8], RestoreError> {
    match bytes.split_first() {
        Some((&found, body)) if found == version => Ok(body),
        Some((&found, _)) => Err(refused(device, format!("version {found} is not {version}"))),
        None => Err(refused(device, "it is empty")),
    }
}

/// Checks that a saved state has exactly `N` bytes after its version.
///
/// # Errors
/// [`RestoreError`] otherwise.
pub(crate) fn exact<const N: usize>(
    device: &'static str,
    version: u8,
    bytes: &[u8],
) -> Result<[u8; N], RestoreError> {
    let body = body(device, version, bytes)?;
    body.try_into().map_err(|_| refused(device, format!("{} bytes are not {N}", body.len())))
}

/// Why a saved state is refused.
pub(crate) fn refused(device: &'static str, why: impl Into<String>) -> RestoreError {
    RestoreError { device, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_reads_as_zero_past_its_end() {
        let mut data = [0xff; 4];
        read_config(&[1, 2, 3], 2, &mut data);
        assert_eq!(data, [3, 0, 0, 0]);
        read_config(&[1, 2, 3], u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }

    #[test]
    fn state_of_another_version_or_length_is_refused() {
        assert_eq!(exact::<1>("x", 1, &[1, 9]), Ok([9]));
        for bytes in [&[][..], &[2, 9], &[1], &[1, 9, 9]] {
            assert!(exact::<1>("x", 1, bytes).is_err(), "{bytes:?}");
        }
    }
}
