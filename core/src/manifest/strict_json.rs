//! Parses JSON and rejects objects that have the same name twice.
//!
//! RFC 8259, section 4, leaves the meaning of duplicate names to the parser. Two programs could read one manifest
//! differently and disagree about the content of its digest, so such a manifest is rejected.
//!
//! A short text can need much memory (`[0],` has four bytes and needs about two hundred in memory), so the parser
//! counts the memory while it builds the value.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The memory limit for all values of a document, by the estimates below. It is several times what a manifest of the
/// maximum size with the maximum number of layers needs.
const MAX_MEMORY: usize = 32 << 20;
/// The estimate for one value in a list, with the spare capacity of the list.
const VALUE_BYTES: usize = 64;
/// The estimate for a name and its value in an object whose nodes are half full.
const NAME_BYTES: usize = 160;
/// The estimate for an empty list or object: the first node of an object has space for eleven names.
const CONTAINER_BYTES: usize = 640;

/// Parses `bytes` as one JSON value without duplicate names at any depth.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let left = Cell::new(MAX_MEMORY);
    let value = Strict { left: &left }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    /// Subtracts `bytes` from the remaining memory; fails when the limit is exceeded.
    fn reserve<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or_else(|| E::custom("it has more values than are accepted in a manifest"))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.reserve(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.reserve(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.reserve(CONTAINER_BYTES)?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            self.reserve(VALUE_BYTES)?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.reserve(CONTAINER_BYTES)?;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            self.reserve(NAME_BYTES + name.len())?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the name {name:?} occurs twice in one object")));
            }
            let value = entries.next_value_seed(self)?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn limits_the_memory_that_a_short_text_can_need() {
        let filled = |unit: &str| {
            let units = (4 << 20) / unit.len();
            format!(r#"{{"x":[{}0]}}"#, unit.repeat(units))
        };
        for unit in ["0,", "[0],", "[[[[0]]]],", "{},", r#"{"":0},"#, r#"{"a":{}},"#, r#""","#] {
            let error = parse(filled(unit).as_bytes()).unwrap_err().to_string();
            assert!(error.contains("more values"), "{unit}: {error}");
        }
        let names = (0..400_000).map(|number| format!(r#""{number:x}":0"#)).collect::<Vec<_>>().join(",");
        assert!(parse(format!("{{{names}}}").as_bytes()).is_err(), "names");
        let layer = format!(
            r#"{{"mediaType":"a/b","digest":"{0}","size":1,"annotations":{{"title":"{0}{0}{0}{0}{0}{0}"}},"urls":["{0}"]}},"#,
            "d".repeat(100)
        );
        let long = format!(r#"{{"layers":[{}0]}}"#, layer.repeat(4_096));
        assert!(long.len() > 3 << 20 && parse(long.as_bytes()).is_ok(), "the largest manifest in use");
    }

    #[test]
    fn rejects_duplicate_names_at_any_depth() {
        assert!(parse(br#"{"a":1,"b":{"a":[1.5,-2,null,true,"x"]}}"#).is_ok());
        for invalid in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"b":[{"a":{},"c":0,"a":{}}]}"#,
            "{} {}",
            r#"{"a":1,}"#,
            "",
        ] {
            assert!(parse(invalid.as_bytes()).is_err(), "{invalid}");
        }
        assert!(parse(&vec![b'['; 100_000]).is_err(), "the depth is limited");
    }
}
