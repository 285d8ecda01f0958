//! Parses `Link` headers (RFC 8288, section 3).

use http::{HeaderMap, header};

use crate::registry::transport::utf8_text;

const INVALID: &str = "an invalid Link header";

/// Returns the target of the first link to the next page: `<TARGET>; rel="next"`.
pub(super) fn next_link(headers: &HeaderMap) -> Result<Option<&str>, &'static str> {
    for value in headers.get_all(header::LINK) {
        let mut rest = utf8_text(value).ok_or("a Link header with invalid characters")?;
        while let Some(link) = take_link(&mut rest)? {
            if link.is_next() {
                return Ok(Some(link.target));
            }
        }
    }
    Ok(None)
}

struct Link<'a> {
    target: &'a str,
    parameters: &'a str,
}

/// Takes the first link off a list of links. Returns `None` if there is none.
fn take_link<'a>(rest: &mut &'a str) -> Result<Option<Link<'a>>, &'static str> {
    let text = rest.trim_start_matches([' ', '\t', ',']);
    if text.is_empty() {
        return Ok(None);
    }
    let (target, after) = text.strip_prefix('<').and_then(|text| text.split_once('>')).ok_or(INVALID)?;
    let (parameters, after) = split_at_unquoted(after, ',');
    *rest = after;
    Ok(Some(Link { target: target.trim(), parameters }))
}

impl Link<'_> {
    /// Reports whether `next` is among the relation types. Only the first `rel` counts (RFC 8288, 3.3).
    fn is_next(&self) -> bool {
        let mut rest = self.parameters;
        while !rest.is_empty() {
            let (parameter, after) = split_at_unquoted(rest, ';');
            rest = after;
            let Some((name, types)) = parameter.split_once('=') else { continue };
            if name.trim().eq_ignore_ascii_case("rel") {
                let mut types = types.trim().trim_matches('"').split_ascii_whitespace();
                return types.any(|one| one.eq_ignore_ascii_case("next"));
            }
        }
        false
    }
}

/// Splits a text at the first separator that is not in a quoted text.
fn split_at_unquoted(text: &str, separator: char) -> (&str, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (position, character) in text.char_indices() {
        if character == separator && !is_quoted {
            return (&text[..position], &text[position + character.len_utf8()..]);
        }
        is_quoted ^= character == '"' && !is_escaped;
        is_escaped = is_quoted && character == '\\' && !is_escaped;
    }
    (text, "")
}
