//! The pickles that the CIFAR files are: a dictionary of lists, and one array of numpy's.
//!
//! Nothing in them is executed (`model_zoo::pickle`): the names that numpy's arrays need are known, every other one is
//! refused, and what a call of one describes is read off its arguments.

use model_zoo::pickle::{self, Fault, Id, Object, Pickle};

type Value = pickle::Value<Numpy>;

/// What such a file holds besides plain values.
#[derive(Debug, Clone, PartialEq)]
enum Numpy {
    /// The function that makes an empty array.
    Reconstruct,
    /// The class of arrays, which is its argument.
    Array,
    /// The class of types.
    Type,
    /// A type, by the text it was made from.
    Of(Id),
    /// An array: its shape and the string of its bytes, once they are set.
    Filled(Option<(Vec<usize>, Id)>),
}

impl Object for Numpy {
    fn named(module: &str, name: &str) -> Option<Self> {
        match (module, name) {
            ("numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct") => {
                Some(Self::Reconstruct)
            }
            ("numpy", "ndarray") => Some(Self::Array),
            ("numpy", "dtype") => Some(Self::Type),
            _ => None,
        }
    }

    fn called(pickle: &Pickle<'_, Self>, function: Id, arguments: Id) -> Option<Value> {
        let arguments = pickle.list(arguments)?;
        let made = match pickle.get(function) {
            Value::Object(Self::Reconstruct) => Self::Filled(None),
            Value::Object(Self::Type) => {
                let name = *arguments.first()?;
                pickle.string(name)?;
                Self::Of(name)
            }
            _ => return None,
        };
        Some(Value::Object(made))
    }

    /// The state of an array is its version, shape, type, order and bytes; that of a type does not matter.
    fn built(pickle: &mut Pickle<'_, Self>, object: Id, state: Id) -> bool {
        match pickle.get(object) {
            Value::Object(Self::Of(_)) => true,
            Value::Object(Self::Filled(_)) => {
                let Some(filled) = filled(pickle, state) else {
                    return false;
                };
                *pickle.get_mut(object) = Value::Object(Self::Filled(Some(filled)));
                true
            }
            _ => false,
        }
    }
}

/// Shape and bytes of an array of bytes, from its state.
fn filled(pickle: &Pickle<'_, Numpy>, state: Id) -> Option<(Vec<usize>, Id)> {
    let &[_, shape, kind, _, data] = pickle.list(state)? else {
        return None;
    };
    let Value::Object(Numpy::Of(kind)) = pickle.get(kind) else {
        return None;
    };
    if pickle.string(*kind)? != b"u1" {
        return None;
    }
    pickle.string(data)?;
    let sides = pickle.list(shape).filter(|sides| sides.len() <= AXES)?;
    let side = |&side: &Id| usize::try_from(pickle.int(side)?).ok();
    Some((sides.iter().map(side).collect::<Option<_>>()?, data))
}

/// Axes of an array at most; the published ones have two.
const AXES: usize = 8;

/// One file's dictionary.
#[derive(Debug)]
pub struct Batch<'a>(Pickle<'a, Numpy>);

impl<'a> Batch<'a> {
    fn entry(&self, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.0.get(self.0.root) else {
            return None;
        };
        let found = entries
            .iter()
            .find(|(name, _)| self.0.string(*name) == Some(key.as_bytes()));
        found.map(|&(_, value)| value)
    }

    /// The list of whole numbers under a key.
    pub fn integers(&self, key: &str) -> Option<Vec<i64>> {
        let items = self.0.list(self.entry(key)?)?;
        items.iter().map(|&item| self.0.int(item)).collect()
    }

    /// The array of bytes under a key: its shape and, row by row, its values.
    pub fn array(&self, key: &str) -> Option<(&[usize], &'a [u8])> {
        match self.0.get(self.entry(key)?) {
            Value::Object(Numpy::Filled(Some((shape, data)))) => {
                Some((shape, self.0.string(*data)?))
            }
            _ => None,
        }
    }
}

/// Reads a pickle; the error is a sentence.
pub fn read(bytes: &[u8]) -> Result<Batch<'_>, String> {
    Pickle::read(bytes).map(Batch).map_err(said)
}

fn said(fault: Fault) -> String {
    const AGAIN: &str = "unpack the archive again";
    match fault {
        Fault::CutOff { at } => format!("pickle cut off at byte {at}; {AGAIN}"),
        Fault::TooMany { limit } => {
            format!("pickle of more than {limit} values, which no CIFAR file has; {AGAIN}")
        }
        Fault::Global { name } => {
            let name: String = name.escape_default().take(120).collect();
            format!(
                "pickle that would run {name}: refused; nothing was executed, and the file is not the published one"
            )
        }
        Fault::Operation { operation, at } => format!(
            "pickle opcode {operation:#04x} at byte {at} is not one the CIFAR files use: refused"
        ),
        Fault::Stack { at } => format!("broken pickle at byte {at}; {AGAIN}"),
        Fault::Call { at } | Fault::Identity { at } => format!(
            "pickle that calls something other than numpy's arrays at byte {at}: refused; {AGAIN}"
        ),
        Fault::State { at } => format!(
            "pickle that sets the state of something other than an array of bytes at byte {at}: refused; {AGAIN}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_things_are_refused() {
        let error = read(b"cos\nsystem\n(S'true'\ntR.").unwrap_err();
        assert!(
            error.contains("os.system") && error.contains("refused"),
            "{error}"
        );
        assert!(read(b"\x80\x02cbuiltins\neval\nq\x00.").is_err());
    }

    #[test]
    fn neither_nesting_nor_a_flood_of_values_costs_much() {
        // 140 kB of lists in lists once overflowed the stack when they were dropped.
        let deep = [
            &b"\x80\x02"[..],
            &b"]".repeat(70_000),
            &b"a".repeat(69_999),
            b".",
        ]
        .concat();
        assert!(read(&deep).unwrap().integers("labels").is_none());
        // And 60 MB of None took 4 GB.
        let flood = b"N".repeat(60_000_000);
        let error = read(&flood).unwrap_err();
        assert!(error.contains("more than 1000000 values"), "{error}");
    }

    #[test]
    fn an_array_of_another_type_is_refused() {
        let array = |kind: &str| {
            let mut bytes = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R".to_vec();
            bytes.extend(b"(K\x01K\x02K\x01\x86cnumpy\ndtype\nU\x02");
            bytes.extend(kind.as_bytes());
            bytes.extend(b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\x08tb");
            [&b"}U\x04data"[..], &bytes[2..], b"s."].concat()
        };
        let bytes = array("u1");
        let batch = read(&bytes).unwrap();
        assert_eq!(batch.array("data"), Some((&[2, 1][..], &[7, 8][..])));
        let error = read(&array("i4")).unwrap_err();
        assert!(error.contains("array of bytes"), "{error}");
    }

    #[test]
    fn cut_pickles_are_refused_at_every_length() {
        let whole = b"\x80\x02}q\x00(U\x01aq\x01]q\x02(K\x01M\x02\x01J\xff\xff\xff\xffeu.";
        let value = read(whole).unwrap();
        assert_eq!(value.integers("a"), Some(vec![1, 258, -1]));
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }
}
