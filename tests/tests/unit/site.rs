//! Checks the documentation as a site: each page is a chapter, and each link and anchor leads somewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use oras_csi_tests::parts::repository;
use oras_csi_tests::process::run;

/// The tracked files below a folder whose names have this ending.
fn tracked(pattern: &str) -> Vec<PathBuf> {
    let mut list = Command::new("git");
    list.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", pattern]);
    let files = run(list.current_dir(repository()));
    let files = files.split('\0').filter(|file| !file.is_empty()).map(PathBuf::from);
    files.filter(|file| repository().join(file).exists()).collect()
}

/// The lines of a page that are not code, with code inside a line removed.
fn prose(page: &str) -> Vec<String> {
    let mut fence: Option<String> = None;
    let mut lines = Vec::new();
    for line in page.lines() {
        let trimmed = line.trim_start();
        let marks: String = trimmed.chars().take_while(|character| *character == '`').collect();
        match &fence {
            Some(open) if trimmed.trim_end() == open => fence = None,
            Some(_) => {}
            None if marks.len() >= 3 => fence = Some(marks),
            None => lines.push(line.split('`').step_by(2).collect::<Vec<_>>().join("`")),
        }
    }
    lines
}

/// The targets of the links and images of a page.
fn links(page: &str) -> Vec<String> {
    let text = prose(page).join("\n");
    let starts = text.match_indices("](").map(|(start, _)| start + 2);
    let targets = starts.filter_map(|start| text[start..].split(')').next());
    targets.map(|target| target.split_whitespace().next().unwrap_or_default().to_owned()).collect()
}

/// The anchors of a page, as GitHub and mdBook make them from headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in page.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let Some((_, heading)) =
            line.split_once("# ").filter(|(marks, _)| !fenced && marks.chars().all(|mark| mark == '#'))
        else {
            continue;
        };
        let kept = heading.trim().chars().filter(|character| {
            character.is_alphanumeric() || *character == '-' || *character == '_' || character.is_whitespace()
        });
        let anchor: String =
            kept.map(|character| if character.is_whitespace() { '-' } else { character }).collect();
        let anchor = anchor.to_lowercase();
        let count = counts.entry(anchor.clone()).or_default();
        anchors.insert(if *count == 0 { anchor } else { format!("{anchor}-{count}") });
        *count += 1;
    }
    anchors
}

/// A path without `.` and `..`, or none if it leaves the repository.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                if !normal.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            component => normal.push(component),
        }
    }
    Some(normal)
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(repository().join(path))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn links_lead_to_pages_and_headings_that_exist() {
    let (mut checked, mut broken) = (0, Vec::new());
    for page in tracked("*.md") {
        let text = read(&page);
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            checked += 1;
            let (target, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.parent().unwrap_or(Path::new(""));
            let target = if target.is_empty() { Some(page.clone()) } else { normal(&folder.join(target)) };
            let is_page = |target: &PathBuf| target.extension().is_some_and(|extension| extension == "md");
            let found = target.filter(|target| repository().join(target).exists());
            let leads = found.is_some_and(|target| {
                anchor.is_empty() || !is_page(&target) || anchors(&read(&target)).contains(anchor)
            });
            if !leads {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(checked > 300, "only {checked} links were found");
    assert!(broken.is_empty(), "these links lead nowhere: {broken:#?}");
}

#[test]
fn every_page_is_a_chapter_of_the_book() {
    let docs = Path::new("docs");
    let summary = read(&docs.join("SUMMARY.md"));
    let chapters: Vec<PathBuf> = links(&summary).iter().map(|link| docs.join(link)).collect();
    let unique: BTreeSet<_> = chapters.iter().cloned().collect();
    assert_eq!(chapters.len(), unique.len(), "docs/SUMMARY.md has a chapter twice");
    let pages: BTreeSet<PathBuf> =
        tracked("docs/*.md").into_iter().filter(|page| *page != docs.join("SUMMARY.md")).collect();
    let missing: Vec<_> = pages.difference(&unique).collect();
    assert!(missing.is_empty(), "add these pages to docs/SUMMARY.md: {missing:#?}");
    let lost: Vec<_> = unique.difference(&pages).collect();
    assert!(lost.is_empty(), "docs/SUMMARY.md names pages that do not exist: {lost:#?}");
}

/// A reader of the site sees these only in the repository, so the site links to files there.
#[test]
fn images_are_inside_the_book_and_describe_themselves() {
    let mut images = 0;
    for page in tracked("docs/*.md") {
        for line in prose(&read(&page)) {
            for (start, _) in line.match_indices("![") {
                let (text, rest) = line[start + 2..].split_once("](").expect("an image has a target");
                let target = rest.split(')').next().unwrap_or_default();
                assert!(
                    text.len() > 20,
                    "{}: {target} needs a text for readers who do not see it",
                    page.display()
                );
                let path =
                    normal(&page.parent().expect("a folder").join(target)).expect("inside the repository");
                assert!(path.starts_with("docs"), "{}: {target} is not below docs/", page.display());
                images += 1;
            }
        }
    }
    assert!(images >= 3, "only {images} images were found");
}

/// `docs/add-version` makes the published site from one folder for each version.
#[test]
fn a_version_is_added_beside_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    let (book, site) = (folder.path().join("book"), folder.path().join("site"));
    std::fs::create_dir(&book).expect("a folder");
    let add = |version: &str, text: &str| {
        std::fs::write(book.join("index.html"), text).expect("a page");
        run(Command::new(repository().join("docs/add-version")).arg(&book).arg(&site).arg(version));
        std::fs::read_to_string(site.join("versions.json")).expect("the list of versions")
    };
    let versions = |text: &str| -> Vec<String> { serde_json::from_str(text).expect("a list") };
    assert_eq!(versions(&add("main", "first")), ["main"]);
    assert!(read(&site.join("index.html")).contains("url=main/"));
    assert_eq!(versions(&add("0.9.0", "nine")), ["main", "0.9.0"]);
    assert_eq!(versions(&add("0.10.0", "ten")), ["main", "0.10.0", "0.9.0"]);
    assert_eq!(versions(&add("1.0.0-rc.1", "candidate")), ["main", "1.0.0-rc.1", "0.10.0", "0.9.0"]);
    assert!(read(&site.join("index.html")).contains("url=0.10.0/"), "the start page is the newest release");
    assert_eq!(versions(&add("main", "second")), ["main", "1.0.0-rc.1", "0.10.0", "0.9.0"]);
    assert_eq!(read(&site.join("main/index.html")), "second");
    assert_eq!(read(&site.join("0.9.0/index.html")), "nine");
    let mut again = Command::new(repository().join("docs/add-version"));
    let output = again.arg(&book).arg(&site).arg("0.9.0").output().expect("it starts");
    assert!(!output.status.success(), "the folder of a release never changes");
}
