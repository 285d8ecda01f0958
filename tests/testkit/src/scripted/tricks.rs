//! Changes of answers that several tests share, for the lines of a [`super::Script`].

use std::sync::Arc;

use super::{Answer, Part, Request, Trick};

/// Returns any parts, made from the request and the answer of the registry.
pub fn parts(make: impl Fn(&Request, Answer) -> Vec<Part> + Send + Sync + 'static) -> Trick {
    Arc::new(make)
}

/// Returns another well-formed answer.
pub fn answer(make: impl Fn(&Request, Answer) -> Answer + Send + Sync + 'static) -> Trick {
    parts(move |request, answer| make(request, answer).parts())
}

/// Returns the answer of the registry unchanged.
pub fn honest() -> Trick {
    answer(|_, answer| answer)
}

/// Sends exactly these bytes.
pub fn raw(bytes: impl AsRef<[u8]>) -> Trick {
    let bytes = bytes.as_ref().to_vec();
    parts(move |_, _| vec![Part::Bytes(bytes.clone())])
}

/// Sends headers and `length` bytes of the body, and closes the connection.
pub fn cut(length: usize) -> Trick {
    parts(move |_, answer| answer.then(length, []))
}

/// Sends headers, `length` bytes of the body, and then another part.
pub fn then(length: usize, rest: Part) -> Trick {
    parts(move |_, answer| answer.then(length, [rest.clone()]))
}

/// Sends only this part.
pub fn only(part: Part) -> Trick {
    parts(move |_, _| vec![part.clone()])
}

/// Returns a status with a body.
pub fn status(status: u16, body: impl AsRef<[u8]>) -> Trick {
    let body = body.as_ref().to_vec();
    answer(move |_, answer| answer.status(status).body(body.clone()))
}

/// Replaces a header.
pub fn header(name: &'static str, value: impl Into<String>) -> Trick {
    let value = value.into();
    answer(move |_, answer| answer.without(name).header(name, &value))
}

/// Returns a status with a header and no body.
pub fn status_with(status: u16, name: &'static str, value: impl Into<String>) -> Trick {
    let value = value.into();
    answer(move |_, answer| answer.status(status).header(name, &value).body(""))
}

/// Redirects with 307 to an address.
pub fn redirect(to: impl Into<String>) -> Trick {
    status_with(307, "Location", to)
}

/// Redirects with 307 to the same path and query of another server, `http://HOST`.
pub fn redirect_to_host(base: &str) -> Trick {
    let base = base.to_owned();
    answer(move |request, answer| {
        answer.status(307).header("Location", &format!("{base}{}", request.target)).body("")
    })
}

/// Sends the headers of the answer, and a chunked body that `make` writes.
pub fn chunked(make: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Trick {
    parts(move |_, answer| {
        let body = make(answer.sent());
        answer.header("Transfer-Encoding", "chunked").then(0, [Part::Bytes(body)])
    })
}

/// Sends the headers of the answer, and chunks without an end.
pub fn endless() -> Trick {
    parts(|_, answer| {
        let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
        answer.header("Transfer-Encoding", "chunked").then(0, [Part::Forever(chunk)])
    })
}

/// Returns one well-formed chunk.
pub fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// Sends a challenge for a token of `realm` to clients without a token.
pub fn challenge(realm: &str) -> Trick {
    www_authenticate(format!("Bearer realm=\"{realm}\",service=\"scripted\""))
}

/// Sends 401 with this challenge to clients without a token.
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
