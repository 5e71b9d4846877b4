//! Pixels do not depend on the CPU: the resize with its SIMD switched off gives the bytes that it gives with it.
//!
//! Our own kernels are held to this beside their code (`feed/resample.rs`, `feed/color.rs`, `feed/blur.rs`, `feed/planes.rs`). The JPEG decoder's SIMD is
//! a feature of the build: `cargo test --no-default-features` decodes without it and must meet the same golden digests.
#![allow(unsafe_code)]

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{CpuExtensions, FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use proptest::prelude::*;

/// All that this CPU has, plain Rust first.
fn extensions() -> Vec<CpuExtensions> {
    #[cfg(target_arch = "x86_64")]
    let all = [CpuExtensions::None, CpuExtensions::Sse4_1, CpuExtensions::Avx2];
    #[cfg(target_arch = "aarch64")]
    let all = [CpuExtensions::None, CpuExtensions::Neon];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let all = [CpuExtensions::None];
    all.into_iter().filter(CpuExtensions::is_supported).collect()
}

/// A part of the image, as the feed resizes it.
fn resize(extension: CpuExtensions, image: &[u8], size: (u32, u32), part: [u32; 4], filter: FilterType) -> Vec<u8> {
    let mut resizer = Resizer::new();
    // SAFETY: `extensions` lists only what this CPU has.
    unsafe { resizer.set_cpu_extensions(extension) };
    let whole = ImageRef::new(size.0, size.1, image, PixelType::U8x4).unwrap();
    let [left, top, width, height] = part;
    let part = CroppedImage::new(&whole, left, top, width, height).unwrap();
    let mut target = Image::new(41, 29, PixelType::U8x4);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(filter))
        .use_alpha(false);
    resizer.resize(&part, &mut target, &options).unwrap();
    target.into_vec()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_resize_gives_the_same_bytes_on_every_path(
        (width, height) in (1u32..160, 1u32..160), cut in any::<[u8; 4]>(), seed: u32, bicubic: bool,
    ) {
        let image: Vec<u8> = (0..width * height * 4)
            .map(|i| (i.wrapping_mul(2_654_435_761) ^ seed).wrapping_mul(40_503) .to_le_bytes()[2])
            .collect();
        let filter = if bicubic { FilterType::CatmullRom } else { FilterType::Bilinear };
        let share = |side: u32, cut: u8| u32::from(cut) * side / 256;
        let (left, top) = (share(width, cut[0]), share(height, cut[1]));
        let part = [left, top, 1 + share(width - left - 1, cut[2]), 1 + share(height - top - 1, cut[3])];
        let made: Vec<_> = extensions()
            .into_iter()
            .map(|extension| resize(extension, &image, (width, height), part, filter))
            .collect();
        for (extension, out) in extensions().iter().zip(&made) {
            prop_assert_eq!(out, &made[0], "{:?}", extension);
        }
    }
}
