//! From the feed's bytes to what the encoder takes: u8 `[V, N, H, W, 3]` to normalised f32 `[N, H, W, 3]`, view by view.
//!
//! In: a batch, or any bytes. Out: [`Uploaded`], which gives each view's maps as often as they are asked for.
//! The arithmetic is torchvision's ToTensor and Normalize in f32: `(v / 255 - mean) / std`. On the CPU this pass is the only
//! copy that a batch sees; a GPU receives the bytes flat (rows of three would be padded to sixteen) and normalises itself.

use super::ops::{TrainOps, tensor};
use crate::feed::Batch;
use burn::tensor::{DType, FloatDType, Int, Tensor, TensorData, backend::Backend, ops::IntTensor};
use bytes::Bytes;
use rayon::prelude::*;
use std::ops::Range;

/// Mean and standard deviation by channel, on the 0-1 scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Normalize {
    /// Subtracted.
    pub mean: [f32; 3],
    /// Divides.
    pub std: [f32; 3],
}

/// The bytes of a batch, where the kernels run; `T` is the backend's integer tensor, the same with gradients and without.
#[derive(Clone, Debug)]
pub enum Pixels<T> {
    /// In the host's memory: the CPU computes.
    Host(Bytes),
    /// A flat u8 tensor on the device.
    Device(T),
}

/// A batch on its device: u8 `[V, N, H, W, 3]`, V views of N images.
#[derive(Clone, Debug)]
pub struct Uploaded<B: Backend> {
    pixels: Pixels<IntTensor<B>>,
    views: usize,
    side: usize,
    view_bytes: usize,
    device: B::Device,
}

impl<B: TrainOps> Uploaded<B> {
    /// A batch of the feed; its slot goes back to the ring as soon as the device has read it.
    pub fn batch(batch: Batch, device: &B::Device) -> Self {
        let (views, side) = (batch.views(), batch.side());
        Self::new(batch.into_bytes(), views, side, device)
    }

    /// `views` views of images of `side` x `side` pixels.
    ///
    /// # Panics
    /// When `bytes` are not whole images, as many for each view.
    pub fn new(bytes: Bytes, views: usize, side: usize, device: &B::Device) -> Self {
        let image = side * side * 3;
        assert!(
            views > 0 && image > 0 && bytes.len().is_multiple_of(views * image),
            "{} bytes are no {views} views of images of {side} x {side}",
            bytes.len()
        );
        Self {
            views,
            side,
            view_bytes: bytes.len() / views,
            pixels: B::upload(bytes, device),
            device: device.clone(),
        }
    }

    /// Images in it.
    #[allow(clippy::len_without_is_empty)] // A batch is never empty.
    pub fn len(&self) -> usize {
        self.view_bytes / self.image_bytes()
    }

    fn image_bytes(&self) -> usize {
        self.side * self.side * 3
    }

    /// One view as normalised maps `[N, H, W, 3]`, f32.
    ///
    /// # Panics
    /// If there is no such view.
    pub fn view(&self, view: usize, by: Normalize) -> Tensor<B, 4> {
        self.rows(view, 0..self.len(), by)
    }

    /// Images `rows` of one view, as [`Self::view`] gives them.
    ///
    /// # Panics
    /// If there is no such view or row.
    pub fn rows(&self, view: usize, rows: Range<usize>, by: Normalize) -> Tensor<B, 4> {
        assert!(
            view < self.views && rows.end <= self.len(),
            "view {view} of {}",
            self.views
        );
        let [start, end] = [rows.start, rows.end].map(|row| view * self.view_bytes + row * self.image_bytes());
        let range = start..end;
        tensor(B::images(&self.pixels, range, [self.side; 2], by, &self.device))
    }
}

/// The bytes copied to the device by burn: what a backend does that has no way of its own.
pub(super) fn copied<B: Backend>(bytes: &[u8], device: &B::Device) -> IntTensor<B> {
    let flat = TensorData::new(bytes.to_vec(), [bytes.len()]);
    Tensor::<B, 1, Int>::from_data(flat, (device, DType::U8)).into_primitive()
}

/// On the device, in stock operations.
pub(super) fn on_device<B: Backend>(
    pixels: &Pixels<IntTensor<B>>,
    range: Range<usize>,
    [h, w]: [usize; 2],
    by: Normalize,
    device: &B::Device,
) -> Tensor<B, 4> {
    let flat = match pixels {
        Pixels::Device(flat) => flat.clone(),
        Pixels::Host(bytes) => copied::<B>(bytes, device),
    };
    let n = range.len() / (h * w * 3);
    let maps = Tensor::<B, 1, Int>::from_primitive(flat)
        .slice([range])
        .reshape([n, h, w, 3])
        .cast(FloatDType::F32);
    let channels = |values: [f32; 3]| Tensor::<B, 1>::from_floats(values, device).reshape([1, 1, 1, 3]);
    (maps / 255.0 - channels(by.mean)) / channels(by.std)
}

/// On the CPU: one table look-up a byte.
pub(super) fn on_cpu(pixels: &[u8], by: Normalize, maps: &mut [f32]) {
    const CHUNK: usize = 3 << 14;
    let table: [[f32; 256]; 3] =
        std::array::from_fn(|c| std::array::from_fn(|v| (v as f32 / 255.0 - by.mean[c]) / by.std[c]));
    maps.par_chunks_mut(CHUNK)
        .zip(pixels.par_chunks(CHUNK))
        .for_each(|(maps, pixels)| {
            for (values, pixel) in maps.as_chunks_mut::<3>().0.iter_mut().zip(pixels.as_chunks::<3>().0) {
                *values = std::array::from_fn(|c| table[c][usize::from(pixel[c])]);
            }
        });
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
        // Two views of one image of 1 x 1.
        let both = Uploaded::<Flex>::new(Bytes::from_static(&[0, 255, 51, 102, 1, 2]), 2, 1, &Default::default());
        // torchvision: normalize(to_tensor(...)) in float64.
        let expected = [
            [-2.117_904, 2.428_571_4, -0.915_555_6],
            [-0.371_179_04, -2.018_207_3, -1.769_586_1],
        ];
        for (view, expected) in expected.iter().enumerate() {
            let maps = both.view(view, BY);
            assert_eq!(maps.dims(), [1, 1, 1, 3]);
            for (value, expected) in maps.into_data().to_vec::<f32>().unwrap().iter().zip(expected) {
                assert!((value - expected).abs() < 1e-5, "{value} {expected}");
            }
        }
    }

    #[test]
    fn the_table_and_the_device_agree_bit_for_bit() {
        let bytes = Bytes::from(pixels(2 * 3 * 17 * 17 * 3));
        let device = Default::default();
        let table = Uploaded::<Flex>::new(bytes.clone(), 2, 17, &device);
        let stock = Uploaded {
            pixels: Pixels::Device(copied::<Flex>(&bytes, &device)),
            ..table.clone()
        };
        let tracked = Uploaded::<Autodiff<Flex>>::new(bytes.clone(), 2, 17, &device);
        for view in [0, 1] {
            let range = view * table.view_bytes..(view + 1) * table.view_bytes;
            let expected = table.view(view, BY).into_data();
            let stock = on_device::<Flex>(&stock.pixels, range, [17; 2], BY, &device);
            assert_eq!(stock.into_data(), expected);
            assert_eq!(tracked.view(view, BY).inner().into_data(), expected);
            let parts = [0..1, 1..3].map(|rows| table.rows(view, rows, BY));
            assert_eq!(Tensor::cat(parts.to_vec(), 0).into_data(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "no 2 views of images")]
    fn half_an_image_is_refused() {
        let _ = Uploaded::<Flex>::new(Bytes::from_static(&[0; 10]), 2, 1, &Default::default());
    }
}
