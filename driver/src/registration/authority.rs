//! Replaces the invalid `:authority` that kubelet sends to the registration socket.
//!
//! Kubelet connects to plugins with grpc-go in a way that makes the path of the socket the `:authority` of each call, as
//! `%2Fvar%2Flib%2Fkubelet%2F…` (kubernetes/kubernetes#109081; it connects to the CSI socket in another way). That is
//! not a valid authority (RFC 3986, section 3.2.2, as the `http` crate reads it), so h2 resets the stream and the driver
//! is never registered. Neither this crate nor tonic uses the authority. So [`ValidAuthority`] overwrites its value in
//! place with letters of the same length: no frame changes its size, and no header table is needed.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// The length of the connection preface (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// The largest frame that a client can send without a setting of the server (RFC 9113, section 6.5.2).
const MAX_FRAME: usize = 16_384;
/// Frame type and flags of RFC 9113, section 6.2.
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// A connection whose bytes are unchanged, except for the value of `:authority`.
#[derive(Debug)]
pub(crate) struct ValidAuthority<S> {
    stream: S,
    rewriter: Rewriter,
    ready: Vec<u8>,
    taken: usize,
}

impl<S> ValidAuthority<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, rewriter: Rewriter::default(), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ValidAuthority<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            let mut piece = [0; 4_096];
            let mut read = ReadBuf::new(&mut piece);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            this.rewriter.push(read.filled(), &mut this.ready);
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for ValidAuthority<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

impl<S> Connected for ValidAuthority<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// The position in the bytes of the client.
#[derive(Debug)]
enum Rewriter {
    /// This many bytes are passed on unchanged.
    PassThrough(usize),
    /// The header of a frame is being buffered, and the payload of a HEADERS frame.
    Buffering(Vec<u8>),
}

impl Default for Rewriter {
    fn default() -> Self {
        Self::PassThrough(PREFACE)
    }
}

impl Rewriter {
    fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self {
                Self::PassThrough(left) => {
                    let (now, rest) = bytes.split_at(bytes.len().min(*left));
                    out.extend_from_slice(now);
                    *left -= now.len();
                    bytes = rest;
                    if *left == 0 {
                        *self = Self::Buffering(Vec::new());
                    }
                }
                Self::Buffering(frame) => {
                    let wanted = frame_len(frame).max(FRAME_HEADER);
                    let (now, rest) = bytes.split_at(bytes.len().min(wanted - frame.len()));
                    frame.extend_from_slice(now);
                    bytes = rest;
                    if frame.len() < wanted {
                        return;
                    }
                    let whole = frame_len(frame);
                    if frame.len() < whole && is_buffered(frame) {
                        continue;
                    }
                    let left = whole - frame.len();
                    overwrite_authority(frame);
                    out.append(frame);
                    if left > 0 {
                        *self = Self::PassThrough(left);
                    }
                }
            }
        }
    }
}

/// Returns the length of the frame that begins here, with its header; 0 if the header is incomplete.
fn frame_len(frame: &[u8]) -> usize {
    match frame {
        [a, b, c, _, _, _, _, _, _, ..] => {
            FRAME_HEADER + usize::from(*a) * 65_536 + usize::from(*b) * 256 + usize::from(*c)
        }
        _ => 0,
    }
}

/// Reports whether the whole payload of the frame must be buffered.
fn is_buffered(frame: &[u8]) -> bool {
    frame.get(3) == Some(&HEADERS) && frame_len(frame) <= FRAME_HEADER + MAX_FRAME
}

fn overwrite_authority(frame: &mut [u8]) {
    if frame.len() != frame_len(frame) || !is_buffered(frame) {
        return;
    }
    if let Some(value) = find_authority(frame) {
        fill(&mut frame[value.range], value.coding);
    }
}

/// The encoding of a string (RFC 7541, section 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Plain,
    Huffman,
}

/// A string in a header block.
struct Literal {
    range: Range<usize>,
    coding: Coding,
}

/// Finds the value of `:authority` in a HEADERS frame.
///
/// Skips the fields of the block (RFC 7541, section 6) by their lengths. Returns `None` for a malformed block and for
/// one that continues in another frame: h2 handles those.
fn find_authority(frame: &[u8]) -> Option<Literal> {
    let flags = *frame.get(4)?;
    let mut at = FRAME_HEADER;
    let mut end = frame.len();
    if flags & PADDED != 0 {
        end = end.checked_sub(usize::from(*frame.get(at)?))?;
        at += 1;
    }
    if flags & PRIORITY != 0 {
        at += 5;
    }
    let block = frame.get(..end)?;
    while at < end {
        let (prefix, has_value) = match *block.get(at)? {
            indexed if indexed & 0x80 != 0 => (7, false),
            kept if kept & 0x40 != 0 => (6, true),
            resize if resize & 0x20 != 0 => (5, false),
            _ => (4, true),
        };
        let (name, next) = integer(block, at, prefix)?;
        at = next;
        if !has_value {
            continue;
        }
        if name == 0 {
            at = string(block, at)?.range.end;
        }
        let value = string(block, at)?;
        if name == AUTHORITY {
            return Some(value);
        }
        at = value.range.end;
    }
    None
}

/// Parses an integer with a prefix of `prefix` bits (RFC 7541, section 5.1). Returns it and the position after it.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let max = (1_usize << prefix) - 1;
    let first = usize::from(*block.get(at)?) & max;
    if first < max {
        return Some((first, at + 1));
    }
    let mut value = max;
    for (count, byte) in block.get(at + 1..)?.iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * count);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + count));
        }
    }
    None
}

/// Parses a string (RFC 7541, section 5.2).
fn string(block: &[u8], at: usize) -> Option<Literal> {
    let coding = if block.get(at)? & 0x80 != 0 { Coding::Huffman } else { Coding::Plain };
    let (length, start) = integer(block, at, 7)?;
    let range = start..start.checked_add(length)?;
    block.get(range.clone())?;
    Some(Literal { range, coding })
}

/// Overwrites a string with the letter `a`. In the Huffman code (RFC 7541, appendix B) the letter has the five bits 00011,
/// and the rest of the last byte is padded with ones.
fn fill(value: &mut [u8], coding: Coding) {
    if coding == Coding::Plain {
        value.fill(b'a');
        return;
    }
    let bits = value.len() * 8;
    let letters = bits / 5 * 5;
    for (number, byte) in value.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |byte, bit| {
            let position = number * 8 + bit;
            byte << 1 | u8::from(position >= letters || position % 5 >= 3)
        });
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PREFACE_TEXT: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    }

    /// `:method POST`, `:scheme http`, `:path PATH`, `:authority AUTHORITY`, `content-type`, `te`.
    fn block(path: &str, authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44];
        literal(&mut block, path.as_bytes());
        block.push(0x41);
        literal(&mut block, authority);
        block.extend([0x5f]);
        literal(&mut block, b"application/grpc");
        block.extend([0x40]);
        literal(&mut block, b"te");
        literal(&mut block, b"trailers");
        block
    }

    fn literal(block: &mut Vec<u8>, text: &[u8]) {
        if text.len() < 127 {
            block.push(u8::try_from(text.len()).unwrap());
        } else {
            block.extend([
                0x7f,
                0x80 | u8::try_from((text.len() - 127) % 128).unwrap(),
                u8::try_from((text.len() - 127) / 128).unwrap(),
            ]);
        }
        block.extend_from_slice(text);
    }

    fn rewritten(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| rewriter.push(piece, &mut out));
        out
    }

    #[rstest]
    fn only_the_authority_changes(
        #[values(1, 7, 4_096)] piece: usize,
        #[values(5, 126, 127, 300)] length: usize,
    ) {
        let around = |authority: &[u8]| {
            let headers = frame(HEADERS, 0x4, 1, &block("/x", authority));
            let padded = [&[3, 0, 0, 0, 0, 9][..], &block("/x", authority), &[0, 0, 0]].concat();
            [
                &PREFACE_TEXT[..],
                &frame(4, 0, 0, &[]),
                &headers,
                &frame(0, 1, 1, b"\x41\x03abc"),
                &frame(HEADERS, 0x4 | PADDED | PRIORITY, 3, &padded),
            ]
            .concat()
        };
        let sent = around(&b"%".repeat(length));
        assert_eq!(rewritten(&sent, piece), around(&b"a".repeat(length)));
    }

    #[rstest]
    #[case(1, &[0b0001_1111])]
    #[case(5, &[0b0001_1000, 0b1100_0110, 0b0011_0001, 0b1000_1100, 0b0110_0011])]
    #[case(3, &[0b0001_1000, 0b1100_0110, 0b0011_1111])]
    fn a_huffman_coded_value_becomes_letters_and_padding(#[case] length: usize, #[case] expected: &[u8]) {
        let mut value = vec![0; length];
        fill(&mut value, Coding::Huffman);
        assert_eq!(value, expected);
    }

    #[test]
    fn malformed_and_oversized_frames_are_unchanged() {
        let truncated = frame(HEADERS, 0, 1, &[0x41, 0x7f, 0xff]);
        let huge = frame(HEADERS, 0, 1, &vec![0x41; MAX_FRAME + 1]);
        let padding = frame(HEADERS, PADDED, 1, &[200, 0x41, 1, b'%']);
        for bytes in [truncated, huge, padding, frame(HEADERS, 0, 1, &[])] {
            let sent = [&PREFACE_TEXT[..], &bytes].concat();
            assert_eq!(rewritten(&sent, 1_000), sent);
        }
    }

    /// Sends the bytes of kubelet's grpc-go. Without [`ValidAuthority`] the answer is RST_STREAM.
    #[tokio::test]
    async fn answers_a_call_whose_authority_is_a_path() {
        use crate::proto::registration::registration_server::RegistrationServer;
        let (rejected, _rejections) = tokio::sync::mpsc::channel(1);
        let service = super::super::RegistrationService::new(
            "/run/csi.sock".into(),
            tokio::sync::watch::channel(0).0,
            rejected,
        );
        let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
        let incoming = tokio_stream::iter([Ok::<_, io::Error>(ValidAuthority::new(server))]);
        let router = tonic::transport::Server::builder().add_service(RegistrationServer::new(service));
        let serving = tokio::spawn(router.serve_with_incoming(incoming));

        let headers = block("/pluginregistration.Registration/GetInfo", b"%2Fvar%2Flib%2Fkubelet%2Freg.sock");
        let call = [
            &PREFACE_TEXT[..],
            &frame(4, 0, 0, &[]),
            &frame(HEADERS, 0x4, 1, &headers),
            &frame(0, 1, 1, &[0; 5]),
        ];
        client.write_all(&call.concat()).await.unwrap();
        let mut answer = Vec::new();
        let ended = async {
            loop {
                let mut header = [0; FRAME_HEADER];
                client.read_exact(&mut header).await.unwrap();
                let mut payload = vec![0; frame_len(&header) - FRAME_HEADER];
                client.read_exact(&mut payload).await.unwrap();
                assert_ne!(header[3], 3, "RST_STREAM");
                match header[3] {
                    0 => answer.extend(payload),
                    HEADERS if header[4] & 1 != 0 => break,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), ended).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("csi.oras.land") && text.contains("/run/csi.sock"), "{text}");
        serving.abort();
    }
}
