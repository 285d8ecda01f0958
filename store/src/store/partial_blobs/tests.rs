use std::sync::Arc;

use super::*;
use crate::limits::{Limits, Reserve};

const SIZE: u64 = 4 << 20;

/// Returns a reference in the repository of this name.
fn of(repository: &str) -> PinnedReference {
    format!("{repository}@sha256:{}", "ab".repeat(32)).parse().unwrap()
}

fn space() -> Arc<Reservation> {
    Arc::new(Reservation::none())
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|at| (at / 7).to_le_bytes()[0]).collect()
}

fn blob() -> Descriptor {
    Descriptor::new("application/octet-stream", Digest::sha256_of(&content()), SIZE)
}

fn store(folder: &Path) -> Store {
    Store::open(folder, Limits::default().with_reserve(Reserve::bytes(0))).unwrap()
}

fn missing(partial: &Partial) -> Vec<(u64, u64)> {
    partial.missing().into_iter().map(|range| (range.start, range.end)).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("partial")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn write(partial: &Partial, at: usize, bytes: &[u8]) -> Result<(), DiskError> {
    partial.write(at as u64, Bytes::copy_from_slice(bytes))
}

fn read_all(partial: &Partial) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        match partial.next(all.len() as u64).unwrap() {
            Next::Bytes(piece) if !piece.is_empty() => all.extend_from_slice(&piece),
            _ => return all,
        }
    }
}

#[test]
fn the_next_run_resumes_from_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let (content, blob) = (content(), blob());
    let half = content.len() / 2;
    {
        let store = store(folder.path());
        let partial = store.partial(&blob, &of("a:5000/app"), space()).unwrap();
        assert_eq!((partial.resumed(), missing(&partial)), (0, vec![(0, SIZE)]));
        write(&partial, half, &content[half..]).unwrap();
        // Not closed, as after a kill.
    }
    let store = store(folder.path());
    let partial = store.partial(&blob, &of("a:5000/app"), space()).unwrap();
    assert_eq!((partial.resumed(), missing(&partial)), (half as u64, vec![(0, half as u64)]));
    // Nothing was downloaded from another repository, of the same host or of another one.
    for other in ["a:5000/other", "b:5000/app"] {
        assert_eq!(store.partial(&blob, &of(other), space()).unwrap().resumed(), 0, "{other}");
    }
    write(&partial, 0, &content[..half]).unwrap();
    assert!(read_all(&partial) == content);
    store.commit_partial(&partial, blob.digest()).unwrap();
    assert!(store.has_blob(&blob).unwrap());
    assert!(names(folder.path()).iter().all(|name| !name.contains(&partial.path.display().to_string())));
    assert!(!partial.journal.exists() && !partial.path.exists());
}

#[test]
fn a_claimed_size_uses_no_disk_space_before_bytes_are_received() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let claimed = Descriptor::new("application/octet-stream", Digest::sha256_of(b"x"), 1 << 30);
    let partial = store.partial(&claimed, &of("a:5000/app"), space()).unwrap();
    assert_eq!(store.allocated_bytes(&claimed, &of("a:5000/app")), 0);
    write(&partial, 0, &[1; 4096]).unwrap();
    let taken = store.allocated_bytes(&claimed, &of("a:5000/app"));
    assert!((4_096..1 << 20).contains(&taken), "{taken} bytes");
}

#[test]
fn a_damaged_journal_or_one_of_another_boot_lists_fewer_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, content, blob) = (store(folder.path()), content(), blob());
    let part = 1 << 20;
    let journal = {
        let partial = store.partial(&blob, &of("a:5000/app"), space()).unwrap();
        for at in 0..3 {
            write(&partial, at * part, &content[at * part..(at + 1) * part]).unwrap();
            // The writer waits for a reader that is too far behind.
            partial.next((at * part) as u64).unwrap();
        }
        partial.journal.clone()
    };
    let text = std::fs::read_to_string(&journal).unwrap();
    let resumed = |text: &str| {
        std::fs::write(&journal, text).unwrap();
        store.partial(&blob, &of("a:5000/app"), space()).unwrap().resumed()
    };
    assert_eq!(resumed(&text), 3 << 20);
    let boot = boot_id();
    let other = text.replace(&boot, "another");
    let before_last = text.trim_end().rsplit_once('\n').unwrap().0;
    let cases = [
        // The end of the line is missing, so its number may be incomplete.
        (text.trim_end().to_owned(), 2 << 20),
        (format!("{before_last}\nw 2097152 31"), 2 << 20),
        (String::new(), 0),
        (text.replace("partial 1", "partial 2"), 0),
        (text.replace(&SIZE.to_string(), "17"), 0),
        (other.clone(), 0),
        (format!("{other}s 0 1048576\n"), 1 << 20),
        (format!("{text}w 0 99999999\nw 9 3\nw a b\n\0\0\0\nq 0 4194304\n"), 3 << 20),
    ];
    for (text, expected) in cases {
        assert_eq!(resumed(&text), expected, "{text}");
    }
    // The file is shorter than its journal says.
    std::fs::write(&journal, &text).unwrap();
    let data = journal.with_extension("");
    File::options().write(true).open(data).unwrap().set_len(5).unwrap();
    assert_eq!(store.partial(&blob, &of("a:5000/app"), space()).unwrap().resumed(), 0);
}

#[test]
fn readers_wait_for_bytes_and_end_when_the_writer_closes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, content) = (store(folder.path()), content());
    let partial = Arc::new(store.partial(&blob(), &of("a:5000/app"), space()).unwrap());
    let reader = std::thread::spawn({
        let partial = partial.clone();
        move || read_all(&partial)
    });
    // Backwards, so that the reader waits until the first piece is written.
    for at in (0..4_usize).rev() {
        let piece = &content[at << 20..(at + 1) << 20];
        write(&partial, at << 20, piece).unwrap();
    }
    assert!(reader.join().unwrap() == content);

    let other = Descriptor::new("x", Digest::sha256_of(b"other"), SIZE);
    let partial = Arc::new(store.partial(&other, &of("a:5000/app"), space()).unwrap());
    write(&partial, 0, b"some").unwrap();
    let reader = std::thread::spawn({
        let partial = partial.clone();
        move || (partial.next(0).unwrap(), partial.next(4).unwrap())
    });
    std::thread::sleep(Duration::from_millis(20));
    partial.close();
    assert_eq!(reader.join().unwrap(), (Next::Bytes(Bytes::from_static(b"some")), Next::Closed));
}

#[test]
fn deletes_stale_partial_blobs_except_one_that_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let (mine, others) = (blob(), Descriptor::new("x", Digest::sha256_of(b"x"), SIZE));
    drop(store.partial(&others, &of("a:5000/app"), space()).unwrap());
    let partial = store.partial(&mine, &of("a:5000/app"), space()).unwrap();
    std::fs::write(store.partials().join("sha256-00-00.whole"), "").unwrap();
    store.delete_partials(STALE_AFTER);
    assert_eq!(names(folder.path()).len(), 5);
    store.delete_partials(Duration::ZERO);
    let mut left = names(folder.path());
    left.sort();
    let name = partial.path.file_name().unwrap().to_str().unwrap();
    assert_eq!(left, [name.to_owned(), format!("{name}{JOURNAL_SUFFIX}")]);
}

/// A reader that is not far behind never reads from the file, because the writer waits for it.
#[test]
fn the_writer_waits_for_a_reader_that_is_a_little_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (store, content) = (store(folder.path()), content());
    let partial = Arc::new(store.partial(&blob(), &of("a:5000/app"), space()).unwrap());
    let writing = std::thread::spawn({
        let (partial, content) = (partial.clone(), content.clone());
        move || {
            for at in (0..content.len()).step_by(256 << 10) {
                write(&partial, at, &content[at..at + (256 << 10)]).unwrap();
            }
        }
    });
    std::thread::sleep(Duration::from_millis(100));
    assert!(!writing.is_finished(), "it is ahead of the reader by more than memory has room for");
    assert!(!missing(&partial).is_empty(), "nor does it write on");
    // What is in the file is not what the reader gets.
    partial.file.write_all_at(&vec![0xee; 1 << 20], 0).unwrap();
    assert!(read_all(&partial) == content);
    writing.join().unwrap();
}

/// Ranges that arrive ahead of missing bytes are kept in the file only, so that no range waits for another one.
#[test]
fn the_writer_does_not_wait_for_a_reader_behind_missing_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, content) = (store(folder.path()), content());
    let partial = store.partial(&blob(), &of("a:5000/app"), space()).unwrap();
    for at in (256 << 10..content.len()).step_by(256 << 10) {
        write(&partial, at, &content[at..at + (256 << 10)]).unwrap();
    }
    write(&partial, 0, &content[..256 << 10]).unwrap();
    assert!(read_all(&partial) == content);
}
