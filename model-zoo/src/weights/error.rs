//! What can be wrong with a weight file, with the numbers, and what to do about it.
//!
//! [`Fault`] is a breach of the safetensors format itself; [`WeightError`] adds the file and everything that only shows
//! when the tensors are asked for: values, dtypes, keys and shapes that do not fit the network.

use std::fmt;
use std::io;

use super::torch::TorchFault;

/// Keys a message lists before it only counts.
const LISTED: usize = 5;

/// Characters of a foreign name that a message repeats; names come from the file and may be of any length.
const SHOWN: usize = 120;

const AGAIN: &str = "download the file again, or save it again with the safetensors library";
const CONVERT: &str = "convert it: load it where it was made, take its state dict and save that with the safetensors library";

/// Why a weight file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightError {
    /// The operating system refused.
    #[error(
        "{file}: cannot {action}: {source}; check the path, its permissions and the free space"
    )]
    Io {
        /// The file.
        file: String,
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder, pipe or device where a file is needed.
    #[error("{file}: {found}; name the .safetensors file itself")]
    NotAFile {
        /// The path.
        file: String,
        /// What it is instead, as a verb phrase.
        found: String,
    },
    /// The file breaks the safetensors format.
    #[error("{file}: {fault}")]
    Malformed {
        /// The file.
        file: String,
        /// What is broken.
        fault: Fault,
    },
    /// A PyTorch checkpoint that cannot be read as one, or not safely.
    #[error("{file}: {fault}")]
    Torch {
        /// The file.
        file: String,
        /// What is wrong with it.
        fault: TorchFault,
    },
    /// Named like a PyTorch checkpoint, and none.
    #[error(
        "{file}: named like a PyTorch checkpoint, which is a zip archive or, of versions before 1.6, a pickle (safetensors is read under that name too); found {found}; check the path, or download the file again"
    )]
    NotTorch {
        /// The file.
        file: String,
        /// How it begins.
        found: String,
    },
    /// A tensor was asked for that the file has not.
    #[error(
        "{file}: holds no tensor {}; list what it holds and correct the key",
        shown(key)
    )]
    NoSuchKey {
        /// The file.
        file: String,
        /// The key asked for.
        key: String,
    },
    /// A tensor whose numbers are not weights.
    #[error(
        "{file}: tensor {} has dtype {found}, expected F32 (F16, BF16 and F64 are converted); save the weights as F32",
        shown(key)
    )]
    WrongDtype {
        /// The file.
        file: String,
        /// The tensor.
        key: String,
        /// Its dtype as the file writes it.
        found: &'static str,
    },
    /// Values that are NaN or infinite.
    #[error(
        "{file}: {}; a diverged or damaged checkpoint: use another one",
        listed(tensors, "; ")
    )]
    NotFinite {
        /// The file.
        file: String,
        /// Every tensor with such values.
        tensors: Vec<NotFinite>,
    },
    /// The network has parameters that the file has not.
    #[error("{file}: {} of {model}'s tensors are missing: {}; {hint}", missing.len(), keys(missing))]
    MissingKeys {
        /// The file.
        file: String,
        /// The network.
        model: String,
        /// The keys, in the network's order.
        missing: Vec<String>,
        /// What the file seems to be instead, or what to do.
        hint: String,
    },
    /// The file has tensors that the network has no use for.
    #[error("{file}: {} tensors have no place in {model}: {}; {hint}", extra.len(), keys(extra))]
    ExtraKeys {
        /// The file.
        file: String,
        /// The network.
        model: String,
        /// The keys, in the file's order.
        extra: Vec<String>,
        /// What the file seems to be instead, or what to do.
        hint: String,
    },
    /// Tensors of another shape than the network's.
    #[error(
        "{file}: {} tensors of another shape than {model}'s: {}; use the weights of this very network",
        wrong.len(),
        listed(wrong, ", ")
    )]
    Shape {
        /// The file.
        file: String,
        /// The network.
        model: String,
        /// Every such tensor, in the network's order.
        wrong: Vec<WrongShape>,
    },
    /// A network whose masks are still attached cannot be written.
    #[error(
        "{file}: cannot write {path}, its mask is still attached; materialize the model before saving it"
    )]
    NotMaterialized {
        /// The file that was to be written.
        file: String,
        /// The masked parameter's path.
        path: String,
    },
}

/// A breach of the safetensors format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Fewer bytes than the eight of the header length.
    #[error(
        "{bytes} bytes are too small for a safetensors file, which starts with 8 bytes of header length; {AGAIN}"
    )]
    TooSmall {
        /// The file's size.
        bytes: u64,
    },
    /// Another kind of file altogether.
    #[error("{0}")]
    Foreign(Foreign),
    /// A header length over what the format allows.
    #[error("the header length {length} is over the format's limit of {limit} bytes; {AGAIN}")]
    HeaderOverLimit {
        /// The length written in the file.
        length: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// A header that the file is too short for.
    #[error("header length {length} runs past the end of file (file size {file_size} bytes, {} of them after the length); {AGAIN}", file_size.saturating_sub(8))]
    HeaderPastEnd {
        /// The length written in the file.
        length: u64,
        /// The file's size.
        file_size: u64,
    },
    /// A header of no bytes.
    #[error("the header is empty (length 0), so the file names no tensors; {AGAIN}")]
    HeaderEmpty,
    /// A header that is not text.
    #[error("the header is not UTF-8 (first bad byte at {at}); {AGAIN}")]
    NotUtf8 {
        /// Offset in the header.
        at: usize,
    },
    /// A header that is not JSON.
    #[error("the header is not JSON ({detail}); {AGAIN}")]
    NotJson {
        /// The parser's reason.
        detail: String,
    },
    /// JSON nested deeper than any header needs.
    #[error("the header's nesting is too deep (a header has 3 levels); {AGAIN}")]
    Nesting,
    /// A header that is JSON of another kind.
    #[error("the header is {found}, expected a JSON object; {AGAIN}")]
    NotObject {
        /// What it is.
        found: &'static str,
    },
    /// A key that occurs twice, so that readers may disagree about its tensor.
    #[error("duplicate key {key} in the header; {AGAIN}", key = shown(.key))]
    Duplicate {
        /// The key.
        key: String,
    },
    /// Free-form metadata must map strings to strings.
    #[error("__metadata__ entry {key} is {found}, expected a string; save it again with text values only", key = shown(.key))]
    Metadata {
        /// The entry.
        key: String,
        /// What it is.
        found: &'static str,
    },
    /// Metadata that is not an object.
    #[error(
        "__metadata__ is {found}, expected an object of strings; save it again with text values only"
    )]
    MetadataNotObject {
        /// What it is.
        found: &'static str,
    },
    /// A tensor whose description is not an object.
    #[error("tensor {tensor} is described by {found} in the header, expected an object; {AGAIN}", tensor = shown(.tensor))]
    EntryNotObject {
        /// The tensor.
        tensor: String,
        /// What it is.
        found: &'static str,
    },
    /// A tensor without one of its three fields.
    #[error("tensor {tensor} has no {field} in the header; {AGAIN}", tensor = shown(.tensor))]
    MissingField {
        /// The tensor.
        tensor: String,
        /// `dtype`, `shape` or `data_offsets`.
        field: &'static str,
    },
    /// A field of the wrong kind.
    #[error("tensor {tensor}: {field} must be {expected}, found {found}; {AGAIN}", tensor = shown(.tensor))]
    Field {
        /// The tensor.
        tensor: String,
        /// `dtype`, `shape` or `data_offsets`.
        field: &'static str,
        /// The offending value.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A dtype that the format does not name.
    #[error("tensor {tensor} has the unknown dtype {found}; save the weights as F32", tensor = shown(.tensor), found = shown(.found))]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// Its dtype as written.
        found: String,
    },
    /// A shape whose size no machine can count.
    #[error("tensor {tensor}: shape {shape:?} overflows the count of its bytes; {AGAIN}", tensor = shown(.tensor))]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Shape and dtype need another number of bytes than the offsets span.
    #[error("tensor {tensor}: {dtype} of shape {shape:?} takes {expected} bytes, its offsets span {found}; {AGAIN}", tensor = shown(.tensor))]
    Size {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: &'static str,
        /// Its shape.
        shape: Vec<u64>,
        /// Bytes by shape and dtype.
        expected: u64,
        /// Bytes by the offsets.
        found: u64,
    },
    /// Offsets whose end lies before their start.
    #[error("tensor {tensor}: its offsets [{start}, {end}] run backwards; {AGAIN}", tensor = shown(.tensor))]
    Reversed {
        /// The tensor.
        tensor: String,
        /// First byte.
        start: u64,
        /// One past the last byte.
        end: u64,
    },
    /// Two tensors on the same bytes.
    #[error("tensor {tensor} overlaps {other}: it starts at byte {start} of the data, {other} ends at {end}; {AGAIN}", tensor = shown(.tensor), other = shown(.other))]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// The tensor before it.
        other: String,
        /// Where the later one starts.
        start: u64,
        /// Where the earlier one ends.
        end: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("{bytes} unused bytes before {tensor} (from byte {start} of the data); {AGAIN}", tensor = shown(.tensor))]
    Hole {
        /// How many.
        bytes: u64,
        /// The tensor behind them.
        tensor: String,
        /// Where they start.
        start: u64,
    },
    /// Less data than the header describes.
    #[error("tensor {tensor} ends past the end of the file: the header expects {expected} bytes of data, the file holds {found}; {AGAIN}", tensor = shown(.tensor))]
    PastEnd {
        /// The last tensor.
        tensor: String,
        /// Bytes the header describes.
        expected: u64,
        /// Bytes present.
        found: u64,
    },
    /// Sparse tensors that contradict themselves.
    #[error("{why}; write the file again with `ptsbench export --compress`")]
    Packed {
        /// Which, and how.
        why: String,
    },
    /// More data than the header describes.
    #[error("{bytes} bytes follow after the last tensor; {AGAIN}")]
    Trailing {
        /// How many.
        bytes: u64,
    },
}

impl Fault {
    /// Whether the file is of another kind that is known by name.
    pub(super) fn is_foreign(&self) -> bool {
        matches!(self, Fault::Foreign(_))
    }
}

/// Files that are often given the wrong name, known by their first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// PyTorch's present format.
    #[error("looks like a PyTorch .pth (zip), not safetensors; {CONVERT}")]
    Zip,
    /// PyTorch's former format.
    #[error(
        "looks like a pickle (an old PyTorch .pth), not safetensors; nothing in it was executed; {CONVERT}"
    )]
    Pickle,
    /// What a repository holds in place of a large file.
    #[error("is a Git LFS pointer, not the weights; download the real file (git lfs pull)")]
    LfsPointer,
    /// A server's page.
    #[error(
        "is an HTML page, not weights: the download failed or needs a login; open the address in a browser, then download the file again"
    )]
    Html,
}

/// How many values of a tensor are not numbers, and where the first is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// The tensor.
    pub key: String,
    /// Values in all.
    pub values: usize,
    /// How many are NaN.
    pub nan: usize,
    /// How many are infinite as f32.
    pub infinite: usize,
    /// Row-major index of the first of either kind.
    pub first: usize,
}

impl fmt::Display for NotFinite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tensor {}: ", shown(&self.key))?;
        let counts = [(self.nan, "NaN"), (self.infinite, "infinite")];
        for (i, (count, what)) in counts
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .enumerate()
        {
            let and = if i > 0 { " and " } else { "" };
            write!(f, "{and}{count} of {} values are {what}", self.values)?;
        }
        write!(f, ", the first at index {}", self.first)
    }
}

/// A tensor whose shape is not the network's, both in the checkpoint's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// The tensor.
    pub key: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

impl fmt::Display for WrongShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} expected {:?}, found {:?}",
            shown(&self.key),
            self.expected,
            self.found
        )
    }
}

/// A name from a file, fit for one line of a message.
fn shown(name: &str) -> String {
    let mut line: String = name.escape_debug().take(SHOWN).collect();
    if name.escape_debug().nth(SHOWN).is_some() {
        line.push('…');
    }
    line
}

fn keys(keys: &[String]) -> String {
    let shown: Vec<String> = keys.iter().take(LISTED).map(|key| shown(key)).collect();
    joined(&shown, keys.len(), ", ")
}

fn listed<T: fmt::Display>(items: &[T], between: &str) -> String {
    let shown: Vec<String> = items.iter().take(LISTED).map(T::to_string).collect();
    joined(&shown, items.len(), between)
}

fn joined(shown: &[String], all: usize, between: &str) -> String {
    let mut line = shown.join(between);
    if all > shown.len() {
        line.push_str(&format!(" and {} more", all - shown.len()));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lists_five_keys_and_counts_the_rest() {
        let error = WeightError::MissingKeys {
            file: "f".into(),
            model: "M".into(),
            missing: (0..7).map(|i| format!("k{i}")).collect(),
            hint: "do this".into(),
        };
        assert_eq!(
            error.to_string(),
            "f: 7 of M's tensors are missing: k0, k1, k2, k3, k4 and 2 more; do this"
        );
    }

    #[test]
    fn names_from_files_stay_on_one_line() {
        let name = format!("a\nb{}", "x".repeat(1000));
        let line = shown(&name);
        assert!(!line.contains('\n') && line.starts_with("a\\nb"));
        assert_eq!(line.chars().count(), SHOWN + 1);
    }
}
