//! Follows the frames of a zstd stream, and asks for memory before the decoder allocates the window of a frame.
//!
//! A frame says in its header how much of the content the decoder must keep: 8 MiB at the usual levels, up to the limit of
//! 128 MiB at the highest. An archive that is being downloaded keeps its decoder, also while it waits for its turn. So
//! the memory of large windows is limited for each namespace, and a frame waits until there is enough.
//!
//! The format is that of RFC 8878, section 3.1. What is malformed is passed on, and the decoder rejects it.

use std::fmt;
use std::io::{self, BufRead, Read};
use std::sync::Arc;

/// Windows of at most this size need no permit.
const FREE_WINDOW: u64 = 8 << 20;
const MAGIC: u32 = 0xfd2f_b528;
const SKIPPABLE: u32 = 0x184d_2a50;
const SKIPPABLE_MASK: u32 = 0xffff_fff0;
const CHECKSUM_BYTES: u64 = 4;
const BLOCK_HEADER: usize = 3;
const RLE: u32 = 1;

/// Memory for the windows of decoders.
pub(crate) trait WindowMemory: fmt::Debug + Send + Sync {
    /// Waits until a window of this size may be allocated. Dropping the result releases the memory. Blocks.
    fn reserve(&self, bytes: u64) -> Box<dyn Send>;

    /// Returns a permission to keep the names of one image in memory, unless too many images are being written. Does not
    /// wait: without an image, the archive is unpacked into files. Dropping the result ends it.
    fn try_image(&self) -> Option<Box<dyn Send>>;
}

/// The compressed stream of a layer.
pub(crate) struct ZstdWindows<R> {
    input: R,
    memory: Option<Arc<dyn WindowMemory>>,
    /// The memory of the largest window so far: the decoder keeps it for the next frames.
    reserved: Option<(u64, Box<dyn Send>)>,
    state: State,
    /// A header that is being collected, and how much of it was passed on.
    header: Vec<u8>,
    passed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The header of a frame is being collected.
    FrameHeader,
    /// The header of a block is being collected. The frame has a checksum at its end, or not.
    BlockHeader { has_checksum: bool },
    /// So many bytes are passed on before the next header.
    Content { left: u64, next: Next },
    /// The stream is malformed, and passed on to the decoder.
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Frame,
    Block { has_checksum: bool },
}

/// What the first bytes of a frame say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FrameHeader {
    /// The header needs so many bytes.
    Incomplete(usize),
    Frame {
        window: u64,
        has_checksum: bool,
    },
    Skippable {
        length: u64,
    },
    Malformed,
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl FrameHeader {
    fn parse(bytes: &[u8]) -> Self {
        let Some((magic, rest)) = bytes.split_at_checked(4) else { return Self::Incomplete(4) };
        let magic = u32::try_from(little_endian(magic)).unwrap_or_default();
        if magic & SKIPPABLE_MASK == SKIPPABLE {
            return match rest.get(..4) {
                Some(length) => Self::Skippable { length: little_endian(length) },
                None => Self::Incomplete(8),
            };
        }
        if magic != MAGIC {
            return Self::Malformed;
        }
        let Some(descriptor) = rest.first() else { return Self::Incomplete(5) };
        let is_single_segment = descriptor & 0x20 != 0;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let size_bytes = match descriptor >> 6 {
            0 => usize::from(is_single_segment),
            flag => 1 << flag,
        };
        let length = 5 + usize::from(!is_single_segment) + dictionary + size_bytes;
        if bytes.len() < length {
            return Self::Incomplete(length);
        }
        let window = if is_single_segment {
            let size = little_endian(&bytes[length - size_bytes..length]);
            if size_bytes == 2 { size + 256 } else { size }
        } else {
            let (exponent, mantissa) = (bytes[5] >> 3, u64::from(bytes[5] & 7));
            let base = 1_u64 << (10 + exponent);
            base + base / 8 * mantissa
        };
        Self::Frame { window, has_checksum: descriptor & 4 != 0 }
    }
}

impl<R: BufRead> ZstdWindows<R> {
    pub(crate) fn new(input: R, memory: Option<Arc<dyn WindowMemory>>) -> Self {
        Self { input, memory, reserved: None, state: State::FrameHeader, header: Vec::new(), passed: 0 }
    }

    /// Reserves the memory of a window. `limit` is the largest window that the decoder accepts.
    fn reserve(&mut self, window: u64) {
        let known = self.reserved.as_ref().map_or(FREE_WINDOW, |(bytes, _)| *bytes);
        let Some(memory) = &self.memory else { return };
        if window > known {
            // Released first: a decoder that waits with one window for a larger one could wait for itself.
            self.reserved = None;
            self.reserved = Some((window, memory.reserve(window)));
        }
    }

    /// Collects the next header to its end. Returns `false` at the end of the input.
    fn collect(&mut self, length: usize) -> io::Result<bool> {
        while self.header.len() < length {
            let piece = self.input.fill_buf()?;
            let count = piece.len().min(length - self.header.len());
            if count == 0 {
                return Ok(false);
            }
            self.header.extend_from_slice(&piece[..count]);
            self.input.consume(count);
        }
        Ok(true)
    }

    /// Reads the next header, if one is next.
    fn advance(&mut self) -> io::Result<()> {
        self.header.clear();
        self.passed = 0;
        match self.state {
            State::FrameHeader => loop {
                let is_complete = match FrameHeader::parse(&self.header) {
                    FrameHeader::Incomplete(length) => self.collect(length)?,
                    FrameHeader::Frame { window, has_checksum } => {
                        self.reserve(window);
                        self.state = State::BlockHeader { has_checksum };
                        return Ok(());
                    }
                    FrameHeader::Skippable { length } => {
                        self.state = State::Content { left: length, next: Next::Frame };
                        return Ok(());
                    }
                    FrameHeader::Malformed => false,
                };
                if !is_complete {
                    self.state = State::Malformed;
                    return Ok(());
                }
            },
            State::BlockHeader { has_checksum } => {
                if !self.collect(BLOCK_HEADER)? {
                    self.state = State::Malformed;
                    return Ok(());
                }
                let header = u32::try_from(little_endian(&self.header)).unwrap_or_default();
                let (is_last, kind, size) = (header & 1 != 0, header >> 1 & 3, u64::from(header >> 3));
                let mut left = if kind == RLE { 1 } else { size };
                let next = if is_last { Next::Frame } else { Next::Block { has_checksum } };
                if is_last && has_checksum {
                    left += CHECKSUM_BYTES;
                }
                self.state = State::Content { left, next };
            }
            State::Content { .. } | State::Malformed => {}
        }
        Ok(())
    }
}

impl<R: BufRead> Read for ZstdWindows<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.fill_buf()?;
        let count = piece.len().min(into.len());
        into[..count].copy_from_slice(&piece[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for ZstdWindows<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        loop {
            if self.passed < self.header.len() {
                return Ok(&self.header[self.passed..]);
            }
            match self.state {
                State::Content { left: 0, next } => {
                    self.state = match next {
                        Next::Frame => State::FrameHeader,
                        Next::Block { has_checksum } => State::BlockHeader { has_checksum },
                    };
                }
                State::Content { left, .. } => {
                    let piece = self.input.fill_buf()?;
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
                    return Ok(&piece[..count]);
                }
                State::Malformed => return self.input.fill_buf(),
                State::FrameHeader | State::BlockHeader { .. } => self.advance()?,
            }
        }
    }

    fn consume(&mut self, count: usize) {
        if self.passed < self.header.len() {
            self.passed += count;
            return;
        }
        if let State::Content { left, .. } = &mut self.state {
            *left = left.saturating_sub(count as u64);
        }
        self.input.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Records which windows were asked for.
    #[derive(Debug, Default)]
    struct Asked(Mutex<Vec<u64>>);

    impl WindowMemory for Asked {
        fn reserve(&self, bytes: u64) -> Box<dyn Send> {
            self.0.lock().unwrap().push(bytes);
            Box::new(())
        }

        fn try_image(&self) -> Option<Box<dyn Send>> {
            None
        }
    }

    fn frame(log: u32, bytes: &[u8], has_checksum: bool) -> Vec<u8> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.include_checksum(has_checksum).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn skippable(length: u32) -> Vec<u8> {
        [&0x184d_2a5e_u32.to_le_bytes()[..], &length.to_le_bytes(), &vec![0xff; length as usize]].concat()
    }

    /// Returns the content of a stream, and the windows that were asked for.
    fn read(stream: &[u8], buffer: usize) -> (io::Result<Vec<u8>>, Vec<u64>) {
        let asked = Arc::new(Asked::default());
        let input = io::BufReader::with_capacity(buffer, stream);
        let windows = ZstdWindows::new(input, Some(asked.clone() as Arc<dyn WindowMemory>));
        let mut plain = Vec::new();
        let mut decoder = zstd::stream::read::Decoder::with_buffer(windows).unwrap();
        decoder.window_log_max(31).unwrap();
        let read = decoder.read_to_end(&mut plain).map(|_| plain);
        let asked = asked.0.lock().unwrap().clone();
        (read, asked)
    }

    #[rstest]
    fn memory_is_asked_for_before_each_larger_window(
        #[values(1, 2, 7, 4_096)] buffer: usize,
        #[values(false, true)] has_checksum: bool,
    ) {
        let text = vec![3; 300_000];
        let random: Vec<u8> =
            (0..400_000_u32).map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
        let stream = [
            frame(23, &text, has_checksum),
            skippable(100_000),
            frame(25, &random, has_checksum),
            frame(24, b"", has_checksum),
            skippable(0),
            frame(27, &text, has_checksum),
            frame(26, &random, has_checksum),
        ];
        let (plain, asked) = read(&stream.concat(), buffer);
        assert_eq!(plain.unwrap(), [&text[..], &random, &text, &random].concat());
        assert_eq!(asked, [1 << 25, 1 << 27]);
    }

    #[test]
    fn a_frame_of_one_segment_needs_its_content_size() {
        let bytes = vec![1; 20 << 20];
        let (plain, asked) = read(&zstd::bulk::compress(&bytes, 1).unwrap(), 4_096);
        assert_eq!(plain.unwrap().len(), bytes.len());
        assert_eq!(asked, [] as [u64; 0], "level 1 has a window of 512 KiB");
        // Magic, single segment with a size of 8 bytes.
        let header = [&MAGIC.to_le_bytes()[..], &[0xe0], &(1_u64 << 30).to_le_bytes()].concat();
        assert_eq!(read(&header, 4_096).1, [1 << 30]);
        for (size, window) in [(vec![0x20, 7], 7), (vec![0x60, 0, 1], 512), (vec![0xa0, 0, 0, 1, 0], 65_536)]
        {
            let header = [&MAGIC.to_le_bytes()[..], &size].concat();
            assert_eq!(FrameHeader::parse(&header), FrameHeader::Frame { window, has_checksum: false });
        }
    }

    #[test]
    fn what_is_malformed_reaches_the_decoder() {
        let whole = frame(23, b"content", true);
        for odd in [
            &b""[..],
            b"tar",
            b"no zstd at all",
            &whole[..5],
            &whole[..whole.len() - 2],
            &[&whole[..], b"x"].concat(),
        ] {
            assert!(read(odd, 4_096).0.is_err(), "{odd:?}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_passed_on_unchanged(
            odd in proptest::collection::vec(any::<u8>(), 0..200),
            starts_with_a_frame in any::<bool>(),
            cut in 0..400_usize,
            buffer in 1..64_usize,
        ) {
            let begin = if starts_with_a_frame { frame(24, &odd, true) } else { skippable(9) };
            let stream = [begin, odd].concat();
            let stream = &stream[..stream.len().min(cut)];
            let mut passed = Vec::new();
            ZstdWindows::new(io::BufReader::with_capacity(buffer, stream), None).read_to_end(&mut passed).unwrap();
            prop_assert_eq!(passed, stream);
        }
    }
}
