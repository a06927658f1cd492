//! Colours and sizes of figures.
//!
//! The palette is Okabe and Ito's, which is told apart under the common colour-vision deficiencies; lines differ in
//! their markers too. Figures have a light background of their own wherever they are shown.

use plotters::style::RGBColor;

/// Behind everything.
pub const PAPER: RGBColor = RGBColor(0xff, 0xff, 0xff);
/// Titles and values.
pub const INK: RGBColor = RGBColor(0x1d, 0x27, 0x33);
/// Axis labels and secondary text.
pub const MUTED: RGBColor = RGBColor(0x52, 0x60, 0x6d);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xe3, 0xe7, 0xeb);
/// Axes and reference lines.
pub const RULE: RGBColor = RGBColor(0x8a, 0x96, 0xa3);

const GREY: RGBColor = RGBColor(0x6b, 0x77, 0x85);
const BLUE: RGBColor = RGBColor(0x00, 0x72, 0xb2);
const VERMILLION: RGBColor = RGBColor(0xd5, 0x5e, 0x00);
const GREEN: RGBColor = RGBColor(0x00, 0x9e, 0x73);
const PURPLE: RGBColor = RGBColor(0xcc, 0x79, 0xa7);
const ORANGE: RGBColor = RGBColor(0xe6, 0x9f, 0x00);
const SKY: RGBColor = RGBColor(0x56, 0xb4, 0xe9);
const YELLOW: RGBColor = RGBColor(0xc9, 0xb6, 0x00);

/// A network before reconstruction.
pub const BEFORE: RGBColor = RGBColor(0xb4, 0xbd, 0xc7);
/// A network after reconstruction.
pub const AFTER: RGBColor = BLUE;

/// The shape of a line's points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle.
    Triangle,
    /// A square on its corner.
    Diamond,
}

/// Colour and marker of one method, the same in every figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Of lines, bars and labels.
    pub colour: RGBColor,
    /// Of points.
    pub marker: Marker,
}

/// The style of an allocator; `place` is its place among those shown and serves those without a colour of their own.
pub fn allocator(name: &str, place: usize) -> Style {
    let (colour, marker) = match name {
        "uniform" => (GREY, Marker::Square),
        "l2norm" => (BLUE, Marker::Circle),
        "erk" => (VERMILLION, Marker::Triangle),
        "fcpts_l2norm" => (SKY, Marker::Diamond),
        "fcpts_erk" => (ORANGE, Marker::Diamond),
        "magnitude" => (GREEN, Marker::Diamond),
        "l1norm" => (PURPLE, Marker::Square),
        "erk_dense_last" => (YELLOW, Marker::Triangle),
        "evopress" => (INK, Marker::Circle),
        _ if place.is_multiple_of(2) => (GREEN, Marker::Diamond),
        _ => (PURPLE, Marker::Square),
    };
    Style { colour, marker }
}

/// The style of a family of networks; `place` is its place among those shown.
pub fn family(place: usize) -> Style {
    use Marker::{Circle, Diamond, Square, Triangle};
    const STYLES: [(RGBColor, Marker); 8] = [
        (BLUE, Circle),
        (VERMILLION, Square),
        (GREEN, Triangle),
        (PURPLE, Diamond),
        (ORANGE, Circle),
        (GREY, Square),
        (SKY, Triangle),
        (YELLOW, Diamond),
    ];
    let (colour, marker) = STYLES[place % STYLES.len()];
    Style { colour, marker }
}

/// Sizes of text, in pixels per em.
pub mod size {
    /// The figure's title.
    pub const TITLE: f64 = 17.0;
    /// A panel's title.
    pub const PANEL: f64 = 13.5;
    /// Everything else.
    pub const TEXT: f64 = 12.0;
}
