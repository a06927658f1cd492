//! Weight files as bad as they come, over every family: each is refused with the file and what is wrong, or recognised.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::tap::Bare;
use model_zoo::unit::Layout;
use model_zoo::vit;
use model_zoo::weights::{
    Container, Dtype, Source, Stored, load_network, open, parameters, recognise, save, write_stored,
};
use model_zoo::{Classes, Classifier, Modality, Of};
use ptsbench_tests::files::tensors;

/// A small row of each family, and another size of it.
const FAMILIES: [[&str; 2]; 7] = [
    ["micro_resnet8", "micro_resnet14"],
    ["micro_regnetx_s", "micro_regnetx_m"],
    ["micro_mobilenetv2_050", "micro_mobilenetv2_100"],
    ["micro_mobilenetv3_050", "micro_mobilenetv3_100"],
    ["micro_shufflenet_v2_x0_5", "micro_shufflenet_v2_x1_0"],
    ["micro_vgg9_bn", "tiny_cifar_vgg_bn"],
    ["micro_vit_nano", "tiny_vit"],
];

/// Writes a network's weights, as they are before any training, under its own keys.
struct Save<'a>(&'a Path);

impl<M: Modality> Visit<M> for Save<'_> {
    type Out = ();

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
        save(&network, |path| network.key(path), self.0, &BTreeMap::new()).unwrap();
    }
}

/// Loads a file as every command does; the message where it is refused.
struct Load<'a>(&'a Path);

impl<M: Modality> Visit<M> for Load<'_> {
    type Out = Result<(), String>;

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Self::Out {
        let source = open(self.0).map_err(|error| error.to_string())?;
        let loaded = load_network(network, source.as_ref());
        loaded.map(drop).map_err(|error| error.to_string())
    }
}

fn saved(name: &str, file: &Path) {
    catalog::find(name)
        .unwrap()
        .open(&Device::flex(), Save(file));
}

fn loaded(name: &str, file: &Path) -> Result<(), String> {
    catalog::find(name)
        .unwrap()
        .open(&Device::flex(), Load(file))
}

/// The tensors of a convolution or linear layer, biases and norms apart: first and last of the file are of any kind.
fn kernel(tensors: &[Stored]) -> usize {
    tensors
        .iter()
        .position(|tensor| tensor.shape.len() == 4)
        .unwrap()
}

/// The classifier's weight: the last matrix with a row for each class.
fn classifier(tensors: &[Stored]) -> usize {
    let rows = |tensor: &Stored| tensor.shape.len() == 2 && [20, 1000].contains(&tensor.shape[0]);
    tensors.iter().rposition(rows).unwrap()
}

/// How a sound file's tensors are spoilt, and what the message then has, the tensor's key apart.
type Damage = (&'static str, fn(&mut Vec<Stored>), &'static [&'static str]);

const DAMAGES: [Damage; 15] = [
    (
        "without its first tensor",
        |t| drop(t.remove(0)),
        &[
            "1 of",
            "tensors are missing",
            "use the weights of this very network",
        ],
    ),
    (
        "without its last tensor",
        |t| drop(t.pop()),
        &["1 of", "tensors are missing"],
    ),
    (
        "without any tensor",
        Vec::clear,
        &["tensors are missing", "and", "more"],
    ),
    (
        "with a tensor too many",
        |t| {
            t.push(Stored {
                key: "a.b".into(),
                dtype: Dtype::F32,
                shape: vec![1],
                bytes: vec![0; 4],
            });
        },
        &["1 tensors have no place", "a.b"],
    ),
    (
        "with a tensor misnamed",
        |t| t[0].key.push('x'),
        &["1 of", "missing", "1 other tensors"],
    ),
    (
        "from a wrapper, but for one tensor",
        |t| {
            t.iter_mut()
                .skip(1)
                .for_each(|tensor| tensor.key.insert_str(0, "module."))
        },
        &["missing", "prefix `module.`"],
    ),
    (
        "from a trainer",
        |t| {
            t.iter_mut()
                .for_each(|tensor| tensor.key.insert_str(0, "model."))
        },
        &["missing", "prefix `model.`"],
    ),
    (
        "with a kernel flattened",
        |t| {
            let at = kernel(t);
            t[at].shape = vec![t[at].shape.iter().product()];
        },
        &["1 tensors of another shape", "expected [", "found ["],
    ),
    (
        "with a kernel cut",
        |t| {
            let at = kernel(t);
            t[at].shape = vec![1; 4];
            t[at].bytes.truncate(4);
        },
        &["1 tensors of another shape", "found [1, 1, 1, 1]"],
    ),
    (
        "of a class less, but with its bias",
        |t| {
            let at = classifier(t);
            let inputs = t[at].shape[1];
            t[at].shape[0] = 19;
            t[at].bytes.truncate(19 * inputs * 4);
        },
        &["1 tensors of another shape", "expected [19]", "found [20]"],
    ),
    (
        "without classes",
        |t| {
            let at = classifier(t);
            t[at].shape[0] = 0;
            t[at].bytes.clear();
        },
        &["1 tensors of another shape", "expected [20, ", "found [0, "],
    ),
    (
        "with a NaN",
        |t| {
            let at = kernel(t);
            t[at].bytes[4..8].copy_from_slice(&f32::NAN.to_le_bytes());
        },
        &[
            "1 of ",
            "values are NaN",
            "at index 1",
            "diverged or damaged",
        ],
    ),
    (
        "with infinity",
        |t| {
            let at = classifier(t);
            t[at].bytes[..4].copy_from_slice(&f32::NEG_INFINITY.to_le_bytes());
        },
        &["1 of ", "values are infinite", "at index 0"],
    ),
    (
        "of whole numbers",
        |t| {
            let at = classifier(t);
            t[at].dtype = Dtype::I32;
        },
        &["dtype I32, expected F32"],
    ),
    (
        "with a matrix in half precision beyond its range",
        |t| {
            let at = classifier(t);
            t[at].dtype = Dtype::F16;
            // The largest exponent: infinity.
            t[at].bytes = [0x00, 0x7c].repeat(t[at].bytes.len() / 4);
        },
        &["values are infinite"],
    ),
];

/// Bytes that are no safetensors file, made from those of a sound one.
type Foreign = (&'static str, fn(&[u8]) -> Vec<u8>, &'static [&'static str]);

const FOREIGN: [Foreign; 9] = [
    ("empty", |_| Vec::new(), &["0 bytes are too small"]),
    (
        "cut in half",
        |bytes| bytes[..bytes.len() / 2].to_vec(),
        &["ends past the end of the file", "expects", "holds"],
    ),
    (
        "a byte short",
        |bytes| bytes[..bytes.len() - 1].to_vec(),
        &["ends past the end of the file"],
    ),
    (
        "cut inside its header",
        |bytes| bytes[..100].to_vec(),
        &["runs past the end of file (file size 100 bytes"],
    ),
    (
        "a byte too long",
        |bytes| [bytes, &[0]].concat(),
        &["1 bytes follow after the last tensor"],
    ),
    (
        "a page",
        |_| b"<!DOCTYPE html><html><body>Not found</body></html>".to_vec(),
        &["HTML page"],
    ),
    (
        "a pointer",
        |_| b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n".to_vec(),
        &["Git LFS pointer"],
    ),
    (
        "an archive that is broken",
        |bytes| [b"PK\x03\x04", &bytes[..500]].concat(),
        &["zip"],
    ),
    (
        "a picture",
        |bytes| [b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &bytes[..500]].concat(),
        &["header length"],
    ),
];

#[test]
fn bad_files_of_every_family_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (sound, bad) = (
        folder.path().join("sound.safetensors"),
        folder.path().join("bad.safetensors"),
    );
    let mut cases = 0;
    let mut refused = |name: &str, what: &str, file: &Path, words: &[&str]| {
        let said = loaded(name, file).expect_err(&format!("{name} {what} is taken"));
        let file = file.file_name().unwrap().to_str().unwrap();
        for word in words.iter().chain([&file]) {
            assert!(said.contains(word), "{name} {what}: no `{word}` in: {said}");
        }
        cases += 1;
    };
    for [name, larger] in FAMILIES {
        saved(name, &sound);
        loaded(name, &sound).unwrap();
        let bytes = fs::read(&sound).unwrap();
        for (what, change, words) in FOREIGN {
            fs::write(&bad, change(&bytes)).unwrap();
            refused(name, what, &bad, words);
        }
        for (what, damage, words) in DAMAGES {
            let mut tensors = tensors(&sound);
            damage(&mut tensors);
            write_stored(&bad, &tensors, &BTreeMap::new()).unwrap();
            refused(name, what, &bad, words);
        }
        // Sound files of other networks: another size of the family, and each other family.
        saved(larger, &bad);
        refused(name, "from another size", &bad, &[]);
        for [other, _] in FAMILIES {
            if other != name {
                saved(other, &bad);
                refused(name, other, &bad, &["missing"]);
            }
        }
    }
    println!("{} families, {cases} bad weight files", FAMILIES.len());
    assert_eq!(cases, 7 * (FOREIGN.len() + DAMAGES.len() + 1 + 6));
}

/// Writes a network's file again under the keys of each other layout that names all of it, reads it back and compares.
struct Layouts<'a>(&'a Path);

impl<M: Modality> Visit<M> for Layouts<'_> {
    type Out = Vec<Layout>;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Vec<Layout> {
        let file = |name: &str| self.0.join(name);
        save(
            &network,
            |path| network.key(path),
            &file("own.safetensors"),
            &BTreeMap::new(),
        )
        .unwrap();
        let own = Container::open(&file("own.safetensors")).unwrap();
        let slots = parameters(&network, &own);
        let mut read = Vec::new();
        for layout in Layout::ALL {
            let keys: Option<BTreeMap<String, String>> = slots
                .iter()
                .map(|slot| Some((slot.key.clone(), network.key_in(layout, &slot.path)?)))
                .collect();
            let Some(keys) = keys.filter(|keys| keys.iter().any(|(own, theirs)| own != theirs))
            else {
                continue;
            };
            let theirs: Vec<Stored> = tensors(&file("own.safetensors"))
                .into_iter()
                .map(|tensor| Stored {
                    key: keys[&tensor.key].clone(),
                    ..tensor
                })
                .collect();
            write_stored(&file("theirs.safetensors"), &theirs, &BTreeMap::new()).unwrap();
            let source = open(&file("theirs.safetensors")).unwrap();
            assert_eq!(
                recognise(&network, source.as_ref()),
                Some(layout),
                "{}",
                spec.name
            );

            /// Loads into a network of its own and saves it under its own keys.
            struct Again<'a>(&'a dyn Source, &'a Path);
            impl<M: Modality> Visit<M> for Again<'_> {
                type Out = ();
                fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
                    let network = load_network(network, self.0).unwrap();
                    save(&network, |path| network.key(path), self.1, &BTreeMap::new()).unwrap();
                }
            }
            let again = file("again.safetensors");
            spec.open(&Device::flex(), Again(source.as_ref(), &again));
            let same = fs::read(&again).unwrap() == fs::read(file("own.safetensors")).unwrap();
            assert!(same, "{}: {layout:?}", spec.name);
            read.push(layout);
        }
        read
    }
}

#[test]
fn files_in_the_other_layout_are_recognised() {
    let folder = tempfile::tempdir().unwrap();
    let mut read = BTreeMap::new();
    for [name, _] in FAMILIES {
        let spec = catalog::find(name).unwrap();
        read.insert(name, spec.open(&Device::flex(), Layouts(folder.path())));
    }
    let count: usize = read.values().map(Vec::len).sum();
    println!("{count} files in other layouts: {read:?}");
    for name in ["micro_regnetx_s", "micro_mobilenetv2_050", "micro_vit_nano"] {
        assert!(!read[name].is_empty(), "{name}: {read:?}");
    }
}

/// The file of a network that somebody trained further: other classes, the first weights of the same layers, and every key
/// behind `prefix`.
fn tuned(own: &Path, classes: usize, prefix: &str, file: &Path) {
    let mut tensors = tensors(own);
    let at = classifier(&tensors);
    let (inputs, stem) = (
        tensors[at].shape[1],
        tensors[at].key.strip_suffix("weight").unwrap().to_owned(),
    );
    for tensor in &mut tensors {
        if let Some(part) = tensor.key.strip_prefix(&stem) {
            let row = if part == "weight" { 4 * inputs } else { 4 };
            let rows = tensor.bytes.len() / row;
            tensor.bytes = (0..classes)
                .flat_map(|class| {
                    let at = class % rows * row;
                    tensor.bytes[at..at + row].to_vec()
                })
                .collect();
            tensor.shape[0] = classes;
        }
        tensor.key.insert_str(0, prefix);
    }
    write_stored(file, &tensors, &BTreeMap::new()).unwrap();
}

/// Loads a file and runs it on a fixed image.
struct Logits<'a>(&'a Path);

impl Visit<Classes> for Logits<'_> {
    type Out = Vec<f32>;

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Vec<f32> {
        let source = open(self.0).unwrap();
        let network = load_network(network, source.as_ref()).unwrap();
        let [channels, height, width] = spec.input;
        let count = channels * height * width;
        let values: Vec<f32> = (0..count).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
        let shape = [1, channels, height, width];
        let input = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        let logits = network.run(input, &mut Bare::default()).into_data();
        logits.iter::<f32>().collect()
    }
}

#[test]
fn the_file_decides_how_many_classes_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let (own, file) = (
        folder.path().join("own.safetensors"),
        folder.path().join("tuned.safetensors"),
    );
    for [name, _] in FAMILIES {
        saved(name, &own);
        let logits = |file: &Path| {
            let spec = catalog::find(name).unwrap();
            spec.open_classes(&Device::flex(), "this test looks at classes", Logits(file))
                .unwrap()
        };
        let of_own = logits(&own);
        for (classes, prefix) in [(7, ""), (37, "module."), (1, "_orig_mod.module.")] {
            tuned(&own, classes, prefix, &file);
            let found = logits(&file);
            let expected: Vec<f32> = (0..classes).map(|class| of_own[class % 20]).collect();
            assert_eq!(found.len(), classes, "{name}");
            for (found, expected) in found.iter().zip(&expected) {
                assert!(
                    (found - expected).abs() < 1e-5,
                    "{name}: {found} {expected}"
                );
            }
            assert_eq!(open(&file).unwrap().prefix(), prefix);
        }
    }
}

#[test]
fn another_body_is_refused_whatever_its_classes() {
    let folder = tempfile::tempdir().unwrap();
    let (own, file) = (
        folder.path().join("own.safetensors"),
        folder.path().join("tuned.safetensors"),
    );
    saved("micro_resnet14", &own);
    tuned(&own, 7, "module.", &file);
    let said = loaded("micro_resnet8", &file).unwrap_err();
    assert!(said.contains("have no place in ResNet"), "{said}");
    saved("deit_tiny_patch16_224", &own);
    tuned(&own, 7, "", &file);
    let said = loaded("deit_small_patch16_224", &file).unwrap_err();
    assert!(said.contains("of another shape"), "{said}");
    assert!(said.contains("cls_token expected [1, 1, 384]"), "{said}");
}

/// The message with which a vision transformer's file is refused by another one, or `None`.
fn between(file: vit::Size, network: vit::Size) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vit.safetensors");
    let device = Device::flex();
    save(&file.init(&device), vit::key, &path, &BTreeMap::new()).unwrap();
    let source = open(&path).unwrap();
    let loaded = load_network(network.init(&device), source.as_ref());
    loaded.err().map(|error| error.to_string())
}

#[test]
fn a_transformer_of_other_numbers_is_refused_with_them() {
    let size = vit::Size {
        image: 32,
        patch: 8,
        width: 24,
        depth: 2,
        heads: 3,
        classes: 5,
    };
    for (other, words) in [
        (
            vit::Size { image: 48, ..size },
            ["pos_embed expected [1, 17, 24]", "found [1, 37, 24]"],
        ),
        (
            vit::Size { patch: 4, ..size },
            ["pos_embed expected [1, 17, 24]", "patch_embed.proj.weight"],
        ),
        // Heads of the same width, but four of them.
        (
            vit::Size {
                heads: 4,
                width: 32,
                ..size
            },
            ["cls_token expected [1, 1, 24]", "found [1, 1, 32]"],
        ),
        (vit::Size { depth: 3, ..size }, ["no place", "blocks.2."]),
        (vit::Size { depth: 1, ..size }, ["missing", "blocks.1."]),
    ] {
        let said = between(other, size).unwrap_or_else(|| panic!("{other:?} is taken"));
        for word in words {
            assert!(said.contains(word), "{other:?}: no `{word}` in: {said}");
        }
    }
    // Classes are the checkpoint's to decide.
    assert_eq!(between(vit::Size { classes: 6, ..size }, size), None);
    // The same tokens cut into other heads: no tensor of a checkpoint says how many there are, so this one is taken. In the
    // published sizes a head has 64 channels, and their number changes the width.
    assert_eq!(between(vit::Size { heads: 6, ..size }, size), None);
}
