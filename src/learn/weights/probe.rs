//! What a network computes of a fixed input, for comparing it with the same weights in another program.
//!
//! In: a network and its weights. Out: representations and embeddings of images that an integer hash makes, in evaluation. Any
//! program can make the same images: element i is a 32-bit hash of (i, salt 7), its upper 24 bits as a number in [-1, 1)
//! (`tools/check_weights.py` and `tools/fixtures/resnet.py` repeat it).

use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::network::Network;
use super::{NamedTensor, WeightsError, import};
use crate::learn::backend::Cpu;
use crate::learn::expander::Expander;
use crate::learn::norm::Mode;
use crate::learn::resnet::ResNet;

/// Images of a probe.
const IMAGES: usize = 2;
/// Salt of their hash.
const SALT: u32 = 7;

/// Inputs, by their numbers, and outputs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Probe {
    /// Images.
    pub images: usize,
    /// Their side, pixels.
    pub size: usize,
    /// Salt of their hash.
    pub salt: u32,
    /// Representations `[images, F]`, row by row.
    pub representation: Vec<f32>,
    /// Embeddings `[images, D]`, where there is an expander.
    pub embedding: Option<Vec<f32>>,
}

impl Probe {
    /// Runs a network on the CPU on images of `size` x `size` pixels.
    ///
    /// # Errors
    /// Weights that are not the network's.
    pub fn run(network: &Network, tensors: &[NamedTensor], size: usize) -> Result<Self, WeightsError> {
        let device = Default::default();
        let part = |prefix: &str| -> Vec<NamedTensor> {
            let named = |t: &NamedTensor| {
                let name = t.name.strip_prefix(prefix)?.to_owned();
                Some(NamedTensor { name, ..t.clone() })
            };
            tensors.iter().filter_map(named).collect()
        };
        let backbone = ResNet::<Cpu>::new(&network.encoder, 0, &mut 0, &device);
        let backbone = import(backbone, part("backbone."))?;
        let values = hashed(IMAGES * 3 * size * size, SALT);
        let x = Tensor::from_data(TensorData::new(values, [IMAGES, 3, size, size]), &device).permute([0, 2, 3, 1]);
        let h = backbone.forward(x, &mut Mode::Eval); // [N, F]
        let embedding = match &network.expander {
            Some(options) => {
                let features = network.encoder.representation_dim();
                let expander = Expander::<Cpu>::new(options, features, 0, &mut 0, &device);
                let expander = import(expander, part("projector."))?;
                Some(floats(expander.forward(h.clone(), &mut Mode::Eval)))
            }
            None => None,
        };
        Ok(Self {
            images: IMAGES,
            size,
            salt: SALT,
            representation: floats(h),
            embedding,
        })
    }
}

fn floats(tensor: Tensor<Cpu, 2>) -> Vec<f32> {
    tensor.into_data().into_vec().expect("the CPU computes in f32")
}

/// Numbers in [-1, 1): a 32-bit integer hash of (index, salt), its upper 24 bits as a fraction; tools/fixtures/resnet.py has the same.
pub(crate) fn hashed(count: usize, salt: u32) -> Vec<f32> {
    let one = |index: usize| {
        let mut h = (index as u32).wrapping_mul(0x9E37_79B9) ^ salt.wrapping_mul(0x85EB_CA6B);
        h = (h ^ (h >> 16)).wrapping_mul(0x7FEB_352D);
        h = (h ^ (h >> 15)).wrapping_mul(0x846C_A68B);
        h ^= h >> 16;
        (f64::from(h >> 8) / f64::from(1 << 23) - 1.0) as f32
    };
    (0..count).map(one).collect()
}

/// Largest difference, as a share of the largest value; not a number where one is, or where the shapes differ.
pub(crate) fn difference(a: &[f32], b: &[f32]) -> f32 {
    if a.len() != b.len() {
        return f32::NAN;
    }
    let most = |values: &mut dyn Iterator<Item = f32>| {
        values.fold(
            0.0,
            |most: f32, value| if most.is_nan() || value <= most { most } else { value },
        )
    };
    let largest = most(&mut b.iter().map(|b| b.abs()));
    most(&mut a.iter().zip(b).map(|(a, b)| (a - b).abs())) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_seen_where_there_is_one() {
        assert_eq!(difference(&[1.0, -2.0], &[1.0, -2.0]), 0.0);
        assert_eq!(difference(&[0.0, 0.0], &[1.0, -2.0]), 1.0);
        assert!(difference(&[f32::NAN, -2.0], &[1.0, -2.0]).is_nan());
        assert!(difference(&[1.0], &[1.0, 1.0]).is_nan());
        assert!(difference(&[0.0], &[0.0]).is_nan(), "a result of nothing shows nothing");
    }
}
