//! The contact sheet: a row an image, first the original, then pairs of views.

use std::sync::Arc;

use image::{RgbImage, imageops};

use super::CliError;
use super::recipe::Recipe;
use crate::data::rng::{Domain, Philox};
use crate::data::{Dataset, Rgbx8, codec};
use crate::feed::view::Scratch;

/// Pixels between tiles; between pairs twice as many.
const GAP: u32 = 4;
/// Small views are enlarged by a whole factor until a tile has at least this side.
const TILE: u32 = 96;

/// Draws `images` rows of `draws` pairs of views, spread evenly over the data set. Images that cannot be decoded are skipped.
pub fn draw(recipe: &Recipe, dataset: &Arc<Dataset>, images: u32, draws: u32) -> Result<RgbImage, CliError> {
    let originals = pick(recipe, dataset, images)?;
    let size = recipe.views.size;
    let zoom = TILE.div_ceil(size).max(1);
    let tile = size * zoom;
    let pair = 2 * tile + 3 * GAP;
    let width = GAP + tile + GAP + draws * pair;
    let height = GAP + originals.len() as u32 * (tile + GAP);
    let mut sheet = RgbImage::from_pixel(width, height, image::Rgb([255, 255, 255]));
    let mut scratch = Scratch::default();
    for (row, original) in originals.iter().enumerate() {
        let y = GAP + row as u32 * (tile + GAP);
        paste(&mut sheet, &fit(original, tile), GAP, y);
        for draw in 0..draws {
            for (index, view) in recipe.views.views().iter().enumerate() {
                let mut pixels = vec![0; (size * size * 3) as usize];
                let mut rng = Philox::new(recipe.train.seed, Domain::View, draw, row as u64, index as u8);
                let drawn = view.draw(original.width, original.height, &mut rng);
                view.render(original, &drawn, &mut scratch, &mut pixels);
                let picture = RgbImage::from_raw(size, size, pixels).expect("a view has size x size x 3 bytes");
                let picture = imageops::resize(&picture, tile, tile, imageops::FilterType::Nearest);
                let x = 2 * GAP + tile + draw * pair + GAP + index as u32 * (tile + GAP);
                paste(&mut sheet, &picture, x, y);
            }
        }
    }
    Ok(sheet)
}

/// Images at even distances through the data set.
fn pick(recipe: &Recipe, dataset: &Dataset, images: u32) -> Result<Vec<Rgbx8>, CliError> {
    let stride = (dataset.len() / u64::from(images.max(1))).max(1);
    let mut picked = Vec::new();
    let mut position = 0;
    for (shard, row_group, rows) in dataset.row_groups() {
        let next = (picked.len() as u64) * stride;
        if picked.len() < images as usize && next < position + u64::from(rows) {
            let group = dataset.read_row_group(shard, row_group)?;
            for row in 0..rows {
                let wanted =
                    picked.len() < images as usize && position + u64::from(row) >= picked.len() as u64 * stride;
                let mut image = Rgbx8::default();
                if wanted
                    && let Some(bytes) = group.image(row)
                    && codec::decode(bytes, &recipe.decode, &mut image).is_ok()
                {
                    picked.push(image);
                }
            }
        }
        position += u64::from(rows);
    }
    Ok(picked)
}

/// The whole image inside a square of `tile` pixels.
fn fit(original: &Rgbx8, tile: u32) -> RgbImage {
    let picture = RgbImage::from_raw(original.width, original.height, original.to_rgb())
        .expect("RGB is width x height x 3 bytes");
    let scale = f64::from(tile) / f64::from(original.width.max(original.height));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).clamp(1, tile);
    imageops::resize(
        &picture,
        side(original.width),
        side(original.height),
        imageops::FilterType::Triangle,
    )
}

fn paste(sheet: &mut RgbImage, picture: &RgbImage, x: u32, y: u32) {
    imageops::replace(sheet, picture, i64::from(x), i64::from(y));
}
