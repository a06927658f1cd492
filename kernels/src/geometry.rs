//! The shape of a convolution: sizes, strides, padding, groups, and what follows from them.

use crate::KernelError;

/// A 2-d convolution `y[n, r, i, j] = b[r] + sum over c, u, v of w[r, c, u, v] x[n, c', i s - p + u d, j s - p + v d]`.
///
/// Activations are NCHW, weights OIHW with `inputs / groups` input channels, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Input channels of all groups.
    pub inputs: usize,
    /// Output channels of all groups.
    pub outputs: usize,
    /// Input height and width.
    pub size: [usize; 2],
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Stride along height and width.
    pub stride: [usize; 2],
    /// Zeros before and after the input, along height and width.
    pub padding: [[usize; 2]; 2],
    /// Distance between taps along height and width.
    pub dilation: [usize; 2],
    /// Groups: output channel `r` reads the input channels of group `r / (outputs / groups)`.
    pub groups: usize,
}

/// Sizes of a linear layer's products.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows of the activations: batch times positions, P.
    pub positions: usize,
    /// Output channels, R.
    pub rows: usize,
    /// Input channels, C.
    pub cols: usize,
}

impl ConvShape {
    /// Stride 1, no padding, no dilation, one group.
    pub fn new(
        batch: usize,
        [inputs, outputs]: [usize; 2],
        size: [usize; 2],
        kernel: [usize; 2],
    ) -> Self {
        Self {
            batch,
            inputs,
            outputs,
            size,
            kernel,
            stride: [1; 2],
            padding: [[0; 2]; 2],
            dilation: [1; 2],
            groups: 1,
        }
    }

    /// With a stride.
    pub fn with_stride(self, stride: [usize; 2]) -> Self {
        Self { stride, ..self }
    }

    /// With the same number of zeros before and after.
    pub fn with_padding(self, [rows, columns]: [usize; 2]) -> Self {
        Self {
            padding: [[rows; 2], [columns; 2]],
            ..self
        }
    }

    /// With a dilation.
    pub fn with_dilation(self, dilation: [usize; 2]) -> Self {
        Self { dilation, ..self }
    }

    /// In groups.
    pub fn with_groups(self, groups: usize) -> Self {
        Self { groups, ..self }
    }

    /// Refuses what no convolution can be: zero strides, kernels or dilations, groups that do not divide the channels,
    /// a kernel larger than the padded input.
    pub fn validate(&self) -> Result<(), KernelError> {
        let fail = |why: String| {
            Err(KernelError::Geometry {
                shape: Box::new(*self),
                why,
            })
        };
        if self.stride.contains(&0) || self.dilation.contains(&0) || self.kernel.contains(&0) {
            return fail("kernel, stride and dilation must be at least 1".into());
        }
        if self.groups == 0
            || !self.inputs.is_multiple_of(self.groups)
            || !self.outputs.is_multiple_of(self.groups)
        {
            return fail(format!(
                "{} groups must divide {} input and {} output channels",
                self.groups, self.inputs, self.outputs
            ));
        }
        for d in 0..2 {
            let reach = self.dilation[d] * (self.kernel[d] - 1) + 1;
            let padded = self.size[d] + self.padding[d][0] + self.padding[d][1];
            if padded < reach {
                return fail(format!(
                    "the kernel reaches over {reach} places of a padded side of {padded}"
                ));
            }
        }
        Ok(())
    }

    /// Output height and width. The shape must be valid.
    pub fn out_size(&self) -> [usize; 2] {
        [0, 1].map(|d| {
            let reach = self.dilation[d] * (self.kernel[d] - 1) + 1;
            (self.size[d] + self.padding[d][0] + self.padding[d][1] - reach) / self.stride[d] + 1
        })
    }

    /// Kernel positions, kh * kw.
    pub fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    /// Columns of the weight matrix: weights per output channel.
    pub fn weight_cols(&self) -> usize {
        self.inputs / self.groups * self.taps()
    }

    /// Shape of the weight, OIHW.
    pub fn weight_dims(&self) -> [usize; 4] {
        [
            self.outputs,
            self.inputs / self.groups,
            self.kernel[0],
            self.kernel[1],
        ]
    }

    /// Shape of the input, NCHW.
    pub fn input_dims(&self) -> [usize; 4] {
        [self.batch, self.inputs, self.size[0], self.size[1]]
    }

    /// Shape of the output, NCHW. The shape must be valid.
    pub fn output_dims(&self) -> [usize; 4] {
        let [height, width] = self.out_size();
        [self.batch, self.outputs, height, width]
    }

    /// Elements of the weight.
    pub fn weight_len(&self) -> usize {
        self.outputs * self.weight_cols()
    }

    /// Elements of the input.
    pub fn input_len(&self) -> usize {
        self.input_dims().iter().product()
    }

    /// Elements of the output.
    pub fn output_len(&self) -> usize {
        self.output_dims().iter().product()
    }

    /// Multiply-adds of one forward pass, as if dense and without skipping the padding.
    pub fn macs(&self) -> u64 {
        self.output_len() as u64 * self.weight_cols() as u64
    }

    /// Whether it is a plain matrix product over positions: 1x1, stride 1, no padding.
    pub fn is_pointwise(&self) -> bool {
        self.kernel == [1; 2] && self.stride == [1; 2] && self.padding == [[0; 2]; 2]
    }

    /// Whether each group has one input channel.
    pub fn is_depthwise(&self) -> bool {
        self.groups == self.inputs && self.groups > 1
    }
}
