//! Every network of the catalog, those beside it (FID's, and what Stable Diffusion has around its UNet) and the sampler
//! against the zoo's goldens: filled from a formula of its own keys, a network must compute what the reference computed.
//!
//! - `PTSBENCH_ZOO_GOLDEN`: the folder of golden files (default `tests/golden/zoo`); relative paths start at the
//!   workspace's root.
//! - `PTSBENCH_ZOO_ARCHS`: comma-separated globs over the golden files' names (default: all that the catalog has). A
//!   glob that matches no file fails, and so does a network that a glob names and the catalog has not.
//!
//! Outputs are compared in every case; stages in the tiny networks and in FID's, and elsewhere where the outputs fail, to
//! say where the difference begins.

#[path = "zoo/detections.rs"]
mod detections;
#[path = "zoo/exports.rs"]
mod exports;
#[path = "zoo/formula.rs"]
mod formula;
#[path = "zoo/schedulers.rs"]
mod schedulers;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Device, Tensor, TensorData};
use model_zoo::catalog::{self, Spec, Visit, wildcard};
use model_zoo::clip_text;
use model_zoo::inception::{self, Inception};
use model_zoo::tap::{Bare, Census, Stages};
use model_zoo::unit::{LayerKind, Network, Zeros};
use model_zoo::vae::{self, Vae};
use model_zoo::weights::{Container, Dtype, Source, Stored, from_f32, load, open, write_stored};
use model_zoo::{Boxes, Bundle, Classes, Fixed, Modality, Noise, Of, Padded, Tokens};
use ptsbench::data::recipe::fid;
use ptsbench_tests::folder;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use formula::{Filled, Formula, Input, Vectors};

/// The parts of `<arch>.json` that are checked.
#[derive(Deserialize)]
struct Golden {
    arch: String,
    salt: String,
    num_params: usize,
    num_weight_layers: usize,
    num_weights_in_layers: usize,
    state_dict: Vec<Filled>,
    layers: Vec<Layer>,
    norms: Vec<Norm>,
    cases: Vec<Case>,
}

impl Golden {
    /// Scales and shifts of frozen batch norms: the reference counts them as no parameters, and a checkpoint has them.
    fn frozen_params(&self) -> usize {
        let frozen = |norm: &&Norm| norm.kind == "FrozenBatchNorm2d";
        let params = |norm: &Norm| ["weight", "bias"].map(|name| format!("{}.{name}", norm.key));
        let keys: Vec<String> = self.norms.iter().filter(frozen).flat_map(params).collect();
        let of_norm = |filled: &&Filled| keys.contains(&filled.key);
        let count = |filled: &Filled| filled.shape.iter().product::<usize>();
        self.state_dict.iter().filter(of_norm).map(count).sum()
    }
}

/// A normalisation layer of the reference.
#[derive(Deserialize)]
struct Norm {
    key: String,
    #[serde(rename = "type")]
    kind: String,
}

/// A convolution or linear layer of the reference.
#[derive(Deserialize)]
struct Layer {
    key: String,
    kind: String,
    shape: Vec<usize>,
    groups: Option<usize>,
    stride: Option<[usize; 2]>,
    padding: Option<[usize; 2]>,
    dilation: Option<[usize; 2]>,
    bias: bool,
    /// Place in the first forward pass, -1 where it never runs.
    order: i64,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    inputs: BTreeMap<String, Input>,
    outputs: Vec<Output>,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    tensor: String,
    shape: Vec<usize>,
    atol: f64,
}

#[derive(Deserialize)]
struct Stage {
    name: String,
    shape: Vec<usize>,
    #[serde(flatten)]
    summary: Summary,
    atol: f64,
}

/// What is kept of a stage's values.
#[derive(Deserialize)]
struct Summary {
    mean: f64,
    std: f64,
    absmax: f64,
    first8: Vec<f64>,
    last8: Vec<f64>,
}

impl Summary {
    fn of(values: &[f32]) -> Summary {
        let wide = || values.iter().map(|&value| f64::from(value));
        let count = values.len() as f64;
        let mean = wide().sum::<f64>() / count;
        let variance = wide().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
        let ends = values.len().min(8);
        Summary {
            mean,
            std: variance.sqrt(),
            // Not `max`, which drops NaN.
            absmax: wide()
                .map(f64::abs)
                .fold(0.0, |a, b| if a >= b { a } else { b }),
            first8: wide().take(ends).collect(),
            last8: wide().skip(values.len() - ends).collect(),
        }
    }

    /// The largest difference of any number from the other summary's; infinite where one is not a number.
    fn difference(&self, other: &Summary) -> f64 {
        let numbers =
            |s: &Summary| [&[s.mean, s.std, s.absmax], &s.first8[..], &s.last8[..]].concat();
        let (ours, theirs) = (numbers(self), numbers(other));
        if ours.len() != theirs.len() {
            return f64::INFINITY;
        }
        largest(ours.into_iter().zip(theirs).map(|(a, b)| (a - b).abs()))
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary {
            mean,
            std,
            absmax,
            first8,
            last8,
        } = self;
        write!(
            f,
            "mean {mean:.7} std {std:.7} absmax {absmax:.7} first {first8:.6?} last {last8:.6?}"
        )
    }
}

/// The largest of some magnitudes, infinite where any is not finite.
fn largest(magnitudes: impl Iterator<Item = f64>) -> f64 {
    magnitudes.fold(0.0, |a, b| {
        if b.is_finite() {
            a.max(b)
        } else {
            f64::INFINITY
        }
    })
}

/// The largest |ours - stored| over the tolerance; more than 1 is a failure.
fn error_ratio(ours: &[f32], stored: &[f32], atol: f64) -> f64 {
    if ours.len() != stored.len() {
        return f64::INFINITY;
    }
    let differences = ours
        .iter()
        .zip(stored)
        .map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
    largest(differences) / atol
}

/// The units and marks of our networks that may give a stage of the reference, for stages that have another name there;
/// the first that a network has is meant. All others have their checkpoint's name.
fn paths_of_stage(stage: &str) -> &'static [&'static str] {
    match stage {
        "conv1" => &["conv1.act"],
        "relu" => &["conv1.act"],
        "bn1" => &["conv1.norm", "conv_stem.act"],
        "maxpool" => &["conv1"],
        "avgpool" => &["fc.avgpool", "avgpool"],
        "conv_stem" => &["conv_stem.conv"],
        "bn2" => &["conv_head.act"],
        "global_pool" => &["classifier.flatten", "avgpool"],
        "conv_head" => &["conv_head.conv"],
        "act2" => &["conv_head"],
        "classifier.1" => &["linear_head"],
        "backbone.body.maxpool" => &["backbone.body.conv1"],
        _ => &[],
    }
}

/// The value that a network has for a stage of the reference; of several with the stage's key the innermost, which is
/// the convolution of a layer.
fn value_of_stage<'a, N: Network>(
    stages: &'a Stages,
    network: &N,
    stage: &str,
) -> Option<&'a (Vec<usize>, Vec<f32>)> {
    let other = paths_of_stage(stage).iter();
    let named = other.filter_map(|path| stages.values.get(*path)).next();
    let keyed = |key: &str| {
        let keyed = stages.values.iter();
        let keyed = keyed.filter(|(path, _)| network.key(path) == key);
        keyed
            .max_by_key(|(path, _)| path.len())
            .map(|(_, value)| value)
    };
    // A convolution may be the first, and the only one, of a sequence that has the stage's name.
    named
        .or_else(|| keyed(stage))
        .or_else(|| keyed(&format!("{stage}.0")))
}

/// RetinaNet's name of an output that SSD's reference calls otherwise.
fn ours(output: &str) -> &str {
    match output {
        "confidences" => "cls_logits",
        "locations" => "bbox_regression",
        other => other,
    }
}

/// What one network's check has found.
#[derive(Default)]
struct Outcome {
    parameters: usize,
    outputs: usize,
    stages: usize,
    /// Largest error of any output over its tolerance.
    ratio: f64,
    failures: Vec<String>,
}

impl Outcome {
    fn expect<T: PartialEq + fmt::Debug>(&mut self, what: &str, found: T, expected: T) {
        if found != expected {
            self.failures
                .push(format!("{what}: found {found:?}, expected {expected:?}"));
        }
    }
}

/// Parameters of a module, running statistics apart.
#[derive(Default)]
struct Parameters {
    names: Vec<String>,
    count: usize,
}

impl ModuleVisitor for Parameters {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.names.push(name.to_string());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.names.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let statistic = self
            .names
            .last()
            .is_some_and(|name| name.starts_with("running_"));
        if !statistic {
            self.count += param.lazy_shape().num_elements();
        }
    }
}

/// Compares a network that the catalog has built with its golden.
struct Check<'a> {
    golden: &'a Golden,
    stored: &'a Container,
    device: &'a Device,
}

/// A kind of network that has goldens.
trait Golds {
    /// What its networks take.
    type Input: Bundle;
    /// What they give.
    type Output: Bundle;

    /// A case's input.
    fn input(check: &Check<'_>, case: &Case) -> Result<Self::Input, String>;

    /// The outputs as the reference names them, with shapes.
    fn outputs(output: Self::Output) -> Vec<(&'static str, Vec<usize>, Vec<f32>)>;
}

fn named<const D: usize>(
    name: &'static str,
    tensor: Tensor<D>,
) -> (&'static str, Vec<usize>, Vec<f32>) {
    let shape = tensor.dims().to_vec();
    (name, shape, tensor.into_data().iter::<f32>().collect())
}

impl Golds for Classes {
    type Input = <Classes as Modality>::Input;
    type Output = <Classes as Modality>::Output;

    fn input(check: &Check<'_>, case: &Case) -> Result<Tensor<4>, String> {
        check.image(case)
    }

    fn outputs(output: Tensor<2>) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![named("logits", output)]
    }
}

impl Golds for Boxes {
    type Input = <Boxes as Modality>::Input;
    type Output = <Boxes as Modality>::Output;

    fn input(check: &Check<'_>, case: &Case) -> Result<Self::Input, String> {
        let images = check.image(case)?;
        let [count, _, height, width] = images.dims();
        Ok(Padded {
            images,
            sizes: vec![[height, width]; count],
        })
    }

    fn outputs(levels: Self::Output) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        let (logits, offsets): (Vec<_>, Vec<_>) = levels.into_iter().unzip();
        vec![
            named("cls_logits", Tensor::cat(logits, 1)),
            named("bbox_regression", Tensor::cat(offsets, 1)),
        ]
    }
}

impl Golds for Noise {
    type Input = <Noise as Modality>::Input;
    type Output = <Noise as Modality>::Output;

    fn input(check: &Check<'_>, case: &Case) -> Result<Self::Input, String> {
        Ok((
            check.tensor(case, "sample")?,
            check.tensor(case, "timestep")?,
            Some(check.tensor(case, "encoder_hidden_states")?),
        ))
    }

    fn outputs(output: Tensor<4>) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![named("noise", output)]
    }
}

impl Golds for Tokens {
    type Input = <Tokens as Modality>::Input;
    type Output = <Tokens as Modality>::Output;

    fn input(check: &Check<'_>, case: &Case) -> Result<Self::Input, String> {
        let ids: Tensor<2> = check.tensor(case, "input_ids")?;
        let [_, tokens] = ids.dims();
        let ids: Vec<u32> = ids.into_data().iter::<f32>().map(|id| id as u32).collect();
        Ok(Fixed(ids.chunks(tokens).map(<[u32]>::to_vec).collect()))
    }

    fn outputs(output: Tensor<3>) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![named("last_hidden_state", output)]
    }
}

impl Golds for Vae {
    type Input = <Vae as Network>::Input;
    type Output = <Vae as Network>::Output;

    fn input(check: &Check<'_>, case: &Case) -> Result<Self::Input, String> {
        Ok((
            check.tensor(case, "latents")?,
            check.tensor(case, "pixels")?,
        ))
    }

    fn outputs((decoded, moments): Self::Output) -> Vec<(&'static str, Vec<usize>, Vec<f32>)> {
        vec![named("decoded", decoded), named("moments", moments)]
    }
}
impl<M> Visit<M> for Check<'_>
where
    M: Modality + Golds<Input = <M as Modality>::Input, Output = <M as Modality>::Output>,
{
    type Out = Outcome;

    fn visit<N: Of<M>>(self, _: &'static Spec, network: N) -> Outcome {
        self.network::<M, N>(network)
    }
}

/// A network of such a kind.
trait Runs<G: Golds>: Network<Input = G::Input, Output = G::Output> {}
impl<G: Golds, N: Network<Input = G::Input, Output = G::Output>> Runs<G> for N {}

impl Check<'_> {
    fn network<G: Golds, N: Runs<G>>(&self, network: N) -> Outcome {
        let mut outcome = Outcome::default();
        let formula = Formula {
            origin: format!("{}.json", self.golden.arch),
            salt: &self.golden.salt,
            state_dict: &self.golden.state_dict,
        };
        let names = network.clone();
        let network = match load(network, |path| names.key(path), &formula) {
            Ok(network) => network,
            Err(error) => {
                outcome.failures.push(error.to_string());
                return outcome;
            }
        };
        drop(names);
        let mut parameters = Parameters::default();
        network.visit(&mut parameters);
        outcome.parameters = parameters.count;
        outcome.expect(
            "num_params",
            parameters.count,
            self.golden.num_params + self.golden.frozen_params(),
        );

        self.check_layers::<G, N>(&network, &mut outcome);
        for case in &self.golden.cases {
            self.check_case::<G, N>(case, &network, &mut outcome);
        }
        let folded = network.fold();
        for case in &self.golden.cases {
            self.check_folded::<G, N>(case, &folded, &mut outcome);
        }
        outcome
    }

    /// The input of this name.
    fn tensor<const D: usize>(&self, case: &Case, name: &str) -> Result<Tensor<D>, String> {
        let input = case.inputs.get(name);
        let input = input.ok_or_else(|| format!("{}: no input `{name}`", case.name))?;
        let shape: [usize; D] = input.shape().try_into().map_err(|_| {
            let shape = input.shape();
            format!(
                "{}: `{name}` of shape {shape:?}, expected {D} axes",
                case.name
            )
        })?;
        let values = input.values(&self.golden.salt, name);
        Ok(Tensor::from_data(
            TensorData::new(values, shape),
            self.device,
        ))
    }

    /// The only input, images.
    fn image(&self, case: &Case) -> Result<Tensor<4>, String> {
        let mut inputs = case.inputs.iter();
        let (Some((name, input)), None) = (inputs.next(), inputs.next()) else {
            return Err(format!(
                "{}: {} inputs, expected one image",
                case.name,
                case.inputs.len()
            ));
        };
        let &[n, c, h, w] = input.shape() else {
            return Err(format!(
                "{}: input of shape {:?}, expected N, C, H, W",
                case.name,
                input.shape()
            ));
        };
        let values = input.values(&self.golden.salt, name);
        let data = if self.golden.arch == inception::NAME {
            // The reference resizes by itself.
            let pictures = values.chunks(c * h * w);
            let resized = pictures.flat_map(|planes| fid::of_planes(planes, (w, h)));
            TensorData::new(resized.collect(), [n, c, fid::SIDE, fid::SIDE])
        } else {
            TensorData::new(values, [n, c, h, w])
        };
        Ok(Tensor::from_data(data, self.device))
    }

    /// Every prunable layer, in the order of the forward pass.
    fn check_layers<G: Golds, N: Runs<G>>(&self, network: &N, outcome: &mut Outcome) {
        let size = |case: &&Case| {
            case.inputs
                .values()
                .map(|i| i.shape().iter().product::<usize>())
                .sum::<usize>()
        };
        let Some(smallest) = self.golden.cases.iter().min_by_key(size) else {
            outcome.failures.push("the golden has no case".to_string());
            return;
        };
        let input = match G::input(self, smallest) {
            Ok(input) => input,
            Err(failure) => return outcome.failures.push(failure),
        };
        let mut census = Census::default();
        network.run(input, &mut census);
        let rows = census.layers();

        let infos = || rows.iter().filter_map(|row| row.layer.as_ref());
        // A layer that never runs is announced to nobody; that it is there shows in `num_params`.
        let unused = || self.golden.layers.iter().filter(|layer| layer.order < 0);
        outcome.expect(
            "num_weight_layers",
            rows.len() + unused().count(),
            self.golden.num_weight_layers,
        );
        let unused_weights: usize = unused()
            .map(|layer| layer.shape.iter().product::<usize>())
            .sum();
        outcome.expect(
            "num_weights_in_layers",
            infos().map(|info| info.len()).sum::<usize>() + unused_weights,
            self.golden.num_weights_in_layers,
        );
        let mut layers: Vec<&Layer> = self
            .golden
            .layers
            .iter()
            .filter(|layer| layer.order >= 0)
            .collect();
        layers.sort_by_key(|layer| layer.order);
        outcome.expect("layers that run", rows.len(), layers.len());
        for ((row, info), layer) in rows.iter().zip(infos()).zip(layers) {
            outcome.expect(
                "layer order",
                format!("{}.weight", network.key(&row.path)),
                layer.key.clone(),
            );
            let kind = match info.kind {
                LayerKind::Conv => "conv2d",
                LayerKind::Linear => "linear",
            };
            let key = &layer.key;
            outcome.expect(&format!("{key} kind"), kind, layer.kind.as_str());
            outcome.expect(&format!("{key} shape"), &info.shape, &layer.shape);
            outcome.expect(
                &format!("{key} groups"),
                info.groups,
                layer.groups.unwrap_or(1),
            );
            outcome.expect(
                &format!("{key} stride"),
                info.stride,
                layer.stride.unwrap_or([1, 1]),
            );
            outcome.expect(
                &format!("{key} padding"),
                match info.padding {
                    Zeros::Fixed(zeros) => zeros.map(|[before, _]| before),
                    // The reference pads at run time and tells half the kernel.
                    Zeros::Same => [0, 1].map(|d| info.dilation[d] * (info.shape[d + 2] - 1) / 2),
                },
                layer.padding.unwrap_or([0, 0]),
            );
            outcome.expect(
                &format!("{key} dilation"),
                info.dilation,
                layer.dilation.unwrap_or([1, 1]),
            );
            outcome.expect(&format!("{key} bias"), info.bias, layer.bias);
        }
    }

    fn check_case<G: Golds, N: Runs<G>>(&self, case: &Case, network: &N, outcome: &mut Outcome) {
        let input = match G::input(self, case) {
            Ok(input) => input,
            Err(failure) => return outcome.failures.push(failure),
        };
        let found = G::outputs(network.run(input.clone(), &mut Bare::default()));

        let mut failed = false;
        outcome.expect(
            &format!("{}: number of outputs", case.name),
            found.len(),
            case.outputs.len(),
        );
        for ((found, shape, values), output) in found.iter().zip(&case.outputs) {
            // Inception and the classifiers have one output, whatever it is called.
            if case.outputs.len() > 1 {
                let what = format!("{}: name of an output", case.name);
                outcome.expect(&what, *found, ours(&output.name));
            }
            let name = format!("{}.{}", case.name, output.name);
            outcome.expect(&format!("{name}: shape"), shape, &output.shape);
            let stored = match self.stored.read(&output.tensor) {
                Ok(stored) => stored,
                Err(error) => {
                    outcome.failures.push(error.to_string());
                    continue;
                }
            };
            let ratio = error_ratio(values, &stored, output.atol);
            outcome.outputs += 1;
            outcome.ratio = outcome.ratio.max(ratio);
            if ratio > 1.0 {
                failed = true;
                outcome.failures.push(format!(
                    "{name}: error is {ratio:.3} x the tolerance {:e}",
                    output.atol
                ));
            }
        }
        let arch = &self.golden.arch;
        if failed || arch.starts_with("tiny_") || arch == inception::NAME {
            self.check_stages(case, input, network, outcome);
        }
    }

    /// The outputs again, from the network with its batch norms folded: the same within the same tolerance.
    fn check_folded<G: Golds, N: Runs<G>>(&self, case: &Case, folded: &N, outcome: &mut Outcome) {
        // What is wrong with an input or a stored tensor is reported by the unfolded network's check.
        let Ok(input) = G::input(self, case) else {
            return;
        };
        let found = G::outputs(folded.run(input, &mut Bare::default()));
        for ((_, _, values), output) in found.iter().zip(&case.outputs) {
            let Ok(stored) = self.stored.read(&output.tensor) else {
                continue;
            };
            let ratio = error_ratio(values, &stored, output.atol);
            if ratio > 1.0 {
                outcome.failures.push(format!(
                    "{}.{}: folded, error is {ratio:.3} x the tolerance {:e}",
                    case.name, output.name, output.atol
                ));
            }
        }
    }

    /// Stages in the order of the forward pass; the first one out is reported, the rest follow from it.
    fn check_stages<N: Network>(
        &self,
        case: &Case,
        input: N::Input,
        network: &N,
        outcome: &mut Outcome,
    ) {
        let mut stages = Stages::default();
        network.run(input, &mut stages);
        for stage in &case.stages {
            let name = format!("{}: stage {}", case.name, stage.name);
            let Some((shape, values)) = value_of_stage(&stages, network, &stage.name) else {
                outcome
                    .failures
                    .push(format!("{name}: no unit or mark is this stage"));
                return;
            };
            let found = Summary::of(values);
            let ratio = found.difference(&stage.summary) / stage.atol;
            outcome.stages += 1;
            if *shape != stage.shape || ratio > 1.0 {
                let expected = &stage.summary;
                outcome.failures.push(format!(
                    "{name} is the first that differs, by {ratio:.3} x the tolerance {:e}\n    found    {shape:?} {found}\n    expected {:?} {expected}",
                    stage.atol, stage.shape
                ));
                return;
            }
        }
    }
}

/// The golden files to check, and those left out because the catalog has no such network.
#[derive(Debug, PartialEq)]
struct Selection {
    run: Vec<String>,
    skipped: Vec<String>,
}

/// `globs` as in `PTSBENCH_ZOO_ARCHS`; `stems` are the golden files' names without extension.
fn select(
    stems: &[String],
    globs: Option<&str>,
    known: impl Fn(&str) -> bool,
) -> Result<Selection, Vec<String>> {
    let Some(globs) = globs else {
        let (run, skipped): (Vec<_>, Vec<_>) = stems.iter().cloned().partition(|stem| known(stem));
        if run.is_empty() {
            return Err(vec![
                "no golden file is of a network in the catalog".to_string(),
            ]);
        }
        return Ok(Selection { run, skipped });
    };
    let globs: Vec<&str> = globs.split(',').map(str::trim).collect();
    let mut failures: Vec<String> = globs
        .iter()
        .filter(|glob| !stems.iter().any(|stem| wildcard(glob, stem)))
        .map(|glob| format!("`{glob}` matches no golden file"))
        .collect();
    let named = stems
        .iter()
        .filter(|stem| globs.iter().any(|glob| wildcard(glob, stem)));
    let (run, unknown): (Vec<_>, Vec<_>) = named.cloned().partition(|stem| known(stem));
    failures.extend(
        unknown
            .iter()
            .map(|stem| format!("`{stem}` is not in the catalog")),
    );
    if failures.is_empty() {
        Ok(Selection {
            run,
            skipped: Vec::new(),
        })
    } else {
        Err(failures)
    }
}

fn golden_folder() -> PathBuf {
    let folder = folder("PTSBENCH_ZOO_GOLDEN", "tests/golden/zoo");
    assert!(
        folder.is_dir(),
        "no zoo goldens at {}; PTSBENCH_ZOO_GOLDEN must name their folder, relative paths from the workspace's root",
        folder.display()
    );
    folder
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

/// Names of the networks' golden files, sorted.
fn stems(folder: &Path) -> Vec<String> {
    let files =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut stems: Vec<String> = files
        .map(|file| {
            file.unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
                .path()
        })
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .filter_map(|path| path.file_stem()?.to_str().map(str::to_string))
        .filter(|stem| stem != "formula")
        .collect();
    stems.sort();
    stems
}

fn autoencoder(name: &str) -> Option<&'static vae::Size> {
    vae::SIZES.iter().find(|size| size.name == name)
}

fn text_encoder(name: &str) -> Option<&'static clip_text::Size> {
    clip_text::SIZES.iter().find(|size| size.name == name)
}

/// Whether there is something that a golden file of this name is of.
fn known(name: &str) -> bool {
    [inception::NAME, schedulers::NAME].contains(&name)
        || autoencoder(name).is_some()
        || text_encoder(name).is_some()
        || catalog::find(name).is_ok()
}

fn check_network(folder: &Path, name: &str, device: &Device) -> Outcome {
    let read = || -> Result<(Golden, Container), String> {
        let golden: Golden = read_json(&folder.join(format!("{name}.json")))?;
        let stored = Container::open(&folder.join(format!("{name}.safetensors")))
            .map_err(|error| error.to_string())?;
        Ok((golden, stored))
    };
    let networks = || {
        read().and_then(|(golden, stored)| {
            let check = Check {
                golden: &golden,
                stored: &stored,
                device,
            };
            let mut outcome = if name == inception::NAME {
                check.network::<Classes, _>(Inception::init(device))
            } else if let Some(size) = autoencoder(name) {
                check.network::<Vae, _>(size.init(device))
            } else if let Some(size) = text_encoder(name) {
                check.network::<Tokens, _>(size.init(device))
            } else {
                let spec = catalog::find(name).map_err(|error| error.to_string())?;
                spec.open(device, check)
            };
            outcome.expect("arch", golden.arch.as_str(), name);
            Ok(outcome)
        })
    };
    let check = match name {
        schedulers::NAME => schedulers::check(folder),
        _ => networks(),
    };
    check.unwrap_or_else(|failure| Outcome {
        failures: vec![failure],
        ..Outcome::default()
    })
}

/// Past the test harness, which shows what a test prints only where it fails.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[test]
fn formula_is_bit_exact() {
    let path = golden_folder().join("formula.json");
    let vectors: Vectors = read_json(&path).unwrap_or_else(|error| panic!("{error}"));
    assert!(vectors.len() > 0, "{} holds no vector", path.display());
    let failures = vectors.check();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn networks_give_the_golden_outputs() {
    let folder = golden_folder();
    let globs = std::env::var("PTSBENCH_ZOO_ARCHS").ok();
    let selection = select(&stems(&folder), globs.as_deref(), known);
    let selection = selection
        .unwrap_or_else(|failures| panic!("{}: {}", folder.display(), failures.join("; ")));

    let device = Device::flex();
    let mut total = Outcome::default();
    say("");
    for name in &selection.run {
        let start = Instant::now();
        let outcome = check_network(&folder, name, &device);
        say(&format!(
            "{name:<26} {:>6.2} M parameters, {} outputs, {} stages, largest error/atol {:.3}, {:.1} s{}",
            outcome.parameters as f64 / 1e6,
            outcome.outputs,
            outcome.stages,
            outcome.ratio,
            start.elapsed().as_secs_f64(),
            if outcome.failures.is_empty() {
                ""
            } else {
                ": FAILED"
            }
        ));
        total.outputs += outcome.outputs;
        total.stages += outcome.stages;
        total.ratio = total.ratio.max(outcome.ratio);
        total.failures.extend(
            outcome
                .failures
                .into_iter()
                .map(|failure| format!("{name}: {failure}")),
        );
    }
    say(&format!(
        "{} networks, {} outputs and {} stages compared; largest error/atol {:.3}",
        selection.run.len(),
        total.outputs,
        total.stages,
        total.ratio
    ));
    if !selection.skipped.is_empty() {
        say(&format!(
            "skipped, not in the catalog: {}",
            selection.skipped.join(", ")
        ));
    }
    assert!(
        total.failures.is_empty(),
        "{} failures:\n{}",
        total.failures.len(),
        total.failures.join("\n")
    );
}

#[test]
fn a_glob_must_match_files_of_known_networks() {
    let stems: Vec<String> = ["resnet18", "resnet50", "vgg16"].map(String::from).to_vec();
    let known = |stem: &str| stem.starts_with("resnet");
    let run = |names: &[&str], skipped: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Ok(Selection {
            run: owned(names),
            skipped: owned(skipped),
        })
    };
    assert_eq!(
        select(&stems, None, known),
        run(&["resnet18", "resnet50"], &["vgg16"])
    );
    assert_eq!(
        select(&stems, Some("resnet*, resnet18"), known),
        run(&["resnet18", "resnet50"], &[])
    );
    let failures = |globs| select(&stems, Some(globs), known).unwrap_err().join("; ");
    assert_eq!(failures("resnet18,vit*"), "`vit*` matches no golden file");
    assert_eq!(failures("*"), "`vgg16` is not in the catalog");
    assert!(select(&stems, None, |_| false).is_err());
}

#[test]
fn a_wrong_or_missing_number_is_out_of_tolerance() {
    assert_eq!(error_ratio(&[1.0, 2.5], &[1.0, 2.0], 0.25), 2.0);
    assert_eq!(
        error_ratio(&[1.0, f32::NAN], &[1.0, 2.0], 0.25),
        f64::INFINITY
    );
    assert_eq!(error_ratio(&[1.0], &[1.0, 2.0], 0.25), f64::INFINITY);
    let stored = Summary::of(&[1.0, -2.0, 3.0]);
    assert_eq!(Summary::of(&[1.0, -2.0, 3.0]).difference(&stored), 0.0);
    assert_eq!(Summary::of(&[1.0, -2.5, 3.0]).difference(&stored), 0.5);
    assert_eq!(
        Summary::of(&[1.0, f32::NAN, 3.0]).difference(&stored),
        f64::INFINITY
    );
}
