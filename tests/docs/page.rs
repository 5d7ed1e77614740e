//! The pages of the documentation: fenced blocks, code spans, headings and links.

use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

/// A page of the documentation.
pub(crate) struct Page {
    /// The path relative to the root of the repository.
    pub(crate) path: PathBuf,
    text: String,
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The file and the line of the block.
    pub(crate) place: String,
    pub(crate) kind: String,
    pub(crate) text: String,
}

// === impl Page ===

impl Page {
    /// The README and every page of docs/.
    pub(crate) fn read_all() -> Vec<Self> {
        let mut paths: Vec<PathBuf> = vec!["README.md".into()];
        let docs = fs::read_dir(root("docs")).unwrap().map(|entry| entry.unwrap().file_name());
        paths.extend(docs.map(|name| Path::new("docs").join(name)));
        paths.retain(|path| path.extension().is_some_and(|end| end == "md"));
        paths.sort();
        paths.into_iter().map(Self::read).collect()
    }

    pub(crate) fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = fs::read_to_string(root(&path)).unwrap();
        Self { path, text }
    }

    /// The fenced blocks, in order.
    ///
    /// # Panics
    ///
    /// When a block has no kind.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut lines = self.text.lines().enumerate();
        let mut blocks = Vec::new();
        while let Some((number, line)) = lines.next() {
            let Some(kind) = line.trim_start().strip_prefix("```") else { continue };
            let place = format!("{}:{}", self.path.display(), number + 1);
            assert!(!kind.is_empty(), "{place}: a block without a kind");
            let inside = lines.by_ref().map(|(_, line)| line);
            let inside: Vec<_> = inside.take_while(|line| line.trim() != "```").collect();
            blocks.push(Block { place, kind: kind.to_owned(), text: inside.join("\n") });
        }
        blocks
    }

    /// The code spans of the text.
    pub(crate) fn code(&self) -> Vec<String> {
        let code = Regex::new("`([^`]+)`").unwrap();
        let prose = self.prose();
        code.captures_iter(&prose).map(|found| unwrapped(&found[1])).collect()
    }

    /// The targets of links and pictures, as written.
    pub(crate) fn links(&self) -> Vec<String> {
        let link = Regex::new(r"\]\(([^)\s]+)\)").unwrap();
        let prose = self.prose();
        link.captures_iter(&prose).map(|found| found[1].to_owned()).collect()
    }

    /// The anchors of the headings, as GitHub makes them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let left_out = Regex::new(r"[^\w\- ]").unwrap();
        let headings = self.prose();
        let headings = headings.lines().filter_map(|line| line.strip_prefix('#'));
        let text = headings.map(|line| line.trim_start_matches('#').trim().to_lowercase());
        text.map(|text| left_out.replace_all(&text, "").replace(' ', "-")).collect()
    }

    /// The text without fenced blocks.
    fn prose(&self) -> String {
        let fences = self.text.split("\n```").enumerate();
        let outside = fences.filter(|(nth, _)| nth % 2 == 0).map(|(_, text)| text);
        outside.collect::<Vec<_>>().join("\n")
    }
}

/// A path in the repository.
pub(crate) fn root(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn unwrapped(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
