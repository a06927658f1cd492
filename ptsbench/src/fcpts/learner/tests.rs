//! Steps against their equations, and trainings that go on from a checkpoint.

use kernels::MaskGrad;
use model_zoo::catalog::{self, Spec, Visit};
use model_zoo::graft::read_params;
use model_zoo::{Classes, Classifier};

use super::super::threshold::{Bridge, logit};
use super::*;
use crate::cell::Key;
use crate::data::synthetic::MicroSet;
use crate::reconstruct::checkpoint::Checkpoints;
use crate::seed::Stream;
use crate::subject;

const SGD: Sgd = Sgd {
    momentum: MOMENTUM,
    decay: DECAY,
    lr: 0.125,
};

fn drawn(stream: &mut Stream, count: usize, scale: f32) -> Vec<f32> {
    (0..count).map(|_| stream.normal() * scale).collect()
}

fn layer(weight: &[f32], s: f64) -> Layer {
    Layer {
        path: "weight".to_owned(),
        weight: weight.to_vec(),
        shape: [1, weight.len()],
        threshold: Threshold {
            s,
            velocity: 0.0,
            most: weight.len(),
        },
        pruned: 0,
    }
}

/// Two steps of a layer in f64, from the equations of section 1.4 alone.
#[test]
fn steps_are_those_of_the_equations() {
    let mut stream = Seed(3).stream("steps");
    // A penalty of 2 in a network of 1,000 weights, and weights on both sides of the window |  |w| - t | < 1.
    let weight = drawn(&mut stream, 300, 1.2);
    let pull = 0.002;
    for mask_grad in [MaskGrad::None, MaskGrad::Threshold, MaskGrad::Both] {
        for bridge in [Bridge::Hist100, Bridge::Kde] {
            let fcpts = Fcpts {
                mask_grad,
                bridge,
                ..Fcpts::default()
            };
            let mut layer = layer(&weight, -1.5);
            let mut velocity = vec![0.0; weight.len()];
            let mut w: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
            let mut v = vec![0.0; w.len()];
            let (mut s, mut vs) = (-1.5f64, 0.0);
            for _ in 0..2 {
                let g = drawn(&mut stream, weight.len(), 0.3);
                layer.step(&g, &mut velocity, SGD, &fcpts, pull);

                let scale = w.iter().fold(0.0f64, |most, w| most.max(w.abs()));
                let sigmoid = 1.0 / (1.0 + (-s).exp());
                let t = sigmoid * scale;
                let now: Vec<f32> = w.iter().map(|&w| w as f32).collect();
                let mut dt = 2.0 * 300.0 / 1000.0 * bridge.slope(&now, t);
                for i in 0..w.len() {
                    let g = f64::from(g[i]);
                    let m = f64::from(w[i].abs() > t);
                    let inside = f64::from((w[i].abs() - t).abs() < 1.0);
                    let (mut dw, through) = (g * m, 0.5 * g * w[i] * inside);
                    if mask_grad != MaskGrad::None {
                        dt -= through;
                    }
                    if mask_grad == MaskGrad::Both {
                        dw += through * w[i].signum();
                    }
                    v[i] = 0.9 * v[i] + dw + 3e-4 * w[i];
                    w[i] -= 0.125 * v[i];
                }
                vs = 0.9 * vs + dt * scale * sigmoid * (1.0 - sigmoid);
                s -= 0.125 * vs;
            }
            let case = format!("{mask_grad:?} {bridge:?}");
            let got = layer.threshold.s;
            assert!((got - s).abs() < 1e-4 * s.abs(), "{case}: {got}, {s}");
            assert_ne!(got, -1.5, "{case}");
            for (got, w) in layer.weight.iter().zip(&w) {
                assert!((f64::from(*got) - w).abs() < 1e-5, "{case}: {got}, {w}");
            }
        }
    }
}

/// The straight-through rule is the slope of a loss whose mask is `m + (d|w| - dt) / 2` within the window. Difference
/// quotients of that loss are what a step must have gone along.
#[test]
fn steps_go_along_the_slopes_of_the_straight_through_loss() {
    let mut stream = Seed(5).stream("slopes");
    let weight = drawn(&mut stream, 60, 0.7);
    let c = drawn(&mut stream, 60, 1.0);
    let s = -1.0;
    let scale = largest(&weight);
    let t = f64::from((sigma(s) * scale) as f32);
    // L(x) = sum c sin(x) of the masked weight x; how the mask moves with weight and threshold is told apart.
    let loss = |w: &[f64], seen: &[f64], t_seen: f64| -> f64 {
        let each = w.iter().zip(seen).zip(&weight).zip(&c);
        each.map(|(((&w, &seen), &at), &c)| {
            let at = f64::from(at);
            let inside = f64::from((at.abs() - t).abs() < 1.0);
            let m =
                f64::from(at.abs() > t) + 0.5 * inside * ((seen.abs() - at.abs()) - (t_seen - t));
            f64::from(c) * (w * m).sin()
        })
        .sum()
    };
    let wide: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
    let g: Vec<f32> = wide
        .iter()
        .zip(&c)
        .map(|(&w, &c)| (f64::from(c) * (w * f64::from(w.abs() > t)).cos()) as f32)
        .collect();
    let h = 1e-6;
    let moved = |i: usize, by: f64| {
        let mut moved = wide.clone();
        moved[i] += by;
        moved
    };
    for mask_grad in [MaskGrad::None, MaskGrad::Threshold, MaskGrad::Both] {
        let fcpts = Fcpts {
            mask_grad,
            ..Fcpts::default()
        };
        let mut layer = layer(&weight, s);
        let plain = Sgd {
            momentum: 0.0,
            decay: 0.0,
            lr: 1.0,
        };
        layer.step(&g, &mut vec![0.0; weight.len()], plain, &fcpts, 0.0);
        for (i, (&before, &after)) in weight.iter().zip(&layer.weight).enumerate() {
            let [up, down] = [h, -h].map(|by| match mask_grad {
                MaskGrad::Both => loss(&moved(i, by), &moved(i, by), t),
                _ => loss(&moved(i, by), &wide, t),
            });
            let slope = (up - down) / (2.0 * h);
            let went = f64::from(before) - f64::from(after);
            assert!(
                (went - slope).abs() < 1e-5,
                "{mask_grad:?} {i}: {went}, {slope}"
            );
        }
        let of_t = |s: f64| loss(&wide, &wide, sigma(s) * scale);
        let slope = match mask_grad {
            MaskGrad::None => 0.0,
            _ => (of_t(s + h) - of_t(s - h)) / (2.0 * h),
        };
        let went = s - layer.threshold.s;
        assert!(
            (went - slope).abs() < 1e-5,
            "{mask_grad:?}: {went}, {slope}"
        );
    }
}

#[test]
fn dense_layers_are_never_masked_and_capped_ones_never_beyond_their_cap() {
    let mut stream = Seed(1).stream("caps");
    let weight = drawn(&mut stream, 100, 0.1);
    let with = |most: usize| {
        let mut layer = layer(&weight, logit(0.9));
        layer.threshold.most = most;
        let masked = layer.masked();
        (layer.pruned, masked == weight)
    };
    assert_eq!(with(0), (0, true));
    assert_eq!(with(30), (30, false));
    let (free, _) = with(100);
    assert!(free > 90, "{free}");
    // A layer of zeros has no scale, and all of it goes.
    let mut zeros = layer(&[0.0; 5], 0.0);
    assert_eq!((zeros.masked(), zeros.pruned), (vec![0.0; 5], 5));
}

/// A network with batches, and what it says of them, told apart by `contrast`: a random network says little.
struct Class<N: Classifier> {
    network: N,
    starts: Vec<Start>,
    images: Batches<'static, N::Input>,
    contrast: f64,
    device: Device,
}

impl<N: Classifier> Class<N> {
    fn new(spec: &Spec, network: N, contrast: f64) -> Self {
        let device = Device::flex();
        let census = subject::census(spec, &network, &device);
        let starts = subject::sites(&network, &census)
            .into_iter()
            .map(|site| Start {
                path: site.weight(),
                zeros: site.info.len() / 2,
                most: site.info.len(),
            });
        let image = |at: usize| {
            let data = TensorData::new(MicroSet::TRAIN.normalized(&[at]), [1, 3, 32, 32]);
            Tensor::<4>::from_data(data, &device)
        };
        Self {
            starts: starts.collect(),
            // Three batches of eight, and one image that is left.
            images: (0..25).map(image).collect::<Vec<_>>().into(),
            contrast,
            network,
            device,
        }
    }

    /// What the dense network says of a batch.
    fn says(&self, batch: Tensor<4>) -> Tensor<2> {
        self.network.run(batch, &mut Bare(Precision::F32)) * self.contrast
    }

    fn learner<'a>(&self, fcpts: &'a Fcpts) -> Learner<'a, N> {
        let terms = Terms {
            fcpts,
            rate: 0.7,
            batch: 8,
            seed: Seed(4),
            precision: Precision::F32,
        };
        Learner::start(&self.network, &self.starts, terms, &self.device)
    }

    fn epoch<'a>(&self, learner: Learner<'a, N>) -> Learner<'a, N> {
        let teacher = |batch| self.says(batch);
        learner.epoch(&self.images, &teacher, |_, _| {}).unwrap()
    }
}

/// With weights of a stream of their own: a device's are those of whichever test draws first.
struct Drawn<V>(V);

impl<V: Visit<Classes, Out = ()>> Visit<Classes> for Drawn<V> {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let mut params = read_params(&network);
        params.sort_by(|a, b| a.0.cmp(&b.0));
        let drawn = params.into_iter().map(|(path, data)| {
            let shape = data.shape().clone();
            let mut stream = Seed(0).stream(&path);
            let read = shape.iter().skip(1).product::<usize>();
            let values: Vec<f32> = match shape.len() {
                // Norms and biases stay.
                1 => floats(data),
                _ => {
                    let deviation = (2.0 / read as f32).sqrt();
                    let count = shape.iter().product();
                    (0..count).map(|_| deviation * stream.normal()).collect()
                }
            };
            (path, TensorData::new(values, shape))
        });
        let network = write_params(network, drawn.collect(), &Device::flex()).0;
        self.0.visit(spec, network);
    }
}

fn visit<V: Visit<Classes, Out = ()>>(visitor: V) {
    let spec = catalog::find("micro_resnet8").unwrap();
    spec.open_classes(&Device::flex(), "it is trained", Drawn(visitor))
        .unwrap();
}

/// A step moves weights and norms along difference quotients of the loss that it reports.
struct Slopes;

impl Visit<Classes> for Slopes {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let class = Class::new(spec, network, 200.0);
        let fcpts = Fcpts {
            mask_grad: MaskGrad::None,
            lambda: 0.0,
            ..Fcpts::default()
        };
        let loss = |change: Option<(&str, usize, f32)>| {
            let mut learner = class.learner(&fcpts);
            if let Some((path, at, by)) = change {
                let mut values: HashMap<String, TensorData> =
                    read_params(&learner.network.valid()).into_iter().collect();
                let data = values.remove(path).unwrap();
                let (shape, mut data) = (data.shape().clone(), floats(data));
                data[at] += by;
                let values = HashMap::from([(path.to_owned(), TensorData::new(data, shape))]);
                let network = learner.network.valid();
                learner.network = write_params(network, values, &class.device).0.train();
            }
            let batch = (0..8).map(|at| class.images.get(at).unwrap());
            let batch = Tensor::join(batch.collect());
            learner.step(batch.clone(), class.says(batch), 0.1).unwrap()
        };
        let (stepped, value, _) = loss(None);
        assert!(value > 0.01, "{value}");
        let before: HashMap<String, Vec<f32>> = read_params(&class.network)
            .into_iter()
            .map(|(path, data)| (path, floats(data)))
            .collect();
        let after = stepped.params(&stepped.network.valid());
        let norm = |path: &&String| path.ends_with("norm.gamma");
        // The last layer: its slopes are large enough to be told from rounding.
        let last = stepped.layers.len() - 1;
        let prunable = &stepped.layers[last];
        let masked = class.learner(&fcpts).layers[last].masked();
        let kept = (0..masked.len()).filter(|&at| masked[at] != 0.0);
        let gammas = before.keys().filter(norm).min().unwrap();
        let mut places: Vec<(&str, usize)> = kept
            .take(4)
            .map(|at| (prunable.path.as_str(), at))
            .collect();
        places.extend((0..3).map(|at| (gammas.as_str(), at)));
        let mut largest_slope = 0.0f64;
        for (path, at) in places {
            let h = 0.002;
            let [up, down] = [h, -h].map(|by| loss(Some((path, at, by))).1);
            let slope = (up - down) / (2.0 * f64::from(h));
            let after = &after.iter().find(|(p, _)| p == path).unwrap().1;
            let (old, new) = (before[path][at], after.iter::<f32>().nth(at).unwrap());
            let went = f64::from(old - new) / 0.1 - DECAY * f64::from(old);
            assert!(
                (went - slope).abs() < 0.03 * slope.abs() + 2e-3,
                "{path} {at}: {went}, {slope}"
            );
            largest_slope = largest_slope.max(slope.abs());
        }
        assert!(largest_slope > 0.02, "{largest_slope}: too flat to tell");
    }
}

#[test]
fn a_step_goes_down_the_loss() {
    visit(Slopes);
}

/// Thresholds reach the rate and the loss falls; the dense network stays as it was.
struct Learns;

impl Visit<Classes> for Learns {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let class = Class::new(spec, network, 20.0);
        let fcpts = Fcpts {
            epochs: 30,
            learning_rate: 0.05,
            ..Fcpts::default()
        };
        let before = read_params(&class.network);
        let mut learner = class.learner(&fcpts);
        assert!((learner.rate() - 0.5).abs() < 1e-3, "{}", learner.rate());
        while !learner.is_done() {
            learner = class.epoch(learner);
        }
        let (first, last) = (learner.history[0], learner.history[29]);
        assert!(last.loss < 0.5 * first.loss, "{first:?} {last:?}");
        assert!(
            last.penalty < first.penalty && (last.rate - 0.7).abs() < 0.1,
            "{last:?}"
        );
        assert_eq!(read_params(&class.network), before);
        // Weights, norms and their statistics have moved.
        let trained: HashMap<String, TensorData> = read_params(&learner.network(&Device::flex()))
            .into_iter()
            .collect();
        for (path, old) in &before {
            assert_ne!(&trained[path], old, "{path}");
        }
    }
}

#[test]
fn thresholds_reach_the_rate_and_the_loss_falls() {
    visit(Learns);
}

/// Three epochs at a stretch, and with a file between them.
struct Resumes;

impl Visit<Classes> for Resumes {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let class = Class::new(spec, network, 20.0);
        let fcpts = Fcpts {
            epochs: 3,
            ..Fcpts::default()
        };
        let whole = (0..3).fold(class.learner(&fcpts), |learner, _| class.epoch(learner));

        let folder = tempfile::tempdir().unwrap();
        let key = Key::try_from("ab".repeat(32)).unwrap();
        let checkpoint = Checkpoints {
            folder: folder.path(),
            key: &key,
        }
        .of_training();
        let mut learner = class.learner(&fcpts);
        for _ in 0..3 {
            learner = class.epoch(learner);
            let (state, tensors) = learner.checkpoint();
            checkpoint.write(&state, tensors.into_iter()).unwrap();
            let expected = Learner::expected(&class.network);
            let fits = |state: &State| state.fits(&fcpts, &class.starts);
            let (state, tensors) = checkpoint.read(&expected, fits).unwrap().unwrap();
            learner = class.learner(&fcpts).resume(state, tensors, &class.device);
        }
        let all = |learner: &Learner<'_, N>| {
            let (state, tensors) = learner.checkpoint();
            let network = read_params(&learner.network(&Device::flex()));
            (
                state,
                tensors,
                network,
                learner.thresholds(),
                learner.rate(),
            )
        };
        assert!(all(&whole) == all(&learner));
        // Another number of epochs does not go on from more of them.
        let shorter = Fcpts { epochs: 2, ..fcpts };
        assert!(!whole.checkpoint().0.fits(&shorter, &class.starts));
    }
}

#[test]
fn a_resumed_training_ends_with_the_same_bits() {
    visit(Resumes);
}

/// A loss that is no number ends the training, and says where.
struct Diverges;

impl Visit<Classes> for Diverges {
    type Out = ();

    fn visit<N: Classifier>(self, spec: &'static Spec, network: N) {
        let class = Class::new(spec, network, 20.0);
        let fcpts = Fcpts::default();
        let nan = |_| Tensor::<2>::full([8, 20], f32::NAN, &Device::flex());
        let learner = class.learner(&fcpts);
        let outcome = learner.epoch(&class.images, &nan, |_, _| {});
        let error = outcome.err().unwrap().to_string();
        for part in [
            "the loss is not finite",
            "step 1 of epoch 1",
            "`learning_rate`",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn a_loss_that_is_no_number_is_told_with_its_step() {
    visit(Diverges);
}
