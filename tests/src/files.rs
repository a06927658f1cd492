//! Files that tests write and read.

use std::fs::{self, File};
use std::path::Path;

use model_zoo::weights::{Container, Source, Stored};
use ptsbench::data::synthetic::{MicroSet, PIXELS, SIDE};

use crate::workspace_root;

/// Writes an RGB picture, and the folder that it is in.
pub fn png(file: &Path, [width, height]: [usize; 2], pixels: &[u8]) {
    fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
    let file = File::create(file).expect("a new file");
    let mut encoder = png::Encoder::new(file, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().expect("a header");
    writer.write_image_data(pixels).expect("as many pixels");
    writer.finish().expect("room on the disk");
}

/// Writes a built-in image.
pub fn built_in(file: &Path, set: MicroSet, index: usize) {
    let planes = set.image(index).pixels;
    let plane = PIXELS / 3;
    let pixels: Vec<u8> = (0..plane)
        .flat_map(|at| [0, 1, 2].map(|channel| planes[channel * plane + at]))
        .collect();
    png(file, [SIDE, SIDE], &pixels);
}

/// Every tensor of a safetensors file, as it is stored.
pub fn tensors(file: &Path) -> Vec<Stored> {
    let source = Container::open(file).expect("a weight file");
    let stored = |key: String| Stored {
        dtype: source.dtype(&key).expect("its type"),
        shape: source.shape(&key).expect("its shape"),
        bytes: source.raw(&key).expect("its bytes"),
        key,
    };
    source.keys().into_iter().map(stored).collect()
}

/// Compares with `tests/snapshots/<topic>.txt`, or writes it where `PTSBENCH_UPDATE_SNAPSHOTS` is set.
pub fn assert_snapshot(topic: &str, found: &str) {
    let file = workspace_root().join(format!("tests/snapshots/{topic}.txt"));
    if std::env::var_os("PTSBENCH_UPDATE_SNAPSHOTS").is_some() {
        fs::write(&file, found).expect("room on the disk");
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let mut lines = found.lines().zip(expected.lines());
    let place = lines.position(|(a, b)| a != b);
    assert!(
        found == expected,
        "{} differs first at {}; if the new messages are meant, run again with PTSBENCH_UPDATE_SNAPSHOTS=1 and look at the \
         difference:\n{found}",
        file.display(),
        place.map_or("its end".to_owned(), |place| format!("line {}", place + 1))
    );
}
