//! CLIP's byte-pair tokenizer (Radford et al. 2021), read from the two files that are published with a text encoder,
//! `vocab.json` and `merges.txt`, and set as Stable Diffusion 2 uses it: 77 tokens, padded with `!`.
//!
//! As transformers has it: accents composed with their letters (NFC), lower case, words split by a pattern, the bytes of a
//! word as characters, the last with `</w>`, and pairs merged in the file's order.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use icu_normalizer::ComposingNormalizerBorrowed;
use regex::Regex;

use crate::file::{self, Unread};

/// Tokens of a text, start, end and padding included.
pub const LENGTH: usize = 77;

/// The file of all tokens and their numbers.
const VOCABULARY: &str = "vocab.json";
/// The file of the pairs that become one token, the first pair first.
const MERGES: &str = "merges.txt";
/// The published ones have about a million bytes.
const LIMIT: u64 = 1 << 25;

const START: &str = "<|startoftext|>";
const END: &str = "<|endoftext|>";
/// Stable Diffusion 2's; the first version pads with the end.
const PAD: &str = "!";

/// Ends a word's last character.
const LAST: &str = "</w>";

/// Words of a text in lower case: a letter is what Unicode calls one, which `char::is_alphabetic` is not, as it takes the
/// vowel signs of many scripts. The pad is a word of its own wherever it stands: the reference looks for its special tokens
/// first, so an exclamation mark is padding to Stable Diffusion 2.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|!|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}!]+";

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is not there, or is none.
    #[error(
        "{file} {source}; give the folder of a published tokenizer, which holds `{VOCABULARY}` and `{MERGES}`"
    )]
    Unread {
        /// The file.
        file: String,
        /// The reason.
        source: Unread,
    },
    /// The vocabulary is something else.
    #[error(
        "{file}: expected a JSON object that gives each token a number of its own, but {found}; take the file as it was published"
    )]
    Vocabulary {
        /// The file.
        file: String,
        /// What is wrong.
        found: String,
    },
    /// A line of the merges is something else.
    #[error(
        "{file}, line {line}: expected two tokens with a space between them, found {found:?}; take the file as it was published"
    )]
    Merge {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// What it holds.
        found: String,
    },
    /// A token that must be there is not.
    #[error(
        "{file}: expected the token {token:?}{why}; take `{VOCABULARY}` and `{MERGES}` from one published tokenizer of CLIP"
    )]
    NoToken {
        /// The vocabulary.
        file: String,
        /// The token.
        token: String,
        /// What needs it, where that is the other file.
        why: String,
    },
}

/// A text's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// [`LENGTH`] of them: the start, the text's, the end, padding.
    pub ids: Vec<u32>,
    /// How many of the text's found no room.
    pub left_out: usize,
}

/// Texts to tokens.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    ids: HashMap<String, u32>,
    /// The place of each pair in the file, under the pair with a space between.
    ranks: HashMap<String, usize>,
    /// The character of each byte.
    characters: Vec<char>,
    words: Regex,
    start: u32,
    end: u32,
    pad: u32,
}

impl Tokenizer {
    /// From the folder that has both files.
    pub fn open(folder: &Path) -> Result<Self, TokenizerError> {
        let read = |name: &str| {
            let path = folder.join(name);
            let file = path.display().to_string();
            match file::read_text(&path, LIMIT) {
                Ok(text) => Ok((file, text)),
                Err(source) => Err(TokenizerError::Unread { file, source }),
            }
        };
        let (file, text) = read(VOCABULARY)?;
        let ids = vocabulary(&file, &text)?;
        let (merges_file, text) = read(MERGES)?;
        let ranks = merges(&merges_file, &text)?;
        for pair in ranks.keys() {
            let merged = pair.replacen(' ', "", 1);
            if !ids.contains_key(&merged) {
                return Err(TokenizerError::NoToken {
                    file,
                    token: merged,
                    why: format!(", which `{MERGES}` makes of {pair:?}"),
                });
            }
        }
        let special = |token: &str| {
            ids.get(token)
                .copied()
                .ok_or_else(|| TokenizerError::NoToken {
                    file: file.clone(),
                    token: token.to_owned(),
                    why: String::new(),
                })
        };
        Ok(Self {
            start: special(START)?,
            end: special(END)?,
            pad: special(PAD)?,
            characters: characters(),
            words: Regex::new(WORDS).expect("a pattern of ours"),
            ids,
            ranks,
        })
    }

    /// The tokens of a text. What is in no vocabulary becomes the end, as in the reference.
    pub fn encode(&self, text: &str) -> Encoded {
        // Character by character: a sigma has one small letter, wherever it stands.
        let text = ComposingNormalizerBorrowed::new_nfc().normalize(text);
        let text: String = text.chars().flat_map(char::to_lowercase).collect();
        let mut ids = vec![self.start];
        for word in self.words.find_iter(&text) {
            match word.as_str() {
                START => ids.push(self.start),
                END => ids.push(self.end),
                PAD => ids.push(self.pad),
                word => ids.extend(self.pieces(word).iter().map(|piece| {
                    let id = self.ids.get(piece);
                    id.copied().unwrap_or(self.end)
                })),
            }
        }
        let left_out = (ids.len() + 1).saturating_sub(LENGTH);
        ids.truncate(LENGTH - 1);
        ids.push(self.end);
        ids.resize(LENGTH, self.pad);
        Encoded { ids, left_out }
    }

    /// A word's characters, merged as far as the file's pairs go.
    fn pieces(&self, word: &str) -> Vec<String> {
        let characters = word.bytes().map(|byte| self.characters[usize::from(byte)]);
        let mut pieces: Vec<String> = characters.map(String::from).collect();
        if let Some(last) = pieces.last_mut() {
            last.push_str(LAST);
        }
        loop {
            let ranked = pieces.windows(2).filter_map(|pair| {
                let pair = pair.join(" ");
                self.ranks.get(&pair).map(|&rank| (rank, pair))
            });
            let Some((_, first)) = ranked.min() else {
                return pieces;
            };
            let mut merged: Vec<String> = Vec::with_capacity(pieces.len());
            let mut rest = pieces.as_slice();
            while let [piece, behind @ ..] = rest {
                match behind {
                    [next, after @ ..] if format!("{piece} {next}") == first => {
                        merged.push(format!("{piece}{next}"));
                        rest = after;
                    }
                    _ => {
                        merged.push(piece.clone());
                        rest = behind;
                    }
                }
            }
            pieces = merged;
        }
    }
}

fn vocabulary(file: &str, text: &str) -> Result<HashMap<String, u32>, TokenizerError> {
    let fault = |found: String| TokenizerError::Vocabulary {
        file: file.to_owned(),
        found,
    };
    let ids: HashMap<String, u32> =
        serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
    let mut taken = HashSet::new();
    match ids.iter().find(|(_, id)| !taken.insert(**id)) {
        Some((token, id)) => Err(fault(format!("{token:?} shares the number {id}"))),
        None => Ok(ids),
    }
}

fn merges(file: &str, text: &str) -> Result<HashMap<String, usize>, TokenizerError> {
    let mut ranks = HashMap::new();
    for (place, line) in text.lines().enumerate() {
        let header = place == 0 && line.starts_with("#version");
        if header || line.is_empty() {
            continue;
        }
        let [one, other] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(TokenizerError::Merge {
                file: file.to_owned(),
                line: place + 1,
                found: line.chars().take(40).collect(),
            });
        };
        // The first place counts, should a pair stand there twice.
        ranks.entry(format!("{one} {other}")).or_insert(place);
    }
    Ok(ranks)
}

/// A character that can be seen for each byte: its own where it has one, else the next from U+0100 on.
fn characters() -> Vec<char> {
    let mut unseen = (0x100..).filter_map(char::from_u32);
    let character = |byte: u8| match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
        _ => unseen.next().expect("there are more than bytes"),
    };
    (0..=255).map(character).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    const PAIRS: [&str; 9] = [
        "c a",
        "ca t</w>",
        "a t",
        "i n",
        "in g</w>",
        "a n",
        "an an",
        "ca n",
        "Ã ©</w>",
    ];

    /// A vocabulary in the published one's order: the bytes, the same as a word's last, the pairs, start and end.
    fn folder() -> TempDir {
        let mut visible: Vec<char> = characters();
        visible.sort_by_key(|&c| (c >= '\u{100}', c));
        let mut tokens: Vec<String> = visible.iter().map(|c| c.to_string()).collect();
        tokens.extend(visible.iter().map(|c| format!("{c}{LAST}")));
        tokens.extend(PAIRS.iter().map(|pair| pair.replace(' ', "")));
        tokens.extend([START, END].map(String::from));
        let ids: HashMap<&str, usize> = tokens.iter().map(String::as_str).zip(0..).collect();
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join(VOCABULARY),
            serde_json::to_string(&ids).unwrap(),
        )
        .unwrap();
        let merges = format!("#version: 0.2\n{}\n", PAIRS.join("\n"));
        fs::write(folder.path().join(MERGES), merges).unwrap();
        folder
    }

    /// The text's tokens by name, without start, end and padding.
    fn tokens(text: &str) -> Vec<String> {
        let tokenizer = Tokenizer::open(folder().path()).unwrap();
        let encoded = tokenizer.encode(text);
        assert_eq!(encoded.ids.len(), LENGTH);
        assert_eq!(encoded.ids[0], tokenizer.start);
        let end = encoded.ids.iter().rposition(|&id| id == tokenizer.end);
        let (text, padding) = encoded.ids.split_at(end.unwrap());
        assert!(padding[1..].iter().all(|&id| id == 0), "padded with `!`");
        let name = |id: &u32| {
            let mut all = tokenizer.ids.iter();
            all.find(|(_, other)| *other == id).unwrap().0.clone()
        };
        text[1..].iter().map(name).collect()
    }

    #[test]
    fn words_are_split_and_merged() {
        for (text, expected) in [
            ("cat", &["cat</w>"][..]),
            // Case and white space do not matter.
            (" \tCAT\n\ncat  ", &["cat</w>", "cat</w>"]),
            ("", &[]),
            // The earlier pair goes first, everywhere in the word.
            ("cating", &["ca", "t", "ing</w>"]),
            ("banana", &["b", "anan", "a</w>"]),
            ("can", &["ca", "n</w>"]),
            // Digits stand alone, signs together, and an apostrophe with what is short for a word.
            ("a12", &["a</w>", "1</w>", "2</w>"]),
            ("a?:a", &["a</w>", "?", ":</w>", "a</w>"]),
            // The pad is found in a text, too.
            ("a?!!a", &["a</w>", "?</w>", "!", "!", "a</w>"]),
            ("i'll", &["i</w>", "'", "l", "l</w>"]),
            ("'tis", &["'", "t</w>", "i", "s</w>"]),
            ("..'s", &[".", ".", "'</w>", "s</w>"]),
            // Two bytes, one token.
            ("É", &["Ã©</w>"]),
            // The same with its accent behind it, and a letter that is another one's sign.
            ("E\u{301}", &["Ã©</w>"]),
            ("\u{212b}", &["Ã", "¥</w>"]),
            // Composed first: what lower case takes apart stays so.
            ("\u{130}", &["i</w>", "Ì", "ĩ</w>"]),
            // A vowel sign is no letter.
            ("क\u{93f}", &["à", "¤", "ķ</w>", "à", "¤", "¿</w>"]),
            // No final sigma.
            ("ΑΣ", &["Î", "±", "Ï", "ĥ</w>"]),
            ("cat<|endoftext|>cat", &["cat</w>", END, "cat</w>"]),
        ] {
            assert_eq!(tokens(text), expected, "{text:?}");
        }
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let tokenizer = Tokenizer::open(folder().path()).unwrap();
        for (words, left_out) in [(0, 0), (74, 0), (75, 0), (76, 1), (100, 25)] {
            let encoded = tokenizer.encode(&"cat ".repeat(words));
            assert_eq!(encoded.left_out, left_out, "{words} words");
            assert_eq!(encoded.ids.len(), LENGTH);
            let end = encoded.ids.iter().position(|&id| id == tokenizer.end);
            assert_eq!(end, Some(words.min(LENGTH - 2) + 1), "{words} words");
        }
    }

    #[test]
    fn bad_files_are_explained() {
        let message = |name: &str, text: Option<&str>| {
            let folder = folder();
            let file = folder.path().join(name);
            match text {
                Some(text) => fs::write(&file, text).unwrap(),
                None => fs::remove_file(&file).unwrap(),
            }
            let message = Tokenizer::open(folder.path()).unwrap_err().to_string();
            assert!(message.contains(&*file.to_string_lossy()), "{message}");
            message
        };
        let all = fs::read_to_string(folder().path().join(VOCABULARY)).unwrap();
        let stranger = all.replacen("\"cat</w>\"", "\"dog</w>\"", 1);
        let no_start = all.replacen(START, "<start>", 1);
        for (name, text, expected) in [
            (VOCABULARY, None, "give the folder of a published tokenizer"),
            (MERGES, None, "give the folder of a published tokenizer"),
            (VOCABULARY, Some("[1, 2]"), "expected a JSON object"),
            (VOCABULARY, Some("{\"a\": -1}"), "expected a JSON object"),
            (
                VOCABULARY,
                Some("{\"a\": 1, \"b\": 1}"),
                "shares the number 1",
            ),
            (
                VOCABULARY,
                Some(no_start.as_str()),
                "the token \"<|startoftext|>\"; take",
            ),
            (VOCABULARY, Some(stranger.as_str()), "makes of \"ca t</w>\""),
            (
                MERGES,
                Some("#version: 0.2\nc a\ncat\n"),
                "line 3: expected two tokens",
            ),
            (MERGES, Some("c a t\n"), "found \"c a t\""),
        ] {
            let message = message(name, text);
            assert!(message.contains(expected), "{message}");
        }
    }
}
