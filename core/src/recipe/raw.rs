//! A recipe as text: the shape that YAML and JSON share, before its values are parsed.

use serde::{Deserialize, Serialize};

use super::{Layer, RecipeError, Step, StepError};
use crate::path::TreePath;
use crate::text::Shown;

/// The keys of a step in canonical order (design §4).
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawStep {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    add: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    overlay: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    remove: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    include: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    exclude: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    media_types: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
}

type ParseReference<'a, R> = &'a dyn Fn(&str) -> Result<R, StepError>;

pub(super) fn read_yaml<R>(
    text: &str,
    reference: ParseReference<'_, R>,
) -> Result<Vec<Step<R>>, RecipeError> {
    check_length(text)?;
    let raw = serde_saphyr::from_str::<Vec<RawStep>>(text);
    parse(&raw.map_err(|error| RecipeError::Syntax(one_line(&error.to_string())))?, reference)
}

pub(super) fn read_json<R>(
    text: &str,
    reference: ParseReference<'_, R>,
) -> Result<Vec<Step<R>>, RecipeError> {
    check_length(text)?;
    let raw = serde_json::from_str::<Vec<RawStep>>(text);
    parse(&raw.map_err(|error| RecipeError::Syntax(Shown::new(&error.to_string())))?, reference)
}

pub(super) fn write_json<R: std::fmt::Display>(steps: &[Step<R>]) -> String {
    let raw = steps.iter().map(write_step).collect::<Vec<_>>();
    serde_json::to_string(&raw)
        .unwrap_or_else(|error| unreachable!("strings and lists of strings are JSON: {error}"))
}

fn check_length(text: &str) -> Result<(), RecipeError> {
    if text.len() > RecipeError::LONGEST { Err(RecipeError::TooLong { length: text.len() }) } else { Ok(()) }
}

/// The parser's message without the lines in which it draws the place, and without what it tells programmers to
/// call instead.
fn one_line(message: &str) -> Shown {
    let line = message.lines().next().unwrap_or(message).trim();
    let end = [", set ", "; use from_", "; set "].into_iter().filter_map(|advice| line.find(advice)).min();
    Shown::new(&line[..end.unwrap_or(line.len())])
}

fn parse<R>(raw: &[RawStep], reference: ParseReference<'_, R>) -> Result<Vec<Step<R>>, RecipeError> {
    if raw.len() > RecipeError::MOST_STEPS {
        return Err(RecipeError::TooManySteps { count: raw.len() });
    }
    raw.iter().zip(1..).map(|(raw, step)| parse_step(raw, step, reference)).collect()
}

fn parse_step<R>(
    raw: &RawStep,
    step: usize,
    reference: ParseReference<'_, R>,
) -> Result<Step<R>, RecipeError> {
    let value = |source| RecipeError::Value { step, source };
    match (&raw.add, &raw.overlay, &raw.remove) {
        (Some(text), None, None) => Ok(Step::Add(parse_layer(text, raw, reference).map_err(value)?)),
        (None, Some(text), None) => Ok(Step::Overlay(parse_layer(text, raw, reference).map_err(value)?)),
        (None, None, Some(glob)) => {
            let beside = [
                ("path", raw.path.is_some()),
                ("include", !raw.include.is_empty()),
                ("exclude", !raw.exclude.is_empty()),
                ("mediaTypes", !raw.media_types.is_empty()),
                ("platform", raw.platform.is_some()),
            ];
            if let Some((key, _)) = beside.into_iter().find(|(_, there)| *there) {
                return Err(RecipeError::BesideRemove { step, key });
            }
            Ok(Step::Remove(glob.parse().map_err(|error| value(StepError::Glob(error)))?))
        }
        _ => Err(RecipeError::Verb { step }),
    }
}

fn parse_layer<R>(
    text: &str,
    raw: &RawStep,
    reference: ParseReference<'_, R>,
) -> Result<Layer<R>, StepError> {
    let path = raw.path.as_deref().unwrap_or_default();
    let mut layer = Layer::new(reference(text)?)
        .at(path.parse::<TreePath>()?)
        .including(parse_all(&raw.include)?)
        .excluding(parse_all(&raw.exclude)?)
        .with_media_types(parse_all(&raw.media_types)?);
    if let Some(platform) = &raw.platform {
        layer = layer.for_platform(platform.parse()?);
    }
    Ok(layer)
}

fn parse_all<T: std::str::FromStr>(texts: &[String]) -> Result<Vec<T>, T::Err> {
    texts.iter().map(|text| text.parse()).collect()
}

fn write_step<R: std::fmt::Display>(step: &Step<R>) -> RawStep {
    match step {
        Step::Add(layer) => RawStep { add: Some(layer.reference().to_string()), ..write_layer(layer) },
        Step::Overlay(layer) => {
            RawStep { overlay: Some(layer.reference().to_string()), ..write_layer(layer) }
        }
        Step::Remove(glob) => RawStep { remove: Some(glob.to_string()), ..RawStep::default() },
    }
}

fn write_layer<R>(layer: &Layer<R>) -> RawStep {
    fn texts<T: std::fmt::Display>(list: &[T]) -> Vec<String> {
        list.iter().map(T::to_string).collect()
    }
    RawStep {
        path: (!layer.path().is_root()).then(|| layer.path().to_string()),
        include: texts(layer.include()),
        exclude: texts(layer.exclude()),
        media_types: texts(layer.media_types()),
        platform: layer.platform().map(ToString::to_string),
        ..RawStep::default()
    }
}
