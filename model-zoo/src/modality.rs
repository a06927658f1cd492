//! What goes into a network and comes out of it, by what the network is for; nothing about scoring.
//!
//! The catalog hands a network, with its type, to a visitor. What holds for every network is written once, as
//! `impl<M: Modality> Visit<M>`; what is done with one kind alone implements [`Visit`] for that kind, and
//! [`Spec::open_classes`] refuses the others with a message.

use burn::tensor::{Device, Tensor};

use crate::catalog::Spec;
use crate::padded::Padded;
use crate::unit::{Bundle, Fixed, Network};

/// A kind of network by what it takes and gives.
pub trait Modality: 'static {
    /// What its networks take.
    type Input: Blank;
    /// What they give.
    type Output: Bundle;
    /// What they do, as a message says it after a network's name.
    const DOES: &'static str;
}

/// An input that says nothing: enough to count layers and shapes.
pub trait Blank: Bundle {
    /// `batch` of them at the network's own size.
    fn blank(spec: &Spec, batch: usize, device: &Device) -> Self;
}

/// Images to logits.
pub struct Classes;

impl Modality for Classes {
    /// Images, [N, C, H, W].
    type Input = Tensor<4>;
    /// Logits, [N, classes].
    type Output = Tensor<2>;
    const DOES: &'static str = "names classes";
}

/// Images to boxes with scores.
pub struct Boxes;

impl Modality for Boxes {
    /// Images of any sizes, padded to one.
    type Input = Padded;
    /// For each level of the pyramid (each map of SSD), fine to coarse, and each anchor on it: the classes' logits, [N, anchors, classes],
    /// and the four offsets from the anchor, [N, anchors, 4].
    type Output = Vec<(Tensor<3>, Tensor<3>)>;
    const DOES: &'static str = "finds boxes";
}

/// A noisy latent to its noise.
pub struct Noise;

impl Modality for Noise {
    /// The latent, [N, C, H, W], its time step, [N], and the context where the network has one, [N, tokens, width].
    type Input = (Tensor<4>, Tensor<1>, Option<Tensor<3>>);
    /// The noise, in the latent's shape.
    type Output = Tensor<4>;
    const DOES: &'static str = "predicts noise";
}

/// Tokens to states.
pub struct Tokens;

impl Modality for Tokens {
    /// The tokens of each text, equally many.
    type Input = Fixed<Vec<Vec<u32>>>;
    /// A state for each token, [N, tokens, width].
    type Output = Tensor<3>;
    const DOES: &'static str = "encodes text";
}

impl Blank for Tensor<4> {
    fn blank(spec: &Spec, batch: usize, device: &Device) -> Self {
        let [channels, height, width] = spec.input;
        Tensor::zeros([batch, channels, height, width], device)
    }
}

impl Blank for (Tensor<4>, Tensor<1>, Option<Tensor<3>>) {
    fn blank(spec: &Spec, batch: usize, device: &Device) -> Self {
        let context = spec
            .context()
            .map(|[tokens, width]| Tensor::zeros([batch, tokens, width], device));
        let latent = Tensor::<4>::blank(spec, batch, device);
        (latent, Tensor::zeros([batch], device), context)
    }
}

impl Blank for Fixed<Vec<Vec<u32>>> {
    fn blank(spec: &Spec, batch: usize, _: &Device) -> Self {
        let [tokens, _] = spec.context().unwrap_or_default();
        Fixed(vec![vec![0; tokens]; batch])
    }
}

/// A network of a kind.
pub trait Of<M: Modality>: Network<Input = M::Input, Output = M::Output> {}
impl<M: Modality, N: Network<Input = M::Input, Output = M::Output>> Of<M> for N {}

/// A network that names classes.
pub trait Classifier: Network<Input = Tensor<4>, Output = Tensor<2>> {}
impl<N: Network<Input = Tensor<4>, Output = Tensor<2>>> Classifier for N {}

/// What is done with a network whose type the catalog decides.
pub trait Visit<M: Modality> {
    /// What comes of it.
    type Out;

    /// Takes the network, with random weights.
    fn visit<N: Of<M>>(self, spec: &'static Spec, network: N) -> Self::Out;
}

macro_rules! modalities {
    ($($modality:ident),+) => {
        /// What can be done with every network; nobody implements it by hand.
        pub trait VisitAny<Out>: $(Visit<$modality, Out = Out> +)+ {}
        impl<V, Out> VisitAny<Out> for V where V: $(Visit<$modality, Out = Out> +)+ {}
    };
}

modalities!(Classes, Boxes, Noise, Tokens);

/// A network of another kind than is asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{model}` {does}; {wanted} so far; choose another model (`ptsbench list models`)")]
pub struct OtherModality {
    /// The network.
    pub model: &'static str,
    /// What it does.
    pub does: &'static str,
    /// What is done so far, as "`infer` names classes".
    pub wanted: &'static str,
}

impl OtherModality {
    /// Of a network of this kind.
    pub fn of<M: Modality>(spec: &Spec, wanted: &'static str) -> Self {
        Self {
            model: spec.name,
            does: M::DOES,
            wanted,
        }
    }
}

/// Visits networks that name classes, and refuses all others.
pub(crate) struct ClassesOnly<V> {
    pub(crate) visitor: V,
    pub(crate) wanted: &'static str,
}

/// Visits networks that predict noise, and refuses all others.
pub(crate) struct NoiseOnly<V> {
    pub(crate) visitor: V,
    pub(crate) wanted: &'static str,
}

macro_rules! only {
    ($only:ident, $own:ident, $($other:ident),+) => {
        impl<V: Visit<$own>> Visit<$own> for $only<V> {
            type Out = Result<V::Out, OtherModality>;

            fn visit<N: Of<$own>>(self, spec: &'static Spec, network: N) -> Self::Out {
                Ok(self.visitor.visit(spec, network))
            }
        }

        $(impl<V: Visit<$own>> Visit<$other> for $only<V> {
            type Out = Result<V::Out, OtherModality>;

            fn visit<N: Of<$other>>(self, spec: &'static Spec, _: N) -> Self::Out {
                Err(OtherModality::of::<$other>(spec, self.wanted))
            }
        })+
    };
}

only!(ClassesOnly, Classes, Boxes, Noise, Tokens);
only!(NoiseOnly, Noise, Classes, Boxes, Tokens);
