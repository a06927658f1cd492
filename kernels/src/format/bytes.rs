//! Reading and writing the byte form of formats: little-endian, sizes as u64, nothing believed.

use crate::KernelError;

/// Starts a byte form: the format's id, then its sizes.
pub(super) fn header(id: u8, sizes: &[usize]) -> Vec<u8> {
    let mut bytes = vec![id];
    for &size in sizes {
        bytes.extend((size as u64).to_le_bytes());
    }
    bytes
}

/// Appends an array of words.
pub(super) fn put_words(bytes: &mut Vec<u8>, words: &[u32]) {
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

/// Appends an array of f32, bit for bit.
pub(super) fn put_floats(bytes: &mut Vec<u8>, values: &[f32]) {
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// What is left of a byte form.
pub(super) struct Reader<'a> {
    format: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Refuses another format's id.
    pub(super) fn new(format: &'static str, id: u8, bytes: &'a [u8]) -> Result<Self, KernelError> {
        match bytes {
            [found, rest @ ..] if *found == id => Ok(Self { format, rest }),
            [found, ..] => {
                Err(Self { format, rest: &[] }.fail(format!("format id {found}, not {id}")))
            }
            [] => Err(Self { format, rest: &[] }.fail("no bytes".into())),
        }
    }

    pub(super) fn fail(&self, why: String) -> KernelError {
        KernelError::Format {
            format: self.format,
            why,
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], KernelError> {
        match self.rest.split_at_checked(len) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => Err(self.fail(format!("{} bytes left, {len} needed", self.rest.len()))),
        }
    }

    pub(super) fn byte(&mut self) -> Result<u8, KernelError> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn size(&mut self) -> Result<usize, KernelError> {
        let bytes = self.take(8)?;
        let size = u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        usize::try_from(size).map_err(|_| self.fail(format!("size {size}")))
    }

    /// A product of sizes, refused where it overflows.
    pub(super) fn product(&self, factors: &[usize]) -> Result<usize, KernelError> {
        // A zero makes any product small, but the other factors still have to be sane to be indexed with.
        factors
            .iter()
            .try_fold(1usize, |product, &factor| product.checked_mul(factor))
            .ok_or_else(|| self.fail(format!("sizes {factors:?}")))
    }

    fn quads(
        &mut self,
        count: usize,
    ) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, KernelError> {
        let len = self.product(&[count, 4])?;
        let bytes = self.take(len)?;
        Ok(bytes
            .chunks_exact(4)
            .map(|quad| quad.try_into().expect("4 bytes")))
    }

    pub(super) fn words(&mut self, count: usize) -> Result<Vec<u32>, KernelError> {
        Ok(self.quads(count)?.map(u32::from_le_bytes).collect())
    }

    pub(super) fn floats(&mut self, count: usize) -> Result<Vec<f32>, KernelError> {
        Ok(self.quads(count)?.map(f32::from_le_bytes).collect())
    }

    /// Refuses bytes beyond the end.
    pub(super) fn end(self) -> Result<(), KernelError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.fail(format!("{} bytes too many", self.rest.len())))
        }
    }
}

/// Every way a byte form can be damaged that a test should try: cut short, lengthened, one byte changed.
#[cfg(test)]
pub(super) fn damaged(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    let cut = (0..bytes.len()).map(|len| bytes[..len].to_vec());
    let longer = std::iter::once([bytes, &[0]].concat());
    let changed = (0..bytes.len()).flat_map(move |at| {
        [0u8, 1, 0x7f, 0x80, 0xff].into_iter().map(move |value| {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            bytes
        })
    });
    cut.chain(longer).chain(changed)
}
