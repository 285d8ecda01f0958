//! Pods that read their volume all the time, and a thread that reads the same volumes from the node.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::counts::State;
use super::{CONTENT, LABEL, annotations};
use crate::cluster::kubectl;
use crate::node::{apply, kubelet_dir, mounts, on_this_node, phase, until};
use crate::process::run;

/// How often the node reads each volume.
const EVERY: Duration = Duration::from_millis(20);
/// Reads, and counts in a file that the node sees. The shell opens the file itself, so a read takes no other program.
const SCRIPT: &str = r#"
    good=0 bad=0
    while true; do
      line=
      IFS= read -r line </mnt/oras/file
      if [ "$line" = lasting ] && [ -f /mnt/oras/more/b ]; then good=$((good+1)); else bad=$((bad+1)); fi
      echo "$good $bad" >/count/next && mv /count/next /count/reads
      sleep 0.05
    done"#;

/// A pod that reads its volume.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) name: String,
    pub(super) uid: String,
    volume: PathBuf,
}

/// What a pod has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reads {
    pub(super) good: u64,
    pub(super) bad: u64,
}

impl Reader {
    /// Creates the pod and waits until it has read.
    pub(super) fn start(name: &str, reference: &str) -> Self {
        apply(&on_this_node(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {LABEL: "reader"}, "annotations": annotations(reference)},
            "spec": {"restartPolicy": "Always", "terminationGracePeriodSeconds": 0,
                "volumes": [{"name": "count", "emptyDir": {}}],
                "containers": [{"name": "app", "image": "busybox", "command": ["sh", "-c", SCRIPT],
                    "volumeMounts": [{"name": "count", "mountPath": "/count"}]}]}})));
        let patience = Duration::from_mins(2);
        until(&format!("{name} runs"), patience, || (phase(name) == "Running").then_some(()));
        let uid = run(&mut kubectl(&["get", "pod", name, "-o", "jsonpath={.metadata.uid}"]));
        let found = mounts(&[&uid, "kubernetes.io~csi"]);
        assert_eq!(found.len(), 1, "{found:?}");
        let volume = found[0].split(' ').nth(4).expect("a mount point").into();
        let reader = Self { name: name.to_owned(), uid, volume };
        until(&format!("{name} reads"), patience, || (reader.reads().good > 0).then_some(()));
        reader
    }

    /// The file of its volume, on the node.
    pub(super) fn file(&self) -> PathBuf {
        self.volume.join("file")
    }

    pub(super) fn reads(&self) -> Reads {
        let file =
            kubelet_dir().join("pods").join(&self.uid).join("volumes/kubernetes.io~empty-dir/count/reads");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap_or_default());
        Reads { good: numbers.next().unwrap_or_default(), bad: numbers.next().unwrap_or_default() }
    }
}

/// Reads the files on the node until the load ends.
pub(super) fn read_all_the_time(state: &State) {
    while state.goes_on() {
        let files = state.files().clone();
        for file in &files {
            let read = read(file);
            // The test can have deleted the pod in the meantime.
            if !state.files().contains(file) {
                continue;
            }
            match read {
                Ok(()) => state.counts().reads += 1,
                Err(message) => state.cannot_read(message),
            }
        }
        std::thread::sleep(EVERY);
    }
}

fn read(file: &Path) -> Result<(), String> {
    let told = |what: &str| format!("{}: {what}", file.display());
    let content = std::fs::read_to_string(file).map_err(|error| told(&error.to_string()))?;
    if content != CONTENT {
        return Err(told(&format!("it holds {content:?}")));
    }
    let more = file.with_file_name("more");
    let names = std::fs::read_dir(more).map_err(|error| told(&error.to_string()))?.count();
    if names == 2 { Ok(()) } else { Err(told(&format!("{names} files beside it"))) }
}
