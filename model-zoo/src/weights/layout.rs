//! A checkpoint in whichever layout it was written: recognised by its keys, and read under the network's own.
//!
//! timm and torchvision name the layers of most families differently and agree on the numbers. Where one writes a linear
//! layer and the other a convolution over the same values, shapes differ too, but not the order of the values.

use std::collections::HashMap;

use burn::module::Module;

use super::error::WeightError;
use super::source::{self, Source, Walk, load};
use crate::unit::{Layout, Network};

/// Fills a network from a source in its own layout or in another one of its family's, as [`load`] does it. It gets as many
/// classes as the source has.
pub fn load_network<N: Network>(network: N, source: &dyn Source) -> Result<N, WeightError> {
    let network = fitted(network, source);
    // Keys depend on the network's shape alone, but loading consumes it; running statistics that the two share are of no
    // interest to the one that only names keys.
    let names = network.clone();
    match recognise(&names, source) {
        None => load(network, |path| names.key(path), source),
        Some(layout) => {
            let key_of = |path: &str| {
                names
                    .key_in(layout, path)
                    .unwrap_or_else(|| names.key(path))
            };
            let wanted = slots(&names)
                .into_iter()
                .map(|(path, shape)| (key_of(&path), shape));
            let source = Reshaped {
                source,
                wanted: wanted.collect(),
            };
            load(network.meant_by(layout), key_of, &source)
        }
    }
}

/// The network with as many classes as a source has: nothing else of a network is left to its weights.
fn fitted<N: Network>(network: N, source: &dyn Source) -> N {
    match other_classes(&network, source) {
        Some(classes) => network.with_classes(classes),
        None => network,
    }
}

/// The classes of a source's classifier, where its columns are the network's and their number is another than its own.
pub fn other_classes<N: Network>(network: &N, source: &dyn Source) -> Option<usize> {
    let weight = format!("{}.weight", network.classifier()?);
    let slot = parameters(network, source)
        .into_iter()
        .find(|slot| slot.path == weight)?;
    let found = source.shape(&slot.source)?;
    let ([rows, columns @ ..], [own, wanted @ ..]) = (found.as_slice(), slot.shape.as_slice())
    else {
        return None;
    };
    let each = network.rows_of_class();
    let other = *rows > 0 && rows != own && columns == wanted && rows.is_multiple_of(each);
    other.then(|| rows / each)
}

/// The network with a source's number of classes, if the source is otherwise this very network's; else what differs.
pub fn fits<N: Network>(network: N, source: &dyn Source) -> Result<N, WeightError> {
    let network = fitted(network, source);
    let slots: Vec<_> = parameters(&network, source)
        .into_iter()
        .map(|slot| source::Slot {
            key: slot.source,
            shape: slot.shape,
        })
        .collect();
    match recognise(&network, source) {
        None => source::check::<N>(&slots, source)?,
        Some(_) => {
            let wanted = slots
                .iter()
                .map(|slot| (slot.key.clone(), slot.shape.clone()));
            let wanted = wanted.collect();
            source::check::<N>(&slots, &Reshaped { source, wanted })?;
        }
    }
    Ok(network)
}

/// Where a source keeps each of a network's parameters.
#[derive(Debug, Clone)]
pub struct Slot {
    /// The parameter's path in the module.
    pub path: String,
    /// Its key in the network's own layout.
    pub key: String,
    /// Its key in the source.
    pub source: String,
    /// Its shape in the network's own layout.
    pub shape: Vec<usize>,
}

/// A network's parameters, in the module's order, with their keys in a source.
pub fn parameters<N: Network>(network: &N, source: &dyn Source) -> Vec<Slot> {
    let layout = recognise(network, source);
    let slot = |(path, shape): (String, Vec<usize>)| {
        let key = network.key(&path);
        let other = layout.and_then(|layout| network.key_in(layout, &path));
        Slot {
            source: other.unwrap_or_else(|| key.clone()),
            path,
            key,
            shape,
        }
    };
    slots(network).into_iter().map(slot).collect()
}

/// The layout of a source, where it is another than the network's own.
///
/// The layout that has the most of the network's keys, so that what is missing is named as the file would name it.
pub fn recognise<N: Network>(network: &N, source: &dyn Source) -> Option<Layout> {
    let slots = slots(network);
    let found = |key: &dyn Fn(&str) -> Option<String>| {
        let present = |path: &str| key(path).is_some_and(|key| source.shape(&key).is_some());
        slots.iter().filter(|(path, _)| present(path)).count()
    };
    let own = found(&|path| Some(network.key(path)));
    let others = Layout::ALL.map(|layout| (layout, found(&|path| network.key_in(layout, path))));
    others
        .into_iter()
        .filter(|(_, count)| *count > own)
        .max_by_key(|(_, count)| *count)
        .map(|(layout, _)| layout)
}

/// The paths and shapes of a module's parameters, as checkpoints lay them out.
fn slots<M: Module>(module: &M) -> Vec<(String, Vec<usize>)> {
    let own = |path: &str| path.to_owned();
    let mut walk = Walk::new(&own);
    module.visit(&mut walk);
    walk.slots
        .into_iter()
        .map(|slot| (slot.key, slot.shape))
        .collect()
}

/// A source whose tensors take the wanted shapes where that moves no value.
struct Reshaped<'a> {
    source: &'a dyn Source,
    wanted: HashMap<String, Vec<usize>>,
}

impl Source for Reshaped<'_> {
    fn origin(&self) -> String {
        self.source.origin()
    }

    fn keys(&self) -> Vec<String> {
        self.source.keys()
    }

    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let found = self.source.shape(key)?;
        let same = |wanted: &&Vec<usize>| {
            wanted.first() == found.first()
                && wanted.iter().product::<usize>() == found.iter().product::<usize>()
        };
        Some(self.wanted.get(key).filter(same).cloned().unwrap_or(found))
    }

    fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
        self.source.read(key)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use indexmap::IndexMap;

    use super::*;
    use crate::catalog::{self, Spec};
    use crate::modality::{Classes, Classifier, Modality, Of, Visit};
    use crate::tap::Bare;

    /// Pairs of torchvision's key and ours, of networks that torchvision was asked to build at these sizes and that
    /// gave the zoo's golden outputs under these names.
    const PAIRS: &str = include_str!("../../../tests/golden/layouts.json");

    /// Tensors in memory.
    struct Memory(IndexMap<String, (Vec<usize>, Vec<f32>)>);

    impl Source for Memory {
        fn origin(&self) -> String {
            "memory".to_owned()
        }

        fn keys(&self) -> Vec<String> {
            self.0.keys().cloned().collect()
        }

        fn shape(&self, key: &str) -> Option<Vec<usize>> {
            self.0.get(key).map(|(shape, _)| shape.clone())
        }

        fn read(&self, key: &str) -> Result<Vec<f32>, WeightError> {
            Ok(self.0[key].1.clone())
        }
    }

    impl Memory {
        /// Small values in every tensor of a network, under its own keys.
        fn of<N: Network>(network: &N) -> Memory {
            let mut state = 1u64;
            let mut random = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 40) as f32 / (1u64 << 24) as f32
            };
            let tensor = |(path, shape): (String, Vec<usize>)| {
                let key = network.key(&path);
                let count: usize = shape.iter().product();
                // Variances are positive, and weights small enough for sums to stay so.
                let spread = if path.ends_with("running_var") {
                    0.0
                } else {
                    0.5
                };
                let values = (0..count).map(|_| (random() - spread) * 0.25 + 0.01);
                (key, (shape, values.collect()))
            };
            Memory(slots(network).into_iter().map(tensor).collect())
        }

        fn renamed(self, rename: impl Fn(&str) -> String) -> Memory {
            let renamed = self
                .0
                .into_iter()
                .map(|(key, tensor)| (rename(&key), tensor));
            Memory(renamed.collect())
        }
    }

    fn logits<N: Classifier>(spec: &Spec, network: &N) -> Vec<f32> {
        let [channels, height, width] = spec.input;
        let count = 2 * channels * height * width;
        let values: Vec<f32> = (0..count).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect();
        let shape = [2, channels, height, width];
        let input = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
        network
            .run(input, &mut Bare::default())
            .into_data()
            .iter::<f32>()
            .collect()
    }

    /// Logits from weights in the network's own layout, and from the same ones renamed (and reshaped).
    struct Both<F>(F);

    impl<F: Fn(Memory) -> Memory> Visit<Classes> for Both<F> {
        type Out = [Vec<f32>; 2];

        fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Self::Out {
            let own = Memory::of(&network);
            let other = (self.0)(Memory::of(&network));
            assert!(recognise(&network, &own).is_none());
            assert!(recognise(&network, &other).is_some(), "{}", spec.name);
            // Each with a network of its own: loading writes into what clones share.
            struct Fresh<'a>(&'a Memory);
            impl Visit<Classes> for Fresh<'_> {
                type Out = Vec<f32>;
                fn visit<N: Classifier>(self, spec: &'static Spec, network: N) -> Vec<f32> {
                    logits(spec, &load_network(network, self.0).unwrap())
                }
            }
            [own, other].map(|memory| {
                let fresh = Fresh(&memory);
                spec.open_classes(&Device::flex(), "layouts", fresh)
                    .unwrap()
            })
        }
    }

    fn both(model: &str, rename: impl Fn(Memory) -> Memory) -> [Vec<f32>; 2] {
        let spec = catalog::find(model).unwrap();
        spec.open_classes(&Device::flex(), "layouts", Both(rename))
            .unwrap()
    }

    fn assert_same([own, other]: [Vec<f32>; 2]) {
        assert!(own.iter().all(|value| value.is_finite()));
        assert!(own.iter().any(|value| *value != own[0]), "{own:?}");
        assert_eq!(own, other);
    }

    #[test]
    fn torchvisions_transformers_and_regnets_are_read() {
        let pairs: HashMap<String, Vec<[String; 2]>> = serde_json::from_str(PAIRS).unwrap();
        for (model, pairs) in pairs {
            let theirs: HashMap<&str, &str> = pairs
                .iter()
                .map(|[theirs, ours]| (ours.as_str(), theirs.as_str()))
                .collect();
            assert_same(both(&model, |memory| {
                memory.renamed(|key| theirs[key].to_owned())
            }));
        }
    }

    #[test]
    fn torchvisions_first_names_of_transformers_are_read() {
        assert_same(both("tiny_vit", |memory| {
            let spec = catalog::find("tiny_vit").unwrap();
            struct Names;
            impl<M: Modality> Visit<M> for Names {
                type Out = HashMap<String, String>;
                fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Self::Out {
                    let pair = |(path, _): (String, Vec<usize>)| {
                        let first = network.key_in(Layout::TorchvisionFirst, &path)?;
                        Some((network.key(&path), first))
                    };
                    slots(&network).into_iter().filter_map(pair).collect()
                }
            }
            let names = spec.open(&Device::flex(), Names);
            let name = &names["blocks.1.mlp.fc2.bias"];
            assert_eq!(name, "encoder.layers.encoder_layer_1.mlp.linear_2.bias");
            memory.renamed(|key| names[key].clone())
        }));
    }

    #[test]
    fn torchvisions_first_names_of_retinanet_are_read() {
        struct First;
        impl<M: Modality> Visit<M> for First {
            type Out = ();
            fn visit<N: Of<M>>(self, _: &'static Spec, network: N) {
                let pair = |(path, _): (String, Vec<usize>)| {
                    let first = network.key_in(Layout::TorchvisionFirst, &path)?;
                    Some((network.key(&path), first))
                };
                let names: HashMap<_, _> = slots(&network).into_iter().filter_map(pair).collect();
                let memory = Memory::of(&network).renamed(|key| names[key].clone());
                for key in [
                    "head.regression_head.conv.6.bias",
                    "backbone.fpn.layer_blocks.1.weight",
                ] {
                    assert!(memory.0.contains_key(key), "{key}");
                }
                let found = recognise(&network, &memory);
                assert_eq!(found, Some(Layout::TorchvisionFirst));
                load_network(network, &memory).unwrap();
            }
        }
        let spec = catalog::find("tiny_retinanet").unwrap();
        spec.open(&Device::flex(), First);
    }

    /// The names are mmdetection's own; the values would fit but for P6, which reads another map.
    #[test]
    fn mmdetections_retinanet_is_refused_as_another_network() {
        struct Theirs;
        impl<M: Modality> Visit<M> for Theirs {
            type Out = String;
            fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> String {
                let memory = Memory::of(&network).renamed(|key| {
                    let mut name = key.replace("backbone.body.", "backbone.");
                    for (ours, theirs) in [
                        (
                            "head.classification_head.cls_logits",
                            "bbox_head.retina_cls",
                        ),
                        ("head.regression_head.bbox_reg", "bbox_head.retina_reg"),
                        ("head.classification_head.conv.", "bbox_head.cls_convs."),
                        ("head.regression_head.conv.", "bbox_head.reg_convs."),
                        ("backbone.fpn.inner_blocks.", "neck.lateral_convs."),
                        ("backbone.fpn.layer_blocks.", "neck.fpn_convs."),
                        ("backbone.fpn.extra_blocks.p6.", "neck.fpn_convs.3.0."),
                        ("backbone.fpn.extra_blocks.p7.", "neck.fpn_convs.4.0."),
                    ] {
                        name = name.replace(ours, theirs);
                    }
                    match name.starts_with("neck.") || name.contains("_convs.") {
                        true => name
                            .replace(".0.weight", ".conv.weight")
                            .replace(".0.bias", ".conv.bias"),
                        false => name,
                    }
                });
                for key in [
                    "neck.fpn_convs.4.conv.bias",
                    "bbox_head.cls_convs.1.conv.weight",
                ] {
                    assert!(memory.0.contains_key(key), "{key}");
                }
                load_network(network, &memory).unwrap_err().to_string()
            }
        }
        let spec = catalog::find("tiny_retinanet").unwrap();
        let error = spec.open(&Device::flex(), Theirs);
        for said in [
            "mmdetection's",
            "P6 of the backbone's last stage",
            "torchvision's weights",
        ] {
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn timms_vgg_is_read() {
        let rename = |key: &str| {
            key.replace("classifier.0", "pre_logits.fc1")
                .replace("classifier.3", "pre_logits.fc2")
                .replace("classifier.6", "head.fc")
        };
        assert_same(both("tiny_cifar_vgg_bn", |memory| {
            let mut memory = memory.renamed(rename);
            for fc in ["pre_logits.fc1.weight", "pre_logits.fc2.weight"] {
                memory.0[fc].0.extend([1, 1]);
            }
            memory
        }));
    }

    /// Both rows of a network are in the catalog, each with its own layout: the order of their tensors is the same.
    fn in_the_layout_of(model: &'static str) -> impl Fn(Memory) -> Memory {
        struct Keys;
        impl<M: Modality> Visit<M> for Keys {
            type Out = Vec<(String, Vec<usize>)>;
            fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Self::Out {
                let keyed = |(path, shape): (String, Vec<usize>)| (network.key(&path), shape);
                slots(&network).into_iter().map(keyed).collect()
            }
        }
        move |memory| {
            let keys = catalog::find(model).unwrap().open(&Device::flex(), Keys);
            assert_eq!(keys.len(), memory.0.len());
            let renamed = keys.into_iter().zip(memory.0.into_values());
            Memory(
                renamed
                    .map(|((key, shape), (_, values))| (key, (shape, values)))
                    .collect(),
            )
        }
    }

    #[test]
    fn either_layout_of_mobilenet_v2_is_read() {
        assert_same(both(
            "mobilenetv2_050",
            in_the_layout_of("mobilenetv2_050_tv"),
        ));
        assert_same(both(
            "mobilenetv2_050_tv",
            in_the_layout_of("mobilenetv2_050"),
        ));
    }

    #[test]
    fn what_is_missing_is_named_in_the_files_layout() {
        struct Missing;
        impl<M: Modality> Visit<M> for Missing {
            type Out = String;
            fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> String {
                let mut memory = in_the_layout_of("mobilenetv2_050_tv")(Memory::of(&network));
                memory.0.shift_remove("classifier.1.bias");
                load_network(network, &memory).unwrap_err().to_string()
            }
        }
        let spec = catalog::find("mobilenetv2_050").unwrap();
        let error = spec.open(&Device::flex(), Missing);
        assert!(error.contains("missing: classifier.1.bias"), "{error}");
    }
}
