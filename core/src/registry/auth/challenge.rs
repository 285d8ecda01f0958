//! What a 401 asks for (RFC 9110, 11.6.1; RFC 6750, 3; distribution, "Token Authentication Specification").

use bytes::Bytes;
use http::{HeaderMap, header};
use url::Url;

use crate::credentials::Credential;
use crate::display::Printable;

/// The longest realm, service or scope that is repeated to anybody.
const LONGEST_FIELD: usize = 2048;
/// More challenges are not read.
const MOST_CHALLENGES: usize = 16;

/// `WWW-Authenticate: Bearer realm="…",service="…",scope="…"`, checked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Challenge {
    pub(in crate::registry) realm: Url,
    pub(in crate::registry) service: Option<String>,
    pub(in crate::registry) scope: String,
}

/// The challenges of a 401.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct Wanted {
    /// The first Bearer challenge that can be read.
    pub(in crate::registry) bearer: Option<Challenge>,
    /// Whether a user name and a password will do.
    pub(in crate::registry) basic: bool,
    /// The schemes that were named, for a message.
    pub(in crate::registry) schemes: Printable,
    /// What is wrong with the first that cannot be used.
    pub(in crate::registry) problem: Option<Problem>,
}

/// Why a challenge cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) enum Problem {
    /// It cannot be read.
    Unreadable(Printable),
    /// Its realm is none that we ask.
    NotAllowed(&'static str),
}

impl Wanted {
    /// Reads the challenges of a 401; several at once are fine, and those that cannot be used are passed over. `scope`
    /// is used where the registry names none. A registry that is spoken to in the clear may name a realm that is.
    pub(in crate::registry) fn from_headers(headers: &HeaderMap, scope: &str, in_the_clear: bool) -> Self {
        let mut wanted = Self::default();
        let mut problem = |found: Problem| {
            wanted.problem.get_or_insert(found);
        };
        let mut schemes: Vec<String> = Vec::new();
        for value in headers.get_all(header::WWW_AUTHENTICATE).into_iter().take(MOST_CHALLENGES) {
            let Ok(text) = value.to_str() else {
                problem(Problem::Unreadable("a WWW-Authenticate header with odd characters".into()));
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            let Ok(challenges) = http_auth::parse_challenges(text) else {
                let words = format!("a WWW-Authenticate header that cannot be read: {text}");
                problem(Problem::Unreadable(words.into()));
                continue;
            };
            for challenge in challenges.into_iter().take(MOST_CHALLENGES) {
                if schemes.len() < MOST_CHALLENGES {
                    schemes.push(challenge.scheme.to_owned());
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    wanted.basic = true;
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") || wanted.bearer.is_some() {
                    continue;
                }
                let find = |name: &str| {
                    let mut params = challenge.params.iter();
                    params
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                let read = bearer(find("realm"), find("service"), find("scope"), scope);
                let read = read.map_err(|words| Problem::Unreadable(words.into()));
                match read.and_then(|challenge| challenge.checked(in_the_clear)) {
                    Ok(challenge) => wanted.bearer = Some(challenge),
                    Err(found) => problem(found),
                }
            }
        }
        wanted.schemes = schemes.join(", ").into();
        wanted
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
    fn checked(self, in_the_clear: bool) -> Result<Self, Problem> {
        match self.realm.scheme() {
            "https" => {}
            "http" if in_the_clear => {}
            _ => return Err(Problem::NotAllowed("it names a token realm that is not https")),
        }
        if !self.realm.username().is_empty() || self.realm.password().is_some() {
            return Err(Problem::NotAllowed("it names a token realm with a user in it"));
        }
        Ok(self)
    }

    /// What to ask for the token with by POST; `None` for a credential that is not sent that way.
    pub(in crate::registry) fn form(&self, credential: &Credential) -> Option<Bytes> {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("client_id", "oras-csi").append_pair("scope", &self.scope);
        if let Some(service) = &self.service {
            form.append_pair("service", service);
        }
        match credential {
            Credential::RefreshToken(token) => {
                form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token.expose());
            }
            Credential::Basic { username, password, .. } => {
                form.append_pair("grant_type", "password")
                    .append_pair("username", username.expose())
                    .append_pair("password", password.expose());
            }
            Credential::Anonymous | Credential::RegistryToken(_) => return None,
        }
        Some(form.finish().into())
    }

    /// Where to ask for the token by GET.
    pub(in crate::registry) fn url(&self) -> Url {
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

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn wanted(values: &[&str]) -> Wanted {
        let headers = values.iter().map(|value| (header::WWW_AUTHENTICATE, value.parse().unwrap()));
        Wanted::from_headers(&headers.collect(), "repository:a/b:pull", false)
    }

    #[rstest]
    #[case(&[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#],
        "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"bearer REALM="https://x/t?a=1""#], "https://x/t?a=1&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&["Basic realm=\"x\"", r#"Bearer realm="https://x/t",service="""#], "https://x/t?scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"Basic realm="x", Bearer realm="https://x/t",scope="s""#], "https://x/t?scope=s")]
    fn the_token_is_asked_for_where_the_challenge_says(#[case] values: &[&str], #[case] url: &str) {
        let challenge = wanted(values).bearer.unwrap();
        assert_eq!(challenge.url().as_str(), url);
    }

    #[test]
    fn other_challenges_are_told() {
        let both = wanted(&["Basic realm=\"x\"", "Negotiate"]);
        assert_eq!((both.schemes.as_str(), both.basic, both.bearer), ("Basic, Negotiate", true, None));
        assert_eq!(wanted(&[]), Wanted::default());
        for odd in
            ["Bearer realm=\"http://x/\"", "Bearer realm=\"https://u@x/\"", "Bearer realm=\"file:///x\""]
        {
            let wanted = wanted(&[odd]);
            assert!(
                matches!(wanted.problem, Some(Problem::NotAllowed(_))) && wanted.bearer.is_none(),
                "{odd}: {wanted:?}"
            );
        }
        for odd in ["Bearer", "Bearer realm=\"\"", "Bearer realm=\"/token\"", "Bearer realm=\"x", "=,="] {
            let wanted = wanted(&[odd]);
            assert!(wanted.problem.is_some() && wanted.bearer.is_none(), "{odd}: {wanted:?}");
        }
        let many = vec!["Basic realm=\"x\""; 100];
        assert_eq!(wanted(&many).schemes.as_str().matches("Basic").count(), MOST_CHALLENGES);
    }
}
