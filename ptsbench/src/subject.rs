//! A network under test: its prunable layers in forward order and their weights as the checkpoint lays them out.
//!
//! Burn stores a `Linear`'s weight as [in, out], checkpoints as [out, in]; here and in `model_zoo::weights` the two meet,
//! and everything above sees the checkpoint's layout.

use std::collections::HashMap;

use burn::tensor::{Device, TensorData};
use kernels::BitMask;
use model_zoo::catalog::Spec;
use model_zoo::graft::{read_params, write_params};
use model_zoo::mask::Attach;
use model_zoo::tap::{Census, Row};
use model_zoo::{Blank, LayerInfo, LayerKind, Network};

use crate::inventory::{Layer, Loaded};
use crate::select::Masks;

/// The announcements of one forward pass over a blank input of the network's own size.
pub fn census<N>(spec: &Spec, network: &N, device: &Device) -> Census
where
    N: Network<Input: Blank>,
{
    census_on(Blank::blank(spec, 1, device), network)
}

/// The same over this input.
pub fn census_on<N: Network>(input: N::Input, network: &N) -> Census {
    let mut census = Census::default();
    network.run(input, &mut census);
    census
}

/// A prunable layer by all its names.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// Its path in the module.
    pub module: String,
    /// The checkpoint's name.
    pub key: String,
    /// What its unit says of it.
    pub info: LayerInfo,
    /// Multiply-adds for one input, all calls together.
    pub macs: u64,
}

impl Site {
    /// The path of its weight in the module.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.module)
    }

    /// What allocators and criteria see of it.
    pub fn layer(&self) -> Layer {
        Layer {
            path: self.key.clone(),
            kind: self.info.kind,
            shape: self.info.shape.clone(),
            groups: self.info.groups,
            macs: self.macs,
        }
    }
}

/// The prunable layers in forward order.
pub fn sites<N: Network>(network: &N, census: &Census) -> Vec<Site> {
    let site = |row: Row| Site {
        key: network.key(&row.path),
        module: row.path,
        info: row.layer.expect("a prunable row describes a layer"),
        macs: row.macs,
    };
    census.layers().into_iter().map(site).collect()
}

/// The prunable layers as allocators and criteria see them.
pub fn layers<N: Network>(network: &N, census: &Census) -> Vec<Layer> {
    sites(network, census).iter().map(Site::layer).collect()
}

/// The prunable layers with their stored weights.
pub fn weights<N: Network>(network: &N, census: &Census) -> Loaded {
    let mut params: HashMap<String, TensorData> = read_params(network).into_iter().collect();
    let loaded = sites(network, census).into_iter().map(|site| {
        let data = params.remove(&site.weight());
        let data = data.expect("a prunable layer has a weight");
        (site.layer(), to_checkpoint(&site.info, values(data)))
    });
    Loaded::new(loaded.collect::<Vec<_>>()).expect("a weight has the size of its shape")
}

/// The network with masks attached to its weights.
pub fn attach<N: Network>(network: N, census: &Census, masks: &Masks, device: &Device) -> N {
    let masks: Vec<(String, &BitMask)> = sites(&network, census)
        .iter()
        .filter_map(|site| Some((site.weight(), masks.get(&site.key)?)))
        .collect();
    network.apply_reparameterization(Attach::new(masks, device))
}

/// Writes weights of prunable layers, in the checkpoint's layout, given by the layer's path in the module.
pub fn write_layers<N: Network>(
    network: N,
    census: &Census,
    mut weights: HashMap<String, Vec<f32>>,
    device: &Device,
) -> N {
    if weights.is_empty() {
        return network;
    }
    let mut writes = HashMap::new();
    for site in sites(&network, census) {
        if let Some(weight) = weights.remove(&site.module) {
            writes.insert(site.weight(), stored(&site.info, weight));
        }
    }
    let (network, left) = write_params(network, writes, device);
    assert!(left.is_empty(), "every written layer exists: {left:?}");
    network
}

/// A weight in the checkpoint's layout as the module stores it.
pub fn stored(info: &LayerInfo, weight: Vec<f32>) -> TensorData {
    let mut shape = info.shape.clone();
    if info.kind == LayerKind::Linear {
        shape.reverse();
    }
    TensorData::new(from_checkpoint(info, weight), shape)
}

fn values(data: TensorData) -> Vec<f32> {
    data.try_into_vec().expect("networks compute in f32")
}

fn to_checkpoint(info: &LayerInfo, stored: Vec<f32>) -> Vec<f32> {
    match info.kind {
        LayerKind::Conv => stored,
        LayerKind::Linear => transpose(&stored, info.shape[1], info.shape[0]),
    }
}

fn from_checkpoint(info: &LayerInfo, weight: Vec<f32>) -> Vec<f32> {
    match info.kind {
        LayerKind::Conv => weight,
        LayerKind::Linear => transpose(&weight, info.shape[0], info.shape[1]),
    }
}

/// [rows, columns] to [columns, rows].
fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let place = |at: usize| values[(at % rows) * columns + at / rows];
    (0..values.len()).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_swaps_axes() {
        let values: Vec<f32> = (0..6).map(|v| v as f32).collect();
        assert_eq!(transpose(&values, 2, 3), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(transpose(&transpose(&values, 2, 3), 3, 2), values);
    }
}
