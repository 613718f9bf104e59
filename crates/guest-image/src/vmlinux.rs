//! Takes the ELF kernel out of a bzImage, so that the guest need not decompress it.
//!
//! Spec: `Documentation/arch/x86/boot.rst` of Linux, setup header of protocol 2.08 and later.

use std::io::Read;

use crate::error::{BuildError, malformed};

/// Largest kernel that is accepted, in bytes.
const KERNEL_BYTES_MAX: u64 = 1 << 30;

/// Returns the ELF image inside a bzImage.
///
/// # Errors
/// [`BuildError::Malformed`] for what is no bzImage, [`BuildError::Unsupported`] for a compression that is not known.
pub fn extract(bz_image: &[u8]) -> Result<Vec<u8>, BuildError> {
    let what = "the kernel image";
    let word = |offset: usize| {
        bz_image
            .get(offset..offset + 4)
            .map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    };
    if bz_image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(malformed(what, "it has no boot header"));
    }
    let version = u16::from_le_bytes([bz_image[0x206], *bz_image.get(0x207).unwrap_or(&0)]);
    if version < 0x208 {
        return Err(BuildError::Unsupported {
            what: what.to_owned(),
            reason: format!("boot protocol {version:#x} tells no payload"),
        });
    }
    let setup_sectors = match bz_image[0x1f1] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let (Some(offset), Some(length)) = (word(0x248), word(0x24c)) else {
        return Err(malformed(what, "its boot header is cut short"));
    };
    let start = (setup_sectors + 1) * 512 + offset as usize;
    let payload = bz_image.get(start..start + (length as usize)).filter(|payload| payload.len() > 4);
    let payload = payload.ok_or_else(|| malformed(what, "its payload lies outside the file"))?;
    let elf = decompress(payload)?;
    if elf.starts_with(b"\x7fELF") { Ok(elf) } else { Err(malformed(what, "its payload is no ELF file")) }
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, BuildError> {
    // Four bytes with the uncompressed size follow the compressed stream (gzip has them inside): decoders stop before.
    match *payload {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(liblzma::read::XzDecoder::new(payload)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => read(
            zstd::Decoder::new(payload)
                .map_err(|error| malformed("the kernel's payload", error))?
                .single_frame(),
        ),
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(payload)),
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_legacy(&payload[4..]),
        [0x7f, b'E', b'L', b'F', ..] => Ok(payload.to_vec()),
        _ => Err(BuildError::Unsupported {
            what: "the kernel's compression".to_owned(),
            reason: format!("its magic is {:02x?}", &payload[..4]),
        }),
    }
}

fn read(mut decoder: impl Read) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    let n = decoder
        .by_ref()
        .take(KERNEL_BYTES_MAX)
        .read_to_end(&mut bytes)
        .map_err(|error| malformed("the kernel's payload", error))?;
    if n as u64 == KERNEL_BYTES_MAX {
        Err(malformed("the kernel's payload", "it is larger than 1 GiB"))
    } else {
        Ok(bytes)
    }
}

/// Blocks of up to 8 MiB, each behind its compressed length. Spec: lz4_Frame_format.md, "Legacy frame".
fn lz4_legacy(mut rest: &[u8]) -> Result<Vec<u8>, BuildError> {
    const BLOCK_BYTES: usize = 8 << 20;
    let mut bytes = Vec::new();
    let mut block = vec![0; BLOCK_BYTES];
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((compressed, after)) = after.split_at_checked(length) else { break };
        let n = lz4_flex::block::decompress_into(compressed, &mut block)
            .map_err(|error| malformed("the kernel's payload", error))?;
        bytes.extend_from_slice(&block[..n]);
        if bytes.len() as u64 > KERNEL_BYTES_MAX {
            return Err(malformed("the kernel's payload", "it is larger than 1 GiB"));
        }
        rest = after;
    }
    Ok(bytes)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000_u32).flat_map(|word| (word / 7).to_le_bytes()));
        elf
    }

    /// A boot image around a payload.
    pub(crate) fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 + 16];
        image[0x1f1] = 1;
        image[0x202..0x208].copy_from_slice(b"HdrS\x0f\x02");
        image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32 + 4).to_le_bytes());
        image.extend(payload);
        image.extend(elf().len().to_le_bytes());
        image
    }

    #[test]
    fn every_compression_of_debian_and_ubuntu_is_undone() {
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&elf()).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        let block = lz4_flex::block::compress(&elf());
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18][..], &(block.len() as u32).to_le_bytes(), &block].concat();
        for payload in
            [xz.finish().unwrap(), gzip.finish().unwrap(), zstd::encode_all(&elf()[..], 1).unwrap(), lz4]
        {
            assert!(extract(&bz_image(&payload)).unwrap() == elf(), "{:02x?}", &payload[..4]);
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(extract(b"\xff\xd8\xff\xe0 a JPEG"), Err(BuildError::Malformed { .. })));
        assert!(matches!(extract(&bz_image(b"LZO\0 unknown")), Err(BuildError::Unsupported { .. })));
        let mut cut = bz_image(&zstd::encode_all(&elf()[..], 1).unwrap());
        cut.truncate(2000);
        assert!(matches!(extract(&cut), Err(BuildError::Malformed { .. })));
    }
}
