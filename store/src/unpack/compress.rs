//! Detects how a layer is compressed, compares it with the media type, and decompresses it.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;

use oras_csi_core::display::Shown;
use oras_csi_core::media_type::essence;

use super::gzip::GzipMembers;
use super::zstd_windows::{WindowMemory, ZstdWindows};

/// The compression of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    /// Not compressed.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    /// Returns the compression that a media type declares, or `None` if it declares none, as plain tar types do.
    pub(crate) fn declared(media_type: &str) -> Option<Self> {
        let essence = essence(media_type);
        let ends = |endings: &[&str]| endings.iter().any(|ending| essence.ends_with(ending));
        if ends(&["+gzip", ".gzip", "tar.gz", ".tgz", "/gzip", "/x-gzip", "+gz"]) {
            Some(Self::Gzip)
        } else if ends(&["+zstd", ".zstd", "/zstd"]) {
            Some(Self::Zstd)
        } else {
            None
        }
    }

    /// Detects the compression from the first bytes.
    pub(crate) fn from_magic(bytes: &[u8]) -> Self {
        match bytes {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::None => "neither gzip nor zstd",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }
}

/// Why the stream of a layer cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum CompressionError {
    /// The media type and the content differ.
    #[error(
        "the layer's media type \"{media_type}\" says {declared}, but its content is {found}. Push it again with the right media type"
    )]
    Mismatch {
        /// The media type.
        media_type: Shown,
        /// The compression that it declares.
        declared: &'static str,
        /// The compression of the content.
        found: &'static str,
    },
    /// Reading the stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A zstd frame that needs more memory than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the layer was compressed with a zstd window of more than {} MiB, the limit. Compress it without --ultra or --long",
    1_u64 << (.limit - 20)
)]
pub struct WindowTooLarge {
    limit: u32,
}

/// Recognizes the error of the zstd decoder that the user can fix.
struct WindowErrorReader<R> {
    decoder: R,
    limit: u32,
}

impl<R: Read> Read for WindowErrorReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(into).map_err(|error| {
            // The zstd crate returns only the text of the error and not its code.
            if error.to_string().contains("too much memory") {
                io::Error::other(WindowTooLarge { limit: self.limit })
            } else {
                error
            }
        })
    }
}

/// Opens the uncompressed stream of a layer.
///
/// Reading fails if a zstd frame needs a larger window than `window_log`. Waits for `memory` before a large window is
/// allocated.
pub(crate) fn open<'a, R: BufRead + 'a>(
    mut input: R,
    media_type: &str,
    window_log: u32,
    memory: Option<Arc<dyn WindowMemory>>,
) -> Result<Box<dyn BufRead + 'a>, CompressionError> {
    const BUFFER: usize = 256 << 10;
    let mut begin = Vec::with_capacity(4);
    input.by_ref().take(4).read_to_end(&mut begin)?;
    let found = Compression::from_magic(&begin);
    // Some tools push a layer without changes as no bytes at all, which is an empty archive in every compression.
    if let Some(declared) = Compression::declared(media_type)
        && declared != found
        && !begin.is_empty()
    {
        return Err(CompressionError::Mismatch {
            media_type: media_type.into(),
            declared: declared.name(),
            found: found.name(),
        });
    }
    let whole = io::Cursor::new(begin).chain(input);
    Ok(match found {
        Compression::None => Box::new(whole),
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, GzipMembers::new(whole))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(ZstdWindows::new(whole, memory))?;
            decoder.window_log_max(window_log)?;
            Box::new(BufReader::with_capacity(BUFFER, WindowErrorReader { decoder, limit: window_log }))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rstest::rstest;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], media_type: &str, window_log: u32) -> Result<Vec<u8>, CompressionError> {
        let mut plain = Vec::new();
        open(bytes, media_type, window_log, None)?.read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[rstest]
    #[case("application/vnd.oci.image.layer.v1.tar", None)]
    #[case("application/vnd.oci.image.layer.v1.tar+gzip", Some(Compression::Gzip))]
    #[case("Application/X.TAR+ZSTD; a=b", Some(Compression::Zstd))]
    #[case("application/vnd.docker.image.rootfs.diff.tar.gzip", Some(Compression::Gzip))]
    #[case("application/gzip", Some(Compression::Gzip))]
    #[case("", None)]
    fn media_types(#[case] media_type: &str, #[case] declared: Option<Compression>) {
        assert_eq!(Compression::declared(media_type), declared);
    }

    #[test]
    fn detects_the_compression_if_the_media_type_declares_none() {
        let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
        let two = [gzip(b"hel"), gzip(b"lo")].concat();
        for bytes in [&b"hello"[..], &gzip(b"hello"), &two, &zstd] {
            assert_eq!(read(bytes, "application/x-tar", 27).unwrap(), b"hello");
        }
        assert_eq!(read(b"", "application/x-tar", 27).unwrap(), b"");
        assert_eq!(read(b"hi", "application/x-tar", 27).unwrap(), b"hi");
    }

    #[test]
    fn rejects_content_that_differs_from_the_media_type() {
        let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
        for (bytes, media_type) in [
            (&b"hello"[..], "application/gzip"),
            (&zstd[..], "x/tar+gzip"),
            (&gzip(b"hello")[..], "x/tar+zstd"),
        ] {
            assert!(matches!(read(bytes, media_type, 27), Err(CompressionError::Mismatch { .. })));
        }
    }

    #[test]
    fn truncated_streams_and_trailing_garbage_fail() {
        let whole = gzip(&vec![7; 100_000]);
        assert!(read(&whole[..whole.len() - 4], "application/gzip", 27).is_err());
        assert!(read(&[&whole[..], b"garbage"].concat(), "application/gzip", 27).is_err());
    }

    #[test]
    fn zeros_behind_gzip_are_ignored_and_behind_zstd_fail() {
        let two = [gzip(b"hel"), gzip(b"lo")].concat();
        let zstd = zstd::encode_all(&b"hello"[..], 1).unwrap();
        for count in [1, 511, 300_000] {
            let zeros = vec![0; count];
            assert_eq!(read(&[&two[..], &zeros].concat(), "application/gzip", 27).unwrap(), b"hello");
            assert!(read(&[&zstd[..], &zeros].concat(), "x/tar+zstd", 27).is_err());
            // Neither a member nor anything else follows the zeros.
            for other in [&gzip(b"!")[..], b"x"] {
                assert!(read(&[&two[..], &zeros, other].concat(), "application/gzip", 27).is_err());
            }
        }
    }

    #[test]
    fn a_zstd_window_above_the_limit_fails() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(25).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&vec![1; 40 << 20]).unwrap();
        let bytes = encoder.finish().unwrap();
        assert!(read(&bytes, "x/tar+zstd", 27).is_ok());
        assert!(read(&bytes, "x/tar+zstd", 24).is_err());
    }
}
