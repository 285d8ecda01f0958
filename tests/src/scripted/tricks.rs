//! Misbehaviours that several tests share. Each is what a [`super::Script`] does on one of its lines.

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, Part, Request, Trick};

/// Anything, from the request and the honest answer.
pub fn parts(make: impl Fn(&Request, Answer) -> Vec<Part> + Send + Sync + 'static) -> Trick {
    Arc::new(make)
}

/// Another answer, whole and well-formed.
pub fn answer(make: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) -> Trick {
    parts(move |request, answer| make(request, answer).parts())
}

/// The honest answer.
pub fn honest() -> Trick {
    answer(|_, answer| answer)
}

/// Exactly these bytes.
pub fn raw(bytes: impl AsRef<[u8]>) -> Trick {
    let bytes = bytes.as_ref().to_vec();
    parts(move |_, _| vec![Part::Bytes(bytes.clone())])
}

/// Headers, `length` bytes of the body, and the end of the connection.
pub fn cut(length: usize) -> Trick {
    parts(move |_, answer| answer.then(length, []))
}

/// Headers, `length` bytes of the body, and then something else.
pub fn then(length: usize, rest: Part) -> Trick {
    parts(move |_, answer| answer.then(length, [rest.clone()]))
}

/// Nothing at all but this.
pub fn only(part: Part) -> Trick {
    parts(move |_, _| vec![part.clone()])
}

/// A status, with a body.
pub fn status(status: u16, body: impl AsRef<[u8]>) -> Trick {
    let body = body.as_ref().to_vec();
    answer(move |_, answer| answer.status(status).body(body.clone()))
}

/// The honest answer with one more header, in place of those of that name.
pub fn header(name: &'static str, value: impl Into<String>) -> Trick {
    let value = value.into();
    answer(move |_, answer| answer.without(name).header(name, &value))
}

/// A status with a header and no body.
pub fn status_with(status: u16, name: &'static str, value: impl Into<String>) -> Trick {
    let value = value.into();
    answer(move |_, answer| answer.status(status).header(name, &value).body(""))
}

/// 307 to an address.
pub fn redirect(to: impl Into<String>) -> Trick {
    status_with(307, "Location", to)
}

/// 307 to the same path and query on another server, `http://HOST`.
pub fn redirect_to_host(base: &str) -> Trick {
    let base = base.to_owned();
    answer(move |request, answer| {
        answer.status(307).header("Location", &format!("{base}{}", request.target)).body("")
    })
}

/// The honest answer's headers, and a body in chunks that are written by hand.
pub fn chunked(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Trick {
    parts(move |_, answer| {
        let body = make(answer.sent());
        answer.header("Transfer-Encoding", "chunked").then(0, [Part::Bytes(body)])
    })
}

/// The honest answer's headers, and chunks without an end.
pub fn endless() -> Trick {
    parts(|_, answer| {
        let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
        answer.header("Transfer-Encoding", "chunked").then(0, [Part::Forever(chunk, Duration::ZERO)])
    })
}

/// One well-formed chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// The challenge for a token of `realm`.
pub fn challenge(realm: &str) -> Trick {
    www_authenticate(format!("Bearer realm=\"{realm}\",service=\"scripted\""))
}

/// 401 with a challenge in other words, for whoever comes without a token.
pub fn www_authenticate(value: impl Into<String>) -> Trick {
    let value = value.into();
    answer(move |request, answer| {
        if request.header("authorization").is_empty() {
            answer.status(401).without("WWW-Authenticate").header("WWW-Authenticate", &value).body("")
        } else {
            answer
        }
    })
}
