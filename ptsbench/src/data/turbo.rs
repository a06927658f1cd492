//! JPEG by libjpeg-turbo, the library inside Pillow and torchvision: the same pixels, bit for bit. Compiled with the
//! feature `turbojpeg` alone, which needs CMake and a C compiler.

use turbojpeg::{Colorspace, PixelFormat};

/// Red, green and blue of a sound file. None where the library warns, and for the four colours of print, which it does not
/// convert: there the usual decoder decides.
pub(super) fn pixels(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = turbojpeg::read_header(bytes).ok()?;
    if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
        return None;
    }
    let image = turbojpeg::decompress(bytes, PixelFormat::RGB).ok()?;
    Some(image.pixels)
}
