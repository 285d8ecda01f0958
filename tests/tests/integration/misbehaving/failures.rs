//! Error statuses, Retry-After, and messages that are not safe to print.

use std::process::Command;
use std::time::{Duration, SystemTime};

use oras_csi_testkit::scripted::tricks::{parts, raw, status, status_with};
use oras_csi_testkit::scripted::{Part, Script, Trick};
use oras_csi_tests::process::run;
use serde_json::json;

use super::{DONE, FAILED, FEW, always, check, once, row};

#[test]
fn failures_and_their_words() {
    let date = |seconds: u64| {
        let then = SystemTime::now() + Duration::from_secs(seconds);
        let then = then.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let words = ["-u", "-d", &format!("@{then}"), "+%a, %d %b %Y %H:%M:%S GMT"];
        run(Command::new("date").env("LC_ALL", "C").args(words)).trim().to_owned()
    };
    let wait = |name, done, value: String| {
        once(name, done, "HEAD /manifests/", status_with(429, "Retry-After", value))
    };
    let words = |name, body: Vec<u8>| always(name, FAILED, "GET /manifests/", status(403, body));
    let envelope = |message: &str| json!({"errors": [{"code": "DENIED", "message": message}]}).to_string();
    let odd = "\u{1b}[31mred\u{1b}]0;title\u{7}\r\n\u{8}\u{9b}2J\u{202e}end\u{0}";
    let mut rows = Vec::new();
    for (what, names) in [
        ("HEAD /manifests/", ["HEAD 408", "HEAD 429", "HEAD 500", "HEAD 502", "HEAD 503", "HEAD 504"]),
        (
            "GET /manifests/",
            ["manifest 408", "manifest 429", "manifest 500", "manifest 502", "manifest 503", "manifest 504"],
        ),
        ("/blobs/", ["blob 408", "blob 429", "blob 500", "blob 502", "blob 503", "blob 504"]),
    ] {
        for name in names {
            let code = name.rsplit(' ').next().unwrap().parse().unwrap();
            rows.push(row(name, DONE, move |_| Script::default().times(2, what, status(code, "busy"))));
        }
    }
    let stalled_words = |code| then_status(code, b"half of wh", Part::Hang);
    rows.extend([
        wait("wait a second", DONE, "1".to_owned())
            .check("it waits", |seen| seen.verdict.took >= Duration::from_secs(1)),
        row("wait until a date", DONE, move |_| {
            let value = date(3);
            Script::default().once("HEAD /manifests/", status_with(429, "Retry-After", value))
        })
        .check("it waits", |seen| seen.verdict.took >= Duration::from_secs(1)),
        wait("wait until a date that has passed", DONE, "Sun, 06 Nov 1994 08:49:37 GMT".to_owned()).bound(10),
        wait("wait for less than nothing", DONE, "-1".to_owned()).bound(10),
        wait("wait for something", DONE, "soon\u{9b}31m".to_owned()).bound(10),
        wait("wait for three years", FAILED, "99999999".to_owned()).bound(10),
        wait("wait beyond 64 bits", FAILED, "99999999999999999999999".to_owned()).bound(10),
        wait("wait until the year 9999", FAILED, "Fri, 31 Dec 9999 23:59:59 GMT".to_owned()).bound(10),
        always("503 for ever", FAILED, "/v2/", status(503, odd)).at_most_asked(12),
        always("503 for every blob", FAILED, "/blobs/", status(503, odd)).stored().at_most_asked(30),
        always("429 for ever", FAILED, "/v2/", status_with(429, "Retry-After", "0")).at_most_asked(12),
        always("418", FAILED, "/v2/", status(418, "short and stout")).at_most_asked(4),
        always("a status beyond all", FAILED, "/v2/", status(999, "")).at_most_asked(12),
        words("terminal codes in JSON", envelope(odd).into()),
        words("terminal codes", odd.into()),
        words("text that turns around", "\u{202e}\u{2066}txt.exe\u{200f}".into()),
        words("invalid UTF-8", b"\xff\xfe\x80no\xc3".to_vec()),
        words("a page", format!("<html>{odd}</html>").into()),
        words("words of 10 MB", vec![b'x'; 10 << 20]),
        words("a message of 10 MB", envelope(&"x".repeat(10 << 20)).into()),
        words("a message of 60 KB", envelope(&"y".repeat(60_000)).into()),
        words("a million errors", format!("{{\"errors\":[{}{{}}]}}", "{},".repeat(1_000_000)).into()),
        words("deep JSON", "[".repeat(60_000).into()),
        always("words that stall", FAILED, "GET /manifests/", stalled_words(403)),
        always("words that stall, with a blob", FAILED, "/blobs/", stalled_words(404)),
        always("words that stall, each time", DONE, "HEAD /manifests/", stalled_words(500)).bound(30),
        always(
            "a reason with terminal codes",
            FAILED,
            "/v2/",
            raw("HTTP/1.1 403 \x1b[31mred\r\nContent-Length: 0\r\n\r\n"),
        ),
    ]);
    check(FEW, rows);
}

fn then_status(code: u16, body: &'static [u8], last: Part) -> Trick {
    parts(move |_, answer| {
        let answer = answer.status(code).without("Content-Length").header("Content-Length", "5000");
        vec![Part::Bytes([&answer.start()[..], body].concat()), last.clone()]
    })
}
