//! Changes a review as what it is, JSON: bytes changed at random hardly ever are a review any more.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::Value;

/// What an object may gain, a list have one more of, and anything else be replaced by.
const PIECES: [&str; 54] = [
    "null",
    "{}",
    "[]",
    "true",
    "false",
    "7",
    r#""""#,
    r#""r.io/a:v1""#,
    r#""- add: r.io/a\n""#,
    r#""csi.oras.land""#,
    r#""oras-artifacts""#,
    r#""/mnt/oras""#,
    r#""app""#,
    r#""told""#,
    r#""both""#,
    r#""windows""#,
    r#"{"metadata":{}}"#,
    r#"{"metadata":null}"#,
    r#"{"annotations":{}}"#,
    r#"{"annotations":null}"#,
    r#"{"deletionTimestamp":"2026-01-01T00:00:00Z"}"#,
    r#"{"oras.land/artifact":"r.io/a"}"#,
    r#"{"oras.land/artifact.x":"r.io/b:v1"}"#,
    r#"{"oras.land/recipe":"- add: r.io/a\n- overlay: r.io/b\n  path: p\n- remove: p/*\n"}"#,
    r#"{"oras.land/recipe":"- {patch: r.io/patches:1, path: p}\n- patch: r.io/patches:9\n  level: crit\n"}"#,
    r#"{"oras-csi.actions":"- patch: r.io/patches:2\n"}"#,
    r#"{"oras.land/mount-path":"/a/"}"#,
    r#"{"oras.land/mount-path.x":"/b"}"#,
    r#"{"oras.land/containers":"app"}"#,
    r#"{"oras.land/media-types.x":"text/plain, application/java-archive"}"#,
    r#"{"oras.land/platform":"linux/arm64"}"#,
    r#"{"oras.land/inject":"false"}"#,
    r#"{"oras.land/pinned":"{\"oras-artifacts\":[\"r.io/a:v1@sha256:795195bdfdf5e2273b635138c0591959d7ea0601d16423927498fd42c09b2e4c\"]}"}"#,
    r#"{"oras.land/patch":"r.io/patches:1"}"#,
    r#"{"oras.land/patch-level":"minor"}"#,
    r#"{"oras.land/pinned-patch":"r.io/patches:1@sha256:795195bdfdf5e2273b635138c0591959d7ea0601d16423927498fd42c09b2e4c"}"#,
    r#"{"oras.artifact.patch":"r.io/patches:2"}"#,
    r#"{"oras.artifact.patch.level":"major"}"#,
    r#"{"oras.artifact.reference":"r.io/b"}"#,
    r#"{"oras.artifact.layers.mediatype":"text/plain"}"#,
    r#"{"oras.options.pullalways":"true"}"#,
    r#"{"oras-csi.name":"n"}"#,
    r#"{"oras.land/artifact-set":"n"}"#,
    r#"{"oras-csi.actions":"- {add: r.io/a, include: [\"*\"]}\n"}"#,
    r#"{"csi.oras.land/seal":"v1.a.b"}"#,
    r#"{"readOnly":false}"#,
    r#"{"subPath":"x"}"#,
    r#"{"volumeMounts":[{"name":"oras-artifacts","mountPath":"/mnt/oras"}]}"#,
    r#"{"volumeMounts":[{"name":"in","mountPath":"/in"},null,{"name":"v","mountPath":"/in/../v"}]}"#,
    r#"{"initContainers":[{"name":"i"}],"ephemeralContainers":[{"name":"e"}]}"#,
    r#"{"containers":[{"name":"app"},null,{}]}"#,
    r#"{"volumes":[{"name":"in","csi":{"driver":"csi.oras.land","volumeAttributes":{"oras.artifact.reference":"r.io/a"}}}]}"#,
    r#"{"volumes":[null,{"name":"v","emptyDir":{}}]}"#,
    r#"{"nodePublishSecretRef":{"name":"s"}}"#,
];

/// As libFuzzer's own: changes the first `size` bytes of `data`, and gives their new number.
pub(crate) fn mutate(data: &mut [u8], size: usize, longest: usize, seed: u32) -> usize {
    let mut dice = Dice(seed);
    if dice.roll(4) > 0
        && let Ok(mut review) = serde_json::from_slice(&data[..size])
    {
        for _ in 0..=dice.roll(3) {
            change(&mut review, &mut dice);
        }
        let text = review.to_string();
        if text.len() <= longest {
            data[..text.len()].copy_from_slice(text.as_bytes());
            return text.len();
        }
    }
    fuzzer_mutate(data, size, longest)
}

fn change(review: &mut Value, dice: &mut Dice) {
    let places = count(review);
    let other = nth(review, &mut dice.roll(places)).cloned();
    let piece = serde_json::from_str(PIECES[dice.roll(PIECES.len())]).ok();
    let new = if dice.roll(4) == 0 { other } else { piece }.unwrap_or_default();
    let Some(value) = nth(review, &mut dice.roll(places)) else { return };
    match (value, new) {
        (Value::Object(map), new) if dice.roll(8) > 0 => match new {
            Value::Object(more) if dice.roll(4) > 0 => map.extend(more),
            _ => {
                let key = map.keys().nth(dice.roll(map.len())).cloned();
                key.and_then(|key| map.shift_remove(&key));
            }
        },
        (Value::Array(list), new) if dice.roll(8) > 0 => match dice.roll(3) {
            0 if !list.is_empty() => drop(list.remove(dice.roll(list.len()))),
            1 if !list.is_empty() => list.push(list[dice.roll(list.len())].clone()),
            _ => list.push(new),
        },
        (Value::String(text), _) if dice.roll(2) > 0 => {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(text.len() + 64, 0);
            let longest = bytes.len();
            let size = fuzzer_mutate(&mut bytes, text.len(), longest);
            *text = String::from_utf8_lossy(&bytes[..size]).into_owned();
        }
        (value, new) => *value = new,
    }
}

/// How many values there are, the outermost among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(count).sum(),
        Value::Array(list) => list.iter().map(count).sum(),
        _ => 0,
    }
}

/// The value before which `left` others stand.
fn nth<'a>(value: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(value);
    }
    *left -= 1;
    match value {
        Value::Object(map) => map.values_mut().find_map(|value| nth(value, left)),
        Value::Array(list) => list.iter_mut().find_map(|value| nth(value, left)),
        _ => None,
    }
}

/// Marsaglia's xorshift: libFuzzer gives a seed, by which it can do the same again.
struct Dice(u32);

impl Dice {
    /// A number below `sides`; 0 for a die that has none.
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 as usize).checked_rem(sides).unwrap_or_default()
    }
}
