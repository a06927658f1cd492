//! On which path each pruned layer runs, and why.

use burn::tensor::Device;
use kernels::plan::KernelPolicy;
use model_zoo::catalog::{Spec, Visit};
use model_zoo::frozen::{Choice, Terms, choose};
use model_zoo::{Modality, Of};

use crate::inventory::Layer;
use crate::record::Paths;
use crate::subject;
use crate::task::batch_of;

/// The path of each of a model's layers, with so many zeros of the layers of these names, in an evaluation's batches.
pub(super) fn choices(
    spec: &'static Spec,
    layers: &[Layer],
    zeros: impl Fn(&str) -> usize,
    nm: Option<[usize; 2]>,
    policy: KernelPolicy,
) -> Vec<Choice> {
    struct Rows;
    impl<M: Modality> Visit<M> for Rows {
        type Out = Vec<model_zoo::tap::Row>;
        fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out {
            subject::census(spec, &network, &Device::flex()).layers()
        }
    }
    let terms = Terms {
        policy,
        batch: batch_of(spec.input),
        nm,
    };
    let rows = spec.open(&Device::flex(), Rows);
    let of_layer = |(layer, mut row): (&Layer, model_zoo::tap::Row)| {
        if let Some(info) = &mut row.layer {
            // A weight file decides the number of classes.
            info.shape.clone_from(&layer.shape);
        }
        Choice {
            layer: layer.path.clone(),
            plan: choose(&row, layer.len() - zeros(&layer.path), &terms),
        }
    };
    layers.iter().zip(rows).map(of_layer).collect()
}

/// As aligned plain text, one line each, and a line that counts.
pub(super) fn table(choices: &[Choice]) -> String {
    let width = |text: fn(&Choice) -> &str, least: usize| {
        let widths = choices.iter().map(|choice| text(choice).chars().count());
        widths.max().unwrap_or(0).max(least)
    };
    let layer = width(|choice| &choice.layer, "layer".len());
    let path = width(|choice| choice.plan.path.name(), "runs".len());
    let line = |[a, b, c]: [&str; 3]| format!("{a:layer$}  {b:path$}  {c}\n");
    let mut text = line(["layer", "runs", "because"]);
    for choice in choices {
        let name = choice.plan.path.name();
        text += &line([&choice.layer, name, &choice.plan.reason]);
    }
    text + &format!("{}\n", Paths::of(choices))
}

#[cfg(test)]
mod tests {
    use kernels::Precision;
    use kernels::cpu::Isa;
    use kernels::plan::PathChoice;
    use model_zoo::catalog;

    use super::*;
    use crate::pipeline::layers_of;

    #[test]
    fn each_layer_has_a_path_and_a_reason() {
        let spec = catalog::find("micro_resnet8").unwrap();
        let layers = layers_of(spec.name).unwrap();
        let policy = KernelPolicy {
            path: PathChoice::Auto,
            isa: Isa::Avx2,
            precision: Precision::F32,
        };
        let zeros = |path: &str| match path {
            "conv1" => 0,
            "layer3.0.downsample.0" => 400,
            "fc" => 720,
            path => layers.iter().find(|l| l.path == path).unwrap().len() * 3 / 4,
        };
        let text = table(&choices(spec, &layers, zeros, None, policy));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 12, "{text}");
        assert_eq!(
            lines[1],
            "conv1                  dense  0 % zeros, 27 kept a row; the sparse path pays from 60 % on avx2"
        );
        assert_eq!(
            lines[8],
            "layer3.0.conv2         csr    75 % zeros, 180 kept a row; the sparse path pays from 50 % on avx2"
        );
        assert!(
            lines[9].starts_with("layer3.0.downsample.0  dense"),
            "{text}"
        );
        // The classifier has too few outputs.
        assert_eq!(lines[11], "3 dense, 7 csr");

        let forced = KernelPolicy {
            path: PathChoice::Force(kernels::plan::Path::Dense),
            ..policy
        };
        let choices = choices(spec, &layers, zeros, None, forced);
        assert!(choices.iter().all(|choice| choice.plan.reason == "forced"));
        assert_eq!(Paths::of(&choices).if_any(), None);
    }
}
