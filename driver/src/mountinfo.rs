//! Parses the text of `/proc/self/mountinfo` (proc(5)).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use oras_csi_store::{TreeKey, quarantined_tree};

/// One line: a mount in this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    id: u64,
    root: PathBuf,
    point: PathBuf,
    options: String,
}

impl MountEntry {
    /// Parses one line. Returns `None` if it does not have the format of proc(5).
    pub fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let _parent = fields.next()?;
        let _device = fields.next()?;
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        let options = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Self { id, root, point, options })
    }

    /// Returns the id of the mount, as in `statx`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the directory of the file system that is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Reports whether the mount itself has this flag: `ro`, `nosuid`, `nodev`, `noexec`.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|given| given == option)
    }

    /// Returns the tree that is mounted, if it is one. The tree can be of any store, because volumes must still be
    /// unmounted after the settings name another folder for the store.
    ///
    /// The root is `trees/KEY/files`, or `set-aside/KEY.N/files` after the tree was quarantined: the kernel reports the
    /// present path of a directory.
    pub fn tree(&self) -> Option<MountedTree> {
        // The kernel appends this to a directory that was removed while it was mounted.
        let root = self.root.as_os_str().as_bytes();
        let root = root.strip_suffix(b"//deleted").unwrap_or(root);
        let mut names = Path::new(OsStr::from_bytes(root)).components().rev().map(Component::as_os_str);
        let (files, name, folder) = (names.next()?, names.next()?.to_str()?, names.next()?);
        let (tree, quarantined_as) = match folder.to_str()? {
            "trees" if files == "files" => (TreeKey::parse(name)?, None),
            "set-aside" if files == "files" => (quarantined_tree(name)?, Some(name.to_owned())),
            _ => return None,
        };
        Some(MountedTree { point: self.point.clone(), tree, quarantined_as })
    }

    /// Reports whether the mount is of a file or directory in this tree, as kubelet mounts a `subPath` of a volume.
    pub fn is_within(&self, tree: &TreeKey) -> bool {
        let names: Vec<_> = self.root.components().filter_map(|name| name.as_os_str().to_str()).collect();
        names.windows(3).any(|names| match names {
            ["trees", name, "files"] => TreeKey::parse(name).as_ref() == Some(tree),
            ["set-aside", name, "files"] => quarantined_tree(name).as_ref() == Some(tree),
            _ => false,
        })
    }

    /// Returns the flags of the mount, as text.
    pub fn options(&self) -> &str {
        &self.options
    }
}

/// A mount of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedTree {
    point: PathBuf,
    tree: TreeKey,
    quarantined_as: Option<String>,
}

impl MountedTree {
    /// Returns the mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Returns the key of the tree.
    pub fn tree(&self) -> &TreeKey {
        &self.tree
    }

    /// Returns the name of the tree in quarantine (`set-aside`), if it was found damaged.
    pub fn quarantined_as(&self) -> Option<&str> {
        self.quarantined_as.as_deref()
    }
}

/// Finds the mount with this id.
pub fn find(text: &[u8], id: u64) -> Option<MountEntry> {
    let mut wanted = id.to_string().into_bytes();
    wanted.push(b' ');
    text.split(|byte| *byte == b'\n').find(|line| line.starts_with(&wanted)).and_then(MountEntry::parse)
}

/// Returns all mounts, in the order of the text.
pub fn all(text: &[u8]) -> impl Iterator<Item = MountEntry> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(MountEntry::parse)
}

/// Decodes a field, in which space, tab, newline and backslash are `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    if !field.contains(&b'\\') {
        return PathBuf::from(OsStr::from_bytes(field));
    }
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte == b'\\' && tail.len() >= 3 && tail[..3].iter().all(|digit| (b'0'..=b'7').contains(digit)) {
            let value = tail[..3].iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0'));
            plain.push(u8::try_from(value & 0xff).unwrap_or(b'?'));
            rest = &tail[3..];
        } else {
            plain.push(byte);
            rest = tail;
        }
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
        127 27 254:0 /var/trees/ab /a\\040b\\134c ro,nosuid,nodev,relatime - ext4 /dev/vda rw\n";

    #[test]
    fn parses_lines() {
        let entry = find(TEXT, 127).unwrap();
        assert_eq!(entry.root(), Path::new("/var/trees/ab"));
        assert_eq!(entry.point(), Path::new("/a b\\c"));
        assert!(entry.has("ro") && entry.has("nosuid") && entry.has("nodev"));
        assert!(!entry.has("rw") && !entry.has("no"));
        assert_eq!(all(TEXT).count(), 3);
    }

    #[test]
    fn finds_a_mount_by_its_whole_id() {
        assert_eq!(find(TEXT, 12), None);
        assert_eq!(find(TEXT, 2), None);
        assert_eq!(find(TEXT, 27).unwrap().point(), Path::new("/"));
    }

    #[test]
    fn recognizes_a_tree_by_its_root_in_any_store() {
        let key = "ab".repeat(32);
        let tree = |root: &str| {
            let line = format!("127 27 254:0 {root} /pods/a ro - ext4 /dev/vda rw");
            MountEntry::parse(line.as_bytes())
                .unwrap()
                .tree()
                .map(|found| found.quarantined_as().map(str::to_owned))
        };
        assert_eq!(tree(&format!("/s/trees/{key}/files")), Some(None));
        assert_eq!(tree(&format!("/trees/{key}/files//deleted")), Some(None));
        let quarantined = format!("{key}.3");
        assert_eq!(tree(&format!("/s/set-aside/{quarantined}/files")), Some(Some(quarantined)));
        for other in ["/", "/trees", "/s/trees/ab/files", "/s/set-aside/ab.0/files", "/s/tmp/7/files"] {
            assert_eq!(tree(other), None, "{other}");
        }
        assert_eq!(tree(&format!("/s/trees/{key}/files/deeper")), None);
        assert_eq!(tree(&format!("/s/other/{key}/files")), None);
    }

    #[test]
    fn recognizes_a_subpath_of_a_tree() {
        let key = TreeKey::parse(&"ab".repeat(32)).unwrap();
        let is_within = |root: &str| {
            let line = format!("127 27 254:0 {root} /pods/a ro - ext4 /dev/vda rw");
            MountEntry::parse(line.as_bytes()).unwrap().is_within(&key)
        };
        for root in [format!("/s/trees/{key}/files/a/b"), format!("/s/set-aside/{key}.3/files/a")] {
            assert!(is_within(&root), "{root}");
        }
        for root in [format!("/s/trees/{}/files/a", "cd".repeat(32)), format!("/s/other/{key}/files/a")] {
            assert!(!is_within(&root), "{root}");
        }
    }

    #[test]
    fn rejects_malformed_lines() {
        for line in [&b""[..], b"x", b"1 2 3", b"a 1 0:1 / / rw"] {
            assert_eq!(MountEntry::parse(line), None);
        }
    }
}
