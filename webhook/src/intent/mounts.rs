//! Plans the mounts of the annotations' volume, and finds conflicts with other mounts.
//!
//! Container runtimes create a missing mount point in the mount above it. Below a read-only mount they cannot, and the
//! container fails to start with an error that does not name the cause. The webhook therefore denies such a pod.

use std::borrow::Cow;

use oras_csi_core::display::Shown;
use oras_csi_core::keys::{VOLUME_NAME, annotation};
use oras_csi_core::path::MountPath;

use super::volume::{NewMount, RequestedVolume};
use crate::denial::{At, Denial, listed};
use crate::view::{Container, ContainerList, Mount, Pod};

/// A mount path for the volume, or for one directory of it.
#[derive(Debug)]
pub(super) struct MountTarget {
    /// The annotation that sets the path, also where its default applies.
    pub(super) key: String,
    /// The mount path.
    pub(super) path: MountPath,
    /// The directory of the volume, or `None` for all of it.
    pub(super) sub_path: Option<String>,
}

/// How many mounts the webhook adds for one volume. A pod may name thousands of containers in a few kilobytes, and each
/// mount is an operation of the patch; no node can run such a pod.
const MAX_NEW_MOUNTS: usize = 256;

/// Returns the mounts to add to each chosen container, in the order of the containers.
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
            if needs_mount(pod, container, target)? {
                if mounts.len() == MAX_NEW_MOUNTS {
                    return Err(Denial::bad_request(
                        At::Annotation(&target.key),
                        None,
                        format_args!("needs more than {MAX_NEW_MOUNTS} mounts in the containers of this pod"),
                        "choose containers with the annotation oras.land/containers",
                    ));
                }
                let (path, sub_path) = (target.path.clone(), target.sub_path.clone());
                mounts.push(NewMount { container: position, path, sub_path });
            }
        }
    }
    Ok(mounts)
}

/// Denies a mount path at or below another one of the same volume.
fn check_targets(targets: &[MountTarget]) -> Result<(), Denial> {
    for (index, one) in targets.iter().enumerate() {
        for other in &targets[index + 1..] {
            for (upper, lower) in [(one, other), (other, one)] {
                if upper.path.covers(lower.path.as_str()) {
                    return Err(Denial::bad_request(
                        At::Annotation(&lower.key),
                        Some(lower.path.as_str()),
                        format_args!(
                            "is at or below {} of {}, which is mounted read-only",
                            upper.path, upper.key
                        ),
                        "write a path outside that directory",
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Parses `oras.land/containers`. Each name must be a container of the pod.
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
            return Err(Denial::bad_request(at, Some(list), "has an empty name in its list", instead));
        }
        if !known().any(|one| one == name) {
            let rule = "is not a container or init container of this pod";
            return Err(Denial::bad_request(
                at,
                Some(name),
                rule,
                format_args!("use one or more of: {}", listed(known())),
            ));
        }
        names.push(name);
    }
    Ok(names)
}

/// Returns `true` where the mount has to be added, and `false` where the container already has it. Anything else at or
/// below the path is a conflict.
fn needs_mount(pod: &Pod<'_>, container: &Container<'_>, target: &MountTarget) -> Result<bool, Denial> {
    let refuse = |kind: &str, path: &str, volume: &str| {
        let (name, path, volume) = (Shown::new(container.name), Shown::new(path), Shown::new(volume));
        Denial::bad_request(
            At::Annotation(&target.key),
            Some(target.path.as_str()),
            format_args!(
                "is already used: container {name} has {kind} {path} of volume {volume} there, and nothing else can be \
                 mounted at or below a read-only mount"
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
    if !is_there
        && let Some(above) = read_only_mount_above(pod, container, target.path.as_str())
        && pod.volumes().iter().any(|volume| volume.name == above.volume && volume.is_generated)
    {
        let name = Shown::new(container.name);
        return Err(Denial::bad_request(
            At::Annotation(&target.key),
            Some(target.path.as_str()),
            format_args!(
                "is below the mount {} of volume {} in container {name}, which is read-only: the container runtime cannot \
                 create a directory there",
                Shown::new(above.path),
                Shown::new(above.volume)
            ),
            format_args!(
                "write another path in {}, or leave {name} out with {}",
                target.key,
                annotation::CONTAINERS
            ),
        ));
    }
    for (path, volume) in &container.devices {
        if target.path.covers(&normal(path)) {
            return Err(refuse("a device at", path, volume));
        }
    }
    Ok(!is_there)
}

/// Normalizes a path as the container runtime does: absolute, without empty, `.` and `..` segments.
fn normal(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    // Most paths are normal. A segment that begins with a dot may be a name.
    let is_doubtful = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.');
    if bytes.len() > 1 && bytes[0] == b'/' && !path.ends_with('/') && !bytes.windows(2).any(is_doubtful) {
        return Cow::Borrowed(path);
    }
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
    Cow::Owned(format!("/{}", segments.join("/")))
}

/// Returns the mount that a path of a container is in, if it is read-only: of several mounts above the path, the nearest.
fn read_only_mount_above<'c, 'a>(
    pod: &Pod<'_>,
    container: &'c Container<'a>,
    path: &str,
) -> Option<&'c Mount<'a>> {
    let is_read_only = |mount: &Mount<'_>| {
        let of_volume = || pod.volumes().iter().any(|volume| volume.name == mount.volume && volume.read_only);
        mount.read_only || of_volume()
    };
    let is_above = |mount: &Mount<'_>| {
        let above = normal(mount.path);
        let is_upper = path.len() > above.len() && path.starts_with(&*above);
        is_upper && above.parse::<MountPath>().is_ok_and(|above| above.covers(path))
    };
    let above = container.mounts.iter().filter(|mount| is_above(mount));
    above.max_by_key(|mount| normal(mount.path).len()).filter(|mount| is_read_only(mount))
}

/// Returns a warning for each mount of our volumes below a read-only mount. The volume above may contain the directory, so
/// this is no reason for a denial.
pub(super) fn warnings_of_mounts_above(pod: &Pod<'_>, volumes: &[RequestedVolume]) -> Vec<String> {
    let mut warnings = Vec::new();
    let is_requested =
        |name: &str| volumes.iter().any(|volume| volume.target.index.is_some() && volume.target.name == name);
    for (position, container) in pod.containers().iter().enumerate() {
        let written = container.mounts.iter().filter(|mount| is_requested(mount.volume));
        let added = volumes.iter().flat_map(|volume| &volume.target.mounts);
        let added = added.filter(|mount| mount.container == position).map(|mount| mount.path.as_str());
        for lower in written.map(|mount| mount.path).chain(added) {
            if let Some(upper) = read_only_mount_above(pod, container, &normal(lower))
                // Warned of as a mount below a volume of the driver.
                .filter(|upper| !is_requested(upper.volume))
            {
                warnings.push(format!(
                    "container {}: mount path {} is below the mount {} of volume {}, which is read-only, so that volume must \
                     contain the directory",
                    Shown::new(container.name),
                    Shown::new(lower),
                    Shown::new(upper.path),
                    Shown::new(upper.volume)
                ));
            }
        }
    }
    warnings
}

/// Returns a warning for each mount below an inline volume. The artifact may contain the directory for that mount, so
/// this is no reason for a denial.
pub(super) fn warnings_of_mounts_below(pod: &Pod<'_>, volumes: &[RequestedVolume]) -> Vec<String> {
    let mut warnings = Vec::new();
    for container in pod.containers() {
        for upper in &container.mounts {
            let is_of_driver = volumes
                .iter()
                .any(|volume| volume.target.index.is_some() && volume.target.name == upper.volume);
            if !is_of_driver {
                continue;
            }
            let Ok(path) = normal(upper.path).parse::<MountPath>() else { continue };
            let below = container.mounts.iter().find(|lower| {
                let lower_path = normal(lower.path);
                lower_path != path.as_str() && path.covers(&lower_path)
            });
            if let Some(lower) = below {
                warnings.push(format!(
                    "container {}: mount path {} is below the read-only volume {}, so the artifact must contain that directory",
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
    #[case("/mnt/.hidden", "/mnt/.hidden")]
    #[case("/mnt/a.b/c..d", "/mnt/a.b/c..d")]
    #[case("/mnt/..", "/")]
    #[case(".", "/")]
    #[case("/é/./x", "/é/x")]
    fn paths_are_normalized_as_by_the_runtime(#[case] path: &str, #[case] wanted: &str) {
        assert_eq!(normal(path), wanted);
    }
}
