//! JSON in which no object says a thing twice.
//!
//! RFC 8259, 4: what a parser makes of duplicate names is its own affair. Two programs that read one
//! manifest differently would disagree about what a digest stands for, so such a manifest is refused.
//!
//! A short text can stand for much memory (`[0],` is four bytes and two hundred in memory), so what is made
//! of it is counted while it is made.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What all values of a document may take in memory, by the estimates below: several times what a manifest
/// of the largest size with the most layers does.
const BUDGET: usize = 32 << 20;
/// A value within another, with the room that a list keeps for more.
const OF_VALUE: usize = 64;
/// A name and its value in an object whose nodes are half full.
const OF_NAME: usize = 160;
/// A list or an object itself: an object's first node has room for eleven names.
const OF_CONTAINER: usize = 640;

/// Parses `bytes` as one JSON value without duplicate names at any depth.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let left = Cell::new(BUDGET);
    let value = Strict { left: &left }.deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    left: &'a Cell<usize>,
}

impl Strict<'_> {
    fn take<E: serde::de::Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or_else(|| E::custom("it has more values than any manifest needs"))?);
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
        self.take(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.take(value.len())?;
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(OF_CONTAINER)?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(self)? {
            self.take(OF_VALUE)?;
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.take(OF_CONTAINER)?;
        let mut map = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            self.take(OF_NAME + name.len())?;
            if map.contains_key(&name) {
                return Err(A::Error::custom(format_args!("the name {name:?} is there twice")));
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
    fn few_bytes_cannot_become_much_memory() {
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
        assert!(long.len() > 3 << 20 && parse(long.as_bytes()).is_ok(), "the longest that is in use");
    }

    #[test]
    fn a_name_counts_once() {
        assert!(parse(br#"{"a":1,"b":{"a":[1.5,-2,null,true,"x"]}}"#).is_ok());
        for twice in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"b":[{"a":{},"c":0,"a":{}}]}"#,
            "{} {}",
            r#"{"a":1,}"#,
            "",
        ] {
            assert!(parse(twice.as_bytes()).is_err(), "{twice}");
        }
        assert!(parse(&vec![b'['; 100_000]).is_err(), "depth is bounded");
    }
}
