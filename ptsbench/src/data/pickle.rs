//! The few opcodes of Python's pickle that the CIFAR files use, read as data.
//!
//! A pickle is a program: whatever it names would be imported and called. Here names are compared with the four that
//! numpy's arrays need and are otherwise refused; nothing is ever called.

/// What a pickle holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `None`, or a truth value that is not looked at.
    None,
    /// An integer.
    Int(i64),
    /// A string of any kind.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Value>),
    /// A tuple.
    Tuple(Vec<Value>),
    /// A dictionary, in the file's order.
    Dict(Vec<(Value, Value)>),
    /// One of the known names.
    Name(Name),
    /// An array of bytes.
    Array {
        /// Its sides.
        shape: Vec<usize>,
        /// Its bytes, row by row.
        bytes: Vec<u8>,
    },
    /// What `numpy.dtype` was asked for.
    Type(Vec<u8>),
    /// A mark on the stack.
    Mark,
}

/// The names that may stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Name {
    /// `_reconstruct`, which makes an empty array.
    Reconstruct,
    /// `ndarray`.
    Array,
    /// `dtype`.
    Type,
}

impl Value {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let Self::Dict(pairs) = self else {
            return None;
        };
        pairs
            .iter()
            .find(|(name, _)| matches!(name, Self::Bytes(name) if name == key.as_bytes()))
            .map(|(_, value)| value)
    }

    /// The integers of a list.
    pub fn integers(&self) -> Option<Vec<i64>> {
        let (Self::List(items) | Self::Tuple(items)) = self else {
            return None;
        };
        let integer = |item: &Self| match item {
            Self::Int(value) => Some(*value),
            _ => None,
        };
        items.iter().map(integer).collect()
    }
}

/// Reads a pickle; the error is a sentence.
pub fn read(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = Reader {
        bytes,
        at: 0,
        stack: Vec::new(),
        memo: Vec::new(),
    };
    reader.run()
}

/// Memo places that are kept: the published files use a few per image.
const MEMO: usize = 1 << 20;

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    /// Scalars and strings by memo place; containers are not kept, which also rules out exponential copies.
    memo: Vec<Option<Value>>,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| format!("pickle cut off at byte {}", self.bytes.len()))?;
        self.at += count;
        Ok(taken)
    }

    fn number(&mut self, size: usize) -> Result<usize, String> {
        let bytes = self.take(size)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    }

    fn line(&mut self) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        let length = rest.iter().position(|&byte| byte == b'\n');
        let length =
            length.ok_or_else(|| format!("pickle cut off at byte {}", self.bytes.len()))?;
        let line = self.take(length)?;
        self.at += 1;
        Ok(line)
    }

    fn pop(&mut self) -> Result<Value, String> {
        self.stack
            .pop()
            .ok_or_else(|| format!("broken pickle: nothing on the stack at byte {}", self.at))
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.stack.iter().rposition(|value| *value == Value::Mark);
        let mark = mark.ok_or_else(|| format!("broken pickle: no mark at byte {}", self.at))?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn pop_tuple(&mut self, count: usize) -> Result<(), String> {
        if self.stack.len() < count {
            return Err(format!(
                "broken pickle: nothing on the stack at byte {}",
                self.at
            ));
        }
        let items = self.stack.split_off(self.stack.len() - count);
        self.stack.push(Value::Tuple(items));
        Ok(())
    }

    fn remember(&mut self, place: usize) {
        let value = match self.stack.last() {
            Some(value @ (Value::Int(_) | Value::Bytes(_) | Value::Name(_) | Value::None)) => value,
            _ => return,
        };
        // Long strings are data and are not referred to again.
        let long = matches!(value, Value::Bytes(bytes) if bytes.len() > 256);
        if place < MEMO && !long {
            let value = value.clone();
            if self.memo.len() <= place {
                self.memo.resize(place + 1, None);
            }
            self.memo[place] = Some(value);
        }
    }

    fn recall(&mut self, place: usize) -> Result<(), String> {
        let value = self.memo.get(place).cloned().flatten();
        let value =
            value.ok_or_else(|| format!("memo place {place} is no string or number: refused"))?;
        self.stack.push(value);
        Ok(())
    }

    fn run(&mut self) -> Result<Value, String> {
        loop {
            let at = self.at;
            match self.take(1)?[0] {
                0x80 => {
                    self.take(1)?;
                }
                b'.' => return self.pop(),
                b'(' => self.stack.push(Value::Mark),
                b'}' => self.stack.push(Value::Dict(Vec::new())),
                b']' => self.stack.push(Value::List(Vec::new())),
                b')' => self.stack.push(Value::Tuple(Vec::new())),
                b'N' | 0x88 | 0x89 => self.stack.push(Value::None),
                b'K' => {
                    let value = self.number(1)?;
                    self.stack.push(Value::Int(value as i64));
                }
                b'M' => {
                    let value = self.number(2)?;
                    self.stack.push(Value::Int(value as i64));
                }
                b'J' => {
                    let value = self.number(4)? as u32 as i32;
                    self.stack.push(Value::Int(value.into()));
                }
                // Byte and text strings with lengths of one or four bytes.
                opcode @ (b'U' | b'C' | b'T' | b'B' | b'X') => {
                    let length = self.number(if matches!(opcode, b'U' | b'C') { 1 } else { 4 })?;
                    let bytes = self.take(length)?.to_vec();
                    self.stack.push(Value::Bytes(bytes));
                }
                b'q' => {
                    let place = self.number(1)?;
                    self.remember(place);
                }
                b'r' => {
                    let place = self.number(4)?;
                    self.remember(place);
                }
                b'h' => {
                    let place = self.number(1)?;
                    self.recall(place)?;
                }
                b'j' => {
                    let place = self.number(4)?;
                    self.recall(place)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.stack.push(Value::Tuple(items));
                }
                0x85 => self.pop_tuple(1)?,
                0x86 => self.pop_tuple(2)?,
                0x87 => self.pop_tuple(3)?,
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let name = known(module, name)?;
                    self.stack.push(Value::Name(name));
                }
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                opcode => {
                    return Err(format!(
                        "pickle opcode {opcode:#04x} at byte {at} is not one the CIFAR files use: refused"
                    ));
                }
            }
        }
    }

    fn extend(&mut self, items: Vec<Value>) -> Result<(), String> {
        match self.stack.last_mut() {
            Some(Value::List(list)) => list.extend(items),
            _ => return Err(format!("broken pickle: no list at byte {}", self.at)),
        }
        Ok(())
    }

    fn insert(&mut self, items: Vec<Value>) -> Result<(), String> {
        let Some(Value::Dict(pairs)) = self.stack.last_mut() else {
            return Err(format!("broken pickle: no dictionary at byte {}", self.at));
        };
        let mut items = items.into_iter();
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            pairs.push((key, value));
        }
        Ok(())
    }

    /// "Calls" a known name: an empty array or a type.
    fn reduce(&mut self) -> Result<(), String> {
        let arguments = self.pop()?;
        let made = match (self.pop()?, arguments) {
            (Value::Name(Name::Reconstruct), _) => Value::Array {
                shape: Vec::new(),
                bytes: Vec::new(),
            },
            (Value::Name(Name::Type), Value::Tuple(arguments)) => match arguments.first() {
                Some(Value::Bytes(name)) => Value::Type(name.clone()),
                _ => return Err("broken pickle: a type without a name".to_owned()),
            },
            _ => {
                return Err(
                    "pickle that calls something other than numpy's arrays: refused".to_owned(),
                );
            }
        };
        self.stack.push(made);
        Ok(())
    }

    /// Sets the state of an array (version, shape, type, order, bytes) or of a type, which has none that matters.
    fn build(&mut self) -> Result<(), String> {
        let state = self.pop()?;
        match (self.stack.last_mut(), state) {
            (Some(Value::Type(_)), _) => Ok(()),
            (Some(Value::Array { shape, bytes }), Value::Tuple(state)) => {
                let mut state = state.into_iter();
                let mut next = || state.next().unwrap_or(Value::None);
                let (_, sides, kind, _, data) = (next(), next(), next(), next(), next());
                let sides = sides.integers().unwrap_or_default();
                let sides: Option<Vec<usize>> =
                    sides.into_iter().map(|side| side.try_into().ok()).collect();
                match (sides, kind, data) {
                    (Some(sides), Value::Type(kind), Value::Bytes(data)) if kind == b"u1" => {
                        (*shape, *bytes) = (sides, data);
                        Ok(())
                    }
                    _ => Err("array of another type than bytes".to_owned()),
                }
            }
            _ => Err("pickle that sets the state of an object: refused".to_owned()),
        }
    }
}

fn known(module: &[u8], name: &[u8]) -> Result<Name, String> {
    match (module, name) {
        (b"numpy.core.multiarray" | b"numpy._core.multiarray", b"_reconstruct") => {
            Ok(Name::Reconstruct)
        }
        (b"numpy", b"ndarray") => Ok(Name::Array),
        (b"numpy", b"dtype") => Ok(Name::Type),
        _ => Err(format!(
            "pickle that would run {}.{}: refused; nothing was executed, and the file is not the published one",
            module.escape_ascii(),
            name.escape_ascii()
        )),
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
    fn memo_places_do_not_multiply_containers() {
        // A tuple of two references to itself would double with every round.
        let mut bytes = b"\x80\x02)q\x00".to_vec();
        bytes.extend(b"h\x00h\x00\x86q\x00".repeat(64));
        bytes.push(b'.');
        assert!(read(&bytes).is_err());
    }

    #[test]
    fn cut_pickles_are_refused_at_every_length() {
        let whole = b"\x80\x02}q\x00(U\x01aq\x01]q\x02(K\x01M\x02\x01J\xff\xff\xff\xffeu.";
        let value = read(whole).unwrap();
        assert_eq!(value.get("a").unwrap().integers(), Some(vec![1, 258, -1]));
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut at {cut}");
        }
    }
}
