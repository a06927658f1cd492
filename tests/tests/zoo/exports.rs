//! What `ptsbench export` writes of the golden networks.

use super::*;

/// Runs the golden cases on the weights of a file, which must have all of the network's keys.
struct FromFile<'a> {
    check: Check<'a>,
    file: &'a Container,
}

impl<M> Visit<M> for FromFile<'_>
where
    M: Modality + Golds<Input = <M as Modality>::Input, Output = <M as Modality>::Output>,
{
    type Out = Outcome;

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Outcome {
        let mut outcome = Outcome::default();
        let names = network.clone();
        let network = load(network, |path| names.key(path), self.file)
            .unwrap_or_else(|error| panic!("{error}"));
        for case in &self.check.golden.cases {
            self.check.check_case::<M, N>(case, &network, &mut outcome);
        }
        outcome
    }
}

/// A checkpoint as its publisher would store it: the golden's keys in their order, counters among them.
fn checkpoint(golden: &Golden) -> Vec<Stored> {
    let stored = |filled: &Filled| {
        let (dtype, bytes) = if filled.is_float() {
            let values = filled.values(&golden.salt);
            (Dtype::F32, from_f32(Dtype::F32, &values).expect("f32"))
        } else {
            (Dtype::I64, 7i64.to_le_bytes().to_vec())
        };
        Stored {
            key: filled.key.clone(),
            dtype,
            shape: filled.shape.clone(),
            bytes,
        }
    };
    golden.state_dict.iter().map(stored).collect()
}

/// `ptsbench export`, from one file to another.
fn export(name: &str, weights: &Path, out: &Path, options: &[&str]) -> Container {
    let mut command = ptsbench_tests::program::command();
    command.args(["export", name, "--device", "flex", "--weights"]);
    command.arg(weights).arg("--out").arg(out);
    command.args(options);
    let output = command.output().expect("the program starts");
    assert!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Container::open(out).unwrap_or_else(|error| panic!("{error}"))
}

/// What `ptsbench export` writes is the publisher's checkpoint again: the same keys, shapes and types. Dense, it gives the
/// golden outputs; pruned, it differs by zeros in prunable weights alone, and they change the outputs.
#[test]
fn exports_are_the_checkpoint_again() {
    let (folder, device) = (golden_folder(), Device::flex());
    let wanted = [
        "tiny_resnet_basic",
        "tiny_mobilenetv2",
        "tiny_mobilenetv3_timm",
        "tiny_regnetx",
        "tiny_shufflenet_v2",
        "tiny_vit",
        "tiny_retinanet",
        "tiny_mobilenetv2_ssd_lite",
        "tiny_unet",
        "resnet18",
        "mobilenetv2_100",
    ];
    let there = stems(&folder);
    let names: Vec<&str> = wanted
        .into_iter()
        .filter(|name| there.iter().any(|stem| stem == name))
        .collect();
    assert!(
        !names.is_empty(),
        "{}: none of {wanted:?}",
        folder.display()
    );
    let space = tempfile::tempdir().expect("a folder");
    for name in names {
        let golden: Golden = read_json(&folder.join(format!("{name}.json"))).unwrap();
        let stored = Container::open(&folder.join(format!("{name}.safetensors"))).unwrap();
        let given = checkpoint(&golden);
        let file = space.path().join("given.safetensors");
        write_stored(&file, &given, &BTreeMap::new()).unwrap();

        let whole = export(name, &file, &space.path().join("dense.safetensors"), &[]);
        let outcome = |file: &Container| {
            let check = Check {
                golden: &golden,
                stored: &stored,
                device: &device,
            };
            let spec = catalog::find(name).expect("in the catalog");
            spec.open(&device, FromFile { check, file })
        };
        let dense = outcome(&whole);
        assert!(dense.failures.is_empty(), "{name}: {:?}", dense.failures);
        assert!(dense.outputs > 0, "{name}");

        let out = space.path().join("pruned.safetensors");
        let pruned = export(name, &file, &out, &["--rate", "0.8"]);
        let (mut zeros, mut weights) = (0, 0);
        let prunable: Vec<&str> = golden
            .layers
            .iter()
            .map(|layer| layer.key.as_str())
            .collect();
        for tensor in &given {
            let key = &tensor.key;
            let entry = |file: &Container| {
                let entry = file.entries().get(key);
                let entry = entry.unwrap_or_else(|| panic!("{name}: no `{key}`"));
                (entry.dtype, entry.shape.clone())
            };
            assert_eq!(entry(&whole), (tensor.dtype, tensor.shape.clone()), "{key}");
            assert_eq!(
                entry(&pruned),
                (tensor.dtype, tensor.shape.clone()),
                "{key}"
            );
            if tensor.dtype != Dtype::F32 {
                continue;
            }
            let before: Vec<f32> = Container::open(&file).unwrap().read(key).unwrap();
            assert_eq!(whole.read(key).unwrap(), before, "{name}: {key}");
            let after = pruned.read(key).unwrap();
            if !prunable.contains(&key.as_str()) {
                assert_eq!(after, before, "{name}: {key}");
                continue;
            }
            weights += after.len();
            zeros += after.iter().filter(|&&value| value == 0.0).count();
            let kept = after.iter().zip(&before);
            assert!(
                kept.clone()
                    .all(|(after, before)| *after == 0.0 || after == before),
                "{name}: {key} has a changed weight"
            );
        }
        assert_eq!(whole.entries().len(), given.len(), "{name}");
        assert_eq!(pruned.entries().len(), given.len(), "{name}");
        let part = zeros as f64 / weights as f64;
        assert!((part - 0.8).abs() < 1e-3, "{name}: {part}");
        assert!(
            !outcome(&pruned).failures.is_empty(),
            "{name}: 80 % of zeros changed nothing"
        );
        let small = space.path().join("packed.safetensors");
        export(name, &file, &small, &["--rate", "0.8", "--compress"]);
        let packed = open(&small).unwrap();
        assert_eq!(packed.keys().len(), given.len(), "{name}");
        for tensor in &given {
            let [before, after] = [pruned.raw(&tensor.key), packed.raw(&tensor.key)];
            assert_eq!(before.unwrap(), after.unwrap(), "{name}: {}", tensor.key);
            assert_eq!(packed.shape(&tensor.key), Some(tensor.shape.clone()));
        }
        let bytes = [&out, &small].map(|path| std::fs::metadata(path).unwrap().len());
        say(&format!(
            "export of {name}: {} tensors, {} outputs, largest error/atol {:.3}, {zeros} of {weights} weights zero, {} bytes, packed {}",
            given.len(),
            dense.outputs,
            dense.ratio,
            bytes[0],
            bytes[1]
        ));
    }
}
