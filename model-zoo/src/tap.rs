//! Taps that need no optimizer: run, list, keep.

use std::any::Any;
use std::collections::HashMap;

use kernels::Precision;

use crate::unit::{Bundle, Grain, LayerInfo, Tap, Unit};

/// Where in the network a tap is: the names of the units it is inside of.
#[derive(Debug, Default)]
pub struct Path(Vec<String>);

impl Path {
    /// Enters a unit.
    pub fn push(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    /// Leaves it.
    pub fn pop(&mut self) {
        self.0.pop();
    }

    /// The names joined by dots.
    pub fn join(&self) -> String {
        self.0.join(".")
    }

    /// The path of something called `name` at this place.
    pub fn child(&self, name: &str) -> String {
        if self.0.is_empty() {
            return name.to_owned();
        }
        format!("{}.{name}", self.join())
    }
}

/// Runs and does nothing else: in f32 by default, or in a precision.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bare(pub Precision);

impl Tap for Bare {
    fn precision(&self) -> Precision {
        self.0
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, _: &str, unit: &U, input: In) -> U::Out {
        unit.run(input, self)
    }
}

/// One announcement.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The unit's path in the module.
    pub path: String,
    /// Its grain.
    pub grain: Grain,
    /// Shapes of its inputs, batch first.
    pub inputs: Vec<Vec<usize>>,
    /// Shapes of its outputs.
    pub outputs: Vec<Vec<usize>>,
    /// The prunable layer, for single units.
    pub layer: Option<LayerInfo>,
    /// Multiply-adds of the prunable layer for one input of the batch.
    pub macs: u64,
}

/// Lists what a forward pass announces, outer units before the units inside them, calls in order. Only shapes are looked
/// at, so the pass is in f32.
#[derive(Debug, Default)]
pub struct Census {
    path: Path,
    /// The announcements.
    pub rows: Vec<Row>,
}

impl Tap for Census {
    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        let place = self.rows.len();
        let layer = unit.layer();
        self.rows.push(Row {
            path: self.path.join(),
            grain: U::GRAIN,
            inputs: input.shapes(),
            outputs: Vec::new(),
            layer: layer.clone(),
            macs: 0,
        });
        let output = unit.run(input, self);
        self.path.pop();
        let outputs = output.shapes();
        let batch = outputs.first().map_or(1, |shape| shape[0].max(1));
        let values: usize = outputs
            .iter()
            .flat_map(|s| s.iter().product::<usize>().checked_div(batch))
            .sum();
        self.rows[place].macs = layer.map_or(0, |layer| layer.macs(values));
        self.rows[place].outputs = outputs;
        output
    }
}

impl Census {
    /// The prunable layers in forward order, a layer that runs several times once (its multiply-adds summed).
    pub fn layers(&self) -> Vec<Row> {
        let mut place = HashMap::new();
        let mut layers: Vec<Row> = Vec::new();
        for row in self.rows.iter().filter(|row| row.layer.is_some()) {
            match place.get(row.path.as_str()) {
                Some(&at) => {
                    let first: &mut Row = &mut layers[at];
                    first.macs += row.macs;
                }
                None => {
                    place.insert(row.path.as_str(), layers.len());
                    layers.push(row.clone());
                }
            }
        }
        layers
    }

    /// The units that reconstruction at `grain` fits, in forward order: a prunable layer belongs to the outermost
    /// announced unit of at most that grain which holds it; units without a prunable layer are none.
    pub fn units(&self, grain: Grain) -> Vec<Row> {
        let mut units: Vec<Row> = Vec::new();
        for row in self.rows.iter().filter(|row| row.grain <= grain) {
            let inside = |outer: &Row| row.path == outer.path || below(&outer.path, &row.path);
            if !units.iter().any(inside) {
                units.push(row.clone());
            }
        }
        units.retain(|unit| {
            self.rows.iter().any(|row| {
                row.layer.is_some() && (row.path == unit.path || below(&unit.path, &row.path))
            })
        });
        units
    }

    /// The prunable layers inside the unit at `path`.
    pub fn layers_of(&self, path: &str) -> Vec<Row> {
        let mut layers = self.layers();
        layers.retain(|row| row.path == path || below(path, &row.path));
        layers
    }
}

/// Whether `path` lies strictly inside `outer`.
fn below(outer: &str, path: &str) -> bool {
    path.strip_prefix(outer)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// Keeps the input and output of one unit, each time it runs.
pub struct Capture {
    target: String,
    precision: Precision,
    path: Path,
    calls: Vec<(Box<dyn Any>, Box<dyn Any>)>,
}

impl Capture {
    /// For the unit at `target`.
    pub fn of(target: &str, precision: Precision) -> Self {
        Self {
            target: target.to_owned(),
            precision,
            path: Path::default(),
            calls: Vec::new(),
        }
    }

    /// The calls seen: inputs and outputs, of the unit's own types.
    pub fn into_calls(self) -> Vec<(Box<dyn Any>, Box<dyn Any>)> {
        self.calls
    }
}

impl Tap for Capture {
    fn precision(&self) -> Precision {
        self.precision
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        let kept = (self.path.join() == self.target).then(|| input.clone());
        let output = unit.run(input, self);
        if let Some(input) = kept {
            self.calls.push((Box::new(input), Box::new(output.clone())));
        }
        self.path.pop();
        output
    }
}

/// Keeps the first value of every unit and mark that is one tensor of rank 4 or less, by path: for comparing
/// stages, in f32.
#[derive(Default)]
pub struct Stages {
    path: Path,
    /// Shape and values by path.
    pub values: HashMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Stages {
    fn keep<B: Bundle>(&mut self, path: String, value: &B) {
        use burn::tensor::Tensor;
        let any: &dyn Any = value;
        let data = None
            .or_else(|| any.downcast_ref::<Tensor<2>>().map(|t| t.to_data()))
            .or_else(|| any.downcast_ref::<Tensor<3>>().map(|t| t.to_data()))
            .or_else(|| any.downcast_ref::<Tensor<4>>().map(|t| t.to_data()));
        if let Some(data) = data {
            let shape = data.shape().to_vec();
            let values = data.try_into_vec().expect("networks compute in f32");
            self.values.entry(path).or_insert((shape, values));
        }
    }
}

impl Tap for Stages {
    const MARKS: bool = true;

    fn precision(&self) -> Precision {
        Precision::F32
    }

    fn unit<In: Bundle, U: Unit<In>>(&mut self, name: &str, unit: &U, input: In) -> U::Out {
        self.path.push(name);
        let output = unit.run(input, self);
        self.keep(self.path.join(), &output);
        self.path.pop();
        output
    }

    fn mark<B: Bundle>(&mut self, name: &str, value: &B) {
        self.keep(self.path.child(name), value);
    }
}
