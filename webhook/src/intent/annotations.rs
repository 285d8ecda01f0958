//! Reads the `oras.land/` annotations of a pod, which together request one volume.

use std::collections::BTreeMap;
use std::sync::Arc;

use oras_csi_core::artifact_name::ArtifactName;
use oras_csi_core::keys::{
    ANNOTATION_PREFIX, DEFAULT_MOUNT_PATH, DRIVER, VOLUME_NAME, annotation, canonical, nearest_annotation,
};
use oras_csi_core::media_type::MediaType;
use oras_csi_core::patch::Level;
use oras_csi_core::path::{MountPath, TreePath};
use oras_csi_core::platform::Platform;
use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::CanonicalVolume;

use super::mounts::{self, MountTarget};
use super::origin::Origin;
use super::parse::{check_secret, parse_list};
use super::patched::{PatchRequest, RecipeSource, RecipeWithPatches};
use super::recipe::{RecipeOptions, RecipeWithOrigins, UnpinnedRecipe, parse_recipe};
use super::volume::{ArtifactRequest, ArtifactSource, Requested, RequestedVolume, SetRequest, VolumeTarget};
use crate::denial::{At, Denial};
use crate::registries::Registries;
use crate::view::Pod;

/// One annotation.
#[derive(Clone, Copy)]
struct Written<'a> {
    key: &'a str,
    value: &'a str,
}

impl<'a> Written<'a> {
    fn at(&self) -> At<'a> {
        At::Annotation(self.key)
    }

    fn origin(&self) -> Origin {
        Origin::Annotation { key: self.key.to_owned(), step: None }
    }

    fn reference(&self, registries: &dyn Registries) -> Result<Reference, Denial> {
        Reference::parse_with_known_hosts(self.value, &|host| registries.names(host))
            .map_err(|error| Denial::bad_request(self.at(), Some(self.value), error, ""))
    }

    fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Result<T, Denial> {
        self.value.parse().map_err(|error| Denial::bad_request(self.at(), Some(self.value), error, ""))
    }

    /// Parses a list; spaces around its entries are allowed.
    fn list<T: std::str::FromStr<Err: std::fmt::Display>>(&self) -> Result<Vec<T>, Denial> {
        parse_list(self.at(), self.value)
    }
}

/// The annotations of one artifact; the root artifact has no name.
#[derive(Default)]
struct Artifact<'a> {
    reference: Option<Written<'a>>,
    media_types: Option<Written<'a>>,
    platform: Option<Written<'a>>,
    mount_path: Option<Written<'a>>,
}

/// All annotations, by their meaning.
#[derive(Default)]
struct Annotations<'a> {
    root: Artifact<'a>,
    named: BTreeMap<ArtifactName, Artifact<'a>>,
    /// A whole recipe, in place of all artifacts.
    recipe: Option<Written<'a>>,
    /// A patch or a recipe artifact, in place of all artifacts.
    patch: Option<Written<'a>>,
    patch_level: Option<Written<'a>>,
    /// A set, in place of all artifacts.
    set: Option<Written<'a>>,
    containers: Option<Written<'a>>,
    pull_secret: Option<Written<'a>>,
}

/// What the annotations request.
enum AnnotatedContent {
    Artifacts(ArtifactSource),
    Set(SetRequest),
}

/// Reads the annotations. Returns the volume that they request, or `None` where they request nothing.
pub(super) fn read(
    pod: &Pod<'_>,
    registries: &dyn Registries,
    warnings: &mut Vec<String>,
) -> Result<Option<RequestedVolume>, Denial> {
    let inject = read_inject(pod)?;
    if inject == Some(false) {
        return Ok(None);
    }
    let annotations = Annotations::collect(pod)?;
    annotations.check_whole_content_is_alone()?;
    annotations.check_modifiers()?;
    if annotations.is_empty() {
        if inject.is_some() {
            warnings.push(format!(
                "{}: \"true\" has no effect: it is the default, and no {} names an artifact to mount",
                annotation::INJECT,
                annotation::ARTIFACT
            ));
        }
        return Ok(None);
    }
    if pod.containers().is_empty() {
        let rule = "has no containers, so the artifacts of its annotations cannot be mounted";
        return Err(Denial::bad_request(At::Field("spec"), None, rule, "add a container"));
    }
    let content = annotations.content(registries)?;
    let targets = annotations.mount_targets()?;
    let chosen = annotations.containers.map(|written| written.value);
    let mounts = mounts::plan(pod, &targets, chosen)?;
    let (index, earlier) = own_volume(pod)?.unzip();
    let earlier = earlier.flatten();
    let secret = annotations.pull_secret.map(|written| check_secret(written.at(), written.value));
    let content = match content {
        AnnotatedContent::Set(set) => Requested::Set(SetRequest { earlier, ..set }),
        AnnotatedContent::Artifacts(source) => {
            Requested::Artifacts(ArtifactRequest { source, earlier, new_set: None })
        }
    };
    let target = VolumeTarget {
        name: VOLUME_NAME.to_owned(),
        index,
        is_from_annotations: true,
        secret: secret.transpose()?,
        mounts,
    };
    Ok(Some(RequestedVolume { target: Arc::new(target), content }))
}

fn read_inject(pod: &Pod<'_>) -> Result<Option<bool>, Denial> {
    match pod.annotation(annotation::INJECT) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => Err(Denial::bad_request(
            At::Annotation(annotation::INJECT),
            Some(other),
            "is neither \"true\" nor \"false\"",
            "write \"false\" (in quotes) to ignore the oras.land/ annotations, or remove the annotation",
        )),
    }
}

/// Returns the position of the volume that an earlier admission wrote, in this pod or in the pod that it was copied from,
/// and its content where that can be parsed. Any other volume with the reserved name is denied.
fn own_volume(pod: &Pod<'_>) -> Result<Option<(usize, Option<CanonicalVolume>)>, Denial> {
    let Some(volume) = pod.volumes().iter().find(|volume| volume.name == VOLUME_NAME) else {
        return Ok(None);
    };
    let canonical = volume.csi.as_ref().filter(|csi| {
        csi.driver == DRIVER
            && csi.attributes.contains_key(canonical::RECIPE)
            && csi.attributes.contains_key(canonical::ID)
    });
    if let Some(csi) = canonical {
        let attributes = csi.attributes.iter().map(|(key, value)| (*key, *value));
        return Ok(Some((volume.index, CanonicalVolume::from_attributes(attributes).ok())));
    }
    Err(Denial::bad_request(
        At::Volume(VOLUME_NAME),
        None,
        "has a name that is reserved for the volume of the oras.land/ annotations",
        "rename the volume",
    ))
}

impl<'a> Annotations<'a> {
    fn collect(pod: &Pod<'a>) -> Result<Self, Denial> {
        let mut all = Self::default();
        for (key, value) in pod.annotations().filter(|(key, _)| is_ours(key)) {
            let written = Written { key, value };
            if matches!(
                key,
                annotation::PINNED | annotation::PINNED_PATCH | annotation::WRITTEN | annotation::INJECT
            ) {
                continue;
            }
            let (base, name) = split_name(key);
            if !key.starts_with(ANNOTATION_PREFIX)
                || !annotation::ALL.contains(&base)
                || (name.is_some() && !annotation::NAMED.contains(&base))
            {
                let nearest = nearest_annotation(&key.to_ascii_lowercase());
                let rule = "is not an annotation of oras-csi";
                return Err(Denial::bad_request(
                    written.at(),
                    None,
                    rule,
                    format_args!("did you mean {nearest}?"),
                ));
            }
            if value.is_empty() {
                let instead = "write a value, or remove the annotation";
                return Err(Denial::bad_request(written.at(), Some(value), "is empty", instead));
            }
            match base {
                annotation::CONTAINERS => {
                    all.containers = Some(written);
                    continue;
                }
                annotation::RECIPE => {
                    all.recipe = Some(written);
                    continue;
                }
                annotation::PATCH => {
                    all.patch = Some(written);
                    continue;
                }
                annotation::ARTIFACT_SET => {
                    all.set = Some(written);
                    continue;
                }
                annotation::PATCH_LEVEL => {
                    all.patch_level = Some(written);
                    continue;
                }
                annotation::PULL_SECRET => {
                    all.pull_secret = Some(written);
                    continue;
                }
                _ => {}
            }
            let artifact = match name {
                None => &mut all.root,
                Some(name) => {
                    let name = name.parse::<ArtifactName>();
                    all.named
                        .entry(name.map_err(|error| Denial::bad_request(written.at(), None, error, ""))?)
                        .or_default()
                }
            };
            match base {
                annotation::ARTIFACT => artifact.reference = Some(written),
                annotation::MEDIA_TYPES => artifact.media_types = Some(written),
                annotation::PLATFORM => artifact.platform = Some(written),
                annotation::MOUNT_PATH => artifact.mount_path = Some(written),
                _ => {
                    let rule = "is not supported by this version of oras-csi";
                    let instead = "name each artifact with oras.land/artifact, oras.land/artifact.NAME or oras.land/recipe";
                    return Err(Denial::bad_request(written.at(), Some(value), rule, instead));
                }
            }
        }
        Ok(all)
    }

    fn is_empty(&self) -> bool {
        self.root.reference.is_none() && self.named.is_empty() && self.whole_content().is_none()
    }

    /// Returns the annotation that defines the whole content, if there is one.
    fn whole_content(&self) -> Option<Written<'a>> {
        self.recipe.or(self.patch).or(self.set)
    }

    /// Denies other annotations about the content beside a recipe, a patch or a set.
    fn check_whole_content_is_alone(&self) -> Result<(), Denial> {
        let Some(whole) = self.whole_content() else { return Ok(()) };
        let rule =
            format!("cannot be combined with {}, which defines the whole content of the volume", whole.key);
        if let (Some(_), Some(patch)) = (self.recipe, self.patch) {
            let instead = format!(
                "remove one of the two, or write the base and the levels of {} as steps of the recipe",
                patch.key
            );
            return Err(Denial::bad_request(patch.at(), Some(patch.value), rule, instead));
        }
        if let (Some(set), Some(_)) = (self.set, self.recipe.or(self.patch)) {
            return Err(Denial::bad_request(set.at(), Some(set.value), rule, "remove one of the two"));
        }
        let is_recipe = self.recipe.is_some();
        let is_set = self.set.is_some();
        for (_, artifact) in self.artifacts() {
            if let Some(written) = artifact.reference {
                let instead = if is_set {
                    "remove it, write one recipe that has everything, or add an inline volume"
                } else if is_recipe {
                    "write it as a step of the recipe: - add: REFERENCE"
                } else {
                    "remove it, or write a recipe that has it and the base and the levels of the patch as steps"
                };
                return Err(Denial::bad_request(written.at(), Some(written.value), rule, instead));
            }
        }
        for (name, artifact) in self.artifacts() {
            let of_step = artifact.media_types.or(artifact.platform);
            let instead = match (of_step, is_recipe) {
                _ if is_set => "remove it: the steps of the set define it",
                (_, false) => "write a recipe that has the base and the levels of the patch as steps",
                (Some(_), true) => "write mediaTypes and platform in the steps of the recipe",
                (None, true) => {
                    "write the directory as path in a step of the recipe: it is then mounted below oras.land/mount-path"
                }
            };
            // The mount path of the root artifact is that of the volume.
            if let Some(written) = of_step.or(artifact.mount_path.filter(|_| name.is_some())) {
                let name = name.map(|name| format!(".{name}")).unwrap_or_default();
                let rule = format!("has no effect without {}{name}", annotation::ARTIFACT);
                return Err(Denial::bad_request(written.at(), Some(written.value), rule, instead));
            }
        }
        Ok(())
    }

    /// Denies a modifier without the annotation that it modifies.
    fn check_modifiers(&self) -> Result<(), Denial> {
        let refuse = |written: Written<'_>, missing: &str| {
            let rule = format!("has no effect without {missing}");
            let instead = format!("add {missing}: REFERENCE, or remove {}", written.key);
            Err(Denial::bad_request(written.at(), Some(written.value), rule, instead))
        };
        for (name, artifact) in &self.named {
            let modifier = artifact.media_types.or(artifact.mount_path).or(artifact.platform);
            if let (None, Some(modifier)) = (artifact.reference, modifier) {
                return refuse(modifier, &format!("{}.{name}", annotation::ARTIFACT));
            }
        }
        if let (None, Some(level)) = (self.patch, self.patch_level) {
            return refuse(level, annotation::PATCH);
        }
        let of_root = self.root.media_types.or(self.root.platform);
        if let (None, Some(modifier)) = (self.root.reference, of_root) {
            return refuse(modifier, annotation::ARTIFACT);
        }
        match self.containers.or(self.root.mount_path).or(self.pull_secret) {
            Some(modifier) if self.is_empty() => refuse(modifier, annotation::ARTIFACT),
            _ => Ok(()),
        }
    }

    /// Returns the artifacts: the root artifact, then the named ones sorted by name.
    fn artifacts(&self) -> impl Iterator<Item = (Option<&ArtifactName>, &Artifact<'a>)> {
        let named = self.named.iter().map(|(name, artifact)| (Some(name), artifact));
        std::iter::once((None, &self.root)).chain(named)
    }

    fn content(&self, registries: &dyn Registries) -> Result<AnnotatedContent, Denial> {
        if let Some(written) = self.set {
            return SetRequest::new(written.value, written.origin()).map(AnnotatedContent::Set);
        }
        let source = match (self.patch, self.recipe) {
            (Some(patch), _) => ArtifactSource::Patch(Box::new(self.patch_request(patch, registries)?)),
            (None, Some(recipe)) => ArtifactSource::Recipe(read_recipe(recipe, registries)?),
            (None, None) => {
                ArtifactSource::Recipe(RecipeSource::Plain(self.recipe_of_artifacts(registries)?))
            }
        };
        Ok(AnnotatedContent::Artifacts(source))
    }

    fn patch_request(
        &self,
        written: Written<'a>,
        registries: &dyn Registries,
    ) -> Result<PatchRequest, Denial> {
        let reference = written.reference(registries)?;
        let level = self.patch_level.map(|level| Ok((level.parse::<Level>()?, level.origin())));
        let (level, origin, options) = (level.transpose()?, written.origin(), RecipeOptions::default());
        Ok(PatchRequest { reference, origin, level, base: None, options })
    }

    /// Returns one `add` step for each artifact.
    fn recipe_of_artifacts(&self, registries: &dyn Registries) -> Result<UnpinnedRecipe, Denial> {
        let (mut steps, mut origins) = (Vec::new(), Vec::new());
        for (name, artifact) in self.artifacts() {
            let Some(written) = artifact.reference else { continue };
            let mut layer = Layer::new(written.reference(registries)?);
            if let Some(name) = name {
                let path = name.as_str().parse::<TreePath>();
                layer = layer.at(path.map_err(|error| Denial::bad_request(written.at(), None, error, ""))?);
            }
            if let Some(written) = artifact.media_types {
                layer = layer.with_media_types(written.list::<MediaType>()?);
            }
            if let Some(written) = artifact.platform {
                layer = layer.for_platform(written.parse::<Platform>()?);
            }
            steps.push(Step::Add(layer));
            origins.push(written.origin());
        }
        let root = Origin::Annotation { key: annotation::ARTIFACT.to_owned(), step: None };
        let at = origins.first().unwrap_or(&root).at();
        let recipe = Recipe::new(steps).map_err(|error| Denial::bad_request(at, None, error, ""))?;
        let recipe = UnpinnedRecipe {
            recipe: RecipeWithOrigins::new(recipe, &origins, &root),
            options: RecipeOptions::default(),
            applied_patches: Vec::new(),
            is_from_canonical: false,
        };
        recipe.check_length(at)?;
        Ok(recipe)
    }

    fn mount_targets(&self) -> Result<Vec<MountTarget>, Denial> {
        let key = annotation::MOUNT_PATH;
        let written = self.root.mount_path.unwrap_or(Written { key, value: DEFAULT_MOUNT_PATH });
        let mut targets =
            vec![MountTarget { key: key.to_owned(), path: written.parse::<MountPath>()?, sub_path: None }];
        for (name, artifact) in &self.named {
            if let Some(written) = artifact.mount_path {
                let (key, sub_path) = (written.key.to_owned(), Some(name.to_string()));
                targets.push(MountTarget { key, path: written.parse::<MountPath>()?, sub_path });
            }
        }
        Ok(targets)
    }
}

fn read_recipe(written: Written<'_>, registries: &dyn Registries) -> Result<RecipeSource, Denial> {
    let origin = written.origin();
    let recipe = parse_recipe(written.value, &origin, registries)?;
    let (options, applied_patches) = (RecipeOptions::default(), Vec::new());
    RecipeWithPatches { recipe, origin, options, applied_patches }.into_source()
}

/// Splits `oras.land/artifact.NAME` into `oras.land/artifact` and `NAME`.
fn split_name(key: &str) -> (&str, Option<&str>) {
    match key[ANNOTATION_PREFIX.len()..].split_once('.') {
        Some((base, name)) => (&key[..ANNOTATION_PREFIX.len() + base.len()], Some(name)),
        None => (key, None),
    }
}

/// Reports whether a key has this driver's prefix in any case: the API server accepts another case, and it is a typo.
fn is_ours(key: &str) -> bool {
    let prefix = key.as_bytes().get(..ANNOTATION_PREFIX.len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(ANNOTATION_PREFIX.as_bytes()))
}
