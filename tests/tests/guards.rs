//! Guards over the whole catalog: what a forward pass announces is what the module is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::module::ModuleVisitor;
use burn::tensor::{Device, Distribution, Tensor};
use kernels::Precision;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::modality::VisitAny;
use model_zoo::tap::{Bare, Capture, Census, Path};
use model_zoo::{Blank, Bundle, Grain, Modality, Network, Of, Tap, TensorMap, Unit};

const GRAINS: [Grain; 3] = [Grain::Single, Grain::Layer, Grain::Block];

/// Large networks run on a small image, where they can: units and weights do not depend on its size. A latent is an eighth
/// of its image.
fn input<M: Modality>(spec: &Spec, device: &Device) -> M::Input {
    let mut small = *spec;
    if !spec.one_size() {
        let [channels, height, width] = spec.input;
        let most = if spec.context().is_some() { 8 } else { 64 };
        small.input = [channels, height.min(most), width.min(most)];
    }
    let batch = if spec.one_size() { 1 } else { 2 };
    M::Input::blank(&small, batch, device).map(&mut Random)
}

struct Random;

impl TensorMap for Random {
    fn map<const D: usize>(&mut self, blank: Tensor<D>) -> Tensor<D> {
        blank.random_like(Distribution::Uniform(-1.0, 1.0))
    }
}

/// Tests run side by side, and several copies of the largest network do not fit into every machine: they take turns.
fn in_turn(spec: &Spec) -> Option<MutexGuard<'static, ()>> {
    static LARGE: Mutex<()> = Mutex::new(());
    let large = spec.counts().weights > 500_000_000;
    large.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What a visitor makes of each network of the catalog.
fn all<V: VisitAny<Out>, Out>(
    visitor: impl Fn() -> V,
) -> impl Iterator<Item = (&'static Spec, Out)> {
    let device = Device::flex();
    catalog::all().iter().map(move |spec| {
        let _turn = in_turn(spec);
        (spec, spec.open(&device, visitor()))
    })
}

fn census<N: Network>(network: &N, x: N::Input) -> (Census, N::Output) {
    let mut census = Census::default();
    let output = network.run(x, &mut census);
    (census, output)
}

/// Shapes and bit patterns of all tensors of a value.
fn bits<B: Bundle>(value: B) -> Vec<(Vec<usize>, Vec<u32>)> {
    struct Bits(Vec<(Vec<usize>, Vec<u32>)>);
    impl TensorMap for Bits {
        fn map<const D: usize>(&mut self, tensor: Tensor<D>) -> Tensor<D> {
            let values = tensor.to_data().iter::<f32>().map(f32::to_bits).collect();
            self.0.push((tensor.dims().to_vec(), values));
            tensor
        }
    }
    let mut bits = Bits(Vec::new());
    value.map(&mut bits);
    bits.0
}

/// Every module's path with the type's name.
#[derive(Default)]
struct Modules {
    path: Vec<String>,
    found: BTreeMap<String, String>,
}

impl ModuleVisitor for Modules {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push(name.to_owned());
        self.found.insert(self.path.join("."), container.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
}

struct PathsAgree;

impl<M: Modality> Visit<M> for PathsAgree {
    type Out = usize;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> usize {
        let (census, _) = census(&network, input::<M>(spec, &Device::flex()));
        let mut modules = Modules::default();
        network.visit(&mut modules);
        for row in &census.rows {
            assert!(
                modules.found.contains_key(&row.path),
                "{}: `{}` is announced, but no module has that path",
                spec.name,
                row.path
            );
        }
        let single: BTreeSet<&str> = census
            .rows
            .iter()
            .filter(|row| row.grain == Grain::Single)
            .map(|row| row.path.as_str())
            .collect();
        let layers: BTreeSet<&str> = modules
            .found
            .iter()
            .filter(|(path, _)| !path.ends_with(".weight") && !path.ends_with(".bias"))
            .filter(|(_, kind)| *kind == "Struct:Conv2d" || *kind == "Struct:Linear")
            .map(|(path, _)| path.as_str())
            .collect();
        let missing: Vec<_> = layers.difference(&single).collect();
        assert!(
            missing.is_empty(),
            "{}: never announced: {missing:?}",
            spec.name
        );
        census.rows.len()
    }
}

#[test]
fn announced_paths_are_module_paths() {
    let announced: usize = all(|| PathsAgree).map(|(_, announced)| announced).sum();
    println!(
        "{} networks, {announced} announced units",
        catalog::all().len()
    );
}

struct Covered;

impl<M: Modality> Visit<M> for Covered {
    type Out = [usize; 4];

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> [usize; 4] {
        let (census, _) = census(&network, input::<M>(spec, &Device::flex()));
        let layers = census.layers();
        let mut counts = [layers.len(), 0, 0, 0];
        for (place, grain) in GRAINS.into_iter().enumerate() {
            let units = census.units(grain);
            counts[place + 1] = units.len();
            let mut covered: HashMap<String, usize> = HashMap::new();
            for unit in &units {
                assert!(unit.grain <= grain);
                for layer in census.layers_of(&unit.path) {
                    *covered.entry(layer.path).or_default() += 1;
                }
            }
            for layer in &layers {
                assert_eq!(
                    covered.get(&layer.path),
                    Some(&1),
                    "{}: {} at {grain:?}",
                    spec.name,
                    layer.path
                );
            }
            assert_eq!(covered.len(), layers.len());
        }
        counts
    }
}

#[test]
fn every_prunable_weight_is_covered_once_at_each_granularity() {
    let mut total = [0; 4];
    for (spec, counts) in all(|| Covered) {
        assert_eq!(
            counts[0], counts[1],
            "{}: one single unit per layer",
            spec.name
        );
        assert!(counts[2] >= counts[3], "{}: blocks join layers", spec.name);
        for (sum, count) in total.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    println!(
        "{} prunable layers; units: {} single, {} layer, {} block",
        total[0], total[1], total[2], total[3]
    );
}

struct TapsAgree;

impl<M: Modality> Visit<M> for TapsAgree {
    type Out = ();

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) {
        let x = input::<M>(spec, &Device::flex());
        let bare = network.run(x.clone(), &mut Bare::default());
        let counted = census(&network, x).1;
        assert_eq!(bits(bare), bits(counted), "{}", spec.name);
    }
}

#[test]
fn bare_and_census_give_the_same_output() {
    all(|| TapsAgree).for_each(drop);
}

/// Runs one unit alone on a captured input and compares bit for bit.
struct Replay {
    target: String,
    path: Path,
    input: Option<Box<dyn std::any::Any>>,
    output: Option<Box<dyn std::any::Any>>,
}

impl Tap for Replay {
    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        if self.path.join() == self.target
            && let (Some(input), Some(output)) = (self.input.take(), self.output.take())
        {
            let captured = input.downcast::<In>().expect("the unit's own type");
            let expected = output.downcast::<U::Out>().expect("the unit's own type");
            let got = unit.run(*captured, &mut Bare::default());
            assert_eq!(bits(got), bits(*expected), "{}", self.target);
        }
        let output = unit.run(input, self);
        self.path.pop();
        output
    }
}

struct Replays;

impl<M: Modality> Visit<M> for Replays {
    type Out = usize;

    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> usize {
        let x = input::<M>(spec, &Device::flex());
        let (census, _) = census(&network, x.clone());
        let mut targets: Vec<String> = census.rows.iter().map(|row| row.path.clone()).collect();
        if targets.len() > 40 {
            // Deep networks repeat the same blocks: every 29th announcement, which meets all grains, and the last one.
            let last = targets.len() - 1;
            targets = targets
                .into_iter()
                .enumerate()
                .filter(|(place, _)| place % 29 == 0 || *place == last)
                .map(|(_, path)| path)
                .collect();
        }
        for target in &targets {
            let mut capture = Capture::of(target, Precision::F32);
            network.run(x.clone(), &mut capture);
            let (input, output) = capture.into_calls().pop().expect("the unit is reached");
            let mut replay = Replay {
                target: target.clone(),
                path: Path::default(),
                input: Some(input),
                output: Some(output),
            };
            network.run(x.clone(), &mut replay);
            assert!(replay.input.is_none(), "{target} was replayed");
        }
        targets.len()
    }
}

#[test]
fn a_captured_unit_gives_its_captured_output() {
    let replayed: usize = all(|| Replays).map(|(_, replayed)| replayed).sum();
    println!("{replayed} units replayed bit for bit");
}
