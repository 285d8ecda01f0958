//! Who asks, and the tokens that registries want to see (Docker's token authentication, which the OCI
//! distribution-spec leaves to RFC 9110 and RFC 6750).

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, header};
use url::Url;

use super::Printable;
use crate::reference::RegistryHost;

/// Longer tokens do not fit what servers take as a header.
const LONGEST_TOKEN: usize = 16 << 10;
/// What a token lasts that does not say (distribution, "Token Authentication Specification").
const SHORTEST_LIFE: Duration = Duration::from_mins(1);
/// Longer lives are not believed: rights change.
const LONGEST_LIFE: Duration = Duration::from_hours(1);
/// Tokens are renewed this long before they end.
const MARGIN: Duration = Duration::from_secs(10);
/// More entries are dropped; they are asked for again.
const MOST_TOKENS: usize = 1024;
/// The longest realm, service or scope that is repeated to anybody.
const LONGEST_FIELD: usize = 2048;

/// Who asks a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Credential {
    /// Nobody in particular.
    #[default]
    Anonymous,
}

impl Credential {
    /// Tells one credential from another without showing it: what a cache may share answers by.
    pub fn fingerprint(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
        }
    }
}

/// Knows the credential for a registry.
#[async_trait]
pub trait Credentials: Send + Sync + 'static {
    /// The credential for `registry`, asked for once a request.
    async fn credential(&self, registry: &RegistryHost) -> Credential;
}

/// [`Credentials`] of nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    async fn credential(&self, _registry: &RegistryHost) -> Credential {
        Credential::Anonymous
    }
}

/// `WWW-Authenticate: Bearer realm="…",service="…",scope="…"`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Challenge {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    pub(super) scope: String,
}

/// What a 401 asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Bearer(Challenge),
    /// Nothing that can be had without a credential; the schemes that were named.
    Credential(Printable),
    /// A challenge that cannot be read.
    Unreadable(Printable),
}

impl Wanted {
    /// Reads the challenges of a 401; several at once are fine (RFC 9110, 11.6.1). `scope` is used where
    /// the registry names none.
    pub(super) fn from_headers(headers: &HeaderMap, scope: &str) -> Self {
        let mut schemes = Vec::new();
        let mut problem = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else {
                problem = Some("a WWW-Authenticate header with odd characters".into());
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            let Ok(challenges) = http_auth::parse_challenges(text) else {
                problem =
                    Some(Printable::from(format!("a WWW-Authenticate header that cannot be read: {text}")));
                continue;
            };
            for challenge in challenges {
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    schemes.push(challenge.scheme.to_owned());
                    continue;
                }
                let find = |name: &str| {
                    let mut params = challenge.params.iter();
                    params
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                match bearer(find("realm"), find("service"), find("scope"), scope) {
                    Ok(challenge) => return Self::Bearer(challenge),
                    Err(words) => problem = Some(words.into()),
                }
            }
        }
        match problem {
            Some(words) => Self::Unreadable(words),
            None => Self::Credential(schemes.join(", ").into()),
        }
    }
}

fn bearer(
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
    default_scope: &str,
) -> Result<Challenge, String> {
    let fits = |text: &String| text.len() <= LONGEST_FIELD && !text.chars().any(char::is_control);
    let realm = realm.filter(fits).ok_or("a Bearer challenge without a realm")?;
    let realm =
        Url::parse(&realm).map_err(|error| format!("the token realm \"{realm}\" is not a URL ({error})"))?;
    let service = service.filter(|service| !service.is_empty());
    if service.as_ref().is_some_and(|service| !fits(service)) {
        return Err("a Bearer challenge with an odd service".into());
    }
    let scope = scope.filter(|scope| !scope.is_empty()).unwrap_or_else(|| default_scope.to_owned());
    if !fits(&scope) {
        return Err("a Bearer challenge with an odd scope".into());
    }
    Ok(Challenge { realm, service, scope })
}

impl Challenge {
    /// Where to ask for the token.
    pub(super) fn url(&self) -> Url {
        let mut url = self.realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = &self.service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &self.scope);
        }
        url
    }
}

/// A token, ready to be sent. Never shown.
#[derive(Clone)]
pub(super) struct Token {
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
    pub(super) fn from_answer(body: &[u8], now: Instant) -> Result<Self, &'static str> {
        let answer: Answer = serde_json::from_slice(body)
            .map_err(|_| "the token service's answer is not the JSON of a token")?;
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
        Ok(Self { header, until: now + life.saturating_sub(MARGIN) })
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.header.clone()
    }
}

/// What belongs together: an endpoint's origin, a repository and a credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Asker {
    pub(super) origin: String,
    pub(super) repository: String,
    pub(super) credential: Credential,
}

/// Tokens by (endpoint, realm, service, scope, credential), and which of them an endpoint wants for a
/// repository. The endpoint is part of it: another registry that names the same realm must not be handed
/// what was made out for this one.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Store>);

#[derive(Debug, Default)]
struct Store {
    wanted: HashMap<Asker, Challenge>,
    tokens: HashMap<TokenKey, Token>,
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
    pub(super) fn known(&self, asker: &Asker) -> Option<Token> {
        let store = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let challenge = store.wanted.get(asker)?;
        let token = store.tokens.get(&TokenKey::new(asker, challenge))?;
        (Instant::now() < token.until).then(|| token.clone())
    }

    /// A token for a challenge that was just made, unless it is `refused`, the one that was sent.
    pub(super) fn for_challenge(
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

    pub(super) fn keep(&self, asker: &Asker, challenge: &Challenge, token: &Token) {
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

    fn wanted(values: &[&str]) -> Wanted {
        let headers = values.iter().map(|value| (header::WWW_AUTHENTICATE, value.parse().unwrap()));
        Wanted::from_headers(&headers.collect(), "repository:a/b:pull")
    }

    #[rstest]
    #[case(&[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#],
        "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"bearer REALM="https://x/t?a=1""#], "https://x/t?a=1&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&["Basic realm=\"x\"", r#"Bearer realm="https://x/t",service="""#], "https://x/t?scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"Basic realm="x", Bearer realm="https://x/t",scope="s""#], "https://x/t?scope=s")]
    fn the_token_is_asked_for_where_the_challenge_says(#[case] values: &[&str], #[case] url: &str) {
        let Wanted::Bearer(challenge) = wanted(values) else { panic!("{:?}", wanted(values)) };
        assert_eq!(challenge.url().as_str(), url);
    }

    #[test]
    fn other_challenges_are_told() {
        assert_eq!(
            wanted(&["Basic realm=\"x\"", "Negotiate"]),
            Wanted::Credential("Basic, Negotiate".into())
        );
        assert_eq!(wanted(&[]), Wanted::Credential("".into()));
        for odd in ["Bearer", "Bearer realm=\"\"", "Bearer realm=\"/token\"", "Bearer realm=\"x", "=,="] {
            assert!(matches!(wanted(&[odd]), Wanted::Unreadable(_)), "{odd}: {:?}", wanted(&[odd]));
        }
    }

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
    #[case("<html>", Err(()))]
    fn tokens_are_read_and_checked(#[case] body: &str, #[case] life: Result<u64, ()>) {
        let now = Instant::now();
        let token = Token::from_answer(body.as_bytes(), now).map_err(|_| ());
        assert_eq!(
            token.map(|token| token.until - now),
            life.map(|life| Duration::from_secs(life).saturating_sub(MARGIN))
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
