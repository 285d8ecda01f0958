//! Reads `/proc/self/mountinfo` (proc(5)): pure text in, mounts out.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line: a mount of this process's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    id: u64,
    root: PathBuf,
    point: PathBuf,
    options: String,
}

impl MountEntry {
    /// Parses one line; `None` where it does not have the form that proc(5) gives.
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

    /// The mount's number, as `statx` gives it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Which directory of its file system is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// Whether the mount itself has this flag: `ro`, `nosuid`, `nodev`, `noexec`.
    pub fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|given| given == option)
    }

    /// The mount's own flags, as text.
    pub fn options(&self) -> &str {
        &self.options
    }
}

/// The mount numbered `id`, if `text` has it.
pub fn find(text: &[u8], id: u64) -> Option<MountEntry> {
    let mut wanted = id.to_string().into_bytes();
    wanted.push(b' ');
    text.split(|byte| *byte == b'\n').find(|line| line.starts_with(&wanted)).and_then(MountEntry::parse)
}

/// All mounts, in the order of the text.
pub fn all(text: &[u8]) -> impl Iterator<Item = MountEntry> + '_ {
    text.split(|byte| *byte == b'\n').filter_map(MountEntry::parse)
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
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
    fn reads_lines() {
        let entry = find(TEXT, 127).unwrap();
        assert_eq!(entry.root(), Path::new("/var/trees/ab"));
        assert_eq!(entry.point(), Path::new("/a b\\c"));
        assert!(entry.has("ro") && entry.has("nosuid") && entry.has("nodev"));
        assert!(!entry.has("rw") && !entry.has("no"));
        assert_eq!(all(TEXT).count(), 3);
    }

    #[test]
    fn a_number_is_not_a_prefix_of_another() {
        assert_eq!(find(TEXT, 12), None);
        assert_eq!(find(TEXT, 2), None);
        assert_eq!(find(TEXT, 27).unwrap().point(), Path::new("/"));
    }

    #[test]
    fn other_text_gives_nothing() {
        for line in [&b""[..], b"x", b"1 2 3", b"a 1 0:1 / / rw"] {
            assert_eq!(MountEntry::parse(line), None);
        }
    }
}
