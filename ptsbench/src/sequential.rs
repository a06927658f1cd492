//! Layer after layer in forward order, each looking at what it reads in the network as pruned so far: how the releases of
//! Wanda and SparseGPT go.
//!
//! A tap prunes while the pass goes on, so one pass over all images suffices. Where they come in several batches, or a
//! layer is called several times in a pass, all its inputs must be seen before it is pruned: then a pass goes to that
//! layer alone.

use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use kernels::Precision;
use model_zoo::tap::{Census, Path};
use model_zoo::{Bundle, Extents, LayerInfo, Network, Tap, Unit};

use crate::batches::Batches;
use crate::interrupt::{self, Interrupted};
use crate::seen::{Need, Seen, SeenError};
use crate::task::TaskError;

/// Prunes one layer, given by its path in the module: what it read becomes the weight it has from then on, as the module
/// stores it.
pub type Prune<'a, E> = dyn FnMut(&str, &Seen) -> Result<TensorData, E> + 'a;

/// Calls `prune` for every prunable layer of `network`, in forward order; returns how often it ran through all batches.
/// The sums of a layer's products may take `room` bytes.
pub fn in_order<N: Network, E>(
    network: &N,
    census: &Census,
    batches: &Batches<'_, N::Input>,
    need: Need,
    precision: Precision,
    room: u64,
    prune: &mut Prune<'_, E>,
) -> Result<u64, E>
where
    E: From<SeenError> + From<TaskError> + From<Interrupted>,
{
    let mut calls: HashMap<String, usize> = HashMap::new();
    for row in census.rows.iter().filter(|row| row.layer.is_some()) {
        *calls.entry(row.path.clone()).or_default() += 1;
    }
    let all = calls.len();
    let mut tap = InOrder {
        path: Path::default(),
        extents: None,
        calls,
        alone: batches.len() == 1,
        need,
        precision,
        room,
        done: HashMap::new(),
        waiting: None,
        prune,
        error: None,
    };
    let mut passes = 0;
    while tap.done.len() < all && !batches.is_empty() {
        let before = tap.done.len();
        passes += 1;
        for batch in batches.iter() {
            interrupt::check()?;
            let batch = batch?;
            tap.extents = batch.extents();
            network.run(batch, &mut tap);
            if let Some(error) = tap.error.take() {
                return Err(error);
            }
        }
        if let Some((path, seen)) = tap.waiting.take() {
            let weight = (tap.prune)(&path, &seen)?;
            tap.done.insert(path, weight);
        }
        assert!(tap.done.len() > before, "a pass prunes at least one layer");
    }
    Ok(passes)
}

struct InOrder<'a, 'b, E> {
    path: Path,
    /// What is no padding in the batch.
    extents: Option<Extents>,
    /// How often each layer runs in a pass.
    calls: HashMap<String, usize>,
    /// The one batch is everything there is.
    alone: bool,
    need: Need,
    precision: Precision,
    room: u64,
    done: HashMap<String, TensorData>,
    /// The layer whose inputs are not complete; nothing behind it is pruned in this pass.
    waiting: Option<(String, Seen)>,
    prune: &'a mut Prune<'b, E>,
    error: Option<E>,
}

impl<E: From<SeenError>> InOrder<'_, '_, E> {
    fn meet<In: Bundle>(&mut self, path: &str, info: &LayerInfo, input: &In) -> Result<(), E> {
        let extents = self.extents.as_ref();
        let add = |seen: &mut Seen| {
            let shape = |source| SeenError::Shape {
                path: path.to_owned(),
                source,
            };
            seen.add(info, input, extents).map_err(shape)
        };
        match &mut self.waiting {
            Some((waits, seen)) if waits == path => add(seen)?,
            Some(_) => {}
            None => {
                let mut seen = Seen::nothing(path, info, self.need, self.room)?;
                add(&mut seen)?;
                if self.alone && self.calls.get(path) == Some(&1) {
                    let weight = (self.prune)(path, &seen)?;
                    self.done.insert(path.to_owned(), weight);
                } else {
                    self.waiting = Some((path.to_owned(), seen));
                }
            }
        }
        Ok(())
    }
}

impl<E: From<SeenError>> Tap for InOrder<'_, '_, E> {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        let Some(info) = unit.layer() else {
            let output = unit.run(input, self);
            self.path.pop();
            return output;
        };
        let path = self.path.join();
        if !self.done.contains_key(&path)
            && self.error.is_none()
            && let Err(error) = self.meet(&path, &info, &input)
        {
            self.error = Some(error);
        }
        let output = match self.done.get(&path) {
            Some(weight) => with_weight(unit, info.weight, weight).run(input, self),
            None => unit.run(input, self),
        };
        self.path.pop();
        output
    }
}

/// A copy of the module in which one parameter has other values.
fn with_weight<M: Module>(module: &M, id: ParamId, values: &TensorData) -> M {
    struct Put<'a>(ParamId, &'a TensorData);
    impl ModuleMapper for Put<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if param.id != self.0 {
                return param;
            }
            let device = param.lazy_device();
            param.map(|_| Tensor::from_data(self.1.clone(), &device))
        }
    }
    module.clone().map(&mut Put(id, values))
}
