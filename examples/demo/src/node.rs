//! The node's part: the driver and its kubelet. Where mounts are forbidden, `oras-csi pull` unpacks from the same store
//! with the same code instead.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use oras_csi_driver::Settings;
use serde_json::Value;

use crate::processes::{Process, Programs};
use crate::tour::NAMESPACE;
use crate::volume::Kubelet;

/// Kubelet's folder, in the folder of the demo.
pub(crate) const KUBELET: &str = "kubelet";

/// Makes the files of a volume visible.
pub(crate) enum Node {
    /// The driver mounts them.
    Mounting { driver: Process, kubelet: Box<Kubelet> },
    /// `oras-csi pull` writes them into a folder.
    Pulling { folder: PathBuf, certs: PathBuf, programs: Programs },
}

impl Node {
    /// Starts a driver.
    pub(crate) async fn mounting(programs: &Programs, folder: &Path, certs: &Path) -> anyhow::Result<Self> {
        let kubelet_folder = folder.join(KUBELET);
        let socket = Settings::new("demo", &kubelet_folder, folder).socket().to_owned();
        let mut driver = Process::start(
            "driver",
            &programs.oras_csi,
            &[
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
        driver.wait_until(async || Kubelet::can_connect(&socket).await).await?;
        let kubelet = Box::new(Kubelet::new(&socket, &kubelet_folder)?);
        Ok(Self::Mounting { driver, kubelet })
    }

    pub(crate) fn pulling(programs: &Programs, folder: &Path, certs: &Path) -> Self {
        Self::Pulling { folder: folder.to_owned(), certs: certs.to_owned(), programs: programs.clone() }
    }

    /// Describes it for the reader.
    pub(crate) fn introduction(&self) -> String {
        match self {
            Self::Mounting { driver, .. } => format!(
                "The driver runs as process {}, in a namespace where this user can mount. Its CSI socket receives the volume\n\
                 of the pod above. The driver downloads the pinned artifact, verifies it and mounts it. In the mount:",
                driver.id()
            ),
            Self::Pulling { .. } => {
                "The same files in a folder, from the same store and unpacked by the same code:".to_owned()
            }
        }
    }

    /// Publishes the volume of a pod; returns where its files are.
    pub(crate) async fn publish(&mut self, pod: &str, volume: &Value) -> anyhow::Result<PathBuf> {
        match self {
            Self::Mounting { kubelet, .. } => {
                kubelet.publish(pod, volume, NAMESPACE).await?;
                Ok(kubelet.target(pod, volume))
            }
            Self::Pulling { folder, certs, programs } => {
                let (recipe, target) =
                    (folder.join(format!("{pod}.json")), folder.join(format!("tree-{pod}")));
                let text = volume["csi"]["volumeAttributes"]["csi.oras.land/recipe"].as_str();
                std::fs::write(&recipe, text.unwrap_or_default()).context("cannot write the recipe")?;
                let store = folder.join("store").display().to_string();
                let (recipe, tree) = (recipe.display().to_string(), target.display().to_string());
                programs.run(certs, &["pull", "-f", &recipe, "--store", &store, &tree]).await?;
                Ok(target)
            }
        }
    }

    /// Unpublishes the volume of a pod.
    pub(crate) async fn unpublish(&mut self, pod: &str, volume: &Value) -> anyhow::Result<()> {
        let Self::Mounting { kubelet, .. } = self else { return Ok(()) };
        kubelet.unpublish(pod, volume).await?;
        let target = kubelet.target(pod, volume);
        ensure!(!target.exists(), "{} still exists after the volume was unpublished", target.display());
        Ok(())
    }
}
