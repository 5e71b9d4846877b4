//! What a training step computes, as a list of distinct operations and how often each is called. No tensors, no clock.
//!
//! In: the network's layers, and how the recipe cuts a batch. Out: [`Row`]s: convolutions, norms, then what there is of few kinds.
//! Invariant: calls times multiply-adds of the convolutions' forward rows are those of the model.

use crate::learn::resnet::{Layer, NormKind, Source};

/// Views of an image.
const VIEWS: u32 = 2;

/// An operation of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// A view's bytes become normalised maps.
    Images,
    ConvForward,
    ConvInputGrad,
    ConvWeightGrad,
    /// With the rectifier and the residual, where the network has them.
    NormForward,
    NormBackward,
    PoolForward,
    PoolBackward,
    /// Global average, forward and backward.
    Average,
    /// Two gradients of the maps that a block and its shortcut read.
    GradientSum,
    /// Both views, forward and backward.
    Expander,
    /// With its gradient.
    Loss,
    Update,
}

impl Op {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Images => "images",
            Self::ConvForward => "conv forward",
            Self::ConvInputGrad => "conv input grad",
            Self::ConvWeightGrad => "conv weight grad",
            Self::NormForward => "norm forward",
            Self::NormBackward => "norm backward",
            Self::PoolForward => "max-pool forward",
            Self::PoolBackward => "max-pool backward",
            Self::Average => "average pool",
            Self::GradientSum => "gradient sum",
            Self::Expander => "expander",
            Self::Loss => "loss",
            Self::Update => "optimiser",
        }
    }
}

/// One distinct operation.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) op: Op,
    /// For a reader.
    pub(crate) shape: String,
    /// The layer whose operation it is; of several alike, one that reads a batch norm's maps where there is any.
    pub(crate) layer: Option<Layer>,
    /// Calls a step.
    pub(crate) calls: u32,
    /// Multiply-adds a call; 0 where a share of the matrix peak would mean nothing.
    pub(crate) multiply_adds: u64,
}

/// How a batch goes through encoder and expander.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Images in a batch.
    pub(crate) batch: usize,
    /// Images that the encoder takes at a time.
    pub(crate) rows: usize,
    /// Passes forward for each pass back: 2 with gradient caching.
    forwards: u32,
}

impl Cut {
    pub(crate) fn new(batch: usize, micro_batch: Option<usize>) -> Self {
        Self {
            batch,
            rows: micro_batch.unwrap_or(batch),
            forwards: if micro_batch.is_some() { 2 } else { 1 },
        }
    }

    /// Passes of the encoder, of both views, that have a backward pass.
    fn tracked(&self) -> u32 {
        VIEWS * self.batch.div_ceil(self.rows) as u32
    }

    /// All passes forward.
    fn forward(&self) -> u32 {
        self.tracked() * self.forwards
    }
}

/// Layers that are alike by `key`, with how many there are, in the order of their first.
fn distinct<K: PartialEq>(
    layers: impl Iterator<Item = Layer>,
    key: impl Fn(&Layer) -> K,
) -> impl Iterator<Item = (Layer, u32)> {
    let mut found: Vec<(Layer, u32)> = Vec::new();
    for layer in layers {
        match found.iter_mut().find(|(known, _)| key(known) == key(&layer)) {
            Some((known, count)) => {
                *count += 1;
                if layer.source == Source::Norm && known.source != Source::Norm {
                    *known = layer;
                }
            }
            None => found.push((layer, 1)),
        }
    }
    found.into_iter()
}

/// What makes two convolutions one shape.
fn convolution(layer: &Layer) -> impl PartialEq + use<> {
    let Layer {
        inputs,
        outputs,
        kernel,
        args,
        side,
        ..
    } = *layer;
    (inputs, outputs, kernel, args, side)
}

/// Everything that the encoder does, on `cut.rows` images a call.
pub(crate) fn encoder_rows(layers: &[Layer], cut: Cut) -> Vec<Row> {
    let mut rows = convolution_rows(layers, cut);
    rows.extend(norm_rows(layers, cut));
    let (forward, tracked) = (cut.forward(), cut.tracked());
    let of = |op: Op, layer: Layer, channels: usize, side: usize, calls: u32| Row {
        op,
        shape: format!("{channels}x{side}x{side}"),
        layer: Some(layer),
        calls,
        multiply_adds: 0,
    };
    if layers.iter().any(|layer| layer.source == Source::Pool) {
        let (channels, side) = (layers[0].outputs, layers[0].output_side());
        rows.push(of(Op::PoolForward, layers[0], channels, side, forward));
        rows.push(of(Op::PoolBackward, layers[0], channels, side, tracked));
    }
    let openers = layers.iter().filter(|layer| layer.opens_block).copied();
    for (layer, count) in distinct(openers, |layer| (layer.inputs, layer.side)) {
        rows.push(of(Op::GradientSum, layer, layer.inputs, layer.side, count * tracked));
    }
    if let Some(last) = layers.iter().rfind(|layer| layer.norm == NormKind::AddRelu) {
        rows.push(of(Op::Average, *last, last.outputs, last.output_side(), tracked));
    }
    rows
}

/// Three rows a shape.
fn convolution_rows(layers: &[Layer], cut: Cut) -> Vec<Row> {
    let mut rows = Vec::new();
    for (layer, count) in distinct(layers.iter().copied(), convolution) {
        let alike = |other: &&Layer| convolution(other) == convolution(&layer);
        let of_images = layers
            .iter()
            .filter(alike)
            .filter(|other| other.source == Source::Images);
        // Nobody asks for the images' gradient.
        let asked = count - of_images.count() as u32;
        let Layer {
            inputs,
            outputs,
            kernel,
            args,
            side,
            ..
        } = layer;
        let shape = format!("{inputs}>{outputs} {kernel}x{kernel}/{} on {side}x{side}", args.stride);
        for (op, calls) in [
            (Op::ConvForward, count * cut.forward()),
            (Op::ConvInputGrad, asked * cut.tracked()),
            (Op::ConvWeightGrad, count * cut.tracked()),
        ] {
            rows.push(Row {
                op,
                shape: shape.clone(),
                layer: Some(layer),
                calls,
                multiply_adds: cut.rows as u64 * layer.multiply_adds(),
            });
        }
    }
    rows
}

/// Two rows for each size of map and kind of norm.
fn norm_rows(layers: &[Layer], cut: Cut) -> Vec<Row> {
    let mut rows = Vec::new();
    let key = |layer: &Layer| (layer.outputs, layer.output_side(), layer.norm);
    for (layer, count) in distinct(layers.iter().copied(), key) {
        let kind = match layer.norm {
            NormKind::Plain => "",
            NormKind::Relu => " relu",
            NormKind::AddRelu => " add relu",
        };
        let side = layer.output_side();
        for (op, calls) in [(Op::NormForward, cut.forward()), (Op::NormBackward, cut.tracked())] {
            rows.push(Row {
                op,
                shape: format!("{}x{side}x{side}{kind}", layer.outputs),
                layer: Some(layer),
                calls: count * calls,
                multiply_adds: 0,
            });
        }
    }
    rows
}

/// What happens outside the encoder's layers; `expander` (as a reader knows it) has `weights`, each a multiply-add an image.
pub(crate) fn other_rows(cut: Cut, side: usize, expander: &str, weights: u64, parameters: u64) -> Vec<Row> {
    let row = |op: Op, shape: String, calls: u32, multiply_adds: u64| Row {
        op,
        shape,
        layer: None,
        calls,
        multiply_adds,
    };
    // Forward, and a gradient each of inputs and weights.
    let products = 3 * u64::from(VIEWS) * cut.batch as u64 * weights;
    vec![
        row(Op::Images, format!("3x{side}x{side}"), cut.forward(), 0),
        row(Op::Expander, expander.to_owned(), 1, products),
        row(Op::Loss, format!("{} images", cut.batch), 1, 0),
        row(Op::Update, format!("{parameters} values"), 1, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::resnet::{ResNetOptions, Stem};

    fn options(depth: u32, stem: Stem, width: f64) -> ResNetOptions {
        ResNetOptions {
            depth,
            width,
            stem,
            ..Default::default()
        }
    }

    fn calls(rows: &[Row], op: Op) -> Vec<(&str, u32)> {
        let of = rows.iter().filter(|row| row.op == op);
        of.map(|row| (row.shape.as_str(), row.calls)).collect()
    }

    /// ResNet-18 on 32 x 32 pixels, counted by hand from the paper's table 1 with a CIFAR stem.
    #[test]
    fn resnet_18_has_eleven_shapes() {
        let rows = encoder_rows(&options(18, Stem::Cifar, 1.0).layers(32), Cut::new(8, None));
        let forward = [
            ("3>64 3x3/1 on 32x32", 2),
            ("64>64 3x3/1 on 32x32", 8),
            ("64>128 3x3/2 on 32x32", 2),
            ("128>128 3x3/1 on 16x16", 6),
            ("64>128 1x1/2 on 32x32", 2),
            ("128>256 3x3/2 on 16x16", 2),
            ("256>256 3x3/1 on 8x8", 6),
            ("128>256 1x1/2 on 16x16", 2),
            ("256>512 3x3/2 on 8x8", 2),
            ("512>512 3x3/1 on 4x4", 6),
            ("256>512 1x1/2 on 8x8", 2),
        ];
        assert_eq!(calls(&rows, Op::ConvForward), forward);
        assert_eq!(calls(&rows, Op::ConvWeightGrad), forward);
        let mut backward = forward;
        backward[0].1 = 0;
        assert_eq!(calls(&rows, Op::ConvInputGrad), backward);
        let norms = [
            ("64x32x32 relu", 6),
            ("64x32x32 add relu", 4),
            ("128x16x16 relu", 4),
            ("128x16x16 add relu", 4),
            ("128x16x16", 2),
            ("256x8x8 relu", 4),
            ("256x8x8 add relu", 4),
            ("256x8x8", 2),
            ("512x4x4 relu", 4),
            ("512x4x4 add relu", 4),
            ("512x4x4", 2),
        ];
        assert_eq!(calls(&rows, Op::NormForward), norms);
        assert_eq!(calls(&rows, Op::NormBackward), norms);
        // Each of the eight blocks reads its maps twice.
        let sums = [("64x32x32", 6), ("128x16x16", 4), ("256x8x8", 4), ("512x4x4", 2)];
        assert_eq!(calls(&rows, Op::GradientSum), sums);
        assert_eq!(calls(&rows, Op::Average), [("512x4x4", 2)]);
        assert!(calls(&rows, Op::PoolForward).is_empty());
    }

    #[test]
    fn rows_add_up_to_the_models_multiply_adds() {
        for (options, size) in [
            (options(18, Stem::Cifar, 1.0), 32),
            (options(50, Stem::Imagenet, 1.0), 224),
            (options(8, Stem::Cifar, 0.25), 17),
            // Three filters: the stem's shape is that of the first block, too.
            (options(10, Stem::Cifar, 0.047), 16),
        ] {
            let (batch, layers) = (24, options.layers(size));
            let whole = encoder_rows(&layers, Cut::new(batch, None));
            let sum = |rows: &[Row], op: Op| {
                let of = rows.iter().filter(|row| row.op == op);
                of.map(|row| u64::from(row.calls) * row.multiply_adds).sum::<u64>()
            };
            let forward = 2 * batch as u64 * options.cost(size).multiply_adds;
            let stem = 2 * batch as u64 * layers[0].multiply_adds();
            assert_eq!(sum(&whole, Op::ConvForward), forward, "{options:?}");
            assert_eq!(sum(&whole, Op::ConvWeightGrad), forward, "{options:?}");
            assert_eq!(sum(&whole, Op::ConvInputGrad), forward - stem, "{options:?}");
            // Gradient caching: the same in parts, and forward twice.
            let parts = encoder_rows(&layers, Cut::new(batch, Some(8)));
            assert_eq!(sum(&parts, Op::ConvForward), 2 * forward);
            assert_eq!(sum(&parts, Op::ConvWeightGrad), forward);
            let norms = |op: Op| {
                calls(&whole, op)
                    .iter()
                    .map(|(_, calls)| *calls as usize)
                    .sum::<usize>()
            };
            assert_eq!(norms(Op::NormForward), 2 * layers.len());
        }
    }

    #[test]
    fn the_imagenet_stem_pools() {
        let rows = encoder_rows(&options(50, Stem::Imagenet, 1.0).layers(224), Cut::new(4, Some(2)));
        // Two views in two parts, forward twice.
        assert_eq!(calls(&rows, Op::PoolForward), [("64x112x112", 8)]);
        assert_eq!(calls(&rows, Op::PoolBackward), [("64x112x112", 4)]);
        assert_eq!(calls(&rows, Op::Average), [("2048x7x7", 4)]);
        assert_eq!(calls(&rows, Op::ConvInputGrad)[0], ("3>64 7x7/2 on 224x224", 0));
    }
}
