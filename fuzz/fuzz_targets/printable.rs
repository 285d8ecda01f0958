//! Checks messages that quote hostile input.

/// Fails on control characters, which move the cursor of a terminal, and on marks that change the direction of text.
pub(crate) fn check(words: &str) {
    let turns = |character| matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let hostile = words.chars().find(|character| character.is_control() || turns(*character));
    assert_eq!(hostile, None, "{words:?}");
}
