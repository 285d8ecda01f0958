//! What a store has, for people and for programs.

use std::time::SystemTime;

use oras_csi_core::display::Shown;
use oras_csi_driver::NodeRoots;
use oras_csi_driver::volume_records::{Record, read_all};
use oras_csi_store::gc::Roots;
use oras_csi_store::{HeldTree, Inventory, Layout, NodeRecord, PreloadEntry, State, read_preload_index};
use serde_json::{Value, json};

use crate::failure::Failure;

struct Listed {
    inventory: Inventory,
    roots: Roots,
    volumes: Vec<Record>,
    wanted: Vec<PreloadEntry>,
    record: NodeRecord,
}

pub(super) fn list(layout: &Layout, as_json: bool) -> Result<(), Failure> {
    let listed = Listed::read(layout)?;
    if as_json {
        let text = serde_json::to_string_pretty(&listed.to_json(layout)).map_err(Failure::failed)?;
        println!("{text}");
    } else {
        listed.print(layout);
    }
    Ok(())
}

impl Listed {
    fn read(layout: &Layout) -> Result<Self, Failure> {
        Ok(Self {
            inventory: Inventory::read(layout).map_err(Failure::failed)?,
            roots: Roots::read(&NodeRoots, layout).map_err(Failure::failed)?,
            volumes: read_all(&layout.volumes()).map_err(Failure::failed)?,
            wanted: read_preload_index(layout).map_err(Failure::failed)?,
            record: NodeRecord::read(layout),
        })
    }

    fn volumes_of(&self, tree: &HeldTree) -> usize {
        self.volumes.iter().filter(|record| record.tree().as_ref() == Some(tree.key())).count()
    }

    /// The cluster sets for which a tree is kept.
    fn sets_of(&self, tree: &HeldTree) -> Vec<String> {
        let wanted = self.wanted.iter().filter(|wanted| wanted.tree().as_ref() == Some(tree.key()));
        wanted.map(|wanted| Shown::new(wanted.set()).to_string()).collect()
    }

    fn has(&self, wanted: &PreloadEntry) -> bool {
        self.inventory.trees().iter().any(|tree| wanted.tree().as_ref() == Some(tree.key()))
    }

    fn to_json(&self, layout: &Layout) -> Value {
        let trees = self.inventory.trees().iter().map(|tree| {
            json!({
                "key": tree.key().as_str(),
                "bytes": tree.totals().map(|totals| totals.bytes),
                "inodes": tree.totals().map(|totals| totals.inodes),
                "used": seconds(tree.last_used()),
                "mounted": self.roots.is_mounted(tree.key()),
                "volumes": self.volumes_of(tree),
                "sets": self.sets_of(tree),
            })
        });
        let layers = self.inventory.layers().iter().map(|layer| {
            json!({
                "key": layer.key().as_str(),
                "bytes": layer.totals().map(|totals| totals.bytes),
                "inodes": layer.totals().map(|totals| totals.inodes),
                "made": seconds(layer.created()),
            })
        });
        let blobs = self.inventory.blobs().iter().map(
            |blob| json!({"digest": blob.digest().to_string(), "bytes": blob.size(), "made": seconds(blob.created())}),
        );
        let aside = self.inventory.quarantined().iter().map(|entry| {
            json!({"name": entry.name(), "bytes": entry.size(), "mounted": self.roots.is_quarantined_mounted(entry.name())})
        });
        let volumes = self.volumes.iter().map(|record| {
            json!({
                "volume": record.volume(),
                "id": record.id(),
                "namespace": record.namespace(),
                "target": record.target().display().to_string(),
                "tree": record.tree().map(|key| key.to_string()),
            })
        });
        let sets = self.wanted.iter().map(|wanted| {
            json!({
                "name": wanted.set(),
                "id": wanted.id(),
                "tree": wanted.tree().map(|key| key.to_string()),
                "there": self.has(wanted),
            })
        });
        let sizes = self.inventory.sizes().into_iter();
        json!({
            "store": layout.path().display().to_string(),
            "bytes": sizes.map(|(state, bytes)| (state.name().to_owned(), json!(bytes))).collect::<serde_json::Map<_, _>>(),
            "trees": trees.collect::<Vec<_>>(),
            "layers": layers.collect::<Vec<_>>(),
            "blobs": blobs.collect::<Vec<_>>(),
            "setAside": aside.collect::<Vec<_>>(),
            "volumes": volumes.collect::<Vec<_>>(),
            "sets": sets.collect::<Vec<_>>(),
            "scrub": self.record.scrub,
            "collection": self.record.collection,
            "damage": self.record.damage,
        })
    }

    fn print(&self, layout: &Layout) {
        println!("{}", layout.path().display());
        println!("{:<18}{:>12}{:>10}  {:<14}USE", "TREE", "SIZE", "FILES", "LAST USED");
        for tree in self.inventory.trees() {
            let (size, files) = match tree.totals() {
                Some(totals) => (amount(totals.bytes), totals.inodes.to_string()),
                None => ("?".to_owned(), "?".to_owned()),
            };
            let mounted = if self.roots.is_mounted(tree.key()) { "mounted" } else { "not mounted" };
            let short = tree.key().as_str().get(..16).unwrap_or_default();
            let (used, volumes) = (ago(tree.last_used()), self.volumes_of(tree));
            let kept = match self.sets_of(tree) {
                sets if sets.is_empty() => String::new(),
                sets => format!(", kept for {}", sets.join(", ")),
            };
            println!("{short:<18}{size:>12}{files:>10}  {used:<14}{mounted}, {volumes} volumes{kept}");
        }
        let counts = [
            (State::Blobs, self.inventory.blobs().len()),
            (State::Layers, self.inventory.layers().len()),
            (State::Partial, self.inventory.partial().len()),
            (State::Quarantined, self.inventory.quarantined().len()),
        ];
        let sizes = self.inventory.sizes();
        for (state, count) in counts {
            println!("{:<12}{count:>6}{:>12}", state.name(), amount(sizes.get(&state).copied().unwrap_or(0)));
        }
        for record in &self.volumes {
            let tree = record
                .tree()
                .map_or("?".to_owned(), |key| key.as_str().get(..16).unwrap_or_default().to_owned());
            let volume = Shown::new(record.volume());
            let (namespace, id) = (Shown::new(record.namespace()), Shown::new(record.id()));
            let target = Shown::new(&record.target().to_string_lossy());
            println!("volume {volume} of {namespace}: {id}, tree {tree}, at {target}");
        }
        for wanted in &self.wanted {
            let (set, id) = (Shown::new(wanted.set()), Shown::new(wanted.id()));
            let there = if self.has(wanted) { "is there" } else { "is not there yet" };
            println!("set {set}: {id} {there}");
        }
        if let Some(scrub) = &self.record.scrub {
            let (bytes, damaged) = (amount(scrub.bytes), scrub.damaged);
            println!("last scrub: {}, {bytes} read, {damaged} damaged", ago(time(scrub.ended)));
        }
        if let Some(collection) = &self.record.collection {
            let (trees, bytes) = (collection.trees, amount(collection.bytes));
            println!("last collection: {}, {trees} trees, {bytes}", ago(time(collection.ended)));
        }
        for damage in &self.record.damage {
            let volumes = if damage.volumes.is_empty() {
                "no volume had it mounted".to_owned()
            } else {
                format!("still mounted then: {}", Shown::new(&damage.volumes.join(", ")))
            };
            println!(
                "damaged, found {}: {}: {}; {volumes}",
                ago(time(damage.at)),
                Shown::new(&damage.what),
                Shown::new(&damage.found)
            );
        }
    }
}

fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn ago(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// As `1.2 GiB`.
pub(super) fn amount(bytes: u64) -> String {
    for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use oras_csi_core::recipe::PinnedRecipe;
    use oras_csi_store::Limits;
    use oras_csi_store::{Store, TreeKey};

    use super::*;

    #[test]
    fn what_is_kept_for_a_set_is_named_with_it() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(folder.path(), Limits::default())?;
        let recipe = PinnedRecipe::from_json(&format!(
            r#"[{{"add":"ghcr.io/acme/model@sha256:{}"}}]"#,
            "a".repeat(64)
        ))?;
        let (here, absent) = ("ab".repeat(32), "cd".repeat(32));
        let tree = std::path::Path::new("trees").join(&here);
        std::fs::create_dir_all(folder.path().join(&tree).join("files"))?;
        std::fs::write(folder.path().join(&tree).join("tree.json"), "{}")?;
        let wanted = |set: &str, key: &str| {
            let key = TreeKey::parse(key).ok_or("it is a key")?;
            Ok::<_, &str>(PreloadEntry::new(set, "models-1", &recipe, &key))
        };
        store.write_preload_index(&[wanted("models", &here)?, wanted("others", &absent)?])?;
        let listed = Listed::read(store.layout()).map_err(|failure| failure.to_string())?;
        let json = listed.to_json(store.layout());
        assert_eq!(json["trees"][0]["sets"], json!(["models"]));
        let there =
            |number: usize| (json["sets"][number]["name"].clone(), json["sets"][number]["there"].clone());
        assert_eq!(there(0), (json!("models"), json!(true)));
        assert_eq!(there(1), (json!("others"), json!(false)));
        listed.print(store.layout());
        Ok(())
    }
}
