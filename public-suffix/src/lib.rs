//! Which part of a host name has an owner of its own, by the public suffix list (<https://publicsuffix.org>).
//!
//! This is a crate for the sake of compile time: `psl` has the list as 11,000 generic functions, which are compiled with
//! the crate that calls them. That takes half a minute, and six with the instrumentation of the fuzz targets.

/// Returns the registrable domain of a host name in lower case: its public suffix and one label more. `None` for a public
/// suffix alone.
#[inline(never)]
pub fn registrable_domain(host: &str) -> Option<&str> {
    psl::domain_str(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("registry.gitlab.com", Some("gitlab.com"))]
    #[case("registry.co.uk", Some("registry.co.uk"))]
    #[case("a.team.github.io", Some("team.github.io"))]
    #[case("registry.corp.internal", Some("corp.internal"))]
    #[case("co.uk", None)]
    #[case("io", None)]
    fn a_registrable_domain_is_below_a_public_suffix(#[case] host: &str, #[case] domain: Option<&str>) {
        assert_eq!(registrable_domain(host), domain);
    }
}
