//! How parsed strings behave: `Display`, `FromStr` and serde as the text they print as.

/// Gives a type that has `FromStr` and `Display` the serde form of a string, and `TryFrom<&str>`.
macro_rules! string_serde {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        impl TryFrom<&str> for $type {
            type Error = <$type as std::str::FromStr>::Err;

            fn try_from(text: &str) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}
pub(crate) use string_serde;

/// What an error message shows of a value: printable, and cut where it is long.
///
/// A value may come from anybody; control characters would move a terminal's cursor, and bidirectional
/// marks would let a message read as another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shown(String);

impl Shown {
    const LONGEST: usize = 160;

    /// The printable form of `text`, at most 160 characters and an ellipsis.
    pub fn new(text: &str) -> Self {
        let mut shown = String::new();
        for (count, character) in text.chars().enumerate() {
            if count == Self::LONGEST {
                shown.push('…');
                break;
            }
            if character.is_control() || is_invisible(character) {
                shown.extend(character.escape_unicode());
            } else {
                shown.push(character);
            }
        }
        Self(shown)
    }
}

impl Shown {
    /// What a YAML parser says, without the lines in which it draws the place, and without what it tells programmers
    /// to call instead.
    pub fn yaml_error(message: &str) -> Self {
        let line = message.lines().next().unwrap_or(message).trim();
        let end =
            [", set ", "; use from_", "; set "].into_iter().filter_map(|advice| line.find(advice)).min();
        Self::new(&line[..end.unwrap_or(line.len())])
    }
}

/// Characters that print nothing or turn the direction of what follows (Unicode UAX #9 and format marks).
pub(crate) fn is_invisible(character: char) -> bool {
    matches!(character, '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

impl From<&str> for Shown {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
