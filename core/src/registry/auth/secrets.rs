//! Removes the client's own secrets from the text of registries and token services. They may repeat what the client
//! sent, and their messages become events and denials.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, header};
use serde_json::Value;
use url::Url;
use zeroize::Zeroizing;

use crate::credentials::Credential;
use crate::display::Printable;

/// The replacement of a secret. [`Printable`] ends with the same character if it cuts a text.
const HIDDEN: char = '…';
/// How many lines of a secret count on their own. A key file has about 40 with its private key.
const MAX_LINES: usize = 64;
/// The lines of a secret of many lines count as secrets from this length on.
const MIN_LINE_LEN: usize = 16;
/// The values of configured headers count as secrets from this length on.
const MIN_HEADER_SECRET_LEN: usize = 8;

/// Secrets in all encodings in which a service may repeat them, in lower case. Never shown.
#[derive(Default)]
pub(in crate::registry) struct Secrets(Vec<Zeroizing<String>>);

impl Secrets {
    /// Returns the secrets of a credential. A user name is a secret only if there is no password.
    pub(in crate::registry) fn from_credential(credential: &Credential) -> Self {
        let mut secrets = Self::default();
        match credential {
            Credential::Anonymous => {}
            Credential::Basic { username, password } => {
                let (username, password) = (username.expose(), password.expose());
                secrets.add(if password.is_empty() { username } else { password });
                // A service may repeat one line of a key file, for example that of the private key.
                if password.contains('\n') || password.starts_with('{') {
                    secrets.add_lines(password);
                }
                secrets.add_encoded(&Zeroizing::new(format!("{username}:{password}")));
            }
            Credential::RefreshToken(token) | Credential::RegistryToken(token) => {
                secrets.add(token.expose());
            }
        }
        secrets
    }

    /// Adds the lines of a secret of many lines, and those of the private key in the key file of a Google service account.
    fn add_lines(&mut self, secret: &str) {
        let mut lines: Vec<Zeroizing<String>> = Vec::new();
        if let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(secret) {
            for key in ["private_key", "private_key_id"] {
                if let Some(Value::String(text)) = fields.remove(key) {
                    lines.extend(long_lines(&Zeroizing::new(text)));
                }
            }
        }
        lines.extend(long_lines(secret));
        for line in lines.into_iter().take(MAX_LINES) {
            self.insert(&line);
        }
    }

    /// Adds the value of an `Authorization` header.
    pub(in crate::registry) fn add_header(&mut self, value: &HeaderValue) {
        let Ok(text) = value.to_str() else { return };
        self.add(text.split_once(' ').map_or(text, |(_, secret)| secret));
    }

    /// Adds the headers of a `hosts.toml`.
    pub(in crate::registry) fn add_headers(&mut self, headers: &HeaderMap) {
        for (name, value) in headers {
            if *name == header::AUTHORIZATION {
                self.add_header(value);
            } else if value.len() >= MIN_HEADER_SECRET_LEN {
                self.add(value.to_str().unwrap_or_default());
            }
        }
    }

    fn add(&mut self, secret: &str) {
        let json = Zeroizing::new(serde_json::to_string(secret).unwrap_or_default());
        let json = json.trim_matches('"');
        let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        self.insert(secret);
        self.insert(json);
        // Go's encoding/json escapes these characters as well.
        self.insert(&json.replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e"));
        self.insert(&form.replace('+', "%20"));
        self.insert(&form);
        if let Ok(mut url) = Url::parse("http://host/") {
            url.set_path(secret);
            self.insert(url.path().trim_start_matches('/'));
        }
        self.add_encoded(secret);
    }

    fn add_encoded(&mut self, secret: &str) {
        for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD] {
            self.insert(&engine.encode(secret));
        }
    }

    fn insert(&mut self, form: &str) {
        // The text itself, and the text after `Printable` has cleaned it.
        for form in [form, Printable::new(form).as_str()] {
            let form = Zeroizing::new(form.to_ascii_lowercase());
            if !form.is_empty() && !self.0.contains(&form) {
                self.0.push(form);
            }
        }
        self.0.sort_by_key(|form| std::cmp::Reverse(form.len()));
    }

    /// Returns the text without the secrets. At the place where the text was cut, the beginning of a secret is removed
    /// as well.
    pub(in crate::registry) fn redact(&self, text: &str) -> String {
        if self.0.is_empty() {
            return text.to_owned();
        }
        let lower = text.to_ascii_lowercase();
        let mut shown = String::new();
        let mut at = 0;
        while let Some(character) = text[at..].chars().next() {
            let length =
                self.0.iter().map(|secret| matched_len(secret, &lower[at..])).find(|length| *length > 0);
            if length.is_some() && !shown.ends_with(HIDDEN) {
                shown.push(HIDDEN);
            }
            if length.is_none() && !(character == HIDDEN && shown.ends_with(HIDDEN)) {
                shown.push(character);
            }
            at += length.unwrap_or(character.len_utf8());
        }
        shown
    }
}

fn long_lines(text: &str) -> Vec<Zeroizing<String>> {
    let lines = text.lines().map(str::trim).filter(|line| line.len() >= MIN_LINE_LEN);
    lines.map(|line| Zeroizing::new(line.to_owned())).collect()
}

/// Returns how many bytes of a secret the text begins with: all, or the part before the place where the text was cut.
fn matched_len(secret: &str, text: &str) -> usize {
    if text.starts_with(secret) {
        return secret.len();
    }
    let same = secret.chars().zip(text.chars()).take_while(|(one, other)| one == other);
    let length = same.map(|(one, _)| one.len_utf8()).sum();
    if text[length..].starts_with(HIDDEN) { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("no: hunter2!", "no: …!")]
    #[case("HUNTER2hunter2", "…")]
    #[case("cut at hunt…", "cut at …")]
    #[case("hunt is not cut", "hunt is not cut")]
    #[case("YWxpY2U6aHVudGVyMg==", "…")]
    #[case("YWxpY2U6aHVudGVyMg", "…")]
    #[case("alice:hunter2", "alice:…")]
    #[case("ünter hunter2 ü", "ünter … ü")]
    #[case("", "")]
    fn secrets_are_redacted(#[case] text: &str, #[case] shown: &str) {
        let secrets =
            Secrets::from_credential(&Credential::basic("alice".to_owned(), "hunter2".to_owned()).unwrap());
        assert_eq!(secrets.redact(text), shown);
        assert_eq!(secrets.redact(shown), shown);
        assert_eq!(Secrets::from_credential(&Credential::Anonymous).redact(text), text);
    }

    #[test]
    fn each_line_of_a_key_file_is_a_secret() {
        let key = "{\n  \"type\": \"service_account\",\n  \"private_key\": \"0123456789abcdef\"\n}\n";
        let credential = Credential::basic("_json_key".to_owned(), key.to_owned()).unwrap();
        let secrets = Secrets::from_credential(&credential);
        let words = r#"cannot read "private_key": "0123456789abcdef""#;
        assert_eq!(secrets.redact(words), "cannot read …");
        assert_eq!(secrets.redact(&format!("no: {key}")), "no: …");
        // The key in the file has escaped line breaks; a service that parsed it may repeat a line of the key.
        let key = r#"{"type":"service_account","private_key":"-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG\nabc\n"}"#;
        let credential = Credential::basic("_json_key".to_owned(), key.to_owned()).unwrap();
        let secrets = Secrets::from_credential(&credential);
        assert_eq!(secrets.redact("bad key MIIEvQIBADANBgkqhkiG!"), "bad key …!");
    }

    /// The secrets of a client are collected for each of its requests.
    #[test]
    fn a_password_of_many_lines_has_a_limited_number_of_secrets() {
        let password = format!("{{{}\n}}", "\n0123456789abcdef".repeat(900));
        let credential = Credential::basic("user".to_owned(), password).unwrap();
        assert!(Secrets::from_credential(&credential).0.len() < 4 * MAX_LINES);
    }

    #[test]
    fn a_user_name_without_a_password_and_headers_are_secrets() {
        let token = Credential::basic("ghp_token".to_owned(), String::new()).unwrap();
        assert_eq!(Secrets::from_credential(&token).redact("bad ghp_token"), "bad …");
        let mut secrets = Secrets::default();
        let headers = [("authorization", "Basic c2VjcmV0"), ("x-key", "0123456789"), ("x-short", "yes")];
        let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        secrets.add_headers(&headers.into_iter().collect());
        assert_eq!(secrets.redact("c2VjcmV0 0123456789 yes"), "… … yes");
    }
}
