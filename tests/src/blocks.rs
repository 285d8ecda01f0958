//! Blocks of commands in the pages of the documentation, which tests run.

use std::fmt::Write as _;

/// The mark of blocks that the e2e tier runs, as `<!-- run on a node -->`.
pub const ON_A_NODE: &str = "run on a node";

/// A block of commands of a page.
#[derive(Debug)]
pub struct Block {
    /// The path of the page.
    pub page: String,
    /// The line of the page with the first command, or with the fence before it.
    pub line: usize,
    /// The comment before the block.
    pub mark: Option<String>,
    commands: Vec<String>,
}

/// Returns the blocks of commands of a page, fenced or indented, with the comment before each.
pub fn blocks(page: &str, text: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut mark = None;
    let mut fence: Option<(String, usize)> = None;
    let mut before_is_blank = true;
    let mut indented = false;
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        let indent = line.len() - line.trim_start().len();
        let continues = indented && !before_is_blank;
        if let Some((marks, indent)) = &fence {
            if trimmed == marks {
                fence = None;
            } else if let Some(block) = blocks.last_mut() {
                block.commands.push(line.get(*indent..).unwrap_or_default().to_owned());
            }
            continue;
        }
        let new = |mark: &mut Option<String>| Block {
            page: page.to_owned(),
            line: number + 1,
            mark: mark.take(),
            commands: Vec::new(),
        };
        if trimmed.starts_with("```") {
            let marks: String = trimmed.chars().take_while(|character| *character == '`').collect();
            let language = trimmed.trim_start_matches('`');
            let mut block = new(&mut mark);
            if !["", "sh", "bash", "console"].contains(&language) {
                block.mark = Some("other language".to_owned());
            }
            blocks.push(block);
            fence = Some((marks, indent));
            indented = false;
        } else if indent >= 4
            && (continues || (before_is_blank || indented) && !trimmed.starts_with(['-', '*', '|']))
        {
            if !indented {
                blocks.push(new(&mut mark));
                indented = true;
            }
            blocks.last_mut().expect("it was added").commands.push(line[4..].to_owned());
        } else if !trimmed.is_empty() {
            indented = false;
            let comment = trimmed.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
            mark = comment.map(str::to_owned);
        } else if indented {
            // A blank line inside a block.
            blocks.last_mut().expect("it was added").commands.push(String::new());
        }
        before_is_blank = trimmed.is_empty() || trimmed.ends_with("-->");
    }
    blocks.retain(|block| block.mark.as_deref() != Some("other language"));
    blocks
}

/// Returns the commands of a block: all lines, or those after `$ ` where the block shows output as well.
pub fn script(block: &Block) -> String {
    if !block.commands.iter().any(|line| line.starts_with("$ ")) {
        return block.commands.join("\n");
    }
    let mut script = String::new();
    let mut continues = false;
    for line in &block.commands {
        if let Some(command) = line.strip_prefix("$ ").or(Some(line.as_str()).filter(|_| continues)) {
            writeln!(script, "{command}").expect("a string accepts text");
            continues = command.ends_with('\\');
        }
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_blocks_and_their_marks() {
        let text = "text\n\n<!-- run -->\n```sh\noras-csi pull a b\n```\n\n    oras push x\n\n<!-- not run: shown -->\n\n    $ oras-csi patch a \\\n        b\n    output\n\n```yaml\na: b\n```\n\n1. list:\n\n       kubectl get pods \\\n         | cat\n";
        let found = blocks("page", text);
        let found: Vec<_> =
            found.iter().map(|block| (block.line, block.mark.as_deref(), script(block))).collect();
        assert_eq!(
            found,
            [
                (4, Some("run"), "oras-csi pull a b".to_owned()),
                (8, None, "oras push x\n".to_owned()),
                (12, Some("not run: shown"), "oras-csi patch a \\\n    b\n".to_owned()),
                (22, None, "   kubectl get pods \\\n     | cat".to_owned()),
            ]
        );
    }
}
