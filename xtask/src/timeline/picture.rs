//! What all lanes share: the time axis, the canvas that they are put on one below the other, sums over columns of pixels,
//! and places for labels that do not cover each other.

use super::markup::{Element, group, label, line, px, rect, tag};
use super::story::Span;

/// Width of a picture in pixels; a browser scales it.
pub const WIDTH: f64 = 1120.0;
/// Where the lanes' names end and time begins.
pub const LEFT: f64 = 132.0;
const RIGHT: f64 = 16.0;
/// Pixels that a character takes, and some.
const CHARACTER: f64 = 6.2;
/// Width of a column over which is summed.
pub const COLUMN: f64 = 2.0;

/// Where times are on a picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The first instant that is shown.
    pub from: f64,
    /// The last one.
    pub to: f64,
    /// What is called 0 on the axis.
    pub zero: f64,
}

impl Scale {
    /// All between two times, which lie apart at least a bit.
    pub fn new(from: f64, to: f64, zero: f64) -> Self {
        Self { from, to: to.max(from + 1e-3), zero }
    }

    fn per_second(&self) -> f64 {
        (WIDTH - LEFT - RIGHT) / (self.to - self.from)
    }

    /// Where a time is, at the edge when it is not on the picture.
    pub fn x(&self, at: f64) -> f64 {
        LEFT + (at.clamp(self.from, self.to) - self.from) * self.per_second()
    }

    /// Whether a time is on the picture.
    pub fn shows(&self, at: f64) -> bool {
        (self.from..=self.to).contains(&at)
    }

    /// Whether some of a span is.
    pub fn shows_some<T>(&self, span: &Span<T>) -> bool {
        span.to >= self.from && span.from <= self.to
    }

    /// Columns from left to right.
    pub fn columns(&self) -> usize {
        ((WIDTH - LEFT - RIGHT) / COLUMN) as usize
    }

    /// In which column a time is.
    pub fn column(&self, at: f64) -> usize {
        (((self.x(at) - LEFT) / COLUMN) as usize).min(self.columns() - 1)
    }

    /// Sums per column; what has a span is spread evenly over it.
    pub fn sums(&self, flows: &[Span<f64>]) -> Vec<f64> {
        let mut sums = vec![0.0; self.columns()];
        for flow in flows.iter().filter(|flow| self.shows_some(flow)) {
            let (first, last) = (self.column(flow.from), self.column(flow.to));
            let width = COLUMN / self.per_second();
            let length = flow.to - flow.from;
            // As much of it as lies within a column; all of it, if it is shorter than one.
            let share = if length > width { width / length } else { 1.0 / (last - first + 1) as f64 };
            sums[first..=last].iter_mut().for_each(|sum| *sum += flow.what * share);
        }
        sums
    }

    /// Steps of the axis: 1, 2 or 5 times a power of ten, so that there are about ten of them.
    pub fn ticks(&self) -> Vec<(f64, String)> {
        let rough = (self.to - self.from) / 10.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let decimals = usize::try_from((-step.log10().floor()) as i64).unwrap_or(0);
        let first = ((self.from - self.zero) / step).ceil() as i64;
        let last = ((self.to - self.zero) / step).floor() as i64;
        let tick = |n: i64| (self.zero + n as f64 * step, format!("{:.decimals$} s", n as f64 * step));
        (first..=last).map(tick).collect()
    }
}

/// A picture as it grows downwards.
#[derive(Debug)]
pub struct Canvas {
    scale: Scale,
    y: f64,
    lanes: Vec<Element>,
}

impl Canvas {
    /// An empty one.
    pub fn new(scale: Scale) -> Self {
        Self { scale, y: 6.0, lanes: Vec::new() }
    }

    /// Puts a lane of that height below what is there. Its elements are drawn from the given y downwards.
    pub fn lane(&mut self, name: &str, note: &str, height: f64, draw: impl FnOnce(f64) -> Vec<Element>) {
        let middle = self.y + height / 2.0 + 4.0 - if note.is_empty() { 0.0 } else { 6.0 };
        let mut elements = vec![label(8.0, middle, name).class("name")];
        if !note.is_empty() {
            elements.push(label(8.0, middle + 13.0, note).class("note"));
        }
        elements.extend(draw(self.y));
        self.lanes.push(group("lane", elements));
        self.y += height + 8.0;
    }

    /// The picture, with the axis at its foot and a line through all lanes at each step of it.
    pub fn finish(self, title: &str) -> Element {
        let ticks = self.scale.ticks();
        let (scale, bottom) = (self.scale, self.y + 2.0);
        let grid = ticks.iter().map(|(at, _)| line((scale.x(*at), 0.0), (scale.x(*at), bottom)));
        let texts = ticks.iter().map(|(at, text)| label(scale.x(*at), bottom + 14.0, text).class("tick"));
        let height = bottom + 22.0;
        tag("svg")
            .with("xmlns", "http://www.w3.org/2000/svg")
            .with("viewBox", format!("0 0 {} {}", px(WIDTH), px(height)))
            .with("role", "img")
            .with("data-from", scale.from - scale.zero)
            .with("data-to", scale.to - scale.zero)
            .tip(title)
            .holding([rect(0.0, 0.0, WIDTH, height).class("paper"), group("grid", grid), group("axis", texts)])
            .holding(self.lanes)
    }
}

/// A bar over a span, with a word in it if there is room.
pub fn bar<T>(scale: &Scale, span: &Span<T>, y: f64, height: f64, class: &str, text: &str, tip: &str) -> Element {
    let (from, to) = (scale.x(span.from), scale.x(span.to));
    let mut elements = vec![rect(from, y, (to - from).max(1.5), height).class(class)];
    if fits(text, to - from) {
        elements.push(label(from + 5.0, y + height / 2.0 + 4.0, text).class(format!("in-{class}")));
    }
    group("bar", elements).tip(tip)
}

/// Whether a text has room within a width.
pub fn fits(text: &str, room: f64) -> bool {
    width(text) + 8.0 <= room
}

/// About how wide a text is.
pub fn width(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// Puts labels into rows, the first ones first: for each the row and where it begins, none where all rows are taken there.
/// Each wants to begin at its x, and moves to the left rather than out of the picture.
pub fn place(wanted: &[(f64, f64)], rows: usize) -> Vec<Option<(usize, f64)>> {
    const GAP: f64 = 8.0;
    let mut taken: Vec<Vec<(f64, f64)>> = vec![Vec::new(); rows];
    let put = |&(x, width): &(f64, f64)| {
        let from = x.min(WIDTH - RIGHT - width).max(0.0);
        let to = from + width + GAP;
        let free = |row: &Vec<(f64, f64)>| row.iter().all(|other| to <= other.0 || other.1 <= from);
        let row = taken.iter().position(free)?;
        taken[row].push((from, to));
        Some((row, from))
    };
    wanted.iter().map(put).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn axes_have_round_steps() {
        let texts =
            |from, to, zero| Scale::new(from, to, zero).ticks().into_iter().map(|tick| tick.1).collect::<Vec<_>>();
        assert_eq!(
            texts(0.0, 4.2, 0.0),
            ["0.0 s", "0.5 s", "1.0 s", "1.5 s", "2.0 s", "2.5 s", "3.0 s", "3.5 s", "4.0 s"]
        );
        assert_eq!(
            texts(9.7, 10.05, 10.0),
            ["-0.30 s", "-0.25 s", "-0.20 s", "-0.15 s", "-0.10 s", "-0.05 s", "0.00 s", "0.05 s"]
        );
        assert_eq!(texts(0.0, 300.0, 0.0)[1], "50 s");
    }

    #[test]
    fn sums_keep_what_is_summed() {
        let scale = Scale::new(0.0, 10.0, 0.0);
        let point = Span { from: 5.0, to: 5.0, what: 7.0 };
        let sums = scale.sums(&[point]);
        assert_eq!((sums[scale.column(5.0)], sums.iter().sum::<f64>()), (7.0, 7.0));
        let long = scale.sums(&[Span { from: 0.0, to: 10.0, what: 100.0 }]);
        assert!((long.iter().sum::<f64>() - 100.0).abs() < 1.0);
        assert!(scale.sums(&[Span { from: 11.0, to: 12.0, what: 1.0 }]).iter().all(|sum| *sum == 0.0));
    }

    proptest! {
        #[test]
        fn labels_never_cover_each_other(wanted in prop::collection::vec((0.0..WIDTH, 10.0..300.0f64), 0..30)) {
            let placed = place(&wanted, 3);
            let boxes: Vec<_> = placed.iter().zip(&wanted).filter_map(|(at, (_, w))| at.map(|(row, x)| (row, x, x + w))).collect();
            for (n, a) in boxes.iter().enumerate() {
                prop_assert!(a.1 >= 0.0 && a.2 <= WIDTH);
                prop_assert!(boxes[..n].iter().all(|b| a.0 != b.0 || a.2 <= b.1 || b.2 <= a.1));
            }
        }

        #[test]
        fn any_span_of_time_has_an_axis(from in -1e6..1e6f64, length in 0.0..1e6f64) {
            let ticks = Scale::new(from, from + length, from).ticks();
            prop_assert!((1..=21).contains(&ticks.len()), "{}", ticks.len());
        }
    }
}
