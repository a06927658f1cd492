//! `L_rec`: how far the sparse network's outputs are from the dense one's, as a loss to be trained on.

use burn::tensor::Tensor;
use burn::tensor::activation::log_softmax;
use model_zoo::{Bundle, TensorZip};

use super::Loss;

/// Softens both distributions, so that the order of all classes counts.
const TEMPERATURE: f64 = 4.0;

/// `T^2 sum_c p_t (ln p_t - ln p_s)` with `p = softmax(z / T)`, mean over samples. `z`: `[N, classes]`.
pub fn divergence(teacher: Tensor<2>, student: Tensor<2>) -> Tensor<1> {
    let samples = teacher.dims()[0].max(1);
    let log = |z: Tensor<2>| log_softmax(z.div_scalar(TEMPERATURE), 1);
    let (teacher, student) = (log(teacher), log(student));
    let each = teacher.clone().exp() * (teacher - student);
    each.sum()
        .mul_scalar(TEMPERATURE * TEMPERATURE / samples as f64)
}

/// The loss, added up over the tensors of a bundle. What is no classifier's logits, `[N, classes]`, has no divergence and
/// is compared by its mean square.
pub fn distillation<B: Bundle>(loss: Loss, teacher: B, student: B) -> Tensor<1> {
    struct Sum {
        loss: Loss,
        sum: Option<Tensor<1>>,
    }
    impl TensorZip for Sum {
        fn zip<const D: usize>(&mut self, teacher: Tensor<D>, student: Tensor<D>) {
            let value = match (self.loss, D) {
                (Loss::Kl, 2) => {
                    let flat = |tensor: Tensor<D>| {
                        let dims = tensor.dims();
                        tensor.reshape([dims[0], dims[1]])
                    };
                    divergence(flat(teacher), flat(student))
                }
                _ => {
                    let values: usize = teacher.dims().iter().product();
                    // Over the batch first: a sum over millions of values at once would depend on how threads share it.
                    let squares = (student - teacher).square().sum_dim(0).sum();
                    squares.div_scalar(values.max(1) as f64)
                }
            };
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + value,
                None => value,
            });
        }
    }
    let mut sum = Sum { loss, sum: None };
    teacher.zip(student, &mut sum);
    sum.sum.expect("a network gives at least one tensor")
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    fn value(loss: Tensor<1>) -> f64 {
        f64::from(loss.into_scalar::<f32>())
    }

    #[test]
    fn the_worked_vector() {
        let device = Device::flex();
        let teacher = Tensor::<2>::from_data([[2.0, 0.0, -1.0]], &device);
        let student = Tensor::<2>::from_data([[1.0, 0.5, -0.5]], &device);
        let got = value(divergence(teacher.clone(), student.clone()));
        assert!((got - 0.277907671).abs() < 1e-6, "{got}");
        // A mean over samples: the same sample twice is the same loss.
        let twice = |z: &Tensor<2>| Tensor::cat(vec![z.clone(), z.clone()], 0);
        let got = value(distillation(Loss::Kl, twice(&teacher), twice(&student)));
        assert!((got - 0.277907671).abs() < 1e-6, "{got}");
        assert_eq!(value(divergence(teacher.clone(), teacher.clone())), 0.0);
        let mse = value(distillation(Loss::Mse, teacher, student));
        assert!((mse - (1.0 + 0.25 + 0.25) / 3.0).abs() < 1e-6, "{mse}");
    }

    #[test]
    fn what_is_no_logits_is_compared_by_its_mean_square_output_by_output() {
        let device = Device::flex();
        let head = |by: f32| {
            vec![
                (
                    Tensor::<3>::full([2, 5, 3], by, &device),
                    Tensor::<3>::full([2, 5, 4], 2.0 * by, &device),
                ),
                (
                    Tensor::<3>::full([2, 1, 3], by, &device),
                    Tensor::<3>::full([2, 1, 4], by, &device),
                ),
            ]
        };
        for loss in [Loss::Kl, Loss::Mse] {
            assert_eq!(
                value(distillation(loss, head(1.0), head(2.0))),
                1.0 + 4.0 + 1.0 + 1.0
            );
        }
    }
}
