//! Parsers that annotations and attributes share.

use oras_csi_core::dns_name::is_subdomain;

use crate::denial::{At, Denial};

/// Parses the entries of `a, b,c`. An empty entry is an error.
pub(super) fn parse_list<T>(at: At<'_>, list: &str) -> Result<Vec<T>, Denial>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let parse = |entry: &str| {
        if entry.is_empty() {
            let rule = "has an empty entry in its list";
            return Err(Denial::bad_request(
                at,
                Some(list),
                rule,
                "write entries separated by single commas",
            ));
        }
        entry.parse().map_err(|error| Denial::bad_request(at, Some(entry), error, ""))
    };
    list.split(',').map(str::trim).map(parse).collect()
}

/// Checks the name of a Secret.
pub(super) fn check_secret(at: At<'_>, name: &str) -> Result<String, Denial> {
    if is_subdomain(name) {
        return Ok(name.to_owned());
    }
    let rule = "is not the name of a Secret";
    Err(Denial::bad_request(
        at,
        Some(name),
        rule,
        "write the name of a dockerconfigjson Secret of the pod's namespace",
    ))
}
