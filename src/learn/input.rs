//! From the feed's bytes to what the encoder takes: u8 `[N, H, W, 3]` to normalised f32 `[N, 3, H, W]`.
//!
//! The arithmetic is torchvision's ToTensor and Normalize in f32: `(v / 255 - mean) / std`. On the CPU this pass is the only
//! copy that a batch sees; a GPU receives the bytes flat (rows of three would be padded to sixteen) and normalises itself.

use super::ops::{TrainOps, tensor};
use burn::tensor::{DType, Int, Tensor, TensorData, backend::Backend};
use rayon::prelude::*;

/// Mean and standard deviation by channel, on the 0-1 scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divides.
    pub std: [f32; 3],
}

/// One view's pixels, `[n, height, width, 3]` RGB, as normalised maps `[n, 3, height, width]`.
///
/// # Panics
/// When `pixels` does not hold whole images of that size.
pub fn images<B: TrainOps>(
    pixels: &[u8],
    height: usize,
    width: usize,
    by: Normalize,
    device: &B::Device,
) -> Tensor<B, 4> {
    assert_eq!(
        pixels.len() % (height * width * 3),
        0,
        "{} bytes are no images of {height} x {width}",
        pixels.len()
    );
    tensor(B::images(pixels, [height, width], by, device))
}

/// On the device, in stock operations.
pub(super) fn on_device<B: Backend>(
    pixels: &[u8],
    [h, w]: [usize; 2],
    by: Normalize,
    device: &B::Device,
) -> Tensor<B, 4> {
    let n = pixels.len() / (h * w * 3);
    let flat = TensorData::new(pixels.to_vec(), [pixels.len()]);
    let maps = Tensor::<B, 1, Int>::from_data(flat, (device, DType::U8))
        .reshape([n, h, w, 3])
        .float()
        .permute([0, 3, 1, 2]);
    let channels = |values: [f32; 3]| Tensor::<B, 1>::from_floats(values, device).reshape([1, 3, 1, 1]);
    (maps / 255.0 - channels(by.mean)) / channels(by.std)
}

/// On the CPU: one table look-up a byte, written plane by plane.
pub(super) fn on_cpu(pixels: &[u8], [h, w]: [usize; 2], by: Normalize) -> Vec<f32> {
    let table: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - by.mean[c]) / by.std[c]));
    let plane = h * w;
    let mut maps = vec![0.0; pixels.len()];
    maps.par_chunks_mut(3 * plane)
        .zip(pixels.par_chunks(3 * plane))
        .for_each(|(maps, pixels)| {
            let (pixels, _) = pixels.as_chunks::<3>();
            for ((c, map), table) in maps.chunks_exact_mut(plane).enumerate().zip(&table) {
                for (value, pixel) in map.iter_mut().zip(pixels) {
                    *value = table[usize::from(pixel[c])];
                }
            }
        });
    maps
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::{Autodiff, Flex};

    const BY: Normalize = Normalize {
        mean: [0.485, 0.456, 0.406],
        std: [0.229, 0.224, 0.225],
    };

    fn pixels(n: usize) -> Vec<u8> {
        (0..n as u32)
            .map(|i| (i.wrapping_mul(0x9E37_79B9) >> 24) as u8)
            .collect()
    }

    #[test]
    fn channels_and_places_are_right() {
        let maps = images::<Flex>(&[0, 255, 51, 102, 1, 2], 1, 2, BY, &Default::default());
        assert_eq!(maps.dims(), [1, 3, 1, 2]);
        // torchvision: normalize(to_tensor(...)) in float64.
        let expected = [
            -2.117_903_9,
            -0.371_179_04,
            2.428_571_4,
            -2.018_207_3,
            -0.915_555_6,
            -1.769_586_1,
        ];
        for (value, expected) in maps.into_data().to_vec::<f32>().unwrap().iter().zip(expected) {
            assert!((value - expected).abs() < 1e-5, "{value} {expected}");
        }
    }

    #[test]
    fn the_table_and_the_device_agree_bit_for_bit() {
        let pixels = pixels(3 * 17 * 13 * 3);
        let table = images::<Flex>(&pixels, 17, 13, BY, &Default::default());
        let device = on_device::<Flex>(&pixels, [17, 13], BY, &Default::default());
        assert_eq!(table.to_data(), device.into_data());
        let tracked = images::<Autodiff<Flex>>(&pixels, 17, 13, BY, &Default::default());
        assert_eq!(table.into_data(), tracked.inner().into_data());
    }

    #[test]
    #[should_panic(expected = "no images")]
    fn half_an_image_is_refused() {
        let _ = images::<Flex>(&[0; 10], 1, 2, BY, &Default::default());
    }
}
