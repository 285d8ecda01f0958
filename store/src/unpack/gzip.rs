//! Decompresses gzip data with several members and a tail of zeros, as the gzip program does.
//!
//! Tools that write to tapes and devices fill the last block with zeros. The gzip program ignores zeros after the last
//! member, up to the end of the file. Anything else there is an error.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The uncompressed content of gzip data.
pub(super) struct GzipMembers<R> {
    /// The current member; `None` at the end.
    member: Option<GzDecoder<R>>,
}

impl<R: BufRead> GzipMembers<R> {
    pub(super) fn new(input: R) -> Self {
        Self { member: Some(GzDecoder::new(input)) }
    }
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(member) = &mut self.member else { return Ok(0) };
            let count = member.read(into)?;
            if count > 0 || into.is_empty() {
                return Ok(count);
            }
            let rest = self.member.take().map(GzDecoder::into_inner);
            self.member = rest.map(next_member).transpose()?.flatten();
        }
    }
}

/// Returns the decoder of the next member, or `None` if only zeros follow.
fn next_member<R: BufRead>(mut input: R) -> io::Result<Option<GzDecoder<R>>> {
    match skip_zeros(&mut input)? {
        Tail { zeros: false, ended: false } => Ok(Some(GzDecoder::new(input))),
        Tail { ended: true, .. } => Ok(None),
        Tail { .. } => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the gzip data is followed by zeros and then by other bytes",
        )),
    }
}

/// What follows a member.
struct Tail {
    /// Whether zeros follow it.
    zeros: bool,
    /// Whether nothing follows the zeros.
    ended: bool,
}

fn skip_zeros(input: &mut impl BufRead) -> io::Result<Tail> {
    let mut zeros = false;
    loop {
        let piece = input.fill_buf()?;
        let count = piece.iter().take_while(|byte| **byte == 0).count();
        if count == 0 {
            return Ok(Tail { zeros, ended: piece.is_empty() });
        }
        input.consume(count);
        zeros = true;
    }
}
