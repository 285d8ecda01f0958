use std::time::Instant;

use rstest::rstest;

use super::*;

fn content() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

async fn read(script: Vec<Part>, offset: u64) -> Result<(Vec<u8>, Option<RegistryError>), RegistryError> {
    let server = Server::start(move |_| script.clone()).await;
    let content = content();
    let blob = Descriptor::new("application/octet-stream", Digest::sha256_of(&content), content.len() as u64);
    let pinned = pinned(&server, &Digest::sha256_of(b"manifest"));
    let stream = client(&server).blob(&pinned, &blob, offset).await?;
    let read = collect(stream).await;
    let [request] = &server.requests()[..] else { panic!("one request") };
    assert_eq!(request.line(), format!("GET /v2/team/app/blobs/{}", blob.digest()));
    assert_eq!(request.header("accept-encoding"), "identity");
    assert_eq!(
        request.header("range"),
        if offset > 0 { format!("bytes={offset}-399999") } else { String::new() }
    );
    Ok(read)
}

fn part(offset: usize, range: &str) -> Vec<Part> {
    answer(206, &[("Content-Range", range)], &content()[offset..])
}

fn chunked(pieces: &[&[u8]]) -> Vec<Part> {
    let mut parts = vec![head(200, &[("Transfer-Encoding", "chunked")])];
    parts.extend(pieces.iter().map(|piece| chunk(piece)));
    parts.push(Part::Bytes(b"0\r\n\r\n".to_vec()));
    parts
}

#[rstest]
#[case::whole(answer(200, &[], &content()), 0)]
#[case::chunked(chunked(&[&content()[..7], &content()[7..]]), 0)]
#[case::part(part(1_000, "bytes 1000-399999/400000"), 1_000)]
#[case::part_of_unknown(part(1_000, "bytes 1000-399999/*"), 1_000)]
#[case::last_byte(part(399_999, "bytes 399999-399999/400000"), 399_999)]
#[case::all_to_a_range(answer(200, &[], &content()), 1_000)]
#[case::all_to_a_range_in_pieces(chunked(&[&content()[..999], &content()[999..1_500], &content()[1_500..]]), 1_000)]
#[case::gzip_in_the_header_only(answer(200, &[("Content-Encoding", "gzip")], &content()), 0)]
#[case::x_gzip_in_the_header_only(answer(200, &[("Content-Encoding", "x-gzip")], &content()), 1_000)]
#[case::aws_chunked(answer(
    206,
    &[("Content-Range", "bytes 1000-399999/400000"), ("Content-Encoding", "aws-chunked")],
    &content()[1_000..]), 1_000)]
#[case::garbage_behind_the_length(
    vec![head(200, &[("Content-Length", "400000")]), Part::Bytes([content(), vec![b'!'; 9]].concat())], 0)]
#[case::no_end(
    vec![head(200, &[("Transfer-Encoding", "chunked")]), chunk(&content()), Part::Hang], 0)]
#[case::short_pauses(
    vec![head(200, &[("Content-Length", "400000")]), Part::Bytes(content()[..5].to_vec()),
         Part::Wait(Duration::from_millis(80)), Part::Bytes(content()[5..9].to_vec()),
         Part::Wait(Duration::from_millis(120)), Part::Bytes(content()[9..].to_vec())], 0)]
#[tokio::test]
async fn exactly_the_bytes_arrive(#[case] script: Vec<Part>, #[case] offset: u64) {
    let (bytes, error) = read(script, offset).await.unwrap();
    assert_eq!(error, None);
    assert!(bytes == content()[usize::try_from(offset).unwrap()..], "{} bytes", bytes.len());
}

#[rstest]
#[case::announced_short(answer(200, &[], &content()[1..]), 0)]
#[case::announced_long(answer(200, &[], &[content(), vec![0]].concat()), 0)]
#[case::announced_short_to_a_range(answer(200, &[], &content()[1_000..]), 1_000)]
#[case::other_start(part(1_000, "bytes 999-399999/400000"), 1_000)]
#[case::from_the_start(answer(206, &[("Content-Range", "bytes 0-399999/400000")], &content()), 1_000)]
#[case::beyond_the_end(part(1_000, "bytes 1000-400000/400001"), 1_000)]
#[case::other_total(part(1_000, "bytes 1000-399999/500000"), 1_000)]
#[case::backwards(part(1_000, "bytes 1000-999/400000"), 1_000)]
#[case::no_range(part(1_000, "bytes */400000"), 1_000)]
#[case::not_even_a_header(answer(206, &[], &content()[1_000..]), 1_000)]
#[case::length_of_the_part(part(1_001, "bytes 1000-399999/400000"), 1_000)]
#[case::part_of_the_whole(part(0, "bytes 0-399999/400000"), 0)]
#[case::not_satisfiable(answer(416, &[], b""), 1_000)]
#[case::no_content(answer(204, &[], b""), 0)]
#[case::compressed(answer(200, &[("Content-Encoding", "gzip")], &content()[..99]), 0)]
#[tokio::test]
async fn another_part_or_size_is_rejected(#[case] script: Vec<Part>, #[case] offset: u64) {
    let error = read(script, offset).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}

#[rstest]
#[case::cut(vec![head(200, &[("Content-Length", "400000")]), Part::Bytes(content()[..65_536].to_vec())], 0, Kind::Unreachable)]
#[case::cut_chunks(vec![head(200, &[("Transfer-Encoding", "chunked")]), chunk(&content()[..65_536])], 0, Kind::Unreachable)]
#[case::ended_chunks(chunked(&[&content()[..65_536]]), 0, Kind::Unreachable)]
#[case::shorter_part(answer(206, &[("Content-Range", "bytes 1000-65535/400000")], &content()[1_000..65_536]), 1_000, Kind::Unreachable)]
#[case::stalled(vec![head(200, &[("Content-Length", "400000")]), Part::Bytes(content()[..65_536].to_vec()), Part::Hang], 0, Kind::Stalled)]
#[case::more(chunked(&[&content(), b"!"]), 0, Kind::Untruthful)]
#[case::ended_and_compressed(
    [vec![head(200, &[("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")])],
     chunked(&[&content()[..65_536]])[1..].to_vec()].concat(), 0, Kind::Untruthful)]
#[case::broken_chunks(
    vec![head(200, &[("Transfer-Encoding", "chunked")]), chunk(&content()[..65_536]), Part::Bytes(b"zz\r\n".to_vec())], 0, Kind::Unreachable)]
#[tokio::test]
async fn the_bytes_before_an_error_are_correct(
    #[case] script: Vec<Part>,
    #[case] offset: u64,
    #[case] kind: Kind,
) {
    let started = Instant::now();
    let (bytes, error) = read(script, offset).await.unwrap();
    let error = error.expect("an error");
    assert_eq!(error.kind(), kind, "{error}");
    let offset = usize::try_from(offset).unwrap();
    assert!(content()[offset..].starts_with(&bytes) && bytes.len() >= 60_000, "{} bytes", bytes.len());
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// A body that is compressed indeed has another length. The error names the reason.
#[rstest]
#[case::announced(answer(200, &[("Content-Encoding", "gzip")], &content()[..99]))]
#[case::chunked([vec![head(200, &[("Transfer-Encoding", "chunked"), ("Content-Encoding", "gzip")])],
    chunked(&[&content()[..99]])[1..].to_vec()].concat())]
#[tokio::test]
async fn a_wrong_length_is_explained_by_the_encoding(#[case] script: Vec<Part>) {
    let error = match read(script, 0).await {
        Ok((_, error)) => error.expect("an error"),
        Err(error) => error,
    };
    assert!(error.to_string().contains("encoded as \"gzip\""), "{error}");
}

#[tokio::test]
async fn the_stream_never_exceeds_the_requested_length() {
    let endless = vec![
        head(200, &[("Transfer-Encoding", "chunked")]),
        Part::Forever([b"4000\r\n", [b'x'; 0x4000].as_slice(), b"\r\n"].concat()),
    ];
    let (bytes, error) = read(endless, 0).await.unwrap();
    assert_eq!(error.unwrap().kind(), Kind::Untruthful);
    assert!(bytes.len() <= 400_000);
}

#[tokio::test]
async fn an_empty_range_sends_no_request() {
    let server = Server::start(|_| answer(500, &[], b"")).await;
    let blob = Descriptor::new("text/plain", Digest::sha256_of(b"abc"), 3);
    let pinned = pinned(&server, &Digest::sha256_of(b"manifest"));
    let client = client(&server);
    assert_eq!(collect(client.blob(&pinned, &blob, 3).await.unwrap()).await, (Vec::new(), None));
    let error = client.blob(&pinned, &blob, 4).await.err().expect("an error");
    assert_eq!(error.kind(), Kind::Invalid, "{error}");
    assert_eq!(server.lines().len(), 0);
}

#[tokio::test]
async fn a_cut_blob_is_resumed() {
    let server = Server::start(|request| {
        let content = content();
        let range = request.header("range");
        let first: usize =
            range.strip_prefix("bytes=").map_or(0, |range| range.split('-').next().unwrap().parse().unwrap());
        let last = (first + 65_536).min(content.len());
        let range = format!("bytes {first}-399999/400000");
        let length = (content.len() - first).to_string();
        let (status, headers) = match first {
            0 => (200, vec![("Content-Length", length.as_str())]),
            _ => (206, vec![("Content-Length", length.as_str()), ("Content-Range", range.as_str())]),
        };
        vec![head(status, &headers), Part::Bytes(content[first..last].to_vec())]
    })
    .await;
    let content = content();
    let blob = Descriptor::new("application/octet-stream", Digest::sha256_of(&content), content.len() as u64);
    let pinned = pinned(&server, &Digest::sha256_of(b"manifest"));
    let client = client(&server);
    let mut all = Vec::new();
    for _ in 0..10 {
        let (bytes, error) = collect(client.blob(&pinned, &blob, all.len() as u64).await.unwrap()).await;
        all.extend(bytes);
        match error {
            None => break,
            Some(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    assert_eq!(Digest::sha256_of(&all), *blob.digest());
}

/// One part, of 1,000 to 70,000.
async fn read_part(script: Vec<Part>) -> Result<Option<(Vec<u8>, Option<RegistryError>)>, RegistryError> {
    let server = Server::start(move |_| script.clone()).await;
    let content = content();
    let blob = Descriptor::new("application/octet-stream", Digest::sha256_of(&content), content.len() as u64);
    let pinned = pinned(&server, &Digest::sha256_of(b"manifest"));
    let part = client(&server).part(&pinned, &blob, 1_000..70_000).await?;
    assert_eq!(server.requests()[0].header("range"), "bytes=1000-69999");
    match part {
        Some(stream) => Ok(Some(collect(stream).await)),
        None => Ok(None),
    }
}

#[tokio::test]
async fn a_part_has_exactly_the_requested_bytes() {
    let right = answer(206, &[("Content-Range", "bytes 1000-69999/400000")], &content()[1_000..70_000]);
    let (bytes, error) = read_part(right).await.unwrap().expect("a part");
    assert_eq!(error, None);
    assert!(bytes == content()[1_000..70_000]);
    // A server without range support sends everything. That is recognized, and nothing is read.
    assert!(read_part(answer(200, &[], &content())).await.unwrap().is_none());
    let encoded = [("Content-Range", "bytes 1000-69999/400000"), ("Content-Encoding", "aws-chunked")];
    let (bytes, error) =
        read_part(answer(206, &encoded, &content()[1_000..70_000])).await.unwrap().expect("a part");
    assert!(bytes == content()[1_000..70_000] && error.is_none());
    // A shorter part counts as interrupted.
    let short = answer(206, &[("Content-Range", "bytes 1000-60999/400000")], &content()[1_000..61_000]);
    let (bytes, error) = read_part(short).await.unwrap().expect("a part");
    assert!(bytes == content()[1_000..61_000] && error.is_some_and(|error| error.is_transient()));
}

#[rstest]
#[case::other_start("bytes 999-69998/400000")]
#[case::longer("bytes 1000-70000/400000")]
#[case::other_total("bytes 1000-69999/400001")]
#[case::unreadable("bytes */400000")]
#[tokio::test]
async fn another_part_is_rejected(#[case] range: &'static str) {
    let script = answer(206, &[("Content-Range", range)], &content()[1_000..70_000]);
    let error = read_part(script).await.expect_err("an error");
    assert_eq!(error.kind(), Kind::Untruthful, "{error}");
}
