//! References: what parses has one form, and nothing in that form that a reader could take for something else.

#![no_main]
// A panic is how a fuzz target says that something is wrong.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod printable;

use libfuzzer_sys::{Corpus, fuzz_target};
use oras_csi_core::digest::Digest;
use oras_csi_core::pattern::RegistryPattern;
use oras_csi_core::reference::{PinnedReference, Reference};

fuzz_target!(|bytes: &[u8]| -> Corpus {
    let Ok(text) = std::str::from_utf8(bytes) else { return Corpus::Reject };
    check_pattern(text);
    check_pinned(text);
    check_reference(text);
    // An administrator's list can make a host of any first segment; from then on the host speaks for itself.
    match Reference::parse_with_known_hosts(text, &|_| true) {
        Ok(reference) => check_canonical(&reference),
        Err(error) => printable::check(&error.to_string()),
    }
    Corpus::Keep
});

fn check_reference(text: &str) {
    match Reference::parse(text) {
        Ok(reference) => {
            // What is known can decide what was ambiguous, and nothing else.
            assert_eq!(Reference::parse_with_known_hosts(text, &|_| true).as_ref(), Ok(&reference));
            check_canonical(&reference);
        }
        Err(error) => printable::check(&error.to_string()),
    }
}

fn check_canonical(reference: &Reference) {
    let text = reference.to_string();
    assert_eq!(Reference::parse(&text).as_ref(), Ok(reference), "{text}");
    assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
    for scheme in ["oras://", "oci://"] {
        assert_eq!(Reference::parse(&format!("{scheme}{text}")).as_ref(), Ok(reference));
    }

    let registry = reference.registry().to_string();
    assert_eq!(registry, registry.to_lowercase());
    assert!(reference.tag().is_some() || reference.digest().is_some());
    // Only a digest stands behind an "@": before it would be a user.
    let digest = reference.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
    let name = text.strip_suffix(&digest).expect("the digest is the end");
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/[]".contains(&byte);
    assert!(name.bytes().all(known), "{text}");
    assert!(!name.contains("//") && !name.split('/').any(|segment| matches!(segment, "" | "." | "..")));
    assert!(text.starts_with(&format!("{registry}/{}", reference.repository())));

    let digest = reference.digest().cloned().unwrap_or_else(|| Digest::sha256_of(b""));
    let pinned = reference.pin(digest.clone());
    assert_eq!(pinned.to_string().parse::<PinnedReference>(), Ok(pinned.clone()));
    assert_eq!((pinned.digest(), pinned.name()), (&digest, reference.name()));
    assert_eq!(Reference::from(pinned.clone()).to_string(), pinned.to_string());

    let pattern = reference.name().parse::<RegistryPattern>().expect("a name is the pattern of itself");
    assert!(pattern.matches(reference.registry(), reference.repository()), "{pattern} and {reference}");
    let host = registry.parse::<RegistryPattern>().expect("a host is the pattern of its repositories");
    assert!(host.matches(reference.registry(), reference.repository()), "{host} and {reference}");
}

fn check_pinned(text: &str) {
    match text.parse::<PinnedReference>() {
        Ok(pinned) => {
            assert_eq!(pinned.to_string(), text);
            assert_eq!(Reference::parse(text), Ok(pinned.into()));
        }
        Err(error) => printable::check(&error.to_string()),
    }
}

fn check_pattern(text: &str) {
    match text.parse::<RegistryPattern>() {
        Ok(pattern) => assert_eq!(pattern.to_string().parse(), Ok(pattern)),
        Err(error) => printable::check(&error.to_string()),
    }
}
