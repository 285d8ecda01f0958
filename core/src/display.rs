//! How parsed strings behave: `Display`, `FromStr` and serde as the text they print as.

use std::fmt;

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

/// Text of somebody else's, made fit for a terminal, a log line and a Kubernetes event.
///
/// Terminal sequences (ECMA-48), control characters and marks that turn the direction of text (Unicode
/// UAX #9) are removed, white space is folded, and what is longer than 300 characters is cut.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Printable(String);

impl Printable {
    /// The longest text that is kept, in characters.
    pub const LONGEST: usize = 300;

    /// The printable part of `text`.
    pub fn new(text: &str) -> Self {
        let mut kept = String::new();
        let mut count = 0;
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == '\u{1b}' || character == '\u{9b}' {
                skip_sequence(character, &mut characters);
                continue;
            }
            if character.is_whitespace() {
                if kept.is_empty() || kept.ends_with(' ') {
                    continue;
                }
                kept.push(' ');
            } else if character.is_control() || is_invisible(character) {
                continue;
            } else {
                kept.push(character);
            }
            count += 1;
            if count == Self::LONGEST {
                if characters.peek().is_some() {
                    kept.pop();
                    kept.push('…');
                }
                break;
            }
        }
        kept.truncate(kept.trim_end().len());
        Self(kept)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether nothing printable was in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Drops what follows an escape: a control sequence up to its final byte, a string up to its terminator,
/// or the one character of a short escape.
fn skip_sequence(first: char, characters: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    let kind = if first == '\u{9b}' { Some('[') } else { characters.next() };
    match kind {
        Some('[') => {
            while let Some(next) = characters.peek().copied() {
                if !next.is_ascii() || next.is_ascii_control() {
                    break;
                }
                characters.next();
                if ('\u{40}'..='\u{7e}').contains(&next) {
                    break;
                }
            }
        }
        Some(']' | 'P' | 'X' | '^' | '_') => {
            while let Some(next) = characters.next() {
                if next == '\u{7}' || next == '\u{9c}' {
                    break;
                }
                if next == '\u{1b}' {
                    characters.next_if_eq(&'\\');
                    break;
                }
            }
        }
        _ => {}
    }
}

impl From<&str> for Printable {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Printable {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl fmt::Display for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Printable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}
