//! Reads a review of the creation of a pod in one pass over its text: the review that the webhook answers most.
//!
//! `serde_json` took half of the instructions of an admission: it looks at each skipped byte twice, because the members
//! `resource` and `operation` say which fields of the object are read, and `Value` hashes and copies each name. The API
//! server writes these members before the object, so the object can be read when it is met.
//!
//! This reader gives up where anything is unusual: another object, another order, an error. The general decoder then
//! reads the text from its start. So there is one set of rules, and this reader only has to agree with it: the tests
//! compare the two.

use std::borrow::Cow;

use super::fields::{self, Fields, MAX_BYTES, NODE_BYTES, Object};
use super::{API_VERSION, KIND, MAX_TEXT_BYTES, Review, Subject};
use crate::view::{Members, Tree};

/// How deep values may nest here. The general decoder allows more.
const MAX_DEPTH: usize = 96;

/// Returns the review of the creation of a pod, or `None` where the general decoder must read it.
pub(super) fn read(body: &[u8]) -> Option<Review> {
    let text = std::str::from_utf8(body).ok()?;
    let mut reader = Reader { text, at: 0, left: MAX_BYTES };
    let (mut api_version, mut kind, mut request) = (None, None, None);
    reader.object(|reader, name| match name {
        "apiVersion" => set(&mut api_version, reader.string()?),
        "kind" => set(&mut kind, reader.string()?),
        "request" => set(&mut request, reader.request()?),
        _ => reader.skip(MAX_DEPTH),
    })?;
    let is_review = api_version? == API_VERSION && kind? == KIND;
    if !is_review || reader.next().is_some() {
        return None;
    }
    request
}

/// Sets a member, which must occur once.
fn set<T>(member: &mut Option<T>, value: T) -> Option<()> {
    member.replace(value).is_none().then_some(())
}

/// A position in a JSON text (RFC 8259).
struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// The memory that fields may still take, as the general decoder counts it.
    left: usize,
}

impl<'a> Reader<'a> {
    /// Reads the request: its members besides the object, and the fields of the object.
    fn request(&mut self) -> Option<Review> {
        let (mut uid, mut namespace, mut dry_run, mut object) = (None, None, None, None);
        let (mut sub_resource, mut resource, mut operation, mut old_object) = (None, None, None, None);
        self.object(|reader, name| match name {
            "uid" => set(&mut uid, reader.string()?),
            "namespace" => set(&mut namespace, reader.string()?),
            "operation" => set(&mut operation, reader.string()?),
            "subResource" => set(&mut sub_resource, reader.string()?),
            "dryRun" => set(&mut dry_run, reader.flag()?),
            "resource" => set(&mut resource, reader.is_pods()?),
            "object" => {
                let is_new_pod = resource == Some(true) && operation.as_deref() == Some("CREATE");
                set(&mut object, if is_new_pod { reader.pod()? } else { return None })
            }
            "oldObject" => {
                reader.skip(MAX_DEPTH)?;
                set(&mut old_object, ())
            }
            _ => reader.skip(MAX_DEPTH),
        })?;
        let (uid, namespace) = (uid?, namespace.unwrap_or_default());
        let is_whole = sub_resource.is_none_or(|name| name.is_empty());
        let has_limits = !uid.is_empty() && uid.len() <= MAX_TEXT_BYTES && namespace.len() <= MAX_TEXT_BYTES;
        let object = object.filter(|_| is_whole && has_limits)?;
        Some(Review {
            uid: uid.into_owned(),
            namespace: namespace.into_owned(),
            is_dry_run: dry_run.unwrap_or_default(),
            subject: Subject::NewPod(object.value),
            bytes: object.bytes,
        })
    }

    /// Reports whether a `GroupVersionResource` is pods.
    fn is_pods(&mut self) -> Option<bool> {
        let (mut group, mut version, mut resource) = (None, None, None);
        self.object(|reader, name| match name {
            "group" => set(&mut group, reader.string()?),
            "version" => set(&mut version, reader.string()?),
            "resource" => set(&mut resource, reader.string()?),
            _ => reader.skip(MAX_DEPTH),
        })?;
        Some(group.is_none_or(|group| group.is_empty()) && version? == "v1" && resource? == "pods")
    }

    fn pod(&mut self) -> Option<Object<Tree>> {
        let value = self.tree(&fields::POD, MAX_DEPTH)?;
        let is_allowed = value != Tree::Null && fields::has_allowed_annotations(&value);
        is_allowed.then_some(Object { value, bytes: MAX_BYTES - self.left })
    }

    /// Reads the fields of a value.
    fn tree(&mut self, fields: &'static Fields, depth: usize) -> Option<Tree> {
        let depth = depth.checked_sub(1)?;
        Some(match self.next()? {
            b'"' => {
                let text = self.string()?;
                self.charge(text.len())?;
                Tree::Text(text.into())
            }
            b'{' => {
                self.charge(0)?;
                let mut members = Vec::new();
                self.object(|reader, name| {
                    let Some((name, fields)) = fields.member(name) else { return reader.skip(depth) };
                    reader.charge(name.map_or_else(str::len, str::len))?;
                    let name = name.map_or_else(|name| Cow::Owned(name.to_owned()), Cow::Borrowed);
                    members.push((name, reader.tree(fields, depth)?));
                    Some(())
                })?;
                Tree::Object(Members::new(members))
            }
            b'[' => {
                self.charge(0)?;
                let (mut items, fields) = (Vec::new(), fields.item());
                self.list(|reader| match fields {
                    Some(fields) => reader.tree(fields, depth).map(|item| items.push(item)),
                    None => reader.skip(depth),
                })?;
                Tree::List(items)
            }
            byte => {
                self.charge(0)?;
                let start = self.at;
                self.scalar(byte)?;
                match byte {
                    b't' => Tree::Flag(true),
                    b'f' => Tree::Flag(false),
                    b'n' => Tree::Null,
                    _ => Tree::Number(serde_json::from_str(&self.text[start..self.at]).ok()?),
                }
            }
        })
    }

    fn charge(&mut self, text: usize) -> Option<()> {
        self.left = self.left.checked_sub(NODE_BYTES + text)?;
        Some(())
    }

    /// Returns the next byte that is not white space, without consuming it.
    fn next(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        loop {
            let byte = *bytes.get(self.at)?;
            if !matches!(byte, b' ' | b'\n' | b'\t' | b'\r') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    /// Consumes the next byte that is not white space, which must be this one.
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then(|| self.at += 1)
    }

    /// Consumes an object; `member` consumes the value of each member.
    fn object(&mut self, mut member: impl FnMut(&mut Self, &str) -> Option<()>) -> Option<()> {
        self.expect(b'{')?;
        if self.next()? == b'}' {
            self.at += 1;
            return Some(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':')?;
            member(self, &name)?;
            if !self.has_more(b'}')? {
                return Some(());
            }
        }
    }

    /// Consumes a list; `item` consumes each item.
    fn list(&mut self, mut item: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.expect(b'[')?;
        if self.next()? == b']' {
            self.at += 1;
            return Some(());
        }
        loop {
            item(self)?;
            if !self.has_more(b']')? {
                return Some(());
            }
        }
    }

    /// Consumes a comma or the end of an object or a list.
    fn has_more(&mut self, end: u8) -> Option<bool> {
        let byte = self.next()?;
        self.at += 1;
        match byte {
            b',' => Some(true),
            _ => (byte == end).then_some(false),
        }
    }

    /// Consumes any value.
    fn skip(&mut self, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match self.next()? {
            b'"' => self.skip_string().map(drop),
            b'{' => {
                self.at += 1;
                if self.next()? == b'}' {
                    self.at += 1;
                    return Some(());
                }
                loop {
                    self.next().filter(|byte| *byte == b'"')?;
                    self.skip_string()?;
                    self.expect(b':')?;
                    self.skip(depth)?;
                    if !self.has_more(b'}')? {
                        return Some(());
                    }
                }
            }
            b'[' => self.list(|reader| reader.skip(depth)),
            byte => self.scalar(byte),
        }
    }

    /// Consumes a value that is no string, list or object, and begins with `byte`.
    fn scalar(&mut self, byte: u8) -> Option<()> {
        match byte {
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            _ => self.number(),
        }
    }

    fn word(&mut self, word: &str) -> Option<()> {
        let rest = self.text.as_bytes().get(self.at..)?;
        rest.starts_with(word.as_bytes()).then(|| self.at += word.len())
    }

    fn number(&mut self) -> Option<()> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.peek(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.digits()?;
        }
        // A digit after a leading zero is left over, and refused as no comma.
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn flag(&mut self) -> Option<bool> {
        let flag = self.next()? == b't';
        self.word(if flag { "true" } else { "false" })?;
        Some(flag)
    }

    /// Consumes a string, and returns its content.
    fn string(&mut self) -> Option<Cow<'a, str>> {
        self.next().filter(|byte| *byte == b'"')?;
        let start = self.at;
        let has_escapes = self.skip_string()?;
        let text = self.text.get(start..self.at)?;
        if has_escapes {
            return serde_json::from_str(text).ok().map(Cow::Owned);
        }
        Some(Cow::Borrowed(text.get(1..text.len() - 1)?))
    }

    /// Consumes a string that begins here. Reports whether it has escapes.
    fn skip_string(&mut self) -> Option<bool> {
        let bytes = self.text.as_bytes();
        let (mut at, mut has_escapes) = (self.at + 1, false);
        loop {
            while let Some(word) = bytes.get(at..).and_then(|rest| rest.first_chunk()) {
                let special = special_bytes(u64::from_le_bytes(*word));
                at += special.trailing_zeros() as usize / 8;
                if special != 0 {
                    break;
                }
            }
            match *bytes.get(at)? {
                b'"' => {
                    self.at = at + 1;
                    return Some(has_escapes);
                }
                b'\\' => {
                    has_escapes = true;
                    at += match *bytes.get(at + 1)? {
                        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 2,
                        b'u' => {
                            let digits = bytes.get(at + 2..at + 6)?;
                            digits.iter().all(u8::is_ascii_hexdigit).then_some(6)?
                        }
                        _ => return None,
                    };
                }
                0..=0x1f => return None,
                _ => at += 1,
            }
        }
    }
}

/// Returns a word in which the high bit of the lowest byte that is a quote, a backslash or a control character is the
/// lowest bit that is set; 0 if there is none. (Bits of higher bytes may be wrong: a subtraction borrows from them.)
fn special_bytes(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 0xff;
    const HIGH: u64 = ONES << 7;
    let is_zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let quote = is_zero(word ^ (ONES * u64::from(b'"')));
    let backslash = is_zero(word ^ (ONES * u64::from(b'\\')));
    let control = word.wrapping_sub(ONES * 0x20) & !word;
    (quote | backslash | control) & HIGH
}

#[cfg(test)]
mod tests {
    use super::super::Hook;
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const HEAD: &str = r#""apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview""#;
    const RESOURCE: &str = r#""resource":{"group":"","version":"v1","resource":"pods"}"#;
    const POD: &str =
        r#""object":{"metadata":{"annotations":{"a":"b","\u0061":"c"}},"spec":{"x":[1e400,"\n"]}}"#;

    fn body(members: &[&str]) -> String {
        format!("{{{HEAD},\"request\":{{{}}}}}", members.join(","))
    }

    fn create(more: &[&str]) -> String {
        body(&[&[r#""uid":"u""#, RESOURCE, r#""operation":"CREATE""#], more].concat())
    }

    /// Asserts that both decoders give the same result, and returns whether this one decodes it.
    fn is_read(body: &[u8]) -> bool {
        let both = [Review::decode(Hook::Volumes, body), Review::decode_any(Hook::Volumes, body)];
        let [one, other] = both.map(|review| format!("{review:?}"));
        assert_eq!(one, other);
        read(body).is_some()
    }

    #[rstest]
    #[case(create(&[POD]))]
    #[case(create(&[r#""namespace":"team""#, POD, r#""oldObject":null,"dryRun":true,"options":{"a":[]}"#]))]
    #[case(create(&[r#""subResource":"""#, POD, r#""userInfo":{"groups":["a"]}"#]))]
    #[case(create(&[r#""object":[1,2]"#]))]
    #[case(create(&[r#""object":"text""#]))]
    #[case(create(&[r#""object":{"spec":{"volumes":[{"name":7.5},null,true,-1]}}"#]))]
    #[case(body(&[r#""operation":"CREATE""#, RESOURCE, POD, r#""uid":"u""#]))]
    #[case(create(&[POD]).replacen('{', "\n { ", 1))]
    #[case(create(&[POD]).replace(HEAD, &HEAD.replace("AdmissionReview", r"Admission\u0052eview")))]
    fn reads_a_new_pod(#[case] body: String) {
        assert!(is_read(body.as_bytes()));
    }

    #[rstest]
    #[case(body(&[POD, r#""uid":"u""#, RESOURCE, r#""operation":"CREATE""#]))]
    #[case(create(&[r#""object":null"#]))]
    #[case(create(&[]))]
    #[case(create(&[POD, POD]))]
    #[case(create(&[POD, r#""uid":"v""#]))]
    #[case(create(&[POD, r#""oldObject":null,"oldObject":null"#]))]
    #[case(create(&[POD, r#""subResource":"status""#]))]
    #[case(create(&[POD]).replace("\"u\"", "\"\""))]
    #[case(create(&[POD]).replace("\"u\"", "null"))]
    #[case(create(&[POD]).replace("\"u\"", "7"))]
    #[case(create(&[POD]).replace("\"u\"", &format!("\"{}\"", "u".repeat(MAX_TEXT_BYTES + 1))))]
    #[case(create(&[POD]).replace("CREATE", "UPDATE"))]
    #[case(create(&[POD]).replace("CREATE", "DELETE"))]
    #[case(create(&[POD]).replace("\"pods\"", "\"services\""))]
    #[case(create(&[POD]).replace("\"pods\"", "\"persistentvolumes\""))]
    #[case(create(&[POD]).replace("\"group\":\"\"", "\"group\":\"metrics.k8s.io\""))]
    #[case(create(&[POD]).replace("admission.k8s.io/v1", "admission.k8s.io/v2"))]
    #[case(create(&[POD]).replace("AdmissionReview", "Pod"))]
    #[case(create(&[POD]) + "x")]
    #[case(create(&[POD]).replace("\"b\"", "\"b\u{7}\""))]
    #[case(create(&[POD]).replace(r"\u0061", "x").replace("\"b\"", &format!("\"{}\"", "b".repeat(300_000))))]
    #[case(create(&[POD]).replace("\"b\"", &format!("{}1{}", "[".repeat(126), "]".repeat(126))))]
    #[case(create(&[POD]).replace("\"b\"", &format!("{}1{}", "[".repeat(400), "]".repeat(400))))]
    #[case(create(&[POD]).replace("\"b\"", "1e400"))]
    #[case(format!("{{{HEAD},\"request\":[\"u\"]}}"))]
    #[case(format!("{{{HEAD},\"request\":null}}"))]
    fn leaves_other_reviews_to_the_general_decoder(#[case] body: String) {
        assert!(!is_read(body.as_bytes()));
    }

    #[test]
    fn leaves_text_that_is_not_utf_8_to_the_general_decoder() {
        for place in ["\"b\"", "\"\\n\"", "AdmissionReview"] {
            let text = create(&[POD]);
            let mut body = text.clone().into_bytes();
            body[text.find(place).unwrap() + 1] = 0xff;
            assert!(!is_read(&body));
        }
    }

    #[test]
    fn finds_special_bytes() {
        for byte in 0..=u8::MAX {
            let is_special = byte < 0x20 || byte == b'"' || byte == b'\\';
            for place in 0..8 {
                for rest in [0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xff] {
                    let mut word = [rest; 8];
                    word[place] = byte;
                    let found = special_bytes(u64::from_le_bytes(word)).trailing_zeros() as usize / 8;
                    assert_eq!(found, if is_special { place } else { 8 }, "{byte} at {place}");
                }
            }
        }
    }

    /// JSON text with all kinds of values in the members of a pod.
    fn pods() -> impl Strategy<Value = String> {
        let names =
            "(metadata|annotations|labels|spec|volumes|containers|volumeMounts|name|csi|x|é|\\\\u0061|\\\\n)";
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            Just("false".to_owned()),
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,3})?",
            r#""([ a-z\u{e9}\u{1f600}]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}){0,12}""#,
        ];
        leaf.prop_recursive(6, 60, 6, move |inner| {
            let member = (names, inner.clone()).prop_map(|(name, value)| format!("\"{name}\" : {value}"));
            prop_oneof![
                proptest::collection::vec(inner, 0..5).prop_map(|items| format!("[{}]", items.join(" ,"))),
                proptest::collection::vec(member, 0..6)
                    .prop_map(|members| format!("{{{}}}", members.join(",\n"))),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_general_decoder(
            pod in pods(),
            place in any::<prop::sample::Index>(),
            byte in any::<u8>(),
            change in 0..4,
        ) {
            let mut body = create(&[&format!("\"object\":{pod}")]).into_bytes();
            is_read(&body);
            let place = place.index(body.len());
            match change {
                0 => body[place] = byte,
                1 => body.insert(place, byte),
                2 => drop(body.remove(place)),
                _ => body.truncate(place),
            }
            is_read(&body);
        }
    }
}
