//! The key of a pin: the controller of the pods, its revision, and the reference or set that they request. No I/O.

use std::fmt;

use oras_csi_core::digest::Digest;
use oras_csi_core::display::Shown;
use oras_csi_core::reference::Reference;
use oras_csi_core::volume_id::slug;
use serde_json::json;

use super::owner::PinOwner;

const HASH_LENGTH: usize = 32;

/// The kind of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// A set of one namespace.
    ArtifactSet,
    /// A set of the cluster.
    ClusterArtifactSet,
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ArtifactSet => "ArtifactSet",
            Self::ClusterArtifactSet => "ClusterArtifactSet",
        })
    }
}

/// What a pin fixes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PinSubject {
    /// The digest of a tag.
    Reference(Reference),
    /// The digest of a set's recipe.
    Set {
        /// The kind of the set.
        kind: SetKind,
        /// The name of the set.
        name: String,
    },
}

/// A set has a space in it, which no reference has.
impl fmt::Display for PinSubject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reference(reference) => reference.fmt(f),
            Self::Set { kind, name } => write!(f, "{kind} {}", Shown::new(name)),
        }
    }
}

/// Identifies a pin. All pods of one revision have the same key, and no other pod has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PinKey {
    owner: PinOwner,
    revision: Option<String>,
    subject: PinSubject,
}

impl PinKey {
    /// Makes the key for a reference in the pods of one revision of `owner`. Returns `None` for a reference with a digest,
    /// which needs no pin.
    pub fn new(owner: PinOwner, revision: Option<&str>, reference: &Reference) -> Option<Self> {
        if reference.digest().is_some() {
            return None;
        }
        let revision = revision.filter(|revision| !revision.is_empty()).map(str::to_owned);
        Some(Self { owner, revision, subject: PinSubject::Reference(reference.clone()) })
    }

    /// Makes the key for a set in the pods of one revision of `owner`.
    pub fn of_set(owner: PinOwner, revision: Option<&str>, kind: SetKind, name: &str) -> Self {
        let revision = revision.filter(|revision| !revision.is_empty()).map(str::to_owned);
        Self { owner, revision, subject: PinSubject::Set { kind, name: name.to_owned() } }
    }

    /// Returns the controller of the pods.
    pub fn owner(&self) -> &PinOwner {
        &self.owner
    }

    /// Returns the revision of the controller, if it has revisions.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Returns the reference or the set.
    pub fn subject(&self) -> &PinSubject {
        &self.subject
    }

    /// Returns the name of the pin, a DNS label: a readable part of the repository, and a hash of uid, revision and
    /// reference.
    pub fn object_name(&self) -> String {
        let last = match &self.subject {
            PinSubject::Reference(reference) => {
                let repository = reference.repository();
                repository.rsplit('/').next().unwrap_or(repository)
            }
            PinSubject::Set { name, .. } => name,
        };
        let identity = json!([self.owner.uid, self.revision, self.subject.to_string()]).to_string();
        let hash = Digest::sha256_of(identity.as_bytes());
        format!("{}-{}", slug(last), &hash.hex()[..HASH_LENGTH])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(uid: &str) -> PinOwner {
        PinOwner {
            api_version: "apps/v1".into(),
            kind: "ReplicaSet".into(),
            name: "web".into(),
            uid: uid.into(),
        }
    }

    fn key(uid: &str, revision: Option<&str>, reference: &str) -> Option<PinKey> {
        PinKey::new(owner(uid), revision, &Reference::parse(reference).unwrap())
    }

    #[test]
    fn the_name_of_a_pin_never_changes() {
        let uid = "6d7e3b0c-6f0a-4b57-9b1e-0a4a3c3e6a11";
        let key = key(uid, Some("5d4f8c7b9"), "kind-registry:5000/team/java__app:v1").unwrap();
        // Pins outlive the version of the webhook that created them: with another name they would not be found.
        assert_eq!(key.object_name(), "java-app-529a12dd636dba64a8f52a2f5be01491");
    }

    #[test]
    fn a_reference_with_a_digest_needs_no_pin() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(key("u", None, &format!("r.io/a@{digest}")), None);
        assert_eq!(key("u", None, &format!("r.io/a:v1@{digest}")), None);
        assert!(key("u", None, "r.io/a").is_some());
    }

    #[test]
    fn all_spellings_of_a_reference_and_names_of_an_owner_share_one_pin() {
        let name = |reference| key("u", None, reference).unwrap().object_name();
        assert_eq!(name("alpine"), name("oras://index.docker.io/library/alpine:latest"));
        assert_eq!(name("R.io:443/a"), name("r.io/a:latest"));
        let renamed = PinOwner { kind: "Other".into(), name: "other".into(), ..owner("u") };
        let reference = Reference::parse("r.io/a").unwrap();
        assert_eq!(PinKey::new(renamed, Some(""), &reference).unwrap().object_name(), name("r.io/a"));
    }

    proptest! {
        #[test]
        fn different_keys_have_different_names(
            (uid, revision, tag) in ("[a\",\\\\\\[]{0,3}", proptest::option::of("[a\",\\]]{1,2}"), "[ab]{1,2}"),
            (other_uid, other_revision, other_tag) in
                ("[a\",\\\\\\[]{0,3}", proptest::option::of("[a\",\\]]{1,2}"), "[ab]{1,2}"),
        ) {
            let name = key(&uid, revision.as_deref(), &format!("r.io/a:{tag}")).unwrap().object_name();
            let other = key(&other_uid, other_revision.as_deref(), &format!("r.io/a:{other_tag}"));
            let is_same = (uid, revision, tag) == (other_uid, other_revision, other_tag);
            prop_assert_eq!(name == other.unwrap().object_name(), is_same);
        }

        #[test]
        fn the_name_is_a_dns_label(
            uid in "\\PC*",
            revision in proptest::option::of("\\PC*"),
            repository in "[a-z0-9]{1,40}([._]|__|-{1,3})[a-z0-9]{1,40}(/[a-z0-9]{1,80})?",
        ) {
            let name = key(&uid, revision.as_deref(), &format!("r.io/{repository}")).unwrap().object_name();
            prop_assert!((1..=63).contains(&name.len()), "{name}");
            prop_assert!(name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')), "{name}");
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'), "{name}");
        }
    }
}
