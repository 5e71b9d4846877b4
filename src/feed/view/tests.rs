//! Views against torchvision on Pillow (`tools/fixtures/views.py`), and against what must hold for any image.

mod draws;
mod pixels;
mod properties;

/// A fixture made by `tools/fixtures/views.py`.
fn fixture(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/views")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
