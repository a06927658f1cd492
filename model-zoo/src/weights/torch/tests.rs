//! Checkpoints written here byte by byte, in both formats, and what is refused.

use std::io::Write;

use super::*;

/// A pickle, operation by operation, as `torch.save` writes a state dict.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn new() -> Self {
        Self(vec![0x80, 2])
    }

    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        let length = (text.len() as u32).to_le_bytes();
        self.op(b"X").op(&length).op(text.as_bytes())
    }

    fn int(self, value: i32) -> Self {
        self.op(b"J").op(&value.to_le_bytes())
    }

    fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    fn tuple(self, values: &[i32]) -> Self {
        let start = self.op(b"(");
        values
            .iter()
            .fold(start, |this, &value| this.int(value))
            .op(b"t")
    }

    /// `key: tensor` for the dictionary on the stack, which has an open mark.
    fn tensor(self, key: &str, class: &str, storage: (&str, i32), view: View) -> Self {
        self.text(key)
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"((")
            .text("storage")
            .global("torch", class)
            .text(storage.0)
            .text("cpu")
            .int(storage.1)
            .op(b"tQ")
            .int(view.offset)
            .tuple(view.shape)
            .tuple(view.strides)
            .op(b"\x89")
            .global("collections", "OrderedDict")
            .op(b")RtR")
    }

    fn dict(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R(")
    }
}

#[derive(Clone, Copy)]
struct View<'a> {
    offset: i32,
    shape: &'a [i32],
    strides: &'a [i32],
}

/// A zip archive of stored members.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in members {
        let at = file.len() as u32;
        let (size, length) = (
            (bytes.len() as u32).to_le_bytes(),
            (name.len() as u16).to_le_bytes(),
        );
        file.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend([size, size].concat());
        file.extend(length);
        file.extend([0, 0]);
        file.extend(name.as_bytes());
        file.extend(*bytes);
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend([size, size].concat());
        directory.extend(length);
        directory.extend([0; 12]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, (members.len() as u16).to_le_bytes());
    let length = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count, count].concat());
    file.extend(length);
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn floats(count: u32) -> Vec<u8> {
    (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

const WHOLE: View = View {
    offset: 0,
    shape: &[2, 3],
    strides: &[3, 1],
};
/// A transposed part: what is contiguous for others need not be for the storage.
const TURNED: View = View {
    offset: 1,
    shape: &[2, 2],
    strides: &[1, 2],
};

/// The state dict of both formats' tests.
fn pickled() -> Writer {
    Writer::new()
        .dict()
        .tensor("fc.weight", "FloatStorage", ("0", 6), WHOLE)
        .tensor("fc.turned", "FloatStorage", ("0", 6), TURNED)
        .tensor(
            "bn.num_batches_tracked",
            "LongStorage",
            ("1", 1),
            View {
                offset: 0,
                shape: &[],
                strides: &[],
            },
        )
        .op(b"u")
        // The attributes of a state dict: a dictionary of versions.
        .op(b"}")
        .text("_metadata")
        .dict()
        .op(b"us")
        .op(b"b.")
}

fn zipped_file(pickle: &[u8]) -> Vec<u8> {
    archive(&[
        ("net/data.pkl", pickle),
        ("net/byteorder", b"little"),
        ("net/data/0", &floats(6)),
        ("net/data/1", &7i64.to_le_bytes()),
        ("net/version", b"3\n"),
    ])
}

fn former_file(pickle: &[u8]) -> Vec<u8> {
    let mut file = FORMER.to_vec();
    file.extend(Writer::new().int(1001).op(b".").0);
    file.extend(Writer::new().op(b"}").text("little_endian").op(b"\x88s.").0);
    file.extend(pickle);
    file.extend(Writer::new().op(b"](").text("0").text("1").op(b"e.").0);
    file.extend(6u64.to_le_bytes());
    file.extend(floats(6));
    file.extend(1u64.to_le_bytes());
    file.extend(7i64.to_le_bytes());
    file
}

fn open(bytes: &[u8]) -> Result<TorchFile, WeightError> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    TorchFile::open(file.path())
}

fn fault(bytes: &[u8]) -> TorchFault {
    match open(bytes) {
        Err(WeightError::Torch { fault, .. }) => fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn both_formats_hold_the_same_tensors() {
    for bytes in [zipped_file(&pickled().0), former_file(&pickled().0)] {
        assert!(TorchFile::begins(&bytes));
        let mut held = tempfile::NamedTempFile::new().unwrap();
        held.write_all(&bytes).unwrap();
        let file = TorchFile::open(held.path()).unwrap();
        assert_eq!(
            file.keys(),
            ["fc.weight", "fc.turned", "bn.num_batches_tracked"]
        );
        assert_eq!(file.shape("fc.weight"), Some(vec![2, 3]));
        assert_eq!(
            file.read("fc.weight").unwrap(),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
        );
        assert_eq!(file.read("fc.turned").unwrap(), [1.0, 3.0, 2.0, 4.0]);
        assert_eq!(file.dtype("bn.num_batches_tracked"), Some(Dtype::I64));
        assert_eq!(
            file.raw("bn.num_batches_tracked").unwrap(),
            7i64.to_le_bytes()
        );
        let counter = file.read("bn.num_batches_tracked");
        assert!(matches!(counter, Err(WeightError::WrongDtype { .. })));
        assert!(matches!(
            file.read("fc.bias"),
            Err(WeightError::NoSuchKey { .. })
        ));
    }
}

#[test]
fn a_state_dict_inside_a_checkpoint_is_found() {
    let pickle = Writer::new()
        .op(b"}(")
        .text("epoch")
        .int(3)
        .text("model")
        .dict()
        .tensor("w", "FloatStorage", ("0", 6), WHOLE)
        .op(b"uu.");
    let file = open(&zipped_file(&pickle.0)).unwrap();
    assert_eq!(file.keys(), ["w"]);
}

#[test]
fn what_would_be_executed_is_named_and_refused() {
    for (module, name) in [
        ("os", "system"),
        ("builtins", "eval"),
        ("torch", "load"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("argparse", "Namespace"),
        ("collections", "defaultdict"),
    ] {
        let call = Writer::new()
            .global(module, name)
            .op(b"(")
            .text("id")
            .op(b"tR.");
        let name = format!("{module}.{name}");
        assert_eq!(
            fault(&zipped_file(&call.0)),
            TorchFault::Global { name: name.clone() }
        );
        assert_eq!(
            fault(&former_file(&call.0)),
            TorchFault::Global { name: name.clone() }
        );
        // The same through the operation of protocol 4.
        let (module, function) = name.rsplit_once('.').unwrap();
        let call = Writer::new().text(module).text(function).op(b"\x93.");
        assert_eq!(fault(&zipped_file(&call.0)), TorchFault::Global { name });
    }
    for operation in [0x81, b'i', b'o', 0x92, 0x82, 0x97] {
        let pickle = Writer::new().op(b"(").op(&[operation]);
        let at = 3;
        assert_eq!(
            fault(&zipped_file(&pickle.0)),
            TorchFault::Operation { operation, at }
        );
    }
}

#[test]
fn more_than_tensors_is_refused_with_its_name() {
    let entry = |pickle: Writer| match fault(&zipped_file(&pickle.op(b"u.").0)) {
        TorchFault::NotAStateDict { found } => found,
        other => panic!("{other}"),
    };
    let dict = || {
        Writer::new()
            .dict()
            .tensor("w", "FloatStorage", ("0", 6), WHOLE)
    };
    assert_eq!(
        entry(dict().text("epoch").int(3)),
        "entry \"epoch\" is not a tensor"
    );
    assert_eq!(
        entry(dict().int(3).int(3)),
        "a key of its dictionary is not text"
    );
    assert_eq!(entry(Writer::new().dict()), "its dictionary is empty");
    let twice = dict()
        .tensor("w", "FloatStorage", ("0", 6), WHOLE)
        .op(b"u.");
    assert_eq!(
        fault(&zipped_file(&twice.0)),
        TorchFault::Twice { name: "w".into() }
    );
    assert!(matches!(
        fault(&zipped_file(&Writer::new().int(1).op(b".").0)),
        TorchFault::NotAStateDict { .. }
    ));
}

#[test]
fn a_view_past_its_storage_is_refused() {
    for (offset, shape, strides) in [
        (1, &[2, 3][..], &[3, 1][..]),
        (0, &[2, 3], &[4, 1]),
        (0, &[3, 3], &[0, 1]),
        (0, &[-1, 3], &[3, 1]),
        (0, &[i32::MAX, i32::MAX, i32::MAX], &[i32::MAX, i32::MAX, 1]),
        (0, &[2], &[1, 1]),
        (7, &[0], &[1]),
    ] {
        let view = View {
            offset,
            shape,
            strides,
        };
        let pickle = Writer::new()
            .dict()
            .tensor("w", "FloatStorage", ("0", 6), view)
            .op(b"u.");
        assert!(
            matches!(
                fault(&zipped_file(&pickle.0)),
                TorchFault::Outside { .. } | TorchFault::Call { .. }
            ),
            "{offset} {shape:?} {strides:?}"
        );
    }
    // A storage that the archive has not, and one longer than its member.
    for storage in [("9", 6), ("0", 7)] {
        let pickle = Writer::new()
            .dict()
            .tensor("w", "FloatStorage", storage, WHOLE)
            .op(b"u.");
        assert!(matches!(
            fault(&zipped_file(&pickle.0)),
            TorchFault::Outside { .. }
        ));
    }
}

#[test]
fn archives_that_are_none_of_pytorchs_are_refused() {
    assert_eq!(
        fault(&archive(&[("a.txt", b"hello")])),
        TorchFault::NoPickle
    );
    let pickle = pickled().0;
    let two = archive(&[("a/data.pkl", &pickle), ("b/data.pkl", &pickle)]);
    assert_eq!(fault(&two), TorchFault::NoPickle);
    let twice = archive(&[("a/data.pkl", &pickle), ("a/data.pkl", &pickle)]);
    assert_eq!(
        fault(&twice),
        TorchFault::Twice {
            name: "a/data.pkl".into()
        }
    );
    let big = archive(&[("a/data.pkl", &pickle), ("a/byteorder", b"big")]);
    assert_eq!(fault(&big), TorchFault::BigEndian);
    let whole = zipped_file(&pickle);
    assert!(matches!(
        fault(&whole[..whole.len() / 2]),
        TorchFault::Zip(_)
    ));
    let mut compressed = whole.clone();
    let directory = compressed
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .unwrap();
    compressed[directory + 10] = 8;
    assert!(matches!(fault(&compressed), TorchFault::Zip(why) if why.contains("compressed")));
}

#[test]
fn nesting_and_cycles_cost_nothing() {
    // A list in a list, a hundred thousand deep, and one that holds itself.
    let deep = Writer::new()
        .op(&[b'('].repeat(100_000))
        .op(&[b'l'].repeat(100_000))
        .op(b".");
    assert!(matches!(
        fault(&zipped_file(&deep.0)),
        TorchFault::NotAStateDict { .. }
    ));
    let cycle = Writer::new().op(b"]q\0h\0a.");
    assert!(matches!(
        fault(&zipped_file(&cycle.0)),
        TorchFault::NotAStateDict { .. }
    ));
}

#[test]
fn damaged_checkpoints_are_refused_or_read_but_never_panic() {
    // splitmix64, so that the cases are the same everywhere.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % below as u64) as usize
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.pth");
    let whole = [zipped_file(&pickled().0), former_file(&pickled().0)];
    let (mut read, mut refused) = (0, 0);
    for case in 0..6_000 {
        let mut bytes = whole[case % 2].clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] ^= 1 << random(8),
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random(5)],
                _ => {
                    let piece = bytes[at..(at + random(9)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        match TorchFile::open(&path) {
            Ok(file) => {
                read += 1;
                for key in file.keys() {
                    let _ = file.raw(&key);
                    let _ = file.read(&key);
                }
            }
            Err(error) => {
                refused += 1;
                assert!(error.to_string().lines().count() == 1, "{error}");
            }
        }
    }
    assert!(
        read > 100 && refused > 1_000,
        "{read} read, {refused} refused"
    );
}
