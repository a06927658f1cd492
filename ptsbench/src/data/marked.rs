//! A picture with boxes drawn on it, each with a name in the colour of its class.

use std::path::Path;
use std::sync::OnceLock;

use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, DrawingAreaErrorKind, IntoDrawingArea};
use plotters::element::{BitMapElement, Rectangle, Text};
use plotters::style::{Color, FontStyle, IntoFont, RGBColor, TextStyle, WHITE, register_font};

use crate::data::decode::Rgb;

/// A box and what is written at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// Left, top, right, bottom in pixels.
    pub corners: [f32; 4],
    /// Classes of equal number have equal colours.
    pub class: usize,
    /// Written in the box's upper left corner.
    pub text: String,
}

/// The picture cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {reason}; name a folder that exists and has room")]
pub struct MarkError {
    path: String,
    reason: String,
}

/// Names apart from those of the reports' own font.
const FONT: &str = "ptsbench-marks";
/// Colours that differ for most kinds of colour blindness, dark enough for white letters.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x00, 0x72, 0xb2),
    RGBColor(0xd5, 0x5e, 0x00),
    RGBColor(0x00, 0x80, 0x5c),
    RGBColor(0xa8, 0x4f, 0x84),
    RGBColor(0xb0, 0x78, 0x00),
    RGBColor(0x2f, 0x7f, 0xb5),
    RGBColor(0x8c, 0x2d, 0x19),
    RGBColor(0x4b, 0x4f, 0x9e),
];

/// Whether texts can be drawn; without them the colours still tell classes apart.
fn letters() -> bool {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    *REGISTERED.get_or_init(|| {
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok()
    })
}

/// Writes a picture with its boxes as PNG, the surest box on top.
pub fn save(picture: &Rgb, marks: &[Mark], path: &Path) -> Result<(), MarkError> {
    let size = (picture.width as u32, picture.height as u32);
    let area = BitMapBackend::new(path, size).into_drawing_area();
    let pixels = BitMapElement::with_owned_buffer((0, 0), size, picture.pixels.clone());
    let draw = |pixels: BitMapElement<'_, Coord>| -> Drawn {
        area.draw(&pixels)?;
        for mark in marks.iter().rev() {
            draw(&area, picture, mark)?;
        }
        area.present()
    };
    let failed = |reason: String| MarkError {
        path: path.display().to_string(),
        reason,
    };
    let pixels =
        pixels.ok_or_else(|| failed("its pixels are not as many as its size says".into()))?;
    draw(pixels).map_err(|error| failed(error.to_string()))
}

type Coord = (i32, i32);
type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Drawn =
    Result<(), DrawingAreaErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>>;

fn draw(area: &Area<'_>, picture: &Rgb, mark: &Mark) -> Drawn {
    let colour = COLOURS[mark.class % COLOURS.len()];
    let (right, bottom) = (picture.width as i32 - 1, picture.height as i32 - 1);
    let [x0, y0, x1, y1] = mark.corners.map(|side| side.round() as i32);
    let (x0, x1) = (x0.clamp(0, right), x1.clamp(0, right));
    let (y0, y1) = (y0.clamp(0, bottom), y1.clamp(0, bottom));
    // Thin lines on small pictures, visible ones on large.
    let thick = 1 + right.min(bottom) / 400;
    for inset in 0..thick {
        let (low, high) = ((x0 + inset, y0 + inset), (x1 - inset, y1 - inset));
        if low.0 <= high.0 && low.1 <= high.1 {
            area.draw(&Rectangle::new([low, high], colour))?;
        }
    }
    if !letters() {
        return Ok(());
    }
    let height = (right.min(bottom) / 28).clamp(9, 40);
    let style = TextStyle::from((FONT, height).into_font()).color(&WHITE);
    let Ok((width, _)) = area.estimate_text_size(&mark.text, &style) else {
        return Ok(());
    };
    // Above the box, or inside it where there is no room.
    let top = match y0 - height - 3 {
        above @ 0.. => above,
        _ => y0,
    };
    let left = x0.min((right - width as i32 - 4).max(0));
    let end = (
        (left + width as i32 + 4).min(right),
        (top + height + 3).min(bottom),
    );
    area.draw(&Rectangle::new([(left, top), end], colour.filled()))?;
    area.draw(&Text::new(mark.text.as_str(), (left + 2, top + 1), style))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::decode::{self, Rotation};

    #[test]
    fn boxes_are_drawn_where_they_are_and_nowhere_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marked.png");
        let picture = Rgb {
            width: 120,
            height: 90,
            pixels: vec![200; 120 * 90 * 3],
        };
        let mark = |corners, class| Mark {
            corners,
            class,
            text: "cat 97 %".to_owned(),
        };
        // One reaches beyond the picture, one is empty, one is as tall as a row.
        let marks = [
            mark([20.0, 30.0, 60.0, 80.0], 1),
            mark([-50.0, -50.0, 500.0, 500.0], 2),
            mark([7.0, 85.0, 7.0, 85.0], 3),
        ];
        save(&picture, &marks, &path).unwrap();
        let drawn = decode::read(&path, Rotation::Ignore).unwrap();
        assert_eq!((drawn.width, drawn.height), (120, 90));
        let RGBColor(r, g, b) = COLOURS[1];
        for at in [(20, 30), (60, 80), (20, 55), (40, 80)] {
            assert_eq!(drawn.at(at.0, at.1), [r, g, b], "{at:?}");
        }
        let RGBColor(r, g, b) = COLOURS[2];
        assert_eq!(drawn.at(119, 89), [r, g, b]);
        assert_eq!(drawn.at(45, 60), [200; 3]);
        // Letters, lighter than their ground, stand above the first box.
        let label = (18..29).flat_map(|y| (20..50).map(move |x| (x, y)));
        let lighter = label.filter(|&(x, y)| drawn.at(x, y)[2] > 60 && drawn.at(x, y) != [200; 3]);
        assert!(lighter.count() > 10);

        let tiny = Rgb {
            width: 3,
            height: 2,
            pixels: vec![0; 18],
        };
        save(&tiny, &marks, &path).unwrap();
        let nowhere = folder.path().join("none").join("marked.png");
        let error = save(&tiny, &[], &nowhere).unwrap_err().to_string();
        assert!(error.contains("marked.png"), "{error}");
    }
}
