//! Lines, joins and activations on the CPU against f64, on every instruction set at hand.

mod common;

use common::Random;
use kernels::Activation;
use kernels::cpu::Isa;
use kernels::cpu::pointwise::{self, Line};

/// The rounding unit of f32.
const UNIT: f64 = 1.0 / (1u64 << 24) as f64;

fn value(activation: Activation, v: f64) -> f64 {
    let gate = (v + 3.0).clamp(0.0, 6.0) / 6.0;
    match activation {
        Activation::Identity => v,
        Activation::Relu => v.max(0.0),
        Activation::Relu6 => v.clamp(0.0, 6.0),
        Activation::HardSigmoid => gate,
        Activation::HardSwish => v * gate,
    }
}

fn slope(activation: Activation, v: f64) -> f64 {
    let inside = |low: f64, high: f64| f64::from(v > low && v < high);
    match activation {
        Activation::Identity => 1.0,
        Activation::Relu => f64::from(v > 0.0),
        Activation::Relu6 => inside(0.0, 6.0),
        Activation::HardSigmoid => inside(-3.0, 3.0) / 6.0,
        Activation::HardSwish => match v {
            v if v < -3.0 => 0.0,
            v if v > 3.0 => 1.0,
            v => v / 3.0 + 0.5,
        },
    }
}

/// Numbers that meet every piece of every activation.
fn wide(random: &mut Random, n: usize) -> Vec<f32> {
    let mut values = random.floats(n);
    values.iter_mut().for_each(|v| *v *= 8.0);
    values
}

#[track_caller]
fn close(name: &str, got: f32, want: f64, bound: f64) {
    let off = (f64::from(got) - want).abs();
    assert!(
        off <= bound,
        "{name}: {got}, expected {want} within {bound}"
    );
}

struct Case {
    planes: [usize; 3],
    x: Vec<f32>,
    skip: Option<Vec<f32>>,
    line: Option<[Vec<f32>; 3]>,
}

impl Case {
    fn draw(random: &mut Random) -> Self {
        let planes = [random.below(5), random.below(9), random.below(90)];
        let n = planes.iter().product();
        Self {
            planes,
            x: wide(random, n),
            skip: (random.below(2) == 0).then(|| wide(random, n)),
            line: (random.below(3) > 0).then(|| [0; 3].map(|_| random.floats(planes[1]))),
        }
    }

    fn line(&self) -> Option<Line<'_>> {
        let [centre, scale, shift] = self.line.as_ref()?;
        Some(Line {
            centre,
            scale,
            shift,
        })
    }

    /// What goes into the activation, and the size of what was added up for it.
    fn before(&self, at: usize) -> [f64; 2] {
        let channel = at / self.planes[2] % self.planes[1];
        let x = f64::from(self.x[at]);
        let [mut v, mut size] = [x, x.abs()];
        if let Some(line) = &self.line {
            let [centre, scale, shift] = [0, 1, 2].map(|i| f64::from(line[i][channel]));
            v = (x - centre) * scale + shift;
            size = (x.abs() + centre.abs()) * scale.abs() + shift.abs();
        }
        let skip = self.skip.as_ref().map_or(0.0, |skip| f64::from(skip[at]));
        [v + skip, size + skip.abs()]
    }
}

#[test]
fn passes_agree_with_f64() {
    for isa in Isa::available() {
        let mut random = Random(8);
        for _ in 0..120 {
            let case = Case::draw(&mut random);
            for activation in Activation::ALL {
                let skip = case.skip.as_deref();
                let y = pointwise::apply(isa, case.planes, &case.x, case.line(), skip, activation);
                let mut again = case.x.clone();
                pointwise::apply_in_place(
                    isa,
                    case.planes,
                    &mut again,
                    case.line(),
                    skip,
                    activation,
                );
                assert_eq!(y, again, "{isa:?} {activation:?}: in place");
                for (at, &y) in y.iter().enumerate() {
                    let [v, size] = case.before(at);
                    // No slope is above 1.5 here, and hard swish multiplies once more.
                    let bound = 8.0 * UNIT * (1.5 * size + v.abs());
                    let name = format!("{isa:?} {activation:?} {at}");
                    close(&name, y, value(activation, v), bound + 4.0 * UNIT);
                }
            }
        }
    }
}

#[test]
fn gradients_agree_with_f64() {
    for isa in Isa::available() {
        let mut random = Random(9);
        for _ in 0..120 {
            let mut case = Case::draw(&mut random);
            case.skip = None;
            let n = case.x.len();
            let g = random.floats(n);
            let [images, channels, pixels] = case.planes;
            for activation in Activation::ALL {
                let name = format!("{isa:?} {activation:?} {:?}", case.planes);
                let y = pointwise::apply(isa, case.planes, &case.x, None, None, activation);
                let kept = if activation.keeps_input() {
                    &case.x
                } else {
                    &y
                };
                let dx = pointwise::activation_grad(isa, kept, &g, activation);
                for at in 0..n {
                    let want = f64::from(g[at]) * slope(activation, f64::from(case.x[at]));
                    close(&name, dx[at], want, 16.0 * UNIT);
                }
                let mut there = g.clone();
                pointwise::activation_grad_in_place(isa, kept, &mut there, activation);
                assert_eq!(there, dx, "{name}, in the gradient's place");

                let Some(line) = case.line() else { continue };
                let grad = pointwise::line_grad(isa, case.planes, &case.x, line, &g, activation);
                for channel in 0..channels {
                    let [mut along, mut sum] = [0.0; 2];
                    for image in 0..images {
                        for pixel in 0..pixels {
                            let at = (image * channels + channel) * pixels + pixel;
                            let [v, _] = case.before(at);
                            // Next to a kink f32 may be on its other side.
                            let kink = [-3.0, 0.0, 3.0, 6.0].iter().any(|k| (v - k).abs() < 1e-5);
                            let d = f64::from(g[at]) * slope(activation, v);
                            let want = d * f64::from(line.scale[channel]);
                            if !kink {
                                close(&name, grad.dx[at], want, 64.0 * UNIT);
                            }
                            along += d * f64::from(case.x[at] - line.centre[channel]);
                            sum += d;
                        }
                    }
                    let count = (images * pixels) as f64;
                    close(&name, grad.sum[channel], sum, 64.0 * UNIT * count);
                    close(&name, grad.along[channel], along, 512.0 * UNIT * count);
                }
            }
        }
    }
}

#[test]
fn nothing_that_is_no_number_gets_lost() {
    let x = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 6.0];
    for isa in Isa::available() {
        let of = |activation| pointwise::apply(isa, [1, 1, 5], &x, None, None, activation);
        for activation in Activation::ALL {
            assert!(of(activation)[0].is_nan(), "{isa:?} {activation:?}");
        }
        assert_eq!(of(Activation::Relu)[1..], [f32::INFINITY, 0.0, 0.0, 6.0]);
        assert_eq!(of(Activation::Relu6)[1..], [6.0, 0.0, 0.0, 6.0]);
        let y = of(Activation::Relu);
        let dx = pointwise::activation_grad(isa, &y, &[1.0; 5], Activation::Relu);
        assert_eq!(dx[1..], [1.0, 0.0, 0.0, 1.0]);
    }
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let mut random = Random(10);
    let planes = [3, 37, 401];
    let n = planes.iter().product();
    let (x, g) = (wide(&mut random, n), random.floats(n));
    let line = [0; 3].map(|_| random.floats(37));
    let line = Line {
        centre: &line[0],
        scale: &line[1],
        shift: &line[2],
    };
    let all = |isa| {
        let mut out = Vec::new();
        for activation in Activation::ALL {
            let y = pointwise::apply(isa, planes, &x, Some(line), Some(&g), activation);
            let grad = pointwise::line_grad(isa, planes, &x, line, &g, activation);
            out.push(pointwise::activation_grad(isa, &y, &g, activation));
            out.extend([y, grad.dx, grad.along, grad.sum]);
        }
        let bits = |part: Vec<f32>| part.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        out.into_iter().map(bits).collect::<Vec<_>>()
    };
    for isa in Isa::available() {
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| all(isa))
        };
        let one = with(1);
        for threads in [2, 3, 8] {
            assert!(one == with(threads), "{isa:?}, {threads} threads");
        }
    }
}
