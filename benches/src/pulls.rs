//! Cold pulls: from nothing to files in a directory (`oras-csi pull`) and to a mounted volume (the driver), beside other
//! clients of registries and beside what the machine itself needs for the same bytes.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::containerd::Containerd;
use crate::content::{self, Packing};
use crate::disk::{Disk, Kind};
use crate::driver::{Driver, Volume};
use crate::measure::{Usage, measure, usage_of};
use crate::registry::{Pushed, Registry};
use crate::results::{LIMIT, OURS, Results, Series, percentile};
use crate::scale::{self, Scale};
use crate::{tools, words};

/// What is pulled.
#[derive(Debug)]
pub(crate) struct Case {
    /// The row in the report.
    pub(crate) name: String,
    /// The artifacts; one in all cases but the last.
    artifacts: Vec<Pushed>,
    /// The bytes of all files.
    bytes: u64,
    /// Their number.
    files: u64,
    /// How the files are packed; `None` if each is a blob.
    packing: Option<Packing>,
}

/// What pulls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// `oras-csi pull`.
    OursPull,
    /// The driver, from its first call to the mount.
    OursMounted,
    /// `oras pull`.
    Oras,
    /// `oras blob fetch | zstd -dc | tar -x`, see [`Case::oras`].
    OrasPipe,
    /// `skopeo copy` into a directory.
    Skopeo,
    /// `ctr image pull`.
    Ctr,
    /// SHA-256 of the blobs.
    Hash,
    /// Receives and writes the blobs.
    Receive,
    /// Writes the bytes of the files in sequence.
    Write,
    /// Receives, decompresses and unpacks with the programs of the system, and verifies nothing.
    Pipe,
}

impl Program {
    fn is_limit(self) -> bool {
        self.name().starts_with(LIMIT)
    }

    fn is_ours(self) -> bool {
        [Self::OursPull, Self::OursMounted].contains(&self)
    }

    /// The column in the report.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OursPull => "oras-csi pull",
            Self::OursMounted => OURS,
            Self::Oras => "oras pull",
            Self::OrasPipe => "oras + tar",
            Self::Skopeo => "skopeo copy",
            Self::Ctr => "ctr image pull",
            Self::Hash => "limit: hash",
            Self::Receive => "limit: curl",
            Self::Write => "limit: write",
            Self::Pipe => "limit: curl + tar",
        }
    }
}

impl Case {
    /// One file.
    pub(crate) fn blob(registry: &Registry, bytes: u64) -> Result<Self> {
        let folder = folder()?;
        content::write_noise(&folder.path().join("model"), 1, bytes)?;
        let artifacts = vec![registry.push("blob", folder.path(), &["model".to_owned()])?];
        Ok(Self { name: format!("{} blob", scale::bytes(bytes)), artifacts, bytes, files: 1, packing: None })
    }

    /// Sixteen files.
    pub(crate) fn blobs(registry: &Registry, bytes: u64) -> Result<Self> {
        let folder = folder()?;
        let files: Vec<String> = (0..16).map(|number| format!("shard-{number}")).collect();
        for (file, seed) in files.iter().zip(100..) {
            content::write_noise(&folder.path().join(file), seed, bytes / 16)?;
        }
        let artifacts = vec![registry.push("blobs", folder.path(), &files)?];
        Ok(Self {
            name: format!("16 x {}", scale::bytes(bytes / 16)),
            artifacts,
            bytes,
            files: 16,
            packing: None,
        })
    }

    /// An archive of 64 files, half of them text.
    pub(crate) fn archive(registry: &Registry, bytes: u64, packing: Packing) -> Result<Self> {
        let (folder, name) = (folder()?, format!("{packing:?}").to_lowercase());
        let file = folder.path().join(&name);
        let diff = content::write_archive(&file, packing, |to| content::append_files(to, 0, bytes / 64, 64))?;
        let artifacts = vec![registry.push_archive(&name, &file, packing, &diff)?];
        let plus = if packing == Packing::Plain { String::new() } else { format!("+{name}") };
        Ok(Self {
            name: format!("{} tar{plus}", scale::bytes(bytes)),
            artifacts,
            bytes,
            files: 64,
            packing: Some(packing),
        })
    }

    /// An archive of small files.
    pub(crate) fn small_files(registry: &Registry, count: u64) -> Result<Self> {
        let folder = folder()?;
        let file = folder.path().join("archive");
        let add = |to: &mut content::Archive<'_>| content::append_small_files(to, count);
        let diff = content::write_archive(&file, Packing::Gzip, add)?;
        let artifacts = vec![registry.push_archive("small", &file, Packing::Gzip, &diff)?];
        // The length of each file is in `append_small_files`; their sum hardly matters beside the inodes.
        let bytes = count * 280;
        Ok(Self {
            name: format!("{} small files, tar+gzip", scale::number(count)),
            artifacts,
            bytes,
            files: count,
            packing: Some(Packing::Gzip),
        })
    }

    /// Artifacts of one small file each.
    pub(crate) fn artifacts(registry: &Registry, count: u64) -> Result<Self> {
        let folder = folder()?;
        let mut artifacts = Vec::new();
        for number in 0..count {
            content::write_noise(&folder.path().join("file"), 1_000 + number, 4 << 10)?;
            artifacts.push(registry.push(&format!("many/{number}"), folder.path(), &["file".to_owned()])?);
        }
        let name = format!("{} artifacts of 4 KiB", scale::number(count));
        Ok(Self { name, artifacts, bytes: count * (4 << 10), files: count, packing: None })
    }

    /// How a user of `oras` gets its files: `oras pull` unpacks archives only if they are compressed with gzip.
    pub(crate) fn oras(&self) -> Program {
        match self.packing {
            Some(Packing::Plain | Packing::Zstd) => Program::OrasPipe,
            _ => Program::Oras,
        }
    }

    /// Reports whether it has so many files or artifacts that it takes much longer than other cases.
    fn is_long(&self) -> bool {
        self.artifacts.len() > 100 || self.files > 10_000
    }

    /// The programs that can pull it, without limits.
    fn programs(&self) -> Vec<Program> {
        let mut programs = vec![Program::OursMounted, Program::OursPull, self.oras()];
        match self.packing {
            None if self.artifacts.len() > 1 => {}
            None => programs.push(Program::Skopeo),
            Some(_) => programs.push(Program::Ctr),
        }
        programs
    }

    /// The limits of the machine for the same bytes.
    fn limits(&self) -> Vec<Program> {
        match self.packing {
            None if self.artifacts.len() > 1 => vec![Program::Receive],
            None => vec![Program::Hash, Program::Receive, Program::Write],
            Some(_) => vec![Program::Hash, Program::Receive, Program::Write, Program::Pipe],
        }
    }
}

fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("b-").tempdir()?)
}

/// Measures all cases on all disks.
pub(crate) async fn run(results: &mut Results, scale: Scale) -> Result<()> {
    let registry = Registry::start()?;
    let gib = scale.pick(1 << 30, 64 << 20);
    let makes: [&dyn Fn() -> Result<Case>; 6] = [
        &|| Case::blob(&registry, gib),
        &|| Case::blobs(&registry, gib),
        &|| Case::archive(&registry, 2 * gib, Packing::Gzip),
        &|| Case::archive(&registry, 2 * gib, Packing::Zstd),
        &|| Case::small_files(&registry, scale.pick(100_000, 10_000)),
        &|| Case::artifacts(&registry, scale.pick(1_000, 50)),
    ];
    for make in makes {
        let case = make()?;
        for (kind, rounds) in scale.disks() {
            // A thousand processes of each program say enough on one disk.
            if case.artifacts.len() == 1 || kind == Kind::Ext4 {
                compare(results, &registry, &case, kind, rounds).await?;
            }
        }
    }
    Ok(())
}

/// Runs all programs in turn, several times, each on a new file system.
async fn compare(
    results: &mut Results,
    registry: &Registry,
    case: &Case,
    kind: Kind,
    rounds: usize,
) -> Result<()> {
    let mut programs = case.programs();
    if kind == Kind::Xfs {
        // The second file system with a journal: only what the first one cannot show.
        programs.retain(|program| [Program::OursMounted, Program::Oras, Program::OrasPipe].contains(program));
    } else {
        programs.extend(case.limits());
    }
    let mut used = vec![Vec::new(); programs.len()];
    for round in 0..rounds {
        for (program, used) in programs.iter().zip(&mut used) {
            // The first round of a case that takes long is enough.
            if round == 0 || !(program.is_limit() || case.is_long()) || round == 1 && program.is_ours() {
                used.push(pull_once(registry, case, kind, *program).await?);
            }
        }
    }
    let cpu = |program: Program| {
        let found = programs.iter().position(|&other| other == program)?;
        Some(percentile(&used[found].iter().map(|pull| pull.usage.cpu()).collect::<Vec<_>>(), 50))
    };
    if let (None, Some(hash), Some(receive)) = (case.packing, cpu(Program::Hash), cpu(Program::Receive)) {
        for program in [Program::OursPull, Program::OursMounted, Program::Oras, Program::Skopeo] {
            results.add(&Series {
                section: format!("cold pulls: {}", kind.name()),
                case: case.name.clone(),
                program: program.name().to_owned(),
                unit: "CPU s / CPU s of hash + receive + write".to_owned(),
                values: cpu(program).map(|cpu| cpu / (hash + receive)).into_iter().collect(),
                x: None,
                axis: None,
            })?;
        }
    }
    for (program, used) in programs.iter().zip(used) {
        let mut add = |unit: &str, value: &dyn Fn(&Pull) -> f64| {
            results.add(&Series {
                section: format!("cold pulls: {}", kind.name()),
                case: case.name.clone(),
                program: program.name().to_owned(),
                unit: unit.to_owned(),
                values: used.iter().map(value).collect(),
                x: None,
                axis: None,
            })
        };
        add("s", &|pull| pull.usage.wall)?;
        add("CPU s", &|pull| pull.usage.cpu())?;
        add("system CPU s", &|pull| pull.usage.system)?;
        add("MiB of memory", &|pull| pull.usage.peak)?;
        if kind != Kind::Memory && *program != Program::Hash {
            add("s until synced", &|pull| pull.synced)?;
            let bytes = case.bytes as f64;
            add("bytes to the device / bytes of the files", &|pull| pull.device / bytes)?;
            add("write_bytes / bytes of the files", &|pull| pull.usage.written / bytes)?;
        }
    }
    Ok(())
}

/// What one pull has cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    /// The program and its children.
    pub(crate) usage: Usage,
    /// Seconds until all of it was on the device.
    pub(crate) synced: f64,
    /// The bytes that the device received until then.
    pub(crate) device: f64,
}

/// Pulls once, onto a new file system.
async fn pull_once(registry: &Registry, case: &Case, kind: Kind, program: Program) -> Result<Pull> {
    // The largest is the plain copy of an archive beside its files, and the journal.
    let disk = Disk::new(kind, 3 * case.bytes + (2 << 30))?;
    pull_onto(&disk, registry, case, program).await.with_context(|| {
        format!("cannot measure {} with \"{}\" on {}", program.name(), case.name, kind.name())
    })
}

/// Pulls once onto a disk.
pub(crate) async fn pull_onto(
    disk: &Disk,
    registry: &Registry,
    case: &Case,
    program: Program,
) -> Result<Pull> {
    let at = disk.path();
    let daemon = match program {
        Program::OursMounted => {
            Daemon::Driver(Box::new(Driver::start(&at, "driver", &registry.certs()).await?))
        }
        Program::Ctr => Daemon::Containerd(Containerd::start(&at)?),
        _ => Daemon::None,
    };
    disk.sync()?;
    let before = disk.written()?.unwrap_or_default();
    let begun = std::time::Instant::now();
    let usage = match &daemon {
        Daemon::Driver(driver) => mount(driver, case).await?,
        Daemon::Containerd(containerd) => containerd.pull(&registry.reference(&image(case)))?,
        Daemon::None => measure(command(registry, case, program, &at)?)?,
    };
    let ended = begun.elapsed().as_secs_f64();
    disk.sync()?;
    // What `measure` needs to start is no part of the pull.
    let synced = usage.wall + begun.elapsed().as_secs_f64() - ended;
    Ok(Pull { usage, synced, device: disk.written()?.unwrap_or_default() - before })
}

enum Daemon {
    None,
    Driver(Box<Driver>),
    Containerd(Containerd),
}

fn image(case: &Case) -> String {
    format!("{}:image", case.artifacts[0].repository)
}

/// How many volumes are published at once. Kubelet publishes the volumes of all pods at once.
const AT_ONCE: usize = 16;

/// Publishes a volume for each artifact.
async fn mount(driver: &Driver, case: &Case) -> Result<Usage> {
    let before = usage_of(driver.id())?;
    let begun = std::time::Instant::now();
    let volumes = case.artifacts.iter().enumerate().map(|(number, artifact)| async move {
        let volume = Volume::of(&artifact.repository, &artifact.digest);
        driver.publish(&format!("pod-{number}"), &volume).await
    });
    futures_util::stream::iter(volumes).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    let wall = begun.elapsed().as_secs_f64();
    let after = usage_of(driver.id())?;
    Ok(Usage {
        wall,
        user: after.user - before.user,
        system: after.system - before.system,
        peak: after.peak,
        written: after.written - before.written,
    })
}

/// The command line of a program that runs to its end.
fn command(registry: &Registry, case: &Case, program: Program, disk: &Path) -> Result<Vec<OsString>> {
    let first = &case.artifacts[0];
    let layer = &first.layers[0];
    let reference = registry.reference(&format!("{}:v1", first.repository));
    let out = disk.join("out");
    let urls = || {
        let of = |artifact: &Pushed| {
            let url = |blob: &crate::registry::Blob| registry.blob_url(&artifact.repository, &blob.digest);
            artifact.layers.iter().map(url).collect::<Vec<_>>()
        };
        case.artifacts.iter().flat_map(of).collect::<Vec<String>>()
    };
    Ok(match program {
        Program::OursPull | Program::Oras if case.artifacts.len() > 1 => {
            // One command for each artifact, as a script would do it.
            let script = format!(
                "for n in $(seq 0 {}); do \"$@\" \"$0/many/$n:v1\" {} \"$OUT/$n\"; done",
                case.artifacts.len() - 1,
                if program == Program::Oras { "-o" } else { "" }
            );
            let tool = if program == Program::Oras { tools::testbed("oras")? } else { tools::ours()? };
            fs::create_dir_all(&out)?;
            let script = format!("OUT={}; {script}", out.display());
            tools::shell(&script, words![registry.host(), tool, "pull", "--plain-http"])
        }
        Program::OursPull => {
            let mut words = words![tools::ours()?, "pull", "--plain-http", reference, out];
            words.extend(tools::unlimited().map(OsString::from));
            words
        }
        Program::Oras => words![tools::testbed("oras")?, "pull", "--plain-http", reference, "-o", out],
        Program::OrasPipe => {
            fs::create_dir_all(&out)?;
            let blob = format!("{}@{}", registry.reference(&first.repository), layer.digest);
            let filter = case.packing.unwrap_or(Packing::Plain).filter();
            let script =
                format!("\"$0\" blob fetch --plain-http --output - \"$1\" | {filter} | tar -x -C \"$2\"");
            tools::shell(&script, words![tools::testbed("oras")?, blob, out])
        }
        Program::Skopeo => {
            let from = format!("docker://{reference}");
            let mut to = OsString::from("dir:");
            to.push(out);
            words!["skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false", from, to]
        }
        Program::Hash => {
            let files = first.layers.iter().map(|blob| registry.blob_file(&blob.digest).into());
            words!["openssl", "dgst", "-sha256"].into_iter().chain(files).collect()
        }
        Program::Receive => {
            fs::create_dir_all(&out)?;
            let mut words = words!["curl", "--silent", "--fail", "--location"];
            for (number, url) in urls().into_iter().enumerate() {
                words.extend(words!["-o", out.join(number.to_string()), url]);
            }
            words
        }
        Program::Write => {
            let (mib, count) = (1_u64 << 20, case.bytes.div_ceil(1 << 20));
            let to = format!("of={}", out.display());
            words!["dd", "if=/dev/zero", to, format!("bs={mib}"), format!("count={count}"), "status=none"]
        }
        Program::Pipe => {
            fs::create_dir_all(&out)?;
            let filter = case.packing.unwrap_or(Packing::Plain).filter();
            let script = format!("curl --silent --fail --location \"$0\" | {filter} | tar -x -C \"$1\"");
            tools::shell(&script, words![registry.blob_url(&first.repository, &layer.digest), out])
        }
        Program::OursMounted | Program::Ctr => words![],
    })
}
