//! Tokens, and who may have which.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::challenge::Challenge;
use crate::credentials::Credential;

/// Longer tokens do not fit what servers take as a header.
const LONGEST_TOKEN: usize = 16 << 10;
/// What a token lasts that does not say (distribution, "Token Authentication Specification").
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
/// Longer lives are not believed: rights change.
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// Tokens are renewed this long before they end, or after nine tenths of a shorter life.
const MARGIN: Duration = Duration::from_secs(10);
/// More entries are dropped; they are asked for again.
const MOST_TOKENS: usize = 1024;

/// A token, ready to be sent. Never shown.
#[derive(Clone)]
pub(in crate::registry) struct Token {
    header: HeaderValue,
    until: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

impl Token {
    /// Reads a token service's answer. A token has only the characters of RFC 6750, 2.1 (`b64token`), so
    /// none can add a line to a request.
    pub(in crate::registry) fn from_answer(body: &[u8], now: Instant) -> Result<Self, &'static str> {
        const NO_TOKEN: &str = "the token service's answer is not the JSON of a token";
        // serde takes a list for an object, by the order of its fields.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(NO_TOKEN);
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| NO_TOKEN)?;
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or("the token service's answer has no token")?;
        let of_a_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if token.len() > LONGEST_TOKEN {
            return Err("the token service's token is longer than 16 KiB");
        }
        if !token.bytes().all(of_a_token) {
            return Err("the token service's token has characters that no token may have (RFC 6750, 2.1)");
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "the token service's token cannot be sent as a header")?;
        header.set_sensitive(true);
        let life = answer.expires_in.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let life = life.unwrap_or(SHORTEST_LIFE).min(LONGEST_LIFE);
        Ok(Self { header, until: now + life.saturating_sub(MARGIN.min(life / 10)) })
    }

    pub(in crate::registry) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// What belongs together: an endpoint's origin, a repository and a credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Asker {
    pub(in crate::registry) origin: String,
    pub(in crate::registry) repository: String,
    pub(in crate::registry) credential: Credential,
}

/// Tokens by (endpoint, realm, service, scope, credential), and which of them an endpoint wants for a
/// repository. The endpoint is part of it: another registry that names the same realm must not be handed
/// what was made out for this one.
#[derive(Debug, Default)]
pub(in crate::registry) struct Tokens(Mutex<Store>);

#[derive(Debug, Default)]
struct Store {
    wanted: HashMap<Asker, Challenge>,
    tokens: HashMap<TokenKey, Token>,
    basic: HashSet<(String, Credential)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    origin: String,
    challenge: Challenge,
    credential: Credential,
}

impl TokenKey {
    fn new(asker: &Asker, challenge: &Challenge) -> Self {
        let Asker { origin, credential, .. } = asker.clone();
        Self { origin, challenge: challenge.clone(), credential }
    }
}

impl Tokens {
    /// A token that will probably do for the next request.
    pub(in crate::registry) fn known(&self, asker: &Asker) -> Option<Token> {
        let store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let challenge = store.wanted.get(asker)?;
        let token = store.tokens.get(&TokenKey::new(asker, challenge))?;
        (Instant::now() < token.until).then(|| token.clone())
    }

    /// A token for a challenge that was just made, unless it is `refused`, the one that was sent.
    pub(in crate::registry) fn for_challenge(
        &self,
        asker: &Asker,
        challenge: &Challenge,
        refused: Option<&Token>,
    ) -> Option<Token> {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut store.wanted);
        store.wanted.insert(asker.clone(), challenge.clone());
        let token = store.tokens.get(&TokenKey::new(asker, challenge))?;
        let fresh = Instant::now() < token.until && refused.is_none_or(|old| old.header != token.header);
        fresh.then(|| token.clone())
    }

    /// Whether an endpoint took this credential as a user name and a password before.
    pub(in crate::registry) fn takes_basic(&self, asker: &Asker) -> bool {
        let store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        store.basic.contains(&(asker.origin.clone(), asker.credential.clone()))
    }

    pub(in crate::registry) fn remember_basic(&self, asker: &Asker) {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if store.basic.len() >= MOST_TOKENS {
            store.basic.clear();
        }
        store.basic.insert((asker.origin.clone(), asker.credential.clone()));
    }

    pub(in crate::registry) fn keep(&self, asker: &Asker, challenge: &Challenge, token: &Token) {
        let mut store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        make_room(&mut store.tokens);
        store.tokens.insert(TokenKey::new(asker, challenge), token.clone());
    }
}

fn make_room<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= MOST_TOKENS {
        map.clear();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(r#"{"token":"a.b-c_d~e+f/g=="}"#, Ok(60))]
    #[case(r#"{"access_token":"a","expires_in":300,"issued_at":"x"}"#, Ok(300))]
    #[case(r#"{"token":"","access_token":"a","expires_in":1e9}"#, Ok(3600))]
    #[case(r#"{"token":"a","expires_in":-5}"#, Ok(60))]
    #[case(r#"{"token":"a\r\nX-Evil: 1"}"#, Err(()))]
    #[case(r#"{"token":"a b"}"#, Err(()))]
    #[case(r#"{"token":"ä"}"#, Err(()))]
    #[case(r#"{"token":5}"#, Err(()))]
    #[case("{}", Err(()))]
    #[case(r#"["a"]"#, Err(()))]
    #[case(r#" ["a", "b", 300]"#, Err(()))]
    #[case("<html>", Err(()))]
    fn tokens_are_read_and_checked(#[case] body: &str, #[case] life: Result<u64, ()>) {
        let now = Instant::now();
        let token = Token::from_answer(body.as_bytes(), now).map_err(|_| ());
        assert_eq!(
            token.map(|token| token.until - now),
            life.map(Duration::from_secs).map(|life| life.saturating_sub(MARGIN.min(life / 10)))
        );
    }

    #[test]
    fn tokens_are_kept_apart_and_never_shown() {
        let asker = |repository: &str| Asker {
            origin: "https://x".into(),
            repository: repository.into(),
            credential: Credential::Anonymous,
        };
        let challenge = |scope: &str| Challenge {
            realm: "https://x/t".parse().unwrap(),
            service: None,
            scope: scope.into(),
        };
        let token = Token::from_answer(br#"{"token":"hunter2"}"#, Instant::now()).unwrap();
        let tokens = Tokens::default();
        assert!(tokens.for_challenge(&asker("a"), &challenge("a"), None).is_none());
        tokens.keep(&asker("a"), &challenge("a"), &token);
        assert!(tokens.known(&asker("a")).is_some());
        assert!(tokens.known(&asker("b")).is_none());
        assert!(tokens.for_challenge(&asker("b"), &challenge("b"), None).is_none());
        assert!(tokens.for_challenge(&asker("a"), &challenge("a"), Some(&token)).is_none(), "it was refused");
        assert!(!format!("{tokens:?}{token:?}").contains("hunter2"));
    }
}
