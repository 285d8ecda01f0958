//! SELinux labels of the store.
//!
//! Pods run with the type `container_t`, which can read files of the type `container_file_t`, and kubelet does not change
//! the labels of a read-only CSI volume. So the store must have that type itself. On a kernel with SELinux, new files get
//! the label of the folder that they are created in; the store labels its folders once, and what an earlier version left
//! in them.
//!
//! One tree serves the pods of all users, so its label has no categories (`s0`): every pod can read it. Kubelet's
//! `-o context` mounts (KEP-1710) would give each pod its own categories and are off (`seLinuxMount: false`).

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use oras_csi_core::display::Shown;
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::error::DiskError;

const ATTRIBUTE: &str = "security.selinux";
/// The longest label that is read or written.
const MAX_BYTES: usize = 1_024;

/// A label: `USER:ROLE:TYPE:LEVEL`, for example `system_u:object_r:container_file_t:s0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelinuxLabel(String);

/// The text is not a label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not an SELinux label: write USER:ROLE:TYPE:LEVEL, for example system_u:object_r:container_file_t:s0"
)]
pub struct SelinuxLabelError(Shown);

impl SelinuxLabel {
    /// Returns the label of files that all containers can read.
    pub fn for_containers() -> Self {
        Self("system_u:object_r:container_file_t:s0".to_owned())
    }

    /// Sets the label of a file, folder or link.
    pub(crate) fn set(&self, path: &Path) -> Result<(), DiskError> {
        rustix::fs::lsetxattr(path, ATTRIBUTE, self.0.as_bytes(), XattrFlags::empty())
            .map_err(|errno| DiskError::new("set the SELinux label of", path, errno))
    }

    /// Sets the labels of a folder and of everything beneath it, the folder last.
    pub(crate) fn set_all(&self, folder: &Path) -> Result<(), DiskError> {
        let failed = |error| DiskError::new("list", folder, error);
        for entry in std::fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_dir() {
                self.set_all(&entry.path())?;
            } else {
                self.set(&entry.path())?;
            }
        }
        self.set(folder)
    }

    /// Reports whether a file has this label.
    pub(crate) fn is_of(&self, path: &Path) -> bool {
        let mut found = [0; MAX_BYTES];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut found[..]);
        // The kernel may add a zero byte.
        length.is_ok_and(|length| {
            found[..length].strip_suffix(b"\0").unwrap_or(&found[..length]) == self.0.as_bytes()
        })
    }
}

/// Reports whether the files at `path` have SELinux labels.
pub fn has_labels(path: &Path) -> bool {
    let knows = std::fs::read_to_string("/proc/filesystems").is_ok_and(|text| text.contains("selinuxfs"));
    let mut found = [0; MAX_BYTES];
    let has = |path: &Path| match rustix::fs::lgetxattr(path, ATTRIBUTE, &mut found[..]) {
        Ok(length) => length > 0,
        Err(Errno::RANGE) => true,
        Err(_) => false,
    };
    knows && path.ancestors().find(|path| path.exists()).is_some_and(has)
}

impl FromStr for SelinuxLabel {
    type Err = SelinuxLabelError;

    fn from_str(text: &str) -> Result<Self, SelinuxLabelError> {
        let is_part = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b',' | b'-'))
        };
        let mut parts = text.splitn(4, ':');
        let names = parts.by_ref().take(3).filter(|part| is_part(part)).count();
        // A level can have categories: s0:c1,c2.
        let is_level = parts.next().is_some_and(|level| level.split(':').all(is_part));
        if names == 3 && is_level && text.len() <= MAX_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(SelinuxLabelError(text.into()))
        }
    }
}

impl fmt::Display for SelinuxLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_four_parts() {
        for text in ["system_u:object_r:container_file_t:s0", "u:r:t:s0-s0:c0.c1023", "a:b:c:s0:c1,c2"] {
            assert_eq!(text.parse::<SelinuxLabel>().unwrap().to_string(), text);
        }
        for text in ["", "container_file_t", "a:b:c", "a:b::s0", "a:b:c d:s0", "a:b:c:", "a:b:c:s0\n"] {
            assert!(text.parse::<SelinuxLabel>().is_err(), "{text:?}");
        }
    }
}
