//! Bearer tokens and their cache.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;

use super::challenge::Challenge;
use crate::credentials::Credential;

/// The maximum length of a token: that of the answer of a token service
/// ([`Limits::token`](crate::registry::Limits::token)). A token with the groups of a user can have tens of kilobytes.
const MAX_TOKEN_LEN: usize = 64 << 10;
/// The maximum length of all cached tokens together. A cache with more is cleared.
const MAX_CACHED_LEN: usize = 16 << 20;
/// The lifetime of a token without `expires_in` (distribution, "Token Authentication Specification").
const DEFAULT_LIFETIME: Duration = Duration::from_mins(1);
/// The maximum lifetime of a cached token, because permissions change.
const MAX_LIFETIME: Duration = Duration::from_hours(1);
/// Tokens are renewed this long before they expire, or after nine tenths of a shorter lifetime.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);
/// The maximum number of cached entries. A full cache is cleared.
const MAX_ENTRIES: usize = 1024;

/// A token as an `Authorization` header. Never shown.
#[derive(Clone)]
pub(in crate::registry) struct Token {
    header: HeaderValue,
    expires: Instant,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[derive(serde::Deserialize)]
struct Response {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// A number of seconds (RFC 6749, 5.1). Some token services write it as a string.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Response {
    fn lifetime(&self) -> Option<Duration> {
        let seconds = match &self.expires_in {
            serde_json::Value::String(text) => text.trim().parse().ok(),
            other => other.as_f64(),
        };
        Duration::try_from_secs_f64(seconds?).ok()
    }
}

impl Token {
    /// Parses the response of a token service. A token has only the characters of RFC 6750, 2.1 (`b64token`), so that it
    /// cannot add a line to a request.
    pub(in crate::registry) fn from_response(body: &[u8], now: Instant) -> Result<Self, &'static str> {
        const NO_TOKEN: &str = "the token service's response is not the JSON of a token";
        // serde also accepts a list as an object, by the order of the fields.
        if body.trim_ascii_start().first() != Some(&b'{') {
            return Err(NO_TOKEN);
        }
        let response: Response = serde_json::from_slice(body).map_err(|_| NO_TOKEN)?;
        let lifetime = response.lifetime().unwrap_or(DEFAULT_LIFETIME).min(MAX_LIFETIME);
        let token =
            [response.token, response.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or("the token service's response has no token")?;
        let is_token_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
        if token.len() > MAX_TOKEN_LEN {
            return Err("the token service's token is longer than 64 KiB");
        }
        if !token.bytes().all(is_token_byte) {
            return Err("the token service's token has characters that are not allowed (RFC 6750, 2.1)");
        }
        let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| "the token service's token cannot be sent as a header")?;
        header.set_sensitive(true);
        Ok(Self { header, expires: now + lifetime.saturating_sub(RENEWAL_MARGIN.min(lifetime / 10)) })
    }

    pub(in crate::registry) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// The combination of endpoint, repository and credential for which tokens are cached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Requester {
    pub(in crate::registry) origin: String,
    pub(in crate::registry) repository: String,
    pub(in crate::registry) credential: Credential,
}

/// Caches tokens by endpoint, realm, service, scope and credential, and the challenge that an endpoint sends for a
/// repository. The endpoint is part of the key, because a registry that names the same realm must not get a token that
/// was issued for another registry.
#[derive(Debug, Default)]
pub(in crate::registry) struct Tokens(Mutex<Cache>);

#[derive(Debug, Default)]
struct Cache {
    challenges: HashMap<Requester, Challenge>,
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
    fn new(requester: &Requester, challenge: &Challenge) -> Self {
        let Requester { origin, credential, .. } = requester.clone();
        Self { origin, challenge: challenge.clone(), credential }
    }
}

impl Tokens {
    /// Returns the token that the endpoint accepted for this requester, if it has not expired.
    pub(in crate::registry) fn known(&self, requester: &Requester) -> Option<Token> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let challenge = cache.challenges.get(requester)?;
        let token = cache.tokens.get(&TokenKey::new(requester, challenge))?;
        (Instant::now() < token.expires).then(|| token.clone())
    }

    /// Remembers the challenge and returns a cached token for it, unless the endpoint has just `refused` that token.
    pub(in crate::registry) fn for_challenge(
        &self,
        requester: &Requester,
        challenge: &Challenge,
        refused: Option<&Token>,
    ) -> Option<Token> {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clear_if_full(&mut cache.challenges);
        cache.challenges.insert(requester.clone(), challenge.clone());
        let token = cache.tokens.get(&TokenKey::new(requester, challenge))?;
        let is_usable =
            Instant::now() < token.expires && refused.is_none_or(|old| old.header != token.header);
        is_usable.then(|| token.clone())
    }

    /// Reports whether the cached token was requested with the permission to push.
    pub(in crate::registry) fn has_push_token(&self, requester: &Requester) -> bool {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let challenge = cache.challenges.get(requester).filter(|challenge| challenge.allows_push());
        let token = challenge.and_then(|challenge| cache.tokens.get(&TokenKey::new(requester, challenge)));
        token.is_some_and(|token| Instant::now() < token.expires)
    }

    /// Reports whether the endpoint has accepted this credential as user name and password.
    pub(in crate::registry) fn accepts_basic(&self, requester: &Requester) -> bool {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.basic.contains(&(requester.origin.clone(), requester.credential.clone()))
    }

    pub(in crate::registry) fn remember_basic(&self, requester: &Requester) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.basic.len() >= MAX_ENTRIES {
            cache.basic.clear();
        }
        cache.basic.insert((requester.origin.clone(), requester.credential.clone()));
    }

    pub(in crate::registry) fn insert(&self, requester: &Requester, challenge: &Challenge, token: &Token) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        clear_if_full(&mut cache.tokens);
        let length = cache.tokens.values().map(|token| token.header.len()).sum::<usize>();
        if length + token.header.len() > MAX_CACHED_LEN {
            cache.tokens.clear();
        }
        cache.tokens.insert(TokenKey::new(requester, challenge), token.clone());
    }
}

fn clear_if_full<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= MAX_ENTRIES {
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
    #[case(r#"{"token":"a","expires_in":"300"}"#, Ok(300))]
    #[case(r#"{"token":"a","expires_in":"soon"}"#, Ok(60))]
    #[case(r#"{"token":"a","expires_in":"NaN"}"#, Ok(60))]
    #[case(r#"{"token":"a","expires_in":"1e300"}"#, Ok(60))]
    #[case(r#"{"token":"a","expires_in":null}"#, Ok(60))]
    #[case(r#"{"token":"a","expires_in":[1]}"#, Ok(60))]
    #[case(r#"{"token":"a\r\nX-Evil: 1"}"#, Err(()))]
    #[case(r#"{"token":"a b"}"#, Err(()))]
    #[case(r#"{"token":"ä"}"#, Err(()))]
    #[case(r#"{"token":5}"#, Err(()))]
    #[case("{}", Err(()))]
    #[case(r#"["a"]"#, Err(()))]
    #[case(r#" ["a", "b", 300]"#, Err(()))]
    #[case("<html>", Err(()))]
    fn tokens_are_parsed_and_checked(#[case] body: &str, #[case] lifetime: Result<u64, ()>) {
        let now = Instant::now();
        let token = Token::from_response(body.as_bytes(), now).map_err(|_| ());
        assert_eq!(
            token.map(|token| token.expires - now),
            lifetime.map(Duration::from_secs).map(|full| full.saturating_sub(RENEWAL_MARGIN.min(full / 10)))
        );
    }

    #[test]
    fn tokens_are_cached_separately_and_never_shown() {
        let requester = |repository: &str| Requester {
            origin: "https://x".into(),
            repository: repository.into(),
            credential: Credential::Anonymous,
        };
        let challenge = |scope: &str| Challenge {
            realm: "https://x/t".parse().unwrap(),
            service: None,
            scope: scope.into(),
        };
        let token = Token::from_response(br#"{"token":"hunter2"}"#, Instant::now()).unwrap();
        let tokens = Tokens::default();
        assert!(tokens.for_challenge(&requester("a"), &challenge("a"), None).is_none());
        tokens.insert(&requester("a"), &challenge("a"), &token);
        assert!(tokens.known(&requester("a")).is_some());
        assert!(tokens.known(&requester("b")).is_none());
        assert!(tokens.for_challenge(&requester("b"), &challenge("b"), None).is_none());
        assert!(
            tokens.for_challenge(&requester("a"), &challenge("a"), Some(&token)).is_none(),
            "it was refused"
        );
        assert!(!format!("{tokens:?}{token:?}").contains("hunter2"));
    }

    #[test]
    fn the_length_of_all_tokens_together_is_limited() {
        let requester = Requester {
            origin: "https://x".into(),
            repository: "a".into(),
            credential: Credential::Anonymous,
        };
        let challenge = |scope: &str| Challenge {
            realm: "https://x/t".parse().unwrap(),
            service: None,
            scope: scope.into(),
        };
        let body = format!("{{\"token\":\"{}\"}}", "a".repeat(60 << 10));
        let token = Token::from_response(body.as_bytes(), Instant::now()).unwrap();
        let tokens = Tokens::default();
        for number in 0..400 {
            tokens.insert(&requester, &challenge(&number.to_string()), &token);
            let cache = tokens.0.lock().unwrap();
            let length: usize = cache.tokens.values().map(|token| token.header.len()).sum();
            assert!(length <= MAX_CACHED_LEN, "{length} after {number}");
        }
        assert!(tokens.for_challenge(&requester, &challenge("399"), None).is_some());
    }
}
