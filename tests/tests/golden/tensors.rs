//! Reads a safetensors file of golden values.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// The bytes of a file of tensors.
pub struct Tensors(Vec<u8>);

impl Tensors {
    pub fn open(path: &Path) -> Self {
        Self(std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).expect("a safetensors file")
    }

    pub fn has(&self, name: &str) -> bool {
        self.file().tensor(name).is_ok()
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        self.view(name, |dtype, _, data| {
            assert_eq!(dtype, Dtype::F32, "{name}");
            data.as_chunks()
                .0
                .iter()
                .map(|&value| f32::from_le_bytes(value))
                .collect()
        })
    }

    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.view(name, |dtype, _, data| {
            assert_eq!(dtype, Dtype::F64, "{name}");
            data.as_chunks()
                .0
                .iter()
                .map(|&value| f64::from_le_bytes(value))
                .collect()
        })
    }

    pub fn counts(&self, name: &str) -> Vec<usize> {
        self.view(name, |dtype, _, data| {
            assert_eq!(dtype, Dtype::I64, "{name}");
            let values = data.as_chunks().0.iter();
            values
                .map(|&value| i64::from_le_bytes(value) as usize)
                .collect()
        })
    }

    /// Rows of four.
    pub fn boxes(&self, name: &str) -> Vec<[f32; 4]> {
        self.f32(name).as_chunks().0.to_vec()
    }

    fn view<T>(&self, name: &str, read: impl Fn(Dtype, &[usize], &[u8]) -> T) -> T {
        let file = self.file();
        let view = file.tensor(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        read(view.dtype(), view.shape(), view.data())
    }
}
