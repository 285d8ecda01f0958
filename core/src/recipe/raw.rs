//! The text of a recipe: the structure that YAML and JSON share, before the values are parsed.

use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Layer, Recipe, RecipeError, Step, StepError};
use crate::display::Shown;
use crate::patch_level::Level;

/// The keys of a step in canonical order (docs/design.md, "Canonical volume"). A key that is present in the text is
/// `Some` here, even with an empty value.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawStep {
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    add: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    overlay: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    remove: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    patch: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    level: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "list")]
    include: Option<RawList>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "list")]
    exclude: Option<RawList>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "list")]
    media_types: Option<RawList>,
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "text")]
    platform: Option<String>,
}

/// Deserializes a string; `null` becomes the empty string.
fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer).map(|text| Some(text.unwrap_or_default()))
}

/// Deserializes a list; `null` becomes the empty list.
fn list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RawList>, D::Error> {
    deserializer.deserialize_any(ListVisitor).map(Some)
}

/// The value of a key that must be a list.
#[derive(Serialize)]
#[serde(untagged)]
enum RawList {
    /// A list of strings.
    Texts(Vec<String>),
    /// A value that is not a list.
    NotAList,
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = RawList;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<RawList, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            texts.push(text);
        }
        Ok(RawList::Texts(texts))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawList, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(RawList::NotAList)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<RawList, E> {
        Ok(RawList::Texts(Vec::new()))
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<RawList, E> {
        Ok(RawList::Texts(Vec::new()))
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<RawList, E> {
        Ok(RawList::NotAList)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<RawList, E> {
        Ok(RawList::NotAList)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<RawList, E> {
        Ok(RawList::NotAList)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<RawList, E> {
        Ok(RawList::NotAList)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<RawList, E> {
        Ok(RawList::NotAList)
    }
}

type ParseReference<'a, R> = &'a dyn Fn(&str) -> Result<R, StepError>;

/// A parsed step, in which patches are not expanded.
pub(super) enum Parsed<R> {
    Step(Step<R>),
    /// A patch, and the highest level to apply.
    Patch(Layer<R>, Option<Level>),
}

pub(super) fn read_yaml<R>(
    text: &str,
    reference: ParseReference<'_, R>,
) -> Result<Vec<Parsed<R>>, RecipeError> {
    check_length(text)?;
    let raw = serde_saphyr::from_str::<Vec<RawStep>>(text);
    parse(&raw.map_err(|error| RecipeError::Syntax(Shown::from_yaml_error(&error.to_string())))?, reference)
}

pub(super) fn read_json<R>(
    text: &str,
    reference: ParseReference<'_, R>,
) -> Result<Vec<Step<R>>, RecipeError> {
    check_length(text)?;
    let raw = serde_json::from_str::<Vec<RawStep>>(text);
    let raw = raw.map_err(|error| RecipeError::Syntax(Shown::new(&error.to_string())))?;
    let parsed = parse(&raw, reference)?.into_iter().zip(1..);
    let steps = parsed.map(|(parsed, step)| match parsed {
        Parsed::Step(step) => Ok(step),
        Parsed::Patch(..) => Err(RecipeError::Patch { step }),
    });
    steps.collect()
}

pub(super) fn write_json<R: fmt::Display>(steps: &[Step<R>]) -> String {
    let raw = steps.iter().map(write_step).collect::<Vec<_>>();
    serde_json::to_string(&raw).unwrap_or_else(|error| {
        unreachable!("strings and lists of strings can be serialized as JSON: {error}")
    })
}

fn check_length(text: &str) -> Result<(), RecipeError> {
    if text.len() > Recipe::MAX_BYTES { Err(RecipeError::TooLong { length: text.len() }) } else { Ok(()) }
}

fn parse<R>(raw: &[RawStep], reference: ParseReference<'_, R>) -> Result<Vec<Parsed<R>>, RecipeError> {
    if raw.len() > Recipe::MAX_STEPS {
        return Err(RecipeError::TooManySteps { count: raw.len() });
    }
    raw.iter().zip(1..).map(|(raw, step)| parse_step(raw, step, reference)).collect()
}

fn parse_step<R>(
    raw: &RawStep,
    step: usize,
    reference: ParseReference<'_, R>,
) -> Result<Parsed<R>, RecipeError> {
    let value = |source| RecipeError::Value { step, source };
    let layer = |text| parse_layer(text, raw, reference).map_err(value);
    if raw.level.is_some() && raw.patch.is_none() {
        return Err(RecipeError::LevelAlone { step });
    }
    if raw.name.is_some() && raw.patch.is_some() {
        return Err(RecipeError::NameOfPatch { step });
    }
    match (&raw.add, &raw.overlay, &raw.remove, &raw.patch) {
        (Some(text), None, None, None) => Ok(Parsed::Step(Step::Add(layer(text)?))),
        (None, Some(text), None, None) => Ok(Parsed::Step(Step::Overlay(layer(text)?))),
        (None, None, None, Some(text)) => {
            let level = raw.level.as_deref().map(str::parse).transpose();
            let level = level.map_err(|error| value(StepError::Level(error)))?;
            Ok(Parsed::Patch(layer(text)?, level))
        }
        (None, None, Some(glob), None) => {
            let others = [
                ("path", raw.path.is_some()),
                ("include", raw.include.is_some()),
                ("exclude", raw.exclude.is_some()),
                ("mediaTypes", raw.media_types.is_some()),
                ("as", raw.name.is_some()),
                ("platform", raw.platform.is_some()),
            ];
            if let Some((key, _)) = others.into_iter().find(|(_, is_present)| *is_present) {
                return Err(RecipeError::BesideRemove { step, key });
            }
            let glob = glob.parse().map_err(|error| value(StepError::Glob(error)))?;
            Ok(Parsed::Step(Step::Remove(glob)))
        }
        _ => Err(RecipeError::Verb { step }),
    }
}

fn parse_layer<R>(
    text: &str,
    raw: &RawStep,
    reference: ParseReference<'_, R>,
) -> Result<Layer<R>, StepError> {
    let path = match raw.path.as_deref() {
        Some("") => return Err(StepError::Empty { key: "path", value: "DIRECTORY" }),
        path => path.unwrap_or_default(),
    };
    let mut layer = Layer::new(reference(text)?)
        .at(path.parse().map_err(StepError::Path)?)
        .including(parse_all("include", "[GLOB]", raw.include.as_ref())?)
        .excluding(parse_all("exclude", "[GLOB]", raw.exclude.as_ref())?)
        .with_media_types(parse_all("mediaTypes", "[TYPE]", raw.media_types.as_ref())?);
    match raw.name.as_deref() {
        None => {}
        Some("") => return Err(StepError::Empty { key: "as", value: "NAME" }),
        Some(name) => layer = layer.with_name(name.parse().map_err(StepError::Name)?),
    }
    if let Some(platform) = &raw.platform {
        layer = layer.for_platform(platform.parse()?);
    }
    Ok(layer)
}

/// Parses the entries of a list. An empty list is an error, because it could mean all or nothing.
fn parse_all<T>(key: &'static str, value: &'static str, list: Option<&RawList>) -> Result<Vec<T>, StepError>
where
    T: std::str::FromStr,
    StepError: From<T::Err>,
{
    match list {
        None => Ok(Vec::new()),
        Some(RawList::NotAList) => Err(StepError::NotAList { key, value }),
        Some(RawList::Texts(texts)) if texts.is_empty() => Err(StepError::Empty { key, value }),
        Some(RawList::Texts(texts)) => texts.iter().map(|text| Ok(text.parse()?)).collect(),
    }
}

fn write_step<R: fmt::Display>(step: &Step<R>) -> RawStep {
    match step {
        Step::Add(layer) => RawStep { add: Some(layer.reference().to_string()), ..write_layer(layer) },
        Step::Overlay(layer) => {
            RawStep { overlay: Some(layer.reference().to_string()), ..write_layer(layer) }
        }
        Step::Remove(glob) => RawStep { remove: Some(glob.to_string()), ..RawStep::default() },
    }
}

fn write_layer<R>(layer: &Layer<R>) -> RawStep {
    fn texts<T: fmt::Display>(list: &[T]) -> Option<RawList> {
        (!list.is_empty()).then(|| RawList::Texts(list.iter().map(T::to_string).collect()))
    }
    RawStep {
        path: (!layer.path().is_root()).then(|| layer.path().to_string()),
        include: texts(layer.include()),
        exclude: texts(layer.exclude()),
        media_types: texts(layer.media_types()),
        name: layer.name().map(ToString::to_string),
        platform: layer.platform().map(ToString::to_string),
        ..RawStep::default()
    }
}
