//! Runs a test again in its own mount namespace, in which it can mount without root and without effect on the machine.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The variable that is set inside the namespace.
const INSIDE: &str = "ORAS_CSI_TEST_NAMESPACE";

/// A kind of namespace to run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With root, as in a privileged container.
    Root,
    /// Without root: a user namespace, in which the flags of existing mounts are locked.
    User,
}

impl Kind {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Root => &["--mount", "--propagation", "private"],
            Self::User => &["--user", "--map-root-user", "--mount"],
        }
    }

    fn works(self) -> bool {
        let script = "d=$(mktemp -d) || exit; mount --bind $d $d && umount $d; s=$?; rmdir $d; exit $s";
        let tried = Command::new("unshare").args(self.flags()).args(["sh", "-c", script]).output();
        tried.is_ok_and(|output| output.status.success())
    }
}

fn kinds() -> &'static [Kind] {
    static KINDS: OnceLock<Vec<Kind>> = OnceLock::new();
    KINDS.get_or_init(|| {
        let root = rustix::process::geteuid().is_root();
        let wanted = if root { vec![Kind::Root, Kind::User] } else { vec![Kind::User] };
        let (works, fails): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|kind| kind.works());
        for kind in fails {
            eprintln!("SKIPPED: cannot test mounts in a namespace of kind {kind:?}: this machine refuses unshare or mount");
            assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "with CI=true this is a failure");
        }
        works
    })
}

/// Returns `true` inside a namespace, where the test must run. Outside, runs the test `name` in every kind of namespace
/// that works here, and fails if it fails.
pub fn entered(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    for kind in kinds() {
        run("unshare", kind.flags(), name);
    }
    false
}

/// Like [`entered`] with one kind of namespace: for long tests that do not depend on the kind.
pub fn entered_once(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if let Some(kind) = kinds().last() {
        run("unshare", kind.flags(), name);
    }
    false
}

/// The same as root alone, for what a user namespace does not allow (loop devices, freezing a file system).
pub fn entered_as_root(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if kinds().contains(&Kind::Root) {
        run("unshare", Kind::Root.flags(), name);
    } else {
        eprintln!("SKIPPED: {name} needs root for a loop device");
        assert!(std::env::var_os("CI").is_none_or(|value| value != "true"), "with CI=true this is a failure");
    }
    false
}

/// Mounts an empty tmpfs with these options. It ends with the namespace of the test.
pub fn in_memory(options: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    mount(&["-t", "tmpfs", "-o", options, "tmpfs"], folder.path());
    folder
}

/// Mounts a new ext4 file system with blocks of 4 KiB and these options of `mkfs.ext4`. It ends with the namespace of
/// the test, or with [`unmount`].
pub fn ext4(bytes: u64, options: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(bytes).unwrap();
    let made =
        Command::new("mkfs.ext4").args(["-q", "-F", "-b", "4096"]).args(options).arg(image.path()).output();
    let made = made.unwrap();
    assert!(made.status.success(), "mkfs.ext4: {}", String::from_utf8_lossy(&made.stderr));
    mount(&["-o", "loop", image.path().to_str().unwrap()], folder.path());
    // The loop device keeps the file, which has no name any more.
    folder
}

pub fn unmount(path: &std::path::Path) {
    let output = Command::new("umount").arg(path).output().unwrap();
    assert!(output.status.success(), "umount: {}", String::from_utf8_lossy(&output.stderr));
}

pub fn mount(arguments: &[&str], path: &std::path::Path) {
    let output = Command::new("mount").args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Like [`entered`], with the temporary folder on a file system that is mounted noexec, nosuid, nodev and noatime outside
/// of the user namespace: these flags are locked.
pub fn entered_with_locked_flags(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    if kinds().contains(&Kind::User) {
        let script = "d=$(mktemp -d) && mount -t tmpfs -o noexec,nosuid,nodev,noatime tmpfs $d && \
                      TMPDIR=$d exec unshare --user --map-root-user --mount \"$@\"";
        let flags = [Kind::User.flags(), &["sh", "-c", script, "sh"]].concat();
        run("unshare", &flags, name);
    }
    false
}

fn run(program: &str, flags: &[&str], name: &str) {
    // Removed at the end. The namespace has ended by then, and its mounts with it.
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new(program)
        .args(flags)
        .env("TMPDIR", temporary.path())
        .arg(this())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} with {flags:?}:\n{text}\n{errors}");
    assert!(text.contains("1 passed"), "{name} is no test: {text}");
    for (_, measured) in text.lines().filter_map(|line| line.split_once("measured: ")) {
        println!("{name}: {measured}");
    }
}

pub fn this() -> PathBuf {
    std::env::current_exe().unwrap()
}
