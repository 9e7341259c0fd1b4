//! A vector picture for a page, drawn like a [`super::canvas::Canvas`].

use super::surface::{Align, Color, Surface};
use std::fmt::Write;

/// Height of a font's letters (`font-size`) in a line of height 1.
const FONT: f32 = 0.84;

pub struct Svg(String);

/// A text as it may stand in HTML and XML, between tags or in a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

impl Svg {
    pub fn new(width: usize, height: usize, name: &str) -> Svg {
        Svg(format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#, escape(name)))
    }

    pub fn finish(self) -> String {
        self.0 + "</svg>"
    }

    fn add(&mut self, element: std::fmt::Arguments) {
        self.0.write_fmt(element).expect("a string takes everything");
    }

    fn words(&mut self, place: std::fmt::Arguments, size: f32, [r, g, b]: Color, align: Align, text: &str) {
        let anchor = match align {
            Align::Start => "start",
            Align::Middle => "middle",
            Align::End => "end",
        };
        let size = size * FONT;
        let text = escape(text);
        self.add(format_args!(
            r#"<text {place} font-size="{size:.1}" fill="rgb({r},{g},{b})" text-anchor="{anchor}">{text}</text>"#
        ));
    }
}

impl Surface for Svg {
    fn line(&mut self, points: &[(f32, f32)], width: f32, [r, g, b]: Color) {
        if points.is_empty() {
            return;
        }
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!(
            r#"<polyline points="{}" fill="none" stroke="rgb({r},{g},{b})" stroke-width="{width}" stroke-linecap="round" stroke-linejoin="round"/>"#,
            path.join(" ")
        ));
    }

    fn text(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str) {
        self.words(format_args!(r#"x="{x:.1}" y="{:.1}""#, y + size * FONT), size, color, align, text);
    }

    fn text_upwards(&mut self, x: f32, y: f32, size: f32, color: Color, align: Align, text: &str) {
        let x = x + size * FONT;
        self.words(format_args!(r#"x="{x:.1}" y="{y:.1}" transform="rotate(-90 {x:.1} {y:.1})""#), size, color, align, text);
    }
}
