//! The output of `oras-csi store ls`, as text and as JSON.

use std::time::SystemTime;

use oras_csi_core::display::Shown;
use oras_csi_driver::NodeRoots;
use oras_csi_driver::volume_records::{Record, read_all};
use oras_csi_store::gc::Roots;
use oras_csi_store::{
    HeldTree, Inventory, Layout, NodeRecord, PreloadEntry, State, Usage, read_preload_index,
};
use serde_json::{Value, json};

use crate::cluster::format::size;
use crate::exit_status::Failure;

/// The content of a store and its users.
pub(super) struct Listing {
    inventory: Inventory,
    roots: Roots,
    volumes: Vec<Record>,
    wanted: Vec<PreloadEntry>,
    record: NodeRecord,
}

impl Listing {
    pub(super) fn read(layout: &Layout) -> Result<Self, Failure> {
        Ok(Self {
            inventory: Inventory::read(layout).map_err(Failure::failed)?,
            roots: Roots::read(&NodeRoots, layout).map_err(Failure::failed)?,
            volumes: read_all(&layout.volumes()).map_err(Failure::failed)?,
            wanted: read_preload_index(layout).map_err(Failure::failed)?,
            record: NodeRecord::read(layout),
        })
    }

    /// Counts the volumes that use a tree.
    fn count_volumes(&self, tree: &HeldTree) -> usize {
        self.volumes.iter().filter(|record| record.tree().as_ref() == Some(tree.key())).count()
    }

    /// Returns the cluster sets that preload a tree.
    fn sets_of(&self, tree: &HeldTree) -> Vec<String> {
        let wanted = self.wanted.iter().filter(|wanted| wanted.tree().as_ref() == Some(tree.key()));
        wanted.map(|wanted| Shown::new(wanted.set()).to_string()).collect()
    }

    /// Reports whether the tree of a preloaded set is in the store.
    fn has_tree(&self, wanted: &PreloadEntry) -> bool {
        self.inventory.trees().iter().any(|tree| wanted.tree().as_ref() == Some(tree.key()))
    }

    /// Returns the listing as one JSON object.
    pub(super) fn to_json(&self, layout: &Layout) -> Value {
        let trees = self.inventory.trees().iter().map(|tree| {
            json!({
                "key": tree.key().as_str(),
                "bytes": tree.totals().map(|totals| totals.bytes),
                "inodes": tree.totals().map(|totals| totals.inodes),
                "disk": tree.own_usage(),
                "used": unix_seconds(tree.last_used()),
                "mounted": self.roots.is_mounted(tree.key()),
                "volumes": self.count_volumes(tree),
                "sets": self.sets_of(tree),
            })
        });
        let layers = self.inventory.layers().iter().map(|layer| {
            json!({
                "key": layer.key().as_str(),
                "bytes": layer.totals().map(|totals| totals.bytes),
                "inodes": layer.totals().map(|totals| totals.inodes),
                "disk": layer.usage(),
                "made": unix_seconds(layer.created()),
            })
        });
        let blobs = self.inventory.blobs().iter().map(
            |blob| json!({"digest": blob.digest().to_string(), "bytes": blob.size(), "made": unix_seconds(blob.created())}),
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
                "there": self.has_tree(wanted),
            })
        });
        let usage = self.inventory.usage_by_state();
        let by_state = |amount: fn(&Usage) -> u64| {
            let amounts = usage.iter().map(|(state, usage)| (state.name().to_owned(), json!(amount(usage))));
            amounts.collect::<serde_json::Map<_, _>>()
        };
        json!({
            "store": layout.path().display().to_string(),
            "bytes": by_state(|usage| usage.bytes),
            "inodes": by_state(|usage| usage.inodes),
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

    /// Prints the listing as text.
    pub(super) fn print(&self, layout: &Layout) {
        println!("{}", layout.path().display());
        println!("{:<18}{:>12}{:>10}  {:<14}USE", "TREE", "SIZE", "FILES", "LAST USED");
        for tree in self.inventory.trees() {
            let (size, files) = match tree.totals() {
                Some(totals) => (size(totals.bytes), totals.inodes.to_string()),
                None => ("?".to_owned(), "?".to_owned()),
            };
            let mounted = if self.roots.is_mounted(tree.key()) { "mounted" } else { "not mounted" };
            let short = tree.key().as_str().get(..16).unwrap_or_default();
            let (used, volumes) = (format_age(tree.last_used()), self.count_volumes(tree));
            let preloaded = match self.sets_of(tree) {
                sets if sets.is_empty() => String::new(),
                sets => format!(", preloaded for {}", sets.join(", ")),
            };
            println!("{short:<18}{size:>12}{files:>10}  {used:<14}{mounted}, {volumes} volumes{preloaded}");
        }
        let counts = [
            ("trees", State::Trees, self.inventory.trees().len()),
            ("blobs", State::Blobs, self.inventory.blobs().len()),
            ("layers", State::Layers, self.inventory.layers().len()),
            ("partial", State::Partial, self.inventory.partial().len()),
            ("quarantine", State::Quarantined, self.inventory.quarantined().len()),
        ];
        let usage = self.inventory.usage_by_state();
        for (name, state, count) in counts {
            let usage = usage.get(&state).copied().unwrap_or_default();
            println!("{name:<12}{count:>6}{:>12}{:>10} inodes", size(usage.bytes), usage.inodes);
        }
        for record in &self.volumes {
            let tree = record
                .tree()
                .map_or("?".to_owned(), |key| key.as_str().get(..16).unwrap_or_default().to_owned());
            let volume = Shown::new(record.volume());
            let (namespace, id) = (Shown::new(record.namespace()), Shown::new(record.id()));
            let target = Shown::new(&record.target().to_string_lossy());
            println!("volume {volume} in namespace {namespace}: {id}, tree {tree}, mounted at {target}");
        }
        for wanted in &self.wanted {
            let (set, id) = (Shown::new(wanted.set()), Shown::new(wanted.id()));
            let state = if self.has_tree(wanted) { "preloaded" } else { "not preloaded yet" };
            println!("set {set}: {id} {state}");
        }
        if let Some(scrub) = &self.record.scrub {
            let (bytes, damaged) = (size(scrub.bytes), scrub.damaged);
            println!("last scrub: {}, {bytes} read, {damaged} damaged", format_age(system_time(scrub.ended)));
        }
        if let Some(collection) = &self.record.collection {
            let (trees, bytes) = (collection.trees, size(collection.bytes));
            println!(
                "last garbage collection: {}, {trees} trees and {bytes} deleted",
                format_age(system_time(collection.ended))
            );
        }
        for damage in &self.record.damage {
            let volumes = if damage.volumes.is_empty() {
                "not mounted by any volume".to_owned()
            } else {
                format!("mounted at that time by: {}", Shown::new(&damage.volumes.join(", ")))
            };
            println!(
                "damage found {}: {}: {}; {volumes}",
                format_age(system_time(damage.at)),
                Shown::new(&damage.what),
                Shown::new(&damage.found)
            );
        }
    }
}

/// Converts seconds since 1970.
fn system_time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds)
}

/// Converts to seconds since 1970.
fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Formats an age, such as `5 min ago`.
fn format_age(time: SystemTime) -> String {
    let seconds = time.elapsed().map_or(0, |elapsed| elapsed.as_secs());
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use oras_csi_core::recipe::PinnedRecipe;
    use oras_csi_store::Limits;
    use oras_csi_store::{Store, TreeKey};

    use super::*;

    #[test]
    fn a_preloaded_tree_is_listed_with_its_set() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(folder.path(), Limits::default())?;
        let recipe = PinnedRecipe::from_json(&format!(
            r#"[{{"add":"ghcr.io/acme/model@sha256:{}"}}]"#,
            "a".repeat(64)
        ))?;
        let (present, absent) = ("ab".repeat(32), "cd".repeat(32));
        let tree = std::path::Path::new("trees").join(&present);
        std::fs::create_dir_all(folder.path().join(&tree).join("files"))?;
        std::fs::write(folder.path().join(&tree).join("tree.json"), "{}")?;
        let wanted = |set: &str, key: &str| {
            let key = TreeKey::parse(key).ok_or("it is a key")?;
            Ok::<_, &str>(PreloadEntry::new(set, "models-1", &recipe, &key))
        };
        store.write_preload_index(&[wanted("models", &present)?, wanted("others", &absent)?])?;
        let listed = Listing::read(store.layout()).map_err(|failure| failure.to_string())?;
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
