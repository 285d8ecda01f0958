//! Where the volume of the annotations appears, and what stands in its way.
//!
//! Container runtimes make a missing mount point in whatever is mounted above it. Below a read-only mount
//! they cannot, and the container fails to start with words that nobody understands; so it is said here.

use oras_csi_core::display::Shown;
use oras_csi_core::keys::{VOLUME_NAME, annotation};
use oras_csi_core::path::MountPath;

use super::volume::{NewMount, RequestedVolume};
use crate::denial::{At, Denial, listed};
use crate::view::{Container, ContainerList, Pod};

/// A path that the volume, or one directory of it, is to have.
#[derive(Debug)]
pub(super) struct MountTarget {
    /// The annotation that says so (also where its default applies).
    pub(super) key: String,
    /// The path.
    pub(super) path: MountPath,
    /// Which directory of the volume.
    pub(super) sub_path: Option<String>,
}

/// The mounts that each chosen container has to gain.
pub(super) fn plan(
    pod: &Pod<'_>,
    targets: &[MountTarget],
    chosen: Option<&str>,
) -> Result<Vec<NewMount>, Denial> {
    check_targets(targets)?;
    let chosen = chosen.map(|list| choose(pod, list)).transpose()?;
    let mut mounts = Vec::new();
    for (position, container) in pod.containers().iter().enumerate() {
        let is_chosen = chosen.as_ref().is_none_or(|names| names.contains(&container.name));
        if container.list == ContainerList::Ephemeral || !is_chosen {
            continue;
        }
        for target in targets {
            if is_free(container, target)? {
                let (path, sub_path) = (target.path.clone(), target.sub_path.clone());
                mounts.push(NewMount { container: position, path, sub_path });
            }
        }
    }
    Ok(mounts)
}

/// No path of ours at or below another one.
fn check_targets(targets: &[MountTarget]) -> Result<(), Denial> {
    for (index, one) in targets.iter().enumerate() {
        for other in &targets[index + 1..] {
            for (upper, lower) in [(one, other), (other, one)] {
                if upper.path.covers(lower.path.as_str()) {
                    return Err(Denial::rewrite(
                        At::Annotation(&lower.key),
                        Some(lower.path.as_str()),
                        format_args!(
                            "is at or below {} of {}, which is mounted read-only",
                            upper.path, upper.key
                        ),
                        "write a path outside of it",
                    ));
                }
            }
        }
    }
    Ok(())
}

/// The names in `oras.land/containers`, each of them one that the pod has.
fn choose<'a>(pod: &Pod<'_>, list: &'a str) -> Result<Vec<&'a str>, Denial> {
    let at = At::Annotation(annotation::CONTAINERS);
    let known = || {
        pod.containers()
            .iter()
            .filter(|one| one.list != ContainerList::Ephemeral)
            .map(|container| container.name)
    };
    let mut names = Vec::new();
    for name in list.split(',').map(str::trim) {
        if name.is_empty() {
            let instead = format!("write names separated by single commas, of: {}", listed(known()));
            return Err(Denial::rewrite(at, Some(list), "has an empty name in its list", instead));
        }
        if !known().any(|one| one == name) {
            let rule = "is not a container or init container of this pod";
            return Err(Denial::rewrite(
                at,
                Some(name),
                rule,
                format_args!("write some of: {}", listed(known())),
            ));
        }
        names.push(name);
    }
    Ok(names)
}

/// Whether the container has nothing at or below the target; `false` if it has the very mount already.
fn is_free(container: &Container<'_>, target: &MountTarget) -> Result<bool, Denial> {
    let refuse = |kind: &str, path: &str, volume: &str| {
        let (name, path, volume) = (Shown::new(container.name), Shown::new(path), Shown::new(volume));
        Denial::rewrite(
            At::Annotation(&target.key),
            Some(target.path.as_str()),
            format_args!(
                "is taken: container {name} has {kind} {path} of volume {volume} there, and at or below a read-only \
                 mount nothing else can be mounted"
            ),
            format_args!(
                "write another path in {}, move {path}, or leave {name} out with {}",
                target.key,
                annotation::CONTAINERS
            ),
        )
    };
    let mut is_there = false;
    for mount in &container.mounts {
        let path = normal(mount.path);
        let is_same = mount.volume == VOLUME_NAME
            && path == target.path.as_str()
            && normal(mount.sub_path) == normal(target.sub_path.as_deref().unwrap_or_default())
            && !mount.has_sub_path_expression;
        if is_same {
            is_there = true;
        } else if target.path.covers(&path) {
            return Err(refuse("a mount at", mount.path, mount.volume));
        }
    }
    for (path, volume) in &container.devices {
        if target.path.covers(&normal(path)) {
            return Err(refuse("a device at", path, volume));
        }
    }
    Ok(!is_there)
}

/// A path as the container runtime takes it: from the root, with nothing to skip in it.
fn normal(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Inline volumes are mounted where the user said. One of them may well hold the directory that another
/// mount needs, so a mount below it is worth a warning and no denial.
pub(super) fn warnings_of_mounts_below(pod: &Pod<'_>, volumes: &[RequestedVolume]) -> Vec<String> {
    let mut warnings = Vec::new();
    for container in pod.containers() {
        for upper in &container.mounts {
            let ours = volumes
                .iter()
                .any(|volume| volume.target.index.is_some() && volume.target.name == upper.volume);
            let Ok(path) = normal(upper.path).parse::<MountPath>() else { continue };
            let below = container.mounts.iter().find(|lower| {
                let lower_path = normal(lower.path);
                lower_path != path.as_str() && path.covers(&lower_path)
            });
            if let Some(lower) = below.filter(|_| ours) {
                warnings.push(format!(
                    "container {}: {} is below the read-only volume {}, which must have that directory",
                    Shown::new(container.name),
                    Shown::new(lower.path),
                    Shown::new(upper.volume)
                ));
            }
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("", "/")]
    #[case("/", "/")]
    #[case("mnt", "/mnt")]
    #[case("/mnt//oras/", "/mnt/oras")]
    #[case("/mnt/./x/../oras", "/mnt/oras")]
    #[case("/../..", "/")]
    fn paths_are_compared_as_the_runtime_takes_them(#[case] path: &str, #[case] wanted: &str) {
        assert_eq!(normal(path), wanted);
    }
}
