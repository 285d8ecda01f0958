//! The node's part in the tour: the driver and its kubelet; or, where mounts are forbidden, `oras-csi pull` from the
//! same store, which unpacks as the driver does.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::processes::Process;
use super::tour::{NAMESPACE, command, disk};
use super::volume::Kubelet;
use crate::exit_status::Failure;

/// What gets a volume's files before somebody's eyes.
pub(super) enum Node {
    /// They are mounted.
    Mounting { driver: Process, kubelet: Box<Kubelet> },
    /// They are laid out in a folder.
    LayingOut { folder: PathBuf, certs: PathBuf },
}

impl Node {
    /// Starts a driver.
    pub(super) async fn mounting(folder: &Path, certs: &Path) -> Result<Self, Failure> {
        let kubelet_folder = folder.join("kubelet");
        let socket = kubelet_folder.join("plugins/csi.oras.land/csi.sock");
        let mut driver = Process::start(
            "driver",
            [
                "driver",
                "--node-id",
                "demo",
                "--kubelet-dir",
                &kubelet_folder.display().to_string(),
                "--store",
                &folder.join("store").display().to_string(),
                "--certs-dir",
                &certs.display().to_string(),
            ],
            folder,
        )?;
        driver.until(async || Kubelet::finds(&socket).await).await?;
        let kubelet = Box::new(Kubelet::new(&socket, &kubelet_folder)?);
        Ok(Self::Mounting { driver, kubelet })
    }

    pub(super) fn laying_out(folder: &Path, certs: &Path) -> Self {
        Self::LayingOut { folder: folder.to_owned(), certs: certs.to_owned() }
    }

    /// What a reader is told of it.
    pub(super) fn introduction(&self) -> String {
        match self {
            Self::Mounting { driver, .. } => format!(
                "The driver runs as process {}, in a namespace where this user may mount. Over its CSI socket it gets the volume\n\
                 from the pod above, fetches what is pinned, verifies it, and mounts it. In the mount:",
                driver.id()
            ),
            Self::LayingOut { .. } => {
                "Here are the same files in a folder, from the same store and the same unpacking:".to_owned()
            }
        }
    }

    /// Where the files of a pod's volume are now.
    pub(super) async fn bring(&mut self, pod: &str, volume: &Value) -> Result<PathBuf, Failure> {
        match self {
            Self::Mounting { kubelet, .. } => {
                kubelet.publish(pod, volume, NAMESPACE).await?;
                Ok(kubelet.target(pod, volume))
            }
            Self::LayingOut { folder, certs } => {
                let (recipe, target) =
                    (folder.join(format!("{pod}.json")), folder.join(format!("tree-{pod}")));
                let text = volume["csi"]["volumeAttributes"]["csi.oras.land/recipe"].as_str();
                std::fs::write(&recipe, text.unwrap_or_default()).map_err(disk)?;
                let store = folder.join("store").display().to_string();
                let (recipe, tree) = (recipe.display().to_string(), target.display().to_string());
                command(certs, &["pull", "-f", &recipe, "--store", &store, &tree]).await?;
                Ok(target)
            }
        }
    }

    /// Ends what [`Self::bring`] began.
    pub(super) async fn take_away(&mut self, pod: &str, volume: &Value) -> Result<(), Failure> {
        let Self::Mounting { kubelet, .. } = self else { return Ok(()) };
        kubelet.unpublish(pod, volume).await?;
        let target = kubelet.target(pod, volume);
        if target.exists() {
            return Err(Failure::failed(format!("{} is still there", target.display())));
        }
        Ok(())
    }
}
