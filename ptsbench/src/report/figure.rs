//! One model of a figure, and its drawing.
//!
//! A `Figure` is data: panels of bars or lines with axes whose ticks are already words. One routine draws it on any
//! backend; SVG and PNG differ in nothing but the backend. The font's bytes are compiled in, so that text is laid out
//! alike on every machine.

use std::path::Path;
use std::sync::OnceLock;

use model_zoo::file;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use super::ReportError;
use super::theme::{self, Marker, Style, size};

/// A figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Stem of its files.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How it was measured.
    pub subtitle: String,
    /// What a reader who cannot see it should know.
    pub description: String,
    /// The names of its colours, left out where lines carry their names.
    pub legend: Vec<(String, Style)>,
    /// Its panels, side by side.
    pub panels: Vec<Panel>,
}

/// A panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Its title, empty where there is only one.
    pub title: String,
    /// What is drawn.
    pub body: Body,
}

/// What a panel draws.
#[derive(Debug, Clone, PartialEq)]
pub enum Body {
    /// Horizontal bars in rows.
    Bars(Bars),
    /// Lines with markers.
    Lines(Lines),
}

/// Horizontal bars: names to the left, values along x.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// The values' axis.
    pub x: Axis,
    /// From top to bottom.
    pub rows: Vec<BarRow>,
    /// Vertical lines.
    pub references: Vec<Reference>,
}

/// The bars of one name.
#[derive(Debug, Clone, PartialEq)]
pub struct BarRow {
    /// The name.
    pub label: String,
    /// From top to bottom.
    pub bars: Vec<Bar>,
}

/// A bar.
#[derive(Debug, Clone, PartialEq)]
pub struct Bar {
    /// Its length.
    pub value: f64,
    /// Half the length of its whisker.
    pub spread: Option<f64>,
    /// Its colour.
    pub style: Style,
    /// Words beside it, in a column to the right of the plot.
    pub label: Option<String>,
}

/// Lines over two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Lines {
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// The lines.
    pub lines: Vec<Line>,
    /// Horizontal lines.
    pub references: Vec<Reference>,
    /// Whether names stand at the lines' ends.
    pub direct_labels: bool,
}

/// A line with markers.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Colour and marker.
    pub style: Style,
    /// Its points, by x.
    pub points: Vec<(f64, f64)>,
}

/// A value marked across a panel.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    /// Where.
    pub value: f64,
    /// What.
    pub label: String,
}

/// An axis; a logarithmic one has the logarithms as positions.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// What is measured, with its unit.
    pub label: String,
    /// Least position.
    pub min: f64,
    /// Greatest position.
    pub max: f64,
    /// Positions and their words, of up to two lines.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis from `min` to the first round number at or above `max`, with about `count` ticks.
    pub fn round(label: impl Into<String>, min: f64, max: f64, count: usize) -> Self {
        let range = if max > min { max - min } else { 1.0 };
        let rough = range / count.max(1) as f64;
        let magnitude = 10.0_f64.powi(rough.log10().floor() as i32);
        let step = [1.0, 2.0, 5.0, 10.0]
            .map(|m| m * magnitude)
            .into_iter()
            .find(|step| *step >= rough * (1.0 - 1e-9))
            .unwrap_or(10.0 * magnitude);
        let steps = (range / step - 1e-9).ceil();
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let ticks = (0..=steps as usize).map(|i| {
            let at = min + i as f64 * step;
            (at, format!("{at:.decimals$}"))
        });
        Self {
            label: label.into(),
            min,
            max: min + steps * step,
            ticks: ticks.collect(),
        }
    }
}

/// Width of every figure in pixels at scale 1.
const WIDTH: f64 = 820.0;
/// Backend units per pixel: SVG coordinates are whole numbers, and PNG files are averaged down from this.
const SCALE: f64 = 4.0;
/// Pixels of a PNG per pixel of the figure.
const PNG_SCALE: usize = 2;
/// Space around the figure.
const MARGIN: f64 = 20.0;
/// The family under which the font is registered; SVG viewers take their own sans-serif.
const FONT: &str = "sans-serif";
/// Room for viewers whose font is wider than the one measured.
const WIDER: f64 = 1.12;
/// How far both backends put the middle of capitals above the place given, in em. The bitmap backend's baseline lies
/// 0.12 em below that place; the SVG backend's half an x-height, which depends on the viewer's font, so it is replaced.
const CENTRE: f64 = 0.23;
const SVG_MIDDLE: &str = "dy=\"0.5ex\"";
const SVG_BASELINE: &str = "dy=\"0.12em\"";
/// Height of a line of the title.
const TITLE_LINE: f64 = 22.0;
/// Height of a line of text.
const LINE: f64 = 17.0;
/// Space between a plot and the names of its rows, and to the left of a plot without names.
const NO_NAMES: f64 = 8.0;
/// Height of a row of the legend.
const LEGEND_LINE: f64 = 20.0;
/// Space between two panels.
const GAP: f64 = 26.0;
/// Height of a line panel's plot.
const PLOT_HEIGHT: f64 = 270.0;

type Drawn<DB> = Result<(), DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>>;

fn register() -> Result<(), ReportError> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let registered = REGISTERED.get_or_init(|| {
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok()
    });
    if *registered {
        Ok(())
    } else {
        Err(ReportError::Draw {
            figure: "any".to_owned(),
            reason: "the built-in font is unreadable; this is a bug of this build".to_owned(),
        })
    }
}

/// Width of a text in pixels.
fn width(text: &str, em: f64) -> f64 {
    let font = (FONT, em * SCALE * 1.24).into_font();
    let measured = font
        .layout_box(text)
        .map(|((x0, _), (x1, _))| f64::from(x1 - x0) / SCALE);
    // Without a font nothing can be drawn at all, which `register` has reported by now.
    measured.unwrap_or(0.0) * WIDER
}

/// Breaks a text into lines of at most `room` pixels.
fn wrap(text: &str, em: f64, room: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), em) <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A drawing area in pixels at scale 1.
struct Canvas<'a, DB: DrawingBackend>(&'a DrawingArea<DB, Shift>);

fn at((x, y): (f64, f64)) -> (i32, i32) {
    ((x * SCALE).round() as i32, (y * SCALE).round() as i32)
}

impl<DB: DrawingBackend> Canvas<'_, DB> {
    fn line(&self, from: (f64, f64), to: (f64, f64), colour: RGBColor, stroke: f64) -> Drawn<DB> {
        self.path(&[from, to], colour, stroke)
    }

    fn path(&self, points: &[(f64, f64)], colour: RGBColor, stroke: f64) -> Drawn<DB> {
        let points: Vec<(i32, i32)> = points.iter().map(|p| at(*p)).collect();
        self.0.draw(&PathElement::new(
            points,
            colour.stroke_width((stroke * SCALE).round() as u32),
        ))
    }

    fn dashed(&self, from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Drawn<DB> {
        let length = (to.0 - from.0).hypot(to.1 - from.1);
        let point = |d: f64| {
            (
                from.0 + (to.0 - from.0) * d / length,
                from.1 + (to.1 - from.1) * d / length,
            )
        };
        let mut done = 0.0;
        while done < length {
            self.line(point(done), point((done + 5.0).min(length)), colour, 1.25)?;
            done += 9.0;
        }
        Ok(())
    }

    fn rect(&self, from: (f64, f64), to: (f64, f64), colour: RGBColor) -> Drawn<DB> {
        self.0
            .draw(&Rectangle::new([at(from), at(to)], colour.filled()))
    }

    fn marker(&self, (x, y): (f64, f64), style: Style) -> Drawn<DB> {
        let polygon = |corners: &[(f64, f64)]| {
            let corners: Vec<(i32, i32)> = corners
                .iter()
                .map(|(dx, dy)| at((x + dx, y + dy)))
                .collect();
            self.0.draw(&Polygon::new(corners, style.colour.filled()))
        };
        match style.marker {
            Marker::Circle => {
                let radius = (4.0 * SCALE).round() as i32;
                self.0
                    .draw(&Circle::new(at((x, y)), radius, style.colour.filled()))
            }
            Marker::Square => polygon(&[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)]),
            Marker::Triangle => polygon(&[(0.0, -4.8), (4.6, 3.6), (-4.6, 3.6)]),
            Marker::Diamond => polygon(&[(0.0, -5.2), (5.2, 0.0), (0.0, 5.2), (-5.2, 0.0)]),
        }
    }

    /// Text whose capitals are centred on y.
    fn text(&self, text: &str, place: (f64, f64), em: f64, colour: RGBColor, h: HPos) -> Drawn<DB> {
        // plotters takes the height of a line, 1.24 em, for the size of a font.
        let style = (FONT, em * SCALE * 1.24)
            .into_font()
            .color(&colour)
            .pos(Pos::new(h, VPos::Center));
        let place = at((place.0, place.1 + CENTRE * em));
        self.0.draw(&Text::new(text.to_owned(), place, style))
    }

    fn upright_text(&self, text: &str, place: (f64, f64), em: f64, colour: RGBColor) -> Drawn<DB> {
        let place = (place.0 + CENTRE * em, place.1);
        let style = (FONT, em * SCALE * 1.24)
            .into_font()
            .transform(FontTransform::Rotate270)
            .color(&colour)
            .pos(Pos::new(HPos::Center, VPos::Center));
        self.0.draw(&Text::new(text.to_owned(), at(place), style))
    }
}

/// Where a panel's plot lies, in pixels.
#[derive(Debug, Clone, Copy)]
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Frame {
    fn x(&self, axis: &Axis, value: f64) -> f64 {
        self.left + (value - axis.min) / (axis.max - axis.min) * (self.right - self.left)
    }

    fn y(&self, axis: &Axis, value: f64) -> f64 {
        self.bottom - (value - axis.min) / (axis.max - axis.min) * (self.bottom - self.top)
    }
}

impl Bars {
    /// Height of a row with its gap: the same throughout a figure's panels where rows hold equally many bars.
    fn row_height(&self) -> f64 {
        let bars = self
            .rows
            .iter()
            .map(|r| r.bars.len())
            .max()
            .unwrap_or(1)
            .max(1);
        bars as f64 * bar_height(bars) + if bars == 1 { 9.0 } else { 8.0 }
    }

    fn labels_width(&self) -> f64 {
        self.rows
            .iter()
            .map(|r| width(&r.label, size::TEXT))
            .fold(0.0, f64::max)
    }

    /// Room to the right of the plot for the words beside bars.
    fn ends_width(&self) -> f64 {
        let labels = self
            .rows
            .iter()
            .flat_map(|r| &r.bars)
            .filter_map(|b| b.label.as_deref());
        labels
            .map(|l| width(l, size::TEXT) + 12.0)
            .fold(0.0, f64::max)
    }
}

fn bar_height(bars: usize) -> f64 {
    if bars == 1 { 15.0 } else { 8.0 }
}

impl Figure {
    fn head_height(&self) -> f64 {
        let room = WIDTH - 2.0 * MARGIN;
        let title = wrap(&self.title, size::TITLE, room).len() as f64;
        let subtitle = wrap(&self.subtitle, size::TEXT, room).len() as f64;
        let legend = match self.legend_rows().len() {
            0 => 0.0,
            rows => rows as f64 * LEGEND_LINE + 7.0,
        };
        MARGIN + title * TITLE_LINE + subtitle * LINE + legend + 8.0
    }

    fn panel_title_height(&self) -> f64 {
        if self.panels.iter().all(|p| p.title.is_empty()) {
            12.0
        } else {
            26.0
        }
    }

    /// Room above a plot for the names of vertical reference lines.
    fn references_height(&self) -> f64 {
        let named = |p: &Panel| matches!(&p.body, Body::Bars(b) if !b.references.is_empty());
        if self.panels.iter().any(named) {
            LINE
        } else {
            0.0
        }
    }

    fn plot_height(&self) -> f64 {
        let heights = self.panels.iter().map(|p| match &p.body {
            Body::Bars(bars) => bars.rows.len() as f64 * bars.row_height() + 6.0,
            Body::Lines(_) => PLOT_HEIGHT,
        });
        heights.fold(0.0, f64::max)
    }

    fn foot_height(&self) -> f64 {
        let two_lines = self.panels.iter().any(|p| {
            let ticks = match &p.body {
                Body::Bars(bars) => &bars.x.ticks,
                Body::Lines(lines) => &lines.x.ticks,
            };
            ticks.iter().any(|(_, words)| words.contains('\n'))
        });
        22.0 + if two_lines { LINE } else { 0.0 } + 22.0 + MARGIN
    }

    /// Width and height in pixels at scale 1.
    fn size(&self) -> (f64, f64) {
        let height = self.head_height()
            + self.panel_title_height()
            + self.references_height()
            + self.plot_height()
            + self.foot_height();
        (WIDTH, height.ceil())
    }

    fn units(&self) -> (u32, u32) {
        let (width, height) = self.size();
        ((width * SCALE) as u32, (height * SCALE) as u32)
    }

    /// The figure as SVG.
    pub fn svg(&self) -> Result<String, ReportError> {
        register()?;
        let units = self.units();
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, units).into_drawing_area();
            self.draw(&area)
                .and_then(|()| area.present())
                .map_err(|error| self.failed(&error))?;
        }
        // Drawn in fine units, shown in pixels; a title and description make it readable without sight.
        let (width, height) = self.size();
        let drawn = format!("<svg width=\"{}\" height=\"{}\" ", units.0, units.1);
        let shown = format!(
            "<svg width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{}\" ",
            xml(&self.title)
        );
        let text = text.replacen(&drawn, &shown, 1);
        let described = format!(
            ">\n<title>{}</title>\n<desc>{}</desc>\n",
            xml(&self.title),
            xml(&self.description)
        );
        Ok(text
            .replacen(">\n", &described, 1)
            .replace(SVG_MIDDLE, SVG_BASELINE))
    }

    /// The figure as PNG; `scratch` is a folder that can be written.
    pub fn png(&self, scratch: &Path) -> Result<Vec<u8>, ReportError> {
        register()?;
        let units = self.units();
        let (width, height) = (units.0 as usize, units.1 as usize);
        let mut fine = vec![0_u8; 3 * width * height];
        {
            let area = BitMapBackend::with_buffer(&mut fine, units).into_drawing_area();
            self.draw(&area)
                .and_then(|()| area.present())
                .map_err(|error| self.failed(&error))?;
        }
        let factor = SCALE as usize / PNG_SCALE;
        let (pixels, size) = halve(&fine, width, height, factor);
        encode(&pixels, size, scratch, &self.id).map_err(|reason| self.failed(&reason))
    }

    fn failed(&self, reason: &dyn std::fmt::Display) -> ReportError {
        ReportError::Draw {
            figure: self.id.clone(),
            reason: reason.to_string(),
        }
    }

    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>) -> Drawn<DB> {
        area.fill(&theme::PAPER)?;
        let canvas = Canvas(area);
        let mut y = MARGIN + 8.0;
        for line in wrap(&self.title, size::TITLE, WIDTH - 2.0 * MARGIN) {
            canvas.text(&line, (MARGIN, y), size::TITLE, theme::INK, HPos::Left)?;
            y += TITLE_LINE;
        }
        for line in wrap(&self.subtitle, size::TEXT, WIDTH - 2.0 * MARGIN) {
            canvas.text(&line, (MARGIN, y), size::TEXT, theme::MUTED, HPos::Left)?;
            y += LINE;
        }
        self.draw_legend(&canvas, y + 6.0)?;

        let top = self.head_height() + self.panel_title_height() + self.references_height();
        let bottom = top + self.plot_height();
        for (panel, (start, frame)) in self.panels.iter().zip(self.frames(top, bottom)) {
            if !panel.title.is_empty() {
                let y = self.head_height() + 10.0;
                canvas.text(
                    &panel.title,
                    (frame.left, y),
                    size::PANEL,
                    theme::INK,
                    HPos::Left,
                )?;
            }
            match &panel.body {
                Body::Bars(bars) => bars.draw(&canvas, frame, frame.left - start > NO_NAMES)?,
                Body::Lines(lines) => lines.draw(&canvas, frame, start)?,
            }
        }
        Ok(())
    }

    /// Where each panel begins and where its plot lies; all plots are equally wide.
    fn frames(&self, top: f64, bottom: f64) -> Vec<(f64, Frame)> {
        let names: Vec<f64> = (0..self.panels.len())
            .map(|i| self.names_width(i))
            .collect();
        let ends = |panel: &Panel| match &panel.body {
            Body::Bars(bars) => bars.ends_width().max(10.0),
            Body::Lines(lines) => lines.ends_width(),
        };
        let ends: Vec<f64> = self.panels.iter().map(ends).collect();
        let count = self.panels.len() as f64;
        let taken: f64 = names.iter().chain(&ends).sum::<f64>() + (count - 1.0) * GAP;
        let plot = (WIDTH - 2.0 * MARGIN - taken) / count;
        let mut start = MARGIN;
        let mut frames = Vec::new();
        for (names, ends) in names.into_iter().zip(ends) {
            let left = start + names;
            let frame = Frame {
                left,
                right: left + plot,
                top,
                bottom,
            };
            frames.push((start, frame));
            start = left + plot + ends + GAP;
        }
        frames
    }

    /// Room to the left of a panel's plot. Names of rows stand once where all panels share them.
    fn names_width(&self, panel: usize) -> f64 {
        let rows = |p: &Panel| match &p.body {
            Body::Bars(bars) => bars.rows.iter().map(|r| r.label.clone()).collect(),
            Body::Lines(_) => Vec::new(),
        };
        match &self.panels[panel].body {
            Body::Bars(bars) => {
                let shared =
                    panel > 0 && rows(&self.panels[panel]) == rows(&self.panels[panel - 1]);
                if shared {
                    NO_NAMES
                } else {
                    bars.labels_width() + NO_NAMES
                }
            }
            Body::Lines(lines) => {
                let ticks = lines
                    .y
                    .ticks
                    .iter()
                    .map(|(_, words)| width(words, size::TEXT));
                ticks.fold(0.0, f64::max) + 28.0
            }
        }
    }

    /// Names and styles with the place where each begins; as many to a row as fit.
    fn legend_rows(&self) -> Vec<Vec<(f64, &str, Style)>> {
        let mut rows: Vec<Vec<(f64, &str, Style)>> = Vec::new();
        let mut x = f64::INFINITY;
        for (name, style) in &self.legend {
            let room = 28.0 + width(name, size::TEXT);
            if x + room > WIDTH - MARGIN {
                rows.push(Vec::new());
                x = MARGIN;
            }
            if let Some(row) = rows.last_mut() {
                row.push((x, name.as_str(), *style));
            }
            x += room + 22.0;
        }
        rows
    }

    fn draw_legend<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>, y: f64) -> Drawn<DB> {
        let lines = self.panels.iter().any(|p| matches!(p.body, Body::Lines(_)));
        for (row, entries) in self.legend_rows().into_iter().enumerate() {
            let y = y + row as f64 * LEGEND_LINE;
            for (x, name, style) in entries {
                if lines {
                    canvas.line((x, y), (x + 22.0, y), style.colour, 2.0)?;
                    canvas.marker((x + 11.0, y), style)?;
                } else {
                    canvas.rect((x + 4.0, y - 6.0), (x + 18.0, y + 6.0), style.colour)?;
                }
                canvas.text(name, (x + 28.0, y), size::TEXT, theme::INK, HPos::Left)?;
            }
        }
        Ok(())
    }
}

fn draw_x_axis<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    axis: &Axis,
    frame: Frame,
) -> Drawn<DB> {
    let mut below: f64 = 0.0;
    for (position, words) in &axis.ticks {
        let x = frame.x(axis, *position);
        canvas.line((x, frame.bottom), (x, frame.bottom + 4.0), theme::RULE, 1.0)?;
        for (index, line) in words.lines().enumerate() {
            let y = frame.bottom + 14.0 + index as f64 * LINE;
            canvas.text(line, (x, y), size::TEXT, theme::MUTED, HPos::Center)?;
            below = below.max(index as f64 * LINE);
        }
    }
    let middle = (frame.left + frame.right) / 2.0;
    let y = frame.bottom + 36.0 + below;
    canvas.text(
        &axis.label,
        (middle, y),
        size::TEXT,
        theme::MUTED,
        HPos::Center,
    )
}

impl Bars {
    fn draw<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        frame: Frame,
        names: bool,
    ) -> Drawn<DB> {
        for (position, _) in &self.x.ticks {
            let x = frame.x(&self.x, *position);
            canvas.line((x, frame.top), (x, frame.bottom), theme::GRID, 1.0)?;
        }
        let row_height = self.row_height();
        for (index, row) in self.rows.iter().enumerate() {
            let middle = frame.top + 3.0 + (index as f64 + 0.5) * row_height;
            if names {
                let place = (frame.left - NO_NAMES, middle);
                canvas.text(&row.label, place, size::TEXT, theme::INK, HPos::Right)?;
            }
            let height = bar_height(row.bars.len());
            let mut y = middle - height * row.bars.len() as f64 / 2.0;
            for bar in &row.bars {
                let end = frame.x(&self.x, bar.value);
                canvas.rect(
                    (frame.left, y + 0.5),
                    (end, y + height - 0.5),
                    bar.style.colour,
                )?;
                let centre = y + height / 2.0;
                if let Some(spread) = bar.spread {
                    let from = frame.x(&self.x, (bar.value - spread).max(self.x.min));
                    let right = frame.x(&self.x, (bar.value + spread).min(self.x.max));
                    canvas.line((from, centre), (right, centre), theme::INK, 1.25)?;
                    for x in [from, right] {
                        canvas.line((x, centre - 3.0), (x, centre + 3.0), theme::INK, 1.25)?;
                    }
                }
                if let Some(label) = &bar.label {
                    let place = (frame.right + self.ends_width(), centre);
                    canvas.text(label, place, size::TEXT, theme::INK, HPos::Right)?;
                }
                y += height;
            }
        }
        canvas.line(
            (frame.left, frame.top),
            (frame.left, frame.bottom),
            theme::RULE,
            1.0,
        )?;
        for reference in &self.references {
            let x = frame.x(&self.x, reference.value);
            canvas.dashed((x, frame.top - 4.0), (x, frame.bottom), theme::INK)?;
            canvas.text(
                &reference.label,
                (x, frame.top - 12.0),
                size::TEXT,
                theme::INK,
                HPos::Center,
            )?;
        }
        draw_x_axis(canvas, &self.x, frame)
    }
}

impl Lines {
    fn ends_width(&self) -> f64 {
        let names = self.lines.iter().map(|l| l.name.as_str());
        let widest = names.map(|n| width(n, size::TEXT)).fold(0.0, f64::max);
        if self.direct_labels {
            widest + 14.0
        } else {
            10.0
        }
    }

    fn draw<DB: DrawingBackend>(
        &self,
        canvas: &Canvas<'_, DB>,
        frame: Frame,
        start: f64,
    ) -> Drawn<DB> {
        for (position, words) in &self.y.ticks {
            let y = frame.y(&self.y, *position);
            canvas.line((frame.left, y), (frame.right, y), theme::GRID, 1.0)?;
            canvas.text(
                words,
                (frame.left - 7.0, y),
                size::TEXT,
                theme::MUTED,
                HPos::Right,
            )?;
        }
        canvas.line(
            (frame.left, frame.bottom),
            (frame.right, frame.bottom),
            theme::RULE,
            1.0,
        )?;
        let middle = (frame.top + frame.bottom) / 2.0;
        canvas.upright_text(
            &self.y.label,
            (start + 7.0, middle),
            size::TEXT,
            theme::MUTED,
        )?;
        for reference in &self.references {
            let y = frame.y(&self.y, reference.value);
            canvas.dashed((frame.left, y), (frame.right, y), theme::RULE)?;
            // Below, where there is no title, and at the right end, from which most lines have fallen.
            canvas.text(
                &reference.label,
                (frame.right - 4.0, y + 9.0),
                size::TEXT,
                theme::MUTED,
                HPos::Right,
            )?;
        }
        for line in &self.lines {
            let points: Vec<(f64, f64)> = line
                .points
                .iter()
                .map(|(x, y)| (frame.x(&self.x, *x), frame.y(&self.y, *y)))
                .collect();
            canvas.path(&points, line.style.colour, 2.0)?;
            for point in points {
                canvas.marker(point, line.style)?;
            }
        }
        if self.direct_labels {
            let ends: Vec<f64> = self
                .lines
                .iter()
                .map(|l| l.points.last().map_or(frame.top, |p| frame.y(&self.y, p.1)))
                .collect();
            for (line, y) in self.lines.iter().zip(spread_out(&ends, 15.0)) {
                canvas.text(
                    &line.name,
                    (frame.right + 10.0, y),
                    size::TEXT,
                    line.style.colour,
                    HPos::Left,
                )?;
            }
        }
        draw_x_axis(canvas, &self.x, frame)
    }
}

/// Moves positions apart until neighbours are at least `apart` from each other, keeping their order and centre.
fn spread_out(positions: &[f64], apart: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..positions.len()).collect();
    order.sort_by(|a, b| positions[*a].total_cmp(&positions[*b]));
    let mut moved = positions.to_vec();
    // Each round halves an overlap between neighbours; a handful of labels settles in far fewer rounds.
    for _ in 0..64 {
        for pair in order.windows(2) {
            let overlap = apart - (moved[pair[1]] - moved[pair[0]]);
            if overlap > 0.0 {
                moved[pair[0]] -= overlap / 2.0;
                moved[pair[1]] += overlap / 2.0;
            }
        }
    }
    moved
}

/// Averages squares of `factor` x `factor` pixels; returns RGB rows and their size.
fn halve(fine: &[u8], width: usize, height: usize, factor: usize) -> (Vec<u8>, (u32, u32)) {
    let (columns, rows) = (width / factor, height / factor);
    let mut pixels = Vec::with_capacity(3 * columns * rows);
    let area = (factor * factor) as u32;
    for row in 0..rows {
        for column in 0..columns {
            for channel in 0..3 {
                let mut sum = 0;
                for dy in 0..factor {
                    for dx in 0..factor {
                        let pixel = (row * factor + dy) * width + column * factor + dx;
                        sum += u32::from(fine[3 * pixel + channel]);
                    }
                }
                pixels.push(((sum + area / 2) / area) as u8);
            }
        }
    }
    (pixels, (columns as u32, rows as u32))
}

/// Bytes of a figure at most.
const MOST: u64 = 256 << 20;

/// RGB rows as a PNG file. The library encodes to a path alone, so the bytes pass through a hidden file in `scratch`.
fn encode(pixels: &[u8], size: (u32, u32), scratch: &Path, id: &str) -> Result<Vec<u8>, String> {
    let path = scratch.join(format!(".{id}.{}.partial.png", std::process::id()));
    let written = (|| {
        let mut image = BitMapBackend::new(&path, size);
        image
            .blit_bitmap((0, 0), size, pixels)
            .map_err(|error| error.to_string())?;
        image.present().map_err(|error| error.to_string())?;
        drop(image);
        file::read(&path, MOST).map_err(|error| error.to_string())
    })();
    // Whether the hidden file can be removed does not change the picture.
    let _ = std::fs::remove_file(&path);
    written.map_err(|error| {
        format!(
            "{}: {error}; check the folder and the space left",
            path.display()
        )
    })
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers() {
        let axis = Axis::round("x", 0.0, 93.0, 5);
        assert_eq!((axis.min, axis.max), (0.0, 100.0));
        let words: Vec<&str> = axis.ticks.iter().map(|(_, w)| w.as_str()).collect();
        assert_eq!(words, ["0", "20", "40", "60", "80", "100"]);
        let axis = Axis::round("x", 0.0, 0.31, 4);
        let words: Vec<&str> = axis.ticks.iter().map(|(_, w)| w.as_str()).collect();
        assert_eq!(words, ["0.0", "0.1", "0.2", "0.3", "0.4"]);
    }

    #[test]
    fn an_axis_of_nothing_is_still_an_axis() {
        let axis = Axis::round("x", 0.0, 0.0, 5);
        assert!(axis.max > axis.min && axis.ticks.len() >= 2, "{axis:?}");
    }

    #[test]
    fn labels_are_moved_apart_in_order() {
        let moved = spread_out(&[100.0, 98.0, 50.0], 15.0);
        assert_eq!(moved[2], 50.0);
        assert!((moved[0] - moved[1] - 15.0).abs() < 1e-6, "{moved:?}");
        assert!((moved[0] + moved[1] - 198.0).abs() < 1e-6, "{moved:?}");
    }

    #[test]
    fn averaging_keeps_colours() {
        let fine = [[0, 0, 0], [255, 255, 255], [255, 255, 255], [0, 0, 0]].concat();
        assert_eq!(halve(&fine, 2, 2, 2), (vec![128, 128, 128], (1, 1)));
    }

    #[test]
    fn long_texts_are_wrapped() {
        register().expect("the font is part of the program");
        let lines = wrap("one two three four five six seven", size::TEXT, 90.0);
        assert!(lines.len() > 1);
        assert!(
            lines.iter().all(|l| width(l, size::TEXT) <= 90.0),
            "{lines:?}"
        );
        assert_eq!(lines.join(" "), "one two three four five six seven");
    }
}
