//! Charts of the last five minutes of a queue: the length as an area, the limit as a line.

use std::fmt::Write;

use maud::{Markup, html};

use crate::report::words::count;
use crate::view::Case;

/// Width of the plot in its own units: five for each slot of the history.
const WIDTH: usize = SLOT * Case::SLOTS;
const HEIGHT: f64 = 72.0;
const SLOT: usize = 5;
/// The ratio of limit to largest length above which the limit is text; a drawn line would flatten
/// the curve.
const FAR: u64 = 4;

/// The scale of a chart.
struct Scale {
    /// The length at the upper edge.
    top: f64,
    largest: u32,
    /// The limit; `None` when it is too large to be drawn.
    limit: Option<u64>,
}

/// The chart with axes, for a card.
pub(super) fn figure(history: &[u32], limit: Option<u64>) -> Markup {
    let scale = Scale::new(history, limit);
    let largest = count(u64::from(scale.largest));
    html! {
        figure.chart {
            svg viewBox="-2 -6 352 96" role="img" {
                title { "Length of the queue in the last five minutes" }
                desc { (scale.words(history, limit)) }
                path.axis d={ "M0 " (HEIGHT) "H" (WIDTH) } {}
                (area(history, &scale))
                @if let Some(limit) = scale.limit { (limit_line(&scale, limit)) }
                text x="0" y="86" { "5 min ago" }
                text x=(WIDTH) y="86" text-anchor="end" { "now" }
            }
            figcaption {
                "Longest in each 5 s; largest " (largest) ", last " (count(u64::from(last(history))))
                @if let (None, Some(limit)) = (scale.limit, limit) { ". The limit, " (count(limit)) ", is far above" }
            }
        }
    }
}

/// The chart without axes, for a row.
pub(super) fn spark(history: &[u32], limit: Option<u64>) -> Markup {
    let scale = Scale::new(history, limit);
    html! {
        svg.spark viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" role="img" {
            title { (scale.words(history, limit)) }
            (area(history, &scale))
            @if let Some(limit) = scale.limit { path.limit d={ "M0 " (scale.y(limit as f64)) "H" (WIDTH) } {} }
        }
    }
}

fn limit_line(scale: &Scale, limit: u64) -> Markup {
    let y = scale.y(limit as f64);
    html! {
        path.limit d={ "M0 " (y) "H" (WIDTH) } {}
        text.limit x=(WIDTH + 3) y=(y + 3.5) { (count(limit)) }
    }
}

fn last(history: &[u32]) -> u32 {
    history.last().copied().unwrap_or_default()
}

/// The curve, and the part of it above the limit.
fn area(history: &[u32], scale: &Scale) -> Markup {
    let over = |length: &u32| scale.limit.is_some_and(|limit| u64::from(*length) > limit);
    let all = steps(history.iter().copied(), scale);
    let full: Vec<u32> =
        history.iter().map(|length| if over(length) { *length } else { 0 }).collect();
    html! {
        @if !all.is_empty() { path.length d=(all) {} }
        @if full.iter().any(|length| *length > 0) { path.full d=(steps(full.into_iter(), scale)) {} }
    }
}

/// The path of the curve: one step for each run of equal lengths, the newest at the right edge.
fn steps(lengths: impl ExactSizeIterator<Item = u32>, scale: &Scale) -> String {
    let mut path = String::new();
    let mut x = WIDTH.saturating_sub(SLOT * lengths.len());
    let mut height = 0;
    for length in lengths {
        if length != height {
            let from = if height == 0 { format!("M{x} {HEIGHT}") } else { format!("H{x}") };
            let _ = write!(path, "{from}V{}", scale.y(f64::from(length)));
            height = length;
        }
        x += SLOT;
    }
    if height != 0 {
        let _ = write!(path, "H{x}V{HEIGHT}");
    }
    path
}

// === impl Scale ===

impl Scale {
    fn new(history: &[u32], limit: Option<u64>) -> Self {
        let largest = history.iter().copied().max().unwrap_or_default();
        let limit = limit.filter(|limit| *limit <= FAR * u64::from(largest.max(1)));
        let top = (limit.unwrap_or_default() as f64).max(f64::from(largest)).max(1.0) * 1.1;
        Self { top, largest, limit }
    }

    /// The distance of a length from the upper edge, to a tenth.
    fn y(&self, length: f64) -> f64 {
        (HEIGHT * (1.0 - length / self.top) * 10.0).round() / 10.0
    }

    fn words(&self, history: &[u32], limit: Option<u64>) -> String {
        let (largest, last) = (count(u64::from(self.largest)), count(u64::from(last(history))));
        let limit = limit.map(|limit| format!(", limit {}", count(limit))).unwrap_or_default();
        format!("Longest queue of the last five minutes: {largest}; in the last 5 s: {last}{limit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_has_a_step_for_each_change_and_ends_at_the_right_edge() {
        let scale = Scale { top: 10.0, largest: 5, limit: None };
        let draw = |lengths: &[u32]| steps(lengths.iter().copied(), &scale);
        assert_eq!(draw(&[0, 0, 5, 5, 1]), "M285 72V36H295V64.8H300V72");
        assert_eq!(draw(&[5, 0, 5]), "M285 72V36H290V72M295 72V36H300V72");
        assert_eq!(draw(&[0, 0]), "");
        assert_eq!(draw(&[]), "");
    }

    #[test]
    fn a_far_limit_is_named_and_not_drawn() {
        assert_eq!(Scale::new(&[3], Some(12)).limit, Some(12));
        let far = figure(&[3], Some(4_096)).into_string();
        assert!(
            far.contains("The limit, 4,096, is far above") && !far.contains("path class=\"limit\""),
            "{far}"
        );
    }

    #[test]
    fn the_part_above_the_limit_is_drawn_again() {
        let svg = spark(&[3, 6, 5], Some(5)).into_string();
        assert!(svg.contains("<path class=\"full\" d=\"M290 72V6.5H295V72\">"), "{svg}");
        let svg = spark(&[3, 5], Some(5)).into_string();
        assert!(!svg.contains("class=\"full\""), "{svg}");
    }
}
