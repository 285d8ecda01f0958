//! The challenges of a 401 response (RFC 9110, 11.6.1; RFC 6750, 3; distribution, "Token Authentication
//! Specification").

use bytes::Bytes;
use http::{HeaderMap, header};
use url::Url;

use crate::credentials::Credential;
use crate::display::Printable;
use crate::registry::address::origin;

/// The maximum length of a realm, service or scope, which are sent to the token service.
const MAX_FIELD_LEN: usize = 2048;
/// How many challenges are read.
const MAX_CHALLENGES: usize = 16;
/// How many token services are asked, one after the other, until one of them gives a token.
const MAX_BEARER_CHALLENGES: usize = 4;

/// A checked `WWW-Authenticate: Bearer realm="…",service="…",scope="…"`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) struct Challenge {
    pub(in crate::registry) realm: Url,
    pub(in crate::registry) service: Option<String>,
    pub(in crate::registry) scope: String,
}

/// The challenges of a 401 response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::registry) struct Challenges {
    /// The first usable Bearer challenges, without duplicates.
    pub(in crate::registry) bearer: Vec<Challenge>,
    /// Whether the registry accepts a user name and a password.
    pub(in crate::registry) basic: bool,
    /// The authentication schemes that the registry named.
    pub(in crate::registry) schemes: Printable,
    /// What is wrong with the first unusable challenge.
    pub(in crate::registry) problem: Option<ChallengeProblem>,
}

/// Why a challenge cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) enum ChallengeProblem {
    /// It cannot be parsed.
    Unreadable(Printable),
    /// Its realm is not an address to which the client sends a request.
    NotAllowed(Printable),
}

impl Challenges {
    /// Parses the challenges of a 401 response. There may be several; unusable ones are skipped. `scope` is used if the
    /// registry names none. Only a registry that is reached over plain http may name a realm over plain http.
    pub(in crate::registry) fn from_headers(headers: &HeaderMap, scope: &str, is_plain_http: bool) -> Self {
        let mut parsed = Self::default();
        let mut problem = |found: ChallengeProblem| {
            parsed.problem.get_or_insert(found);
        };
        let mut schemes: Vec<String> = Vec::new();
        for value in headers.get_all(header::WWW_AUTHENTICATE).into_iter().take(MAX_CHALLENGES) {
            let Ok(text) = value.to_str() else {
                problem(ChallengeProblem::Unreadable(
                    "a WWW-Authenticate header with invalid characters".into(),
                ));
                continue;
            };
            if text.trim().is_empty() {
                continue;
            }
            let compact = without_optional_blanks(text);
            let Ok(challenges) =
                http_auth::parse_challenges(text).or_else(|_| http_auth::parse_challenges(&compact))
            else {
                let message = format!("cannot parse the WWW-Authenticate header: {text}");
                problem(ChallengeProblem::Unreadable(message.into()));
                continue;
            };
            for challenge in challenges.into_iter().take(MAX_CHALLENGES) {
                if schemes.len() < MAX_CHALLENGES {
                    schemes.push(challenge.scheme.to_owned());
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    parsed.basic = true;
                }
                let is_bearer = challenge.scheme.eq_ignore_ascii_case("bearer");
                if !is_bearer || parsed.bearer.len() >= MAX_BEARER_CHALLENGES {
                    continue;
                }
                let find = |name: &str| {
                    let mut params = challenge.params.iter();
                    params
                        .find(|(key, _)| key.eq_ignore_ascii_case(name))
                        .map(|(_, value)| value.to_unescaped())
                };
                let read = parse_bearer(find("realm"), find("service"), find("scope"), scope);
                let read = read.map_err(|message| ChallengeProblem::Unreadable(message.into()));
                match read.and_then(|challenge| challenge.checked(is_plain_http)) {
                    Ok(challenge) if parsed.bearer.contains(&challenge) => {}
                    Ok(challenge) => parsed.bearer.push(challenge),
                    Err(found) => problem(found),
                }
            }
        }
        parsed.schemes = schemes.join(", ").into();
        parsed
    }

    /// Explains that the registry accepts neither a password nor a token, if that is so.
    pub(in crate::registry) fn unsupported_schemes(&self) -> Option<String> {
        let is_supported = self.basic || !self.bearer.is_empty() || self.schemes.is_empty();
        let (schemes, supported) = (&self.schemes, "only Basic and Bearer are supported");
        (!is_supported)
            .then(|| format!("the registry asks for the authentication scheme {schemes}, and {supported}"))
    }
}

/// Removes the blanks beside `=` and `,`, and all but one between other words. Recipients must accept those around `=`
/// and `,` (RFC 9110, 5.6.1 and 11.2), and the parser does not accept all of them. Quoted texts stay as they are.
fn without_optional_blanks(text: &str) -> String {
    let mut compact = String::with_capacity(text.len());
    let (mut is_quoted, mut is_escaped, mut has_blank) = (false, false, false);
    for character in text.chars() {
        if !is_quoted && matches!(character, ' ' | '\t') {
            has_blank = true;
            continue;
        }
        let is_separated = |character| matches!(character, '=' | ',');
        if has_blank && !is_separated(character) && !compact.chars().next_back().is_none_or(is_separated) {
            compact.push(' ');
        }
        has_blank = false;
        compact.push(character);
        is_quoted ^= character == '"' && !is_escaped;
        is_escaped = is_quoted && character == '\\' && !is_escaped;
    }
    compact
}

fn parse_bearer(
    realm: Option<String>,
    service: Option<String>,
    scope: Option<String>,
    default_scope: &str,
) -> Result<Challenge, String> {
    let is_valid = |text: &String| text.len() <= MAX_FIELD_LEN && !text.chars().any(char::is_control);
    let realm = realm.filter(is_valid).ok_or("a Bearer challenge without a realm")?;
    let realm =
        Url::parse(&realm).map_err(|error| format!("the token realm \"{realm}\" is not a URL ({error})"))?;
    let service = service.filter(|service| !service.is_empty());
    if service.as_ref().is_some_and(|service| !is_valid(service)) {
        return Err("a Bearer challenge with an invalid service".into());
    }
    let scope = scope.filter(|scope| !scope.is_empty()).unwrap_or_else(|| default_scope.to_owned());
    if !is_valid(&scope) {
        return Err("a Bearer challenge with an invalid scope".into());
    }
    Ok(Challenge { realm, service, scope })
}

impl Challenge {
    fn checked(self, is_plain_http: bool) -> Result<Self, ChallengeProblem> {
        match self.realm.scheme() {
            "https" => {}
            "http" if is_plain_http => {}
            "http" => {
                let message = format!(
                    "the registry is at an https address, but names the token realm {}, which is not https: set the \
                     external https URL in the configuration of the registry, or the header X-Forwarded-Proto in the proxy \
                     in front of it",
                    origin(&self.realm)
                );
                return Err(ChallengeProblem::NotAllowed(message.into()));
            }
            scheme => {
                let message = format!(
                    "the registry names a token realm with the scheme \"{scheme}\", which is not https"
                );
                return Err(ChallengeProblem::NotAllowed(message.into()));
            }
        }
        if !self.realm.username().is_empty() || self.realm.password().is_some() {
            let message = "the registry names a token realm with a user or a password in it";
            return Err(ChallengeProblem::NotAllowed(message.into()));
        }
        Ok(self)
    }

    /// Reports whether the scope includes the action `push` (distribution, "Token Scope Documentation").
    pub(in crate::registry) fn allows_push(&self) -> bool {
        self.scope.split([' ', ':', ',']).any(|word| word == "push")
    }

    /// Returns the form to request a token with POST, or `None` for a credential that is not sent that way.
    pub(in crate::registry) fn token_form(&self, credential: &Credential) -> Option<Bytes> {
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

    /// Returns the URL to request a token with GET.
    pub(in crate::registry) fn token_url(&self) -> Url {
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

    fn parse(values: &[&str]) -> Challenges {
        let headers = values.iter().map(|value| (header::WWW_AUTHENTICATE, value.parse().unwrap()));
        Challenges::from_headers(&headers.collect(), "repository:a/b:pull", false)
    }

    #[rstest]
    #[case(&[r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#],
        "https://auth.docker.io/token?service=registry.docker.io&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"bearer REALM="https://x/t?a=1""#], "https://x/t?a=1&scope=repository%3Aa%2Fb%3Apull")]
    #[case(&["Basic realm=\"x\"", r#"Bearer realm="https://x/t",service="""#], "https://x/t?scope=repository%3Aa%2Fb%3Apull")]
    #[case(&[r#"Basic realm="x", Bearer realm="https://x/t",scope="s""#], "https://x/t?scope=s")]
    #[case(&[r#"Bearer realm = "https://x/t", service= "a = b" ,scope ="s""#], "https://x/t?service=a+%3D+b&scope=s")]
    #[case(&[r#"Bearer realm="https://x/t" , service = "say \"x = y\"",scope=s"#], "https://x/t?service=say+%22x+%3D+y%22&scope=s")]
    #[case(&[r#"Bearer realm="https://x/t", service = registry , scope = s"#], "https://x/t?service=registry&scope=s")]
    #[case(&[r#"Bearer realm="https://x/t",scope=s "#], "https://x/t?scope=s")]
    #[case(&[r#"Bearer  realm = "https://x/t""#], "https://x/t?scope=repository%3Aa%2Fb%3Apull")]
    #[case(&["Bearer\trealm\t=\t\"https://x/t\"\t,\tscope\t=\ts"], "https://x/t?scope=s")]
    #[case(&[r#" Basic  realm = "x y" ,  Bearer   realm = "https://x/t" "#], "https://x/t?scope=repository%3Aa%2Fb%3Apull")]
    fn the_token_url_follows_the_challenge(#[case] values: &[&str], #[case] url: &str) {
        let challenge = parse(values).bearer.remove(0);
        assert_eq!(challenge.token_url().as_str(), url);
    }

    #[test]
    fn usable_challenges_are_in_their_order_and_limited() {
        let realm = |number: usize| format!("Bearer realm=\"https://x/{number}\"");
        let values = [realm(1), "Bearer realm=\"/token\"".to_owned(), realm(2), realm(1)];
        let paths = |parsed: Challenges| -> Vec<_> {
            parsed.bearer.iter().map(|challenge| challenge.realm.path().to_owned()).collect()
        };
        assert_eq!(paths(parse(&values.each_ref().map(String::as_str))), ["/1", "/2"]);
        let many: Vec<_> = (0..100).map(realm).collect();
        assert_eq!(paths(parse(&[&many.join(", ")])), ["/0", "/1", "/2", "/3"]);
    }

    #[test]
    fn unusable_challenges_are_reported() {
        let both = parse(&["Basic realm=\"x\"", "Negotiate"]);
        assert_eq!((both.schemes.as_str(), both.basic, both.bearer), ("Basic, Negotiate", true, Vec::new()));
        assert_eq!(parse(&[]), Challenges::default());
        for invalid in
            ["Bearer realm=\"http://x/\"", "Bearer realm=\"https://u@x/\"", "Bearer realm=\"file:///x\""]
        {
            let parsed = parse(&[invalid]);
            assert!(
                matches!(parsed.problem, Some(ChallengeProblem::NotAllowed(_))) && parsed.bearer.is_empty(),
                "{invalid}: {parsed:?}"
            );
        }
        for invalid in ["Bearer", "Bearer realm=\"\"", "Bearer realm=\"/token\"", "Bearer realm=\"x", "=,="] {
            let parsed = parse(&[invalid]);
            assert!(parsed.problem.is_some() && parsed.bearer.is_empty(), "{invalid}: {parsed:?}");
        }
        let many = vec!["Basic realm=\"x\""; 100];
        assert_eq!(parse(&many).schemes.as_str().matches("Basic").count(), MAX_CHALLENGES);
    }
}
