//! What is pushed: bytes that do not compress (like the weights of a model), text that does, and archives of both.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::driver::hex;

/// Bytes that do not compress.
#[derive(Debug)]
pub(crate) struct Noise(fastrand::Rng);

impl Noise {
    /// Another seed gives other bytes.
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.fill(buffer);
        Ok(buffer.len())
    }
}

/// Lines of words, which gzip makes about three times smaller.
#[derive(Debug)]
struct Text {
    random: fastrand::Rng,
    words: Vec<String>,
    line: Vec<u8>,
}

impl Text {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let word = |random: &mut fastrand::Rng| {
            (0..random.usize(2..10)).map(|_| random.lowercase()).collect::<String>()
        };
        let words = (0..4_000).map(|_| word(&mut random)).collect();
        Self { random, words, line: Vec::new() }
    }
}

impl Read for Text {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.line.len() < buffer.len() {
            // Low numbers come more often, as common words do.
            let index = self.random.usize(1..=self.words.len()).min(self.random.usize(1..=self.words.len()));
            self.line.extend_from_slice(self.words[index - 1].as_bytes());
            self.line.push(if self.random.u8(0..12) == 0 { b'\n' } else { b' ' });
        }
        let rest = self.line.split_off(buffer.len());
        buffer.copy_from_slice(&self.line);
        self.line = rest;
        Ok(buffer.len())
    }
}

/// Writes a file of bytes that do not compress.
pub(crate) fn write_noise(path: &Path, seed: u64, bytes: u64) -> Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    io::copy(&mut BufReader::with_capacity(1 << 20, Noise::new(seed).take(bytes)), &mut file)?;
    Ok(())
}

/// How an archive is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Not at all.
    Plain,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
}

impl Packing {
    /// The media type of such a layer (image-spec, layer.md).
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::Plain => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// The filter of a shell's pipe that unpacks it.
    pub(crate) fn filter(self) -> &'static str {
        match self {
            Self::Plain => "cat",
            Self::Gzip => "gzip -dc",
            Self::Zstd => "zstd -dc",
        }
    }
}

/// Hashes what is written.
struct Hashed<W> {
    to: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.to.write(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// An archive that is written.
pub(crate) type Archive<'a> = tar::Builder<&'a mut dyn Write>;

/// Writes a tar archive with `add`; returns the digest of the archive before it is compressed.
pub(crate) fn write_archive(
    path: &Path,
    packing: Packing,
    add: impl FnOnce(&mut Archive<'_>) -> Result<()>,
) -> Result<String> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let file = BufWriter::with_capacity(1 << 20, file);
    let (digest, mut file) = match packing {
        Packing::Plain => hashed(file, add)?,
        Packing::Gzip => {
            let (digest, encoder) = hashed(GzEncoder::new(file, flate2::Compression::fast()), add)?;
            (digest, encoder.finish()?)
        }
        Packing::Zstd => {
            let (digest, encoder) = hashed(zstd::Encoder::new(file, 1)?, add)?;
            (digest, encoder.finish()?)
        }
    };
    file.flush()?;
    Ok(digest)
}

fn hashed<W: Write>(to: W, add: impl FnOnce(&mut Archive<'_>) -> Result<()>) -> Result<(String, W)> {
    let mut hashed = Hashed { to, hash: Sha256::new() };
    let mut archive = Archive::new(&mut hashed);
    add(&mut archive)?;
    archive.finish()?;
    drop(archive);
    Ok((format!("sha256:{}", hex(&hashed.hash.finalize())), hashed.to))
}

/// Appends a file to an archive.
fn append(archive: &mut Archive<'_>, name: &str, bytes: u64, content: impl Read) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes);
    header.set_mode(0o644);
    Ok(archive.append_data(&mut header, name, content.take(bytes))?)
}

/// Appends files of `size` bytes below `data/`: one half does not compress, the other is text. Another seed gives other
/// files.
pub(crate) fn append_files(archive: &mut Archive<'_>, seed: u64, size: u64, count: u64) -> Result<()> {
    for number in 0..count {
        let (name, seed) = (format!("data/{number}"), 1_000 * seed + number);
        if number % 2 == 0 {
            append(archive, &name, size, Noise::new(seed))?;
        } else {
            append(archive, &name, size, Text::new(seed))?;
        }
    }
    Ok(())
}

/// Appends the file `data/large`, which does not compress.
pub(crate) fn append_large_file(archive: &mut Archive<'_>, size: u64) -> Result<()> {
    append(archive, "data/large", size, Noise::new(7))
}

/// Appends many small files below `data/`, a thousand in a directory.
pub(crate) fn append_small_files(archive: &mut Archive<'_>, count: u64) -> Result<()> {
    for number in 0..count {
        // `oras pull` makes no directory that has no entry of its own.
        if number % 1_000 == 0 {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_data(&mut header, format!("data/{}/", number / 1_000), std::io::empty())?;
        }
        let content = format!("file {number} of {count}\n").repeat(12);
        append(
            archive,
            &format!("data/{}/{number}", number / 1_000),
            content.len() as u64,
            content.as_bytes(),
        )?;
    }
    Ok(())
}
