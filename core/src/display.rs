//! Text in messages: [`Shown`] escapes a user's value, [`Printable`] cleans text that a registry or another
//! program sent. Also the serde form that all parsed strings of this crate share.

use std::fmt;

/// Implements serde as a string, and `TryFrom<&str>`, for a type that has `FromStr` and `Display`.
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

/// A value of a user as an error message shows it: escaped, and cut after 160 characters.
///
/// A value is untrusted. Control characters could move a terminal's cursor, and bidirectional marks could make
/// a message read as a different one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shown(String);

impl Shown {
    const MAX_CHARS: usize = 160;

    /// Escapes `text` and cuts it to 160 characters and an ellipsis.
    pub fn new(text: &str) -> Self {
        // Most values are short, and each of their bytes is a character that prints.
        if text.len() <= Self::MAX_CHARS && text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return Self(text.to_owned());
        }
        let mut shown = String::new();
        for (count, character) in text.chars().enumerate() {
            if count == Self::MAX_CHARS {
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
    /// Converts the message of a YAML parser: only its first line, without the drawing of the position, and without
    /// the advice for programmers about other functions of the parser.
    pub fn from_yaml_error(message: &str) -> Self {
        let line = message.lines().next().unwrap_or(message).trim();
        let line = line.strip_prefix("error: ").unwrap_or(line);
        let end =
            [", set ", "; use from_", "; set "].into_iter().filter_map(|advice| line.find(advice)).min();
        Self::new(&line[..end.unwrap_or(line.len())])
    }
}

/// Reports whether a character prints nothing, or changes the direction of the text after it (Unicode UAX #9 and
/// format marks).
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

/// Untrusted text from a registry or another program, safe for a terminal, a log line and a Kubernetes event.
///
/// Terminal sequences (ECMA-48), control characters and marks that change the direction of text (Unicode
/// UAX #9) are removed. White space is folded. Text of more than 300 characters is cut.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Printable(String);

impl Printable {
    /// The maximum length, in characters.
    pub const MAX_CHARS: usize = 300;

    /// Removes everything from `text` that is not printable.
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
            if count == Self::MAX_CHARS {
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

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reports whether the text has no printable character.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Skips the rest of an escape sequence (ECMA-48): a control sequence up to its final byte, a control string up to
/// its terminator, or the one character of a short escape.
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
