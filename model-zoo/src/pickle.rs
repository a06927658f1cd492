//! Python's pickles, read as data: nothing in one is ever executed.
//!
//! A pickle is a program for a stack machine that may call any function. This machine knows plain values, dictionaries
//! and lists; what a file may name, and what a call of it describes, its reader says ([`Object`]), and everything else
//! is refused with its name. Values lie in an arena and refer to each other by index, so no nesting is deep, no cycle
//! leaks and nothing is copied; texts stay where they are in the file. Values and operations are counted, so that time and
//! memory are bounded however long the pickle is.
//!
//! Reference: Python's `pickletools`, protocols 2 to 5.

use std::collections::HashMap;
use std::ops::Range;

/// Index of a value in the arena.
pub type Id = usize;

/// Values a pickle may make at most: hundreds of times what a large network's checkpoint has, and six times what a
/// batch of CIFAR has.
pub const VALUES: usize = 1_000_000;

/// Operations at most: a value is made, remembered, recalled and put somewhere.
const OPERATIONS: usize = 4 * VALUES;

/// A value; `O` is what its reader makes of names and calls.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<O> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number of 64 bits.
    Int(i64),
    /// A number; longer whole ones are kept as such, too.
    Float,
    /// A text, or a byte string of Python 2, by its place in the file.
    Text(Range<usize>),
    /// A byte string, by its place in the file.
    Bytes(Range<usize>),
    /// A tuple or a list.
    List(Vec<Id>),
    /// A dictionary, in the order of its entries; a key may occur twice.
    Dict(Vec<(Id, Id)>),
    /// Whatever the reader knows besides.
    Object(O),
}

/// What a reader allows besides plain values. None of these functions executes anything: they describe.
pub trait Object: Sized {
    /// A function or class, by module and name; none refuses the file.
    fn named(module: &str, name: &str) -> Option<Self>;

    /// What a call describes, the arguments being a list; none refuses the file.
    fn called(pickle: &Pickle<'_, Self>, function: Id, arguments: Id) -> Option<Value<Self>>;

    /// What a persistent identity describes; none refuses the file.
    fn identified(_: &Pickle<'_, Self>, _: Id) -> Option<Value<Self>> {
        None
    }

    /// Sets the state of a value; whether it may have that one.
    fn built(pickle: &mut Pickle<'_, Self>, object: Id, state: Id) -> bool;
}

/// Why a pickle is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It ends in the middle.
    CutOff {
        /// Where.
        at: usize,
    },
    /// More values or operations than any file of its kind has.
    TooMany {
        /// Values allowed.
        limit: usize,
    },
    /// It names a function or class that its reader does not allow.
    Global {
        /// Module and name.
        name: String,
    },
    /// An operation that is not known here.
    Operation {
        /// The operation.
        operation: u8,
        /// Where.
        at: usize,
    },
    /// An operation on values that are not there or of another kind.
    Stack {
        /// Where.
        at: usize,
    },
    /// A call that its reader does not allow.
    Call {
        /// Where.
        at: usize,
    },
    /// A persistent identity that says nothing to its reader.
    Identity {
        /// Where.
        at: usize,
    },
    /// A state for something that has none.
    State {
        /// Where.
        at: usize,
    },
}

/// The values of one pickle.
#[derive(Debug)]
pub struct Pickle<'a, O> {
    bytes: &'a [u8],
    values: Vec<Value<O>>,
    /// The value that the pickle is.
    pub root: Id,
    /// The bytes it took.
    pub length: usize,
}

impl<'a, O: Object> Pickle<'a, O> {
    /// Reads the pickle at the start of `bytes`; what follows it is not looked at.
    pub fn read(bytes: &'a [u8]) -> Result<Self, Fault> {
        let mut machine = Machine {
            at: 0,
            operations: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            pickle: Pickle {
                bytes,
                values: Vec::new(),
                root: 0,
                length: 0,
            },
        };
        machine.pickle.root = machine.run()?;
        machine.pickle.length = machine.at;
        Ok(machine.pickle)
    }
}

impl<'a, O> Pickle<'a, O> {
    /// A value.
    pub fn get(&self, id: Id) -> &Value<O> {
        &self.values[id]
    }

    /// A value that its reader changes.
    pub fn get_mut(&mut self, id: Id) -> &mut Value<O> {
        &mut self.values[id]
    }

    /// Every value, in the order in which they were made.
    pub fn all(&self) -> impl Iterator<Item = &Value<O>> {
        self.values.iter()
    }

    /// A text in UTF-8.
    pub fn text(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Text(place) => std::str::from_utf8(&self.bytes[place.clone()]).ok(),
            _ => None,
        }
    }

    /// A string of either kind.
    pub fn string(&self, id: Id) -> Option<&'a [u8]> {
        match self.get(id) {
            Value::Text(place) | Value::Bytes(place) => Some(&self.bytes[place.clone()]),
            _ => None,
        }
    }

    /// The items of a tuple or list.
    pub fn list(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// A whole number.
    pub fn int(&self, id: Id) -> Option<i64> {
        match *self.get(id) {
            Value::Int(value) => Some(value),
            _ => None,
        }
    }
}

struct Machine<'a, O> {
    at: usize,
    operations: usize,
    stack: Vec<Id>,
    /// Heights of the stack at which the open marks stand.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    pickle: Pickle<'a, O>,
}

impl<'a, O: Object> Machine<'a, O> {
    fn run(&mut self) -> Result<Id, Fault> {
        loop {
            let at = self.at;
            self.operations += 1;
            if self.operations > OPERATIONS {
                return Err(Fault::TooMany { limit: VALUES });
            }
            let operation = self.byte()?;
            match operation {
                // PROTO, FRAME: the protocol and a length say nothing that is needed.
                0x80 => {
                    self.take(1)?;
                }
                0x95 => {
                    self.take(8)?;
                }
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    self.pop()?;
                }
                b'1' => {
                    self.pop_to_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                0x8a => {
                    let length = self.byte()?.into();
                    let value = self.long(length)?;
                    self.push(value)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Float)?;
                }
                // Texts, and BINSTRING and SHORT_BINSTRING of protocol 2, as Python 2 wrote them.
                b'X' | b'T' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    let place = self.place(length)?;
                    self.push(Value::Text(place))?;
                }
                0x8c | b'U' => {
                    let length = self.byte()?.into();
                    let place = self.place(length)?;
                    self.push(Value::Text(place))?;
                }
                b'B' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    let place = self.place(length)?;
                    self.push(Value::Bytes(place))?;
                }
                b'C' => {
                    let length = self.byte()?.into();
                    let place = self.place(length)?;
                    self.push(Value::Bytes(place))?;
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b']' | b')' => self.push(Value::List(Vec::new()))?,
                b't' | b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(operation - 0x84);
                    let items = self.pop_many(count)?;
                    self.push(Value::List(items))?;
                }
                b'd' => {
                    let items = self.pop_to_mark()?;
                    let pairs = pairs(&items).ok_or(Fault::Stack { at })?;
                    self.push(Value::Dict(pairs))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(&[item], at)?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(&items, at)?;
                }
                b's' => {
                    let items = self.pop_many(2)?;
                    self.insert(&items, at)?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(&items, at)?;
                }
                b'q' => {
                    let place = self.byte()?.into();
                    self.remember(place)?;
                }
                b'r' => {
                    let place = u32::from_le_bytes(self.array()?).into();
                    self.remember(place)?;
                }
                0x94 => self.remember(self.memo.len() as u64)?,
                b'h' => {
                    let place = self.byte()?.into();
                    self.recall(place, at)?;
                }
                b'j' => {
                    let place = u32::from_le_bytes(self.array()?).into();
                    self.recall(place, at)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    self.global(&module, &name)?;
                }
                0x93 => {
                    let names = self.pop_many(2)?;
                    let (Some(module), Some(name)) =
                        (self.pickle.text(names[0]), self.pickle.text(names[1]))
                    else {
                        return Err(Fault::Stack { at });
                    };
                    self.global(module, name)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    let known = O::identified(&self.pickle, id).ok_or(Fault::Identity { at })?;
                    self.push(known)?;
                }
                b'R' => {
                    let call = self.pop_many(2)?;
                    let value = O::called(&self.pickle, call[0], call[1]);
                    self.push(value.ok_or(Fault::Call { at })?)?;
                }
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    if !O::built(&mut self.pickle, object, state) {
                        return Err(Fault::State { at });
                    }
                }
                operation => return Err(Fault::Operation { operation, at }),
            }
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        let place = self.place(count)?;
        Ok(&self.pickle.bytes[place])
    }

    /// The place of the next bytes, which are passed.
    fn place(&mut self, count: usize) -> Result<Range<usize>, Fault> {
        let end = self.at.checked_add(count);
        let end = end
            .filter(|&end| end <= self.pickle.bytes.len())
            .ok_or(Fault::CutOff { at: self.at })?;
        let place = self.at..end;
        self.at = end;
        Ok(place)
    }

    fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// The text up to the end of the line.
    fn line(&mut self) -> Result<String, Fault> {
        let rest = &self.pickle.bytes[self.at..];
        let Some(length) = rest.iter().position(|&byte| byte == b'\n') else {
            return Err(Fault::CutOff { at: self.at });
        };
        let line = String::from_utf8_lossy(&rest[..length]).into_owned();
        self.at += length + 1;
        Ok(line)
    }

    /// A whole number of `length` bytes, little-endian, in two's complement.
    fn long(&mut self, length: usize) -> Result<Value<O>, Fault> {
        let bytes = self.take(length)?;
        if length > 8 {
            // PyTorch's magic number and nothing else in a state dict.
            return Ok(Value::Float);
        }
        let negative = bytes.last().is_some_and(|&last| last >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..length].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }

    fn push(&mut self, value: Value<O>) -> Result<(), Fault> {
        if self.pickle.values.len() >= VALUES {
            return Err(Fault::TooMany { limit: VALUES });
        }
        self.stack.push(self.pickle.values.len());
        self.pickle.values.push(value);
        Ok(())
    }

    /// The stack's floor is the innermost open mark: what lies below belongs to somebody else.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(Fault::Stack { at: self.at }),
        }
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Id>, Fault> {
        match self.stack.len().checked_sub(count) {
            Some(start) if start >= self.floor() => Ok(self.stack.split_off(start)),
            _ => Err(Fault::Stack { at: self.at }),
        }
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let Some(mark) = self.marks.pop() else {
            return Err(Fault::Stack { at: self.at });
        };
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn extend(&mut self, items: &[Id], at: usize) -> Result<(), Fault> {
        let list = self.top()?;
        match &mut self.pickle.values[list] {
            Value::List(list) => list.extend(items),
            _ => return Err(Fault::Stack { at }),
        }
        Ok(())
    }

    fn insert(&mut self, items: &[Id], at: usize) -> Result<(), Fault> {
        let pairs = pairs(items).ok_or(Fault::Stack { at })?;
        let dict = self.top()?;
        match &mut self.pickle.values[dict] {
            Value::Dict(dict) => dict.extend(pairs),
            _ => return Err(Fault::Stack { at }),
        }
        Ok(())
    }

    fn remember(&mut self, place: u64) -> Result<(), Fault> {
        let top = self.top()?;
        self.memo.insert(place, top);
        Ok(())
    }

    fn recall(&mut self, place: u64, at: usize) -> Result<(), Fault> {
        let known = *self.memo.get(&place).ok_or(Fault::Stack { at })?;
        self.stack.push(known);
        Ok(())
    }

    fn global(&mut self, module: &str, name: &str) -> Result<(), Fault> {
        match O::named(module, name) {
            Some(known) => self.push(Value::Object(known)),
            None => Err(Fault::Global {
                name: format!("{module}.{name}"),
            }),
        }
    }
}

fn pairs(items: &[Id]) -> Option<Vec<(Id, Id)>> {
    let (pairs, rest) = items.as_chunks::<2>();
    rest.is_empty()
        .then(|| pairs.iter().map(|&[key, value]| (key, value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that allows plain values alone.
    #[derive(Debug)]
    enum Nothing {}

    impl Object for Nothing {
        fn named(_: &str, _: &str) -> Option<Self> {
            None
        }

        fn called(_: &Pickle<'_, Self>, _: Id, _: Id) -> Option<Value<Self>> {
            None
        }

        fn built(_: &mut Pickle<'_, Self>, _: Id, _: Id) -> bool {
            false
        }
    }

    fn read(bytes: &[u8]) -> Result<Pickle<'_, Nothing>, Fault> {
        Pickle::read(bytes)
    }

    #[test]
    fn nothing_is_deep_and_nothing_is_copied() {
        // A tuple in a tuple, 70,000 deep: dropping it as a tree would overflow the stack.
        let deep = [&b")"[..], &b"\x85".repeat(70_000), b"."].concat();
        assert_eq!(read(&deep).unwrap().values.len(), 70_001);
        // A tuple of two references to itself would double with every round.
        let twice = [b")q\0", &b"h\0h\0\x86q\0".repeat(64)[..], b"."].concat();
        assert_eq!(read(&twice).unwrap().values.len(), 65);
    }

    #[test]
    fn values_and_operations_are_counted() {
        let many = Fault::TooMany { limit: VALUES };
        for operation in [b'N', b'(', b'2', 0x94, b']', b'}'] {
            let bytes = [&b"N"[..], &vec![operation; OPERATIONS], b"."].concat();
            assert_eq!(read(&bytes).unwrap_err(), many, "{operation:#04x}");
        }
    }

    #[test]
    fn strings_stay_where_they_are() {
        let pickle = read(b"\x80\x03(U\x01aX\x02\0\0\0\xc3\xa9C\x01\xffT\x01\0\0\0\xfft.").unwrap();
        let items = pickle.list(pickle.root).unwrap();
        let texts: Vec<_> = items.iter().map(|&item| pickle.text(item)).collect();
        assert_eq!(texts, [Some("a"), Some("é"), None, None]);
        assert_eq!(pickle.string(items[2]), Some(&b"\xff"[..]));
        assert_eq!(pickle.string(items[3]), Some(&b"\xff"[..]));
    }
}
