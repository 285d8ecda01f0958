//! Makes what kubelet sends to the registration socket legal HTTP/2.
//!
//! Kubelet dials plugins with grpc-go in a way that makes the socket's path the `:authority` of each call, as
//! `%2Fvar%2Flib%2Fkubelet%2F…` (kubernetes/kubernetes#109081; the CSI socket is dialled another way). That is
//! no authority (RFC 3986, section 3.2.2, as the `http` crate reads it), so h2 resets the stream and the driver
//! is never registered. Nothing here or in tonic looks at the authority, so [`Repaired`] overwrites its value,
//! in place, by another of the same length: no frame changes its size, and no header table is needed.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// The bytes before the first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
/// The largest frame that a client may send unasked (RFC 9113, section 6.5.2).
const LARGEST_FRAME: usize = 16_384;
/// Frame type and flags of RFC 9113, section 6.2.
const HEADERS: u8 = 0x1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table (RFC 7541, appendix A).
const AUTHORITY: usize = 1;

/// A connection of which everything is read as it comes, but for the value of `:authority`.
#[derive(Debug)]
pub(crate) struct Repaired<S> {
    stream: S,
    repair: Repair,
    ready: Vec<u8>,
    taken: usize,
}

impl<S> Repaired<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, repair: Repair::default(), ready: Vec::new(), taken: 0 }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Repaired<S> {
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
            this.repair.push(read.filled(), &mut this.ready);
        }
        let rest = &this.ready[this.taken..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        this.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Repaired<S> {
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

impl<S> Connected for Repaired<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Where in the client's bytes we are.
#[derive(Debug)]
enum Repair {
    /// So many bytes pass as they are.
    Passing(usize),
    /// A frame's header, and for HEADERS its payload, is being gathered.
    Gathering(Vec<u8>),
}

impl Default for Repair {
    fn default() -> Self {
        Self::Passing(PREFACE)
    }
}

impl Repair {
    fn push(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self {
                Self::Passing(left) => {
                    let (now, rest) = bytes.split_at(bytes.len().min(*left));
                    out.extend_from_slice(now);
                    *left -= now.len();
                    bytes = rest;
                    if *left == 0 {
                        *self = Self::Gathering(Vec::new());
                    }
                }
                Self::Gathering(frame) => {
                    let wanted = wanted(frame).max(FRAME_HEADER);
                    let (now, rest) = bytes.split_at(bytes.len().min(wanted - frame.len()));
                    frame.extend_from_slice(now);
                    bytes = rest;
                    if frame.len() < wanted {
                        return;
                    }
                    let whole = self::wanted(frame);
                    if frame.len() < whole && gathers(frame) {
                        continue;
                    }
                    let left = whole - frame.len();
                    overwrite_authority(frame);
                    out.append(frame);
                    if left > 0 {
                        *self = Self::Passing(left);
                    }
                }
            }
        }
    }
}

/// The length of the frame that begins here, with its header; 0 where that is not there yet.
fn wanted(frame: &[u8]) -> usize {
    match frame {
        [a, b, c, _, _, _, _, _, _, ..] => {
            FRAME_HEADER + usize::from(*a) * 65_536 + usize::from(*b) * 256 + usize::from(*c)
        }
        _ => 0,
    }
}

/// Whether the frame's payload has to be seen as a whole.
fn gathers(frame: &[u8]) -> bool {
    frame.get(3) == Some(&HEADERS) && wanted(frame) <= FRAME_HEADER + LARGEST_FRAME
}

fn overwrite_authority(frame: &mut [u8]) {
    if frame.len() != wanted(frame) || !gathers(frame) {
        return;
    }
    if let Some((value, is_coded)) = find_authority(frame) {
        fill(&mut frame[value], is_coded);
    }
}

/// The value of `:authority` in a HEADERS frame, and whether it is Huffman-coded.
///
/// Walks over the fields of the block (RFC 7541, section 6) by their lengths alone. A block that is broken, or
/// that goes on in another frame, has none: h2 says what it thinks of it.
fn find_authority(frame: &[u8]) -> Option<(Range<usize>, bool)> {
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
            at = string(block, at)?.0.end;
        }
        let (value, is_coded) = string(block, at)?;
        if name == AUTHORITY {
            return Some((value, is_coded));
        }
        at = value.end;
    }
    None
}

/// An integer with a prefix of so many bits (RFC 7541, section 5.1), and where it ends.
fn integer(block: &[u8], at: usize, prefix: u32) -> Option<(usize, usize)> {
    let most = (1_usize << prefix) - 1;
    let first = usize::from(*block.get(at)?) & most;
    if first < most {
        return Some((first, at + 1));
    }
    let mut value = most;
    for (count, byte) in block.get(at + 1..)?.iter().take(4).enumerate() {
        value += usize::from(byte & 0x7f) << (7 * count);
        if byte & 0x80 == 0 {
            return Some((value, at + 2 + count));
        }
    }
    None
}

/// A string (RFC 7541, section 5.2): where its bytes are, and whether they are Huffman-coded.
fn string(block: &[u8], at: usize) -> Option<(Range<usize>, bool)> {
    let is_coded = block.get(at)? & 0x80 != 0;
    let (length, start) = integer(block, at, 7)?;
    let value = start..start.checked_add(length)?;
    block.get(value.clone())?;
    Some((value, is_coded))
}

/// Fills a string with the letter `a`: as it is, or as its five bits 00011 of the Huffman code (RFC 7541,
/// appendix B), the rest of the last byte being padded with ones.
fn fill(value: &mut [u8], is_coded: bool) {
    if !is_coded {
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
    fn block(path: &str, authority: &[u8], is_coded: bool) -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x44];
        literal(&mut block, path.as_bytes(), false);
        block.push(0x41);
        literal(&mut block, authority, is_coded);
        block.extend([0x5f]);
        literal(&mut block, b"application/grpc", false);
        block.extend([0x40]);
        literal(&mut block, b"te", false);
        literal(&mut block, b"trailers", false);
        block
    }

    fn literal(block: &mut Vec<u8>, text: &[u8], is_coded: bool) {
        let flag = if is_coded { 0x80 } else { 0 };
        if text.len() < 127 {
            block.push(flag | u8::try_from(text.len()).unwrap());
        } else {
            block.extend([
                flag | 0x7f,
                0x80 | u8::try_from((text.len() - 127) % 128).unwrap(),
                u8::try_from((text.len() - 127) / 128).unwrap(),
            ]);
        }
        block.extend_from_slice(text);
    }

    fn repaired(bytes: &[u8], piece: usize) -> Vec<u8> {
        let (mut repair, mut out) = (Repair::default(), Vec::new());
        bytes.chunks(piece).for_each(|piece| repair.push(piece, &mut out));
        out
    }

    #[rstest]
    fn only_the_authority_changes(
        #[values(1, 7, 4_096)] piece: usize,
        #[values(5, 126, 127, 300)] length: usize,
    ) {
        let around = |authority: &[u8]| {
            let headers = frame(HEADERS, 0x4, 1, &block("/x", authority, false));
            let padded = [&[3, 0, 0, 0, 0, 9][..], &block("/x", authority, false), &[0, 0, 0]].concat();
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
        assert_eq!(repaired(&sent, piece), around(&b"a".repeat(length)));
    }

    #[rstest]
    #[case(1, &[0b0001_1111])]
    #[case(5, &[0b0001_1000, 0b1100_0110, 0b0011_0001, 0b1000_1100, 0b0110_0011])]
    #[case(3, &[0b0001_1000, 0b1100_0110, 0b0011_1111])]
    fn a_coded_value_is_letters_and_padding(#[case] length: usize, #[case] expected: &[u8]) {
        let mut value = vec![0; length];
        fill(&mut value, true);
        assert_eq!(value, expected);
    }

    #[test]
    fn what_is_broken_or_endless_passes_as_it_is() {
        let truncated = frame(HEADERS, 0, 1, &[0x41, 0x7f, 0xff]);
        let huge = frame(HEADERS, 0, 1, &vec![0x41; LARGEST_FRAME + 1]);
        let padding = frame(HEADERS, PADDED, 1, &[200, 0x41, 1, b'%']);
        for bytes in [truncated, huge, padding, frame(HEADERS, 0, 1, &[])] {
            let sent = [&PREFACE_TEXT[..], &bytes].concat();
            assert_eq!(repaired(&sent, 1_000), sent);
        }
    }

    /// As kubelet's grpc-go writes it, byte by byte: without the repair the answer is RST_STREAM.
    #[tokio::test]
    async fn a_call_with_a_path_as_its_authority_is_answered() {
        use crate::proto::registration::registration_server::RegistrationServer;
        let (refused, _refusals) = tokio::sync::mpsc::channel(1);
        let service = super::super::RegistrationService::new("/run/csi.sock".into(), refused);
        let (mut client, server) = tokio::net::UnixStream::pair().unwrap();
        let incoming = tokio_stream::iter([Ok::<_, io::Error>(Repaired::new(server))]);
        let router = tonic::transport::Server::builder().add_service(RegistrationServer::new(service));
        let serving = tokio::spawn(router.serve_with_incoming(incoming));

        let headers =
            block("/pluginregistration.Registration/GetInfo", b"%2Fvar%2Flib%2Fkubelet%2Freg.sock", false);
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
                let mut payload = vec![0; wanted(&header) - FRAME_HEADER];
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
