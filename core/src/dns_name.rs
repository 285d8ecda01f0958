//! Names of Kubernetes objects.

/// The longest DNS subdomain (RFC 1123).
const MAX_LEN: usize = 253;

/// Reports whether a name is a DNS subdomain (RFC 1123), as the names of most Kubernetes objects are.
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= MAX_LEN && name.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_subdomains_are_names() {
        let long = "a".repeat(253);
        for name in ["a", "a-b", "a.b-c.1", long.as_str()] {
            assert!(is_subdomain(name), "{name}");
        }
        let longer = "a".repeat(254);
        for name in ["", "A", "a_b", "-a", "a-", "a..b", ".a", "a.", "a/b", longer.as_str()] {
            assert!(!is_subdomain(name), "{name}");
        }
    }
}
