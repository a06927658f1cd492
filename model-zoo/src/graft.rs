//! Moves parameters between modules by identity: a unit trained alone goes back into its network.

use std::any::Any;
use std::collections::HashMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};

/// Stored float values by parameter identity: masks' bases, not what they let through.
#[derive(Default)]
pub struct Graft {
    values: HashMap<ParamId, Box<dyn Any>>,
}

impl Graft {
    /// The parameters of a module that is off the gradient tape (see `Module::valid`).
    pub fn cut<M: Module>(module: &M) -> Self {
        let mut graft = Self::default();
        module.visit(&mut graft);
        graft
    }

    /// Puts them into a module that holds parameters of the same identities.
    pub fn into<M: Module>(mut self, module: M) -> M {
        module.map(&mut self)
    }
}

impl ModuleVisitor for Graft {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.values.insert(param.id, Box::new(param.base()));
    }
}

impl ModuleMapper for Graft {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.values.remove(&param.id) {
            Some(value) => {
                let value = *value
                    .downcast::<Tensor<D>>()
                    .expect("a parameter keeps its rank");
                param.map(|_| value)
            }
            None => param,
        }
    }
}

/// Reads every float parameter's stored value with its path in the module.
pub fn read_params<M: Module>(module: &M) -> Vec<(String, TensorData)> {
    struct Read {
        path: Vec<String>,
        found: Vec<(String, TensorData)>,
    }
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .push((self.path.join("."), param.base().to_data()));
        }
    }
    let mut read = Read {
        path: Vec::new(),
        found: Vec::new(),
    };
    module.visit(&mut read);
    read.found
}

/// Replaces the stored values of the parameters at the given paths; shapes must be the parameters' own.
///
/// Returns the module and the paths that were not found.
pub fn write_params<M: Module>(
    module: M,
    values: HashMap<String, TensorData>,
    device: &Device,
) -> (M, Vec<String>) {
    struct Write<'a> {
        path: Vec<String>,
        values: HashMap<String, TensorData>,
        device: &'a Device,
    }
    impl ModuleMapper for Write<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.values.remove(&self.path.join(".")) {
                Some(data) => {
                    assert_eq!(
                        *data.shape(),
                        param.lazy_shape(),
                        "a value written to a parameter has its shape"
                    );
                    let value = Tensor::from_data(data, self.device);
                    param.map(|_| value)
                }
                None => param,
            }
        }
    }
    let mut write = Write {
        path: Vec::new(),
        values,
        device,
    };
    let module = module.map(&mut write);
    let mut left: Vec<String> = write.values.into_keys().collect();
    left.sort();
    (module, left)
}
