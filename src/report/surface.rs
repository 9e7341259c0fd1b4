//! What charts and sheets are drawn on, whatever the picture's format.

pub type Color = [u8; 3];

/// Where a text lies relative to its `x` (or, if turned, its `y`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Start,
    Middle,
    End,
}

/// A picture that takes lines and text: `Canvas` and `Svg`. Positions are pixels from the top left corner, sizes of text pixels a line.
pub trait Surface {
    /// A line with round ends and corners; a single point twice is a dot.
    fn line(&mut self, points: &[(f32, f32)], width: f32, color: Color);
    /// One line of text whose top is at `y`.
    fn text(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str);
    /// One line of text that reads upwards; its top is at `x`.
    fn text_upwards(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str);
}
