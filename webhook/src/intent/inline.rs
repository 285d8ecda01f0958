//! Reads inline volumes of this driver: the attributes of the earlier driver, or a canonical volume that came with the
//! request.

use std::sync::Arc;

use oras_csi_core::display::Shown;
use oras_csi_core::dns_name::is_label;
use oras_csi_core::keys::{DRIVER, KUBELET_PREFIX, attribute, nearest_attribute};
use oras_csi_core::media_type::MediaType;
use oras_csi_core::patch::Level;
use oras_csi_core::recipe::{Layer, Recipe, Step};
use oras_csi_core::reference::Reference;
use oras_csi_core::volume::{CanonicalVolume, VolumeError};

use super::origin::Origin;
use super::parse::{check_secret, parse_list};
use super::patched::{PatchRequest, RecipeSource, RecipeWithPatches};
use super::recipe::{RecipeOptions, RecipeWithOrigins, UnpinnedRecipe, parse_recipe};
use super::volume::{
    ArtifactRequest, ArtifactSource, NewSet, Requested, RequestedVolume, SetRequest, VolumeTarget,
};
use crate::denial::{At, Code, Denial};
use crate::registries::Registries;
use crate::view::{Csi, Volume};

/// Reads one volume of this driver.
pub(super) fn read(
    volume: &Volume<'_>,
    csi: &Csi<'_>,
    registries: &dyn Registries,
    warnings: &mut Vec<String>,
) -> Result<RequestedVolume, Denial> {
    let at = |key| At::Attribute { volume: volume.name, key };
    if let Some((key, value)) = csi.attributes.iter().find(|(key, _)| key.starts_with(KUBELET_PREFIX)) {
        let rule = "is an attribute that only kubelet may write";
        return Err(Denial::bad_request(at(key), Some(value), rule, "remove it"));
    }
    let is_canonical = |key: &str| key.starts_with(DRIVER);
    let canonical_key = csi.attributes.keys().find(|key| is_canonical(key));
    let earlier_key = csi.attributes.keys().find(|key| !is_canonical(key));
    let content = match (canonical_key, earlier_key) {
        (Some(canonical), Some(other)) => {
            let rule = format!(
                "cannot be combined with {}, which only the webhook may write",
                Shown::new(canonical)
            );
            let instead = format!("write only {}", attribute::REFERENCE);
            return Err(Denial::bad_request(at(other), None, rule, instead));
        }
        (Some(_), None) => Requested::Canonical(read_canonical(volume, csi)?),
        (None, _) => Attributes { volume, csi, registries }.read(warnings)?,
    };
    let secret = csi.secret.map(|name| check_secret(At::Volume(volume.name), name)).transpose()?;
    let target = VolumeTarget {
        name: volume.name.to_owned(),
        index: Some(volume.index),
        is_from_annotations: false,
        secret,
        mounts: Vec::new(),
    };
    Ok(RequestedVolume { target: Arc::new(target), content })
}

/// Parses a canonical volume. It may be copied, forged or old: nothing but its syntax is checked here.
fn read_canonical(volume: &Volume<'_>, csi: &Csi<'_>) -> Result<CanonicalVolume, Denial> {
    let instead = format!("write {} and let the webhook write the other attributes", attribute::REFERENCE);
    let attributes = csi.attributes.iter().map(|(key, value)| (*key, *value));
    CanonicalVolume::from_attributes(attributes).map_err(|error| match error {
        VolumeError::Missing(key) => {
            let rule = "is missing, although the volume has other attributes of the webhook";
            Denial::bad_request(At::Attribute { volume: volume.name, key }, None, rule, &instead)
        }
        VolumeError::Unknown { key, nearest } => {
            let rule = format!("{key} is not an attribute of oras-csi (nearest: {nearest})");
            Denial::bad_request(At::Volume(volume.name), None, rule, &instead)
        }
        error => Denial::bad_request(At::Volume(volume.name), None, error, &instead),
    })
}

/// The attributes of the earlier driver.
struct Attributes<'a> {
    volume: &'a Volume<'a>,
    csi: &'a Csi<'a>,
    registries: &'a dyn Registries,
}

impl<'a> Attributes<'a> {
    fn at(&self, key: &'a str) -> At<'a> {
        At::Attribute { volume: self.volume.name, key }
    }

    /// Returns a value, which must not be empty.
    fn value(&self, key: &'a str) -> Result<Option<&'a str>, Denial> {
        match self.csi.attributes.get(key).copied() {
            Some("") => {
                let instead = "write a value, or remove the attribute";
                Err(Denial::bad_request(self.at(key), Some(""), "is empty", instead))
            }
            value => Ok(value),
        }
    }

    fn read(&self, warnings: &mut Vec<String>) -> Result<Requested, Denial> {
        self.check_keys()?;
        if let Some(count) = self.value(attribute::CONCURRENCY)? {
            warnings.push(self.check_concurrency(count)?);
        }
        let source = match self.value(attribute::PATCH)? {
            Some(text) => ArtifactSource::Patch(Box::new(self.patch_request(text)?)),
            None if self.names_a_set() => return self.set().map(Requested::Set),
            None => ArtifactSource::Recipe(self.recipe()?),
        };
        let new_set = self.new_set()?;
        Ok(Requested::Artifacts(ArtifactRequest { source, earlier: None, new_set }))
    }

    /// Reports whether the volume has a name, but neither a reference nor a recipe.
    fn names_a_set(&self) -> bool {
        let has = |key: &str| self.csi.attributes.contains_key(key);
        has(attribute::NAME) && !has(attribute::REFERENCE) && !has(attribute::ACTIONS)
    }

    /// Reads the name of a set, which defines the whole content of the volume.
    fn set(&self) -> Result<SetRequest, Denial> {
        let beside = self.csi.attributes.keys().copied();
        let mut beside = beside.filter(|key| !matches!(*key, attribute::NAME | attribute::CONCURRENCY));
        if let Some(other) = beside.next() {
            let rule = format!("cannot be combined with {} alone, which names a set", attribute::NAME);
            let instead = format!("remove it, or add {} or {}", attribute::ACTIONS, attribute::REFERENCE);
            return Err(Denial::bad_request(self.at(other), self.value(other)?, rule, instead));
        }
        let name = self.value(attribute::NAME)?.unwrap_or_default();
        SetRequest::new(name, self.origin(attribute::NAME))
    }

    /// Returns the set to create, where the volume has a name and a recipe.
    fn new_set(&self) -> Result<Option<NewSet>, Denial> {
        let (Some(name), Some(yaml), None) =
            (self.label()?, self.value(attribute::ACTIONS)?, self.value(attribute::PATCH)?)
        else {
            return Ok(None);
        };
        let recipe = parse_recipe(yaml, &self.origin(attribute::ACTIONS), self.registries)?;
        Ok(Some(NewSet { name, recipe, origin: self.origin(attribute::NAME) }))
    }

    fn origin(&self, key: &'static str) -> Origin {
        Origin::Attribute { volume: self.volume.name.to_owned(), key, step: None }
    }

    /// Reads a patch or a recipe artifact. A reference beside it has to be the base of the patch.
    fn patch_request(&self, text: &'a str) -> Result<PatchRequest, Denial> {
        let key = attribute::PATCH;
        let beside = [
            (
                attribute::ACTIONS,
                "remove one of the two, or write the base and the levels of the patch as steps",
            ),
            (attribute::MEDIA_TYPE, "write a recipe that has the base and the levels of the patch as steps"),
        ];
        for (other, instead) in beside {
            if let Some(value) = self.value(other)? {
                let rule =
                    format!("cannot be combined with {key}, which defines the whole content of the volume");
                return Err(Denial::bad_request(self.at(other), Some(value), rule, instead));
            }
        }
        let parse = |key, text: &'a str| {
            Reference::parse_with_known_hosts(text, &|host| self.registries.names(host))
                .map_err(|error| Denial::bad_request(self.at(key), Some(text), error, ""))
        };
        let label = self.label()?;
        let level = self.value(attribute::PATCH_LEVEL)?.map(|text| {
            let at = self.at(attribute::PATCH_LEVEL);
            let level = text.parse::<Level>().map_err(|error| Denial::bad_request(at, Some(text), error, ""));
            Ok((level?, self.origin(attribute::PATCH_LEVEL)))
        });
        let base = self.value(attribute::REFERENCE)?;
        let base =
            base.map(|text| Ok((parse(attribute::REFERENCE, text)?, self.origin(attribute::REFERENCE))));
        let request = PatchRequest {
            reference: parse(key, text)?,
            origin: self.origin(key),
            level: level.transpose()?,
            base: base.transpose()?,
            options: RecipeOptions { label, bypass_cache: self.flag(attribute::PULL_ALWAYS)? },
        };
        self.check_transport_options(&request.reference)?;
        if let Some((reference, _)) = &request.base {
            self.check_transport_options(reference)?;
        }
        Ok(request)
    }

    fn recipe(&self) -> Result<RecipeSource, Denial> {
        if let Some(level) = self.value(attribute::PATCH_LEVEL)? {
            let (rule, instead) = (
                format!("has no effect without {}", attribute::PATCH),
                format!("add {}: REFERENCE, or remove it", attribute::PATCH),
            );
            return Err(Denial::bad_request(self.at(attribute::PATCH_LEVEL), Some(level), rule, instead));
        }
        let label = self.label()?;
        let reference = self.value(attribute::REFERENCE)?;
        let options = RecipeOptions { label, bypass_cache: self.flag(attribute::PULL_ALWAYS)? };
        match (reference, self.value(attribute::ACTIONS)?) {
            (Some(text), None) => {
                let key = attribute::REFERENCE;
                let recipe = self.one_artifact(text)?;
                for reference in recipe.references() {
                    self.check_transport_options(reference)?;
                }
                let recipe = UnpinnedRecipe {
                    recipe: RecipeWithOrigins::new(recipe, &[], &self.origin(key)),
                    options,
                    applied_patches: Vec::new(),
                    is_from_canonical: false,
                };
                recipe.check_length(self.at(key))?;
                Ok(RecipeSource::Plain(recipe))
            }
            (None, Some(yaml)) => {
                self.check_no_media_types()?;
                let origin = self.origin(attribute::ACTIONS);
                let recipe = parse_recipe(yaml, &origin, self.registries)?;
                for (_, reference) in recipe.references() {
                    self.check_transport_options(reference)?;
                }
                RecipeWithPatches { recipe, origin, options, applied_patches: Vec::new() }.into_source()
            }
            (Some(text), Some(_)) => {
                let rule = format!("cannot be combined with {}", attribute::ACTIONS);
                let instead = "write it as a step of the recipe: - add: REFERENCE";
                Err(Denial::bad_request(self.at(attribute::REFERENCE), Some(text), rule, instead))
            }
            (None, None) => Err(self.no_artifact()),
        }
    }

    fn no_artifact(&self) -> Denial {
        let instead = format!("write {}: REFERENCE", attribute::REFERENCE);
        Denial::bad_request(At::Volume(self.volume.name), None, "names no artifact", instead)
    }

    fn one_artifact(&self, text: &'a str) -> Result<Recipe, Denial> {
        let at = self.at(attribute::REFERENCE);
        let reference = Reference::parse_with_known_hosts(text, &|host| self.registries.names(host))
            .map_err(|error| Denial::bad_request(at, Some(text), error, ""))?;
        let mut layer = Layer::new(reference);
        if let Some(list) = self.value(attribute::MEDIA_TYPE)? {
            layer = layer.with_media_types(parse_list::<MediaType>(self.at(attribute::MEDIA_TYPE), list)?);
        }
        Recipe::new(vec![Step::Add(layer)]).map_err(|error| Denial::bad_request(at, None, error, ""))
    }

    /// Denies media types beside a recipe, which has them in its steps.
    fn check_no_media_types(&self) -> Result<(), Denial> {
        if let Some(list) = self.value(attribute::MEDIA_TYPE)? {
            let rule = format!("has no effect without {}", attribute::REFERENCE);
            let instead = "write mediaTypes in the steps of the recipe";
            return Err(Denial::bad_request(self.at(attribute::MEDIA_TYPE), Some(list), rule, instead));
        }
        Ok(())
    }

    /// Denies unknown attributes.
    fn check_keys(&self) -> Result<(), Denial> {
        for key in self.csi.attributes.keys() {
            if !attribute::ALL.contains(key) {
                let rule = "is not an attribute of oras-csi";
                let instead = format!("did you mean {}?", nearest_attribute(key));
                return Err(Denial::bad_request(self.at(key), None, rule, instead));
            }
        }
        Ok(())
    }

    fn label(&self) -> Result<Option<String>, Denial> {
        let label = self.value(attribute::NAME)?.map(|name| self.check_label(name));
        Ok(label.transpose()?.map(str::to_owned))
    }

    /// Checks that a name is a DNS label (RFC 1123).
    fn check_label(&self, name: &'a str) -> Result<&'a str, Denial> {
        if is_label(name) {
            return Ok(name);
        }
        Err(Denial::bad_request(
            self.at(attribute::NAME),
            Some(name),
            "is not a DNS label",
            "write at most 63 characters of a-z, 0-9 and \"-\", with a letter or digit at both ends",
        ))
    }

    /// Denies `plainhttp` and `insecure` for a host where the administrator does not allow them.
    fn check_transport_options(&self, reference: &Reference) -> Result<(), Denial> {
        let host = reference.registry();
        let plain = self.flag(attribute::PLAIN_HTTP)? && !self.registries.allows_plain_http(host);
        let insecure = self.flag(attribute::INSECURE)? && !self.registries.allows_insecure(host);
        let (key, missing) = match (plain, insecure) {
            (false, false) => return Ok(()),
            (true, _) => (attribute::PLAIN_HTTP, "an http:// server"),
            (false, true) => (attribute::INSECURE, "skip_verify = true"),
        };
        Err(Denial::new(
            Code::Forbidden,
            self.at(key),
            self.csi.attributes.get(key).copied(),
            format_args!(
                "is not allowed for {host}: the administrator's certs.d has no hosts.toml with {missing} for this host"
            ),
            format_args!("remove {key}, or ask the administrator to add it"),
        ))
    }

    /// Parses a boolean as Go's `strconv.ParseBool` does; absent is false.
    fn flag(&self, key: &'a str) -> Result<bool, Denial> {
        match self.value(key)? {
            None | Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
            Some(other) => Err(Denial::bad_request(
                self.at(key),
                Some(other),
                "is not a boolean",
                "write \"true\" or \"false\" (in quotes, as attributes are strings)",
            )),
        }
    }

    /// Checks the number of downloads, and returns the warning that it has no effect.
    fn check_concurrency(&self, count: &str) -> Result<String, Denial> {
        match count.parse::<u32>() {
            Ok(1..) => Ok(format!(
                "volume {}: {} has no effect: the driver decides how many downloads run at once",
                Shown::new(self.volume.name),
                attribute::CONCURRENCY
            )),
            _ => Err(Denial::bad_request(
                self.at(attribute::CONCURRENCY),
                Some(count),
                "is not a whole number of 1 or more",
                "remove it (the driver decides how many downloads run at once)",
            )),
        }
    }
}
