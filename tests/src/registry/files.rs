//! Files to push.

use std::path::Path;

/// A new folder.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

/// Writes files, by their paths below `folder`.
pub fn write(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("makes");
        std::fs::write(path, bytes).expect("writes");
    }
}

/// A folder with the one small file that most tests push, `app.jar`.
pub fn one_file() -> tempfile::TempDir {
    let files = folder();
    write(files.path(), &[("app.jar", b"PK jar")]);
    files
}
