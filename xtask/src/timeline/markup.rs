//! A small typed builder of markup, for SVG and for the HTML around it: what it writes is well-formed, since elements are
//! values that are closed when they are written, and text and attributes are escaped there.
//!
//! By hand instead of by a crate for plots: the page has lanes, not axes with series, and its colours are classes, so that
//! one picture serves light, dark and paper. Plotting crates write colours into each element, or need a script of a megabyte.

use std::fmt::{self, Display, Write};

/// An element.
#[derive(Debug, Clone, PartialEq)]
pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
enum Node {
    Element(Element),
    Text(String),
    /// Style sheets and scripts, which are not escaped and are ours alone.
    Verbatim(&'static str),
}

/// An element without anything in it.
pub fn tag(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

/// A length or a coordinate, with a tenth of a pixel.
pub fn px(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    // Not a number has no place in a picture; neither has a minus before zero.
    if rounded.is_finite() { format!("{}", rounded + 0.0) } else { "0".to_owned() }
}

impl Element {
    /// With an attribute.
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    /// With the attribute `class`.
    pub fn class(self, names: impl Display) -> Self {
        self.with("class", names)
    }

    /// With text behind what it holds so far.
    pub fn text(mut self, text: impl Display) -> Self {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    /// With a style sheet or a script.
    pub fn verbatim(mut self, text: &'static str) -> Self {
        self.children.push(Node::Verbatim(text));
        self
    }

    /// With what a browser shows when the mouse rests here.
    pub fn tip(self, text: impl Display) -> Self {
        self.holding([tag("title").text(text)])
    }

    /// With further elements.
    pub fn holding(mut self, elements: impl IntoIterator<Item = Self>) -> Self {
        self.children.extend(elements.into_iter().map(Node::Element));
        self
    }
}

/// Elements that HTML knows without an end.
const VOID: [&str; 2] = ["meta", "br"];

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"")?;
            escape(f, value)?;
            f.write_char('"')?;
        }
        if VOID.contains(&self.name) {
            return f.write_str("/>");
        }
        f.write_char('>')?;
        for child in &self.children {
            match child {
                Node::Element(element) => element.fmt(f)?,
                Node::Text(text) => escape(f, text)?,
                Node::Verbatim(text) => f.write_str(text)?,
            }
        }
        write!(f, "</{}>", self.name)
    }
}

/// Characters that neither HTML nor XML may hold are shown as replaced.
fn escape(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    text.chars().try_for_each(|c| match c {
        '&' => f.write_str("&amp;"),
        '<' => f.write_str("&lt;"),
        '>' => f.write_str("&gt;"),
        '"' => f.write_str("&quot;"),
        '\n' | '\t' => f.write_char(c),
        c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => f.write_char('\u{fffd}'),
        c => f.write_char(c),
    })
}

/// A rectangle.
pub fn rect(x: f64, y: f64, width: f64, height: f64) -> Element {
    tag("rect").with("x", px(x)).with("y", px(y)).with("width", px(width.max(0.0))).with("height", px(height.max(0.0)))
}

/// A line.
pub fn line(from: (f64, f64), to: (f64, f64)) -> Element {
    tag("line").with("x1", px(from.0)).with("y1", px(from.1)).with("x2", px(to.0)).with("y2", px(to.1))
}

/// A line of text that begins at a point of its base line.
pub fn label(x: f64, y: f64, text: impl Display) -> Element {
    tag("text").with("x", px(x)).with("y", px(y)).text(text)
}

/// A path along points.
pub fn path(points: impl IntoIterator<Item = (f64, f64)>) -> Element {
    let mut d = String::new();
    for (x, y) in points {
        let command = if d.is_empty() { 'M' } else { 'L' };
        d.push_str(&format!("{command}{} {}", px(x), px(y)));
    }
    tag("path").with("d", d)
}

/// Elements that belong together.
pub fn group(class: &'static str, elements: impl IntoIterator<Item = Element>) -> Element {
    tag("g").class(class).holding(elements)
}

#[cfg(test)]
pub mod check {
    /// Panics unless each element of `text` is closed in order, and nothing that needs it stands there unescaped.
    pub fn well_formed(text: &str) {
        let (mut rest, mut open) = (text.strip_prefix("<!doctype html>").unwrap_or(text), Vec::new());
        while let Some(start) = rest.find('<') {
            let before = &rest[..start];
            let code = matches!(open.last(), Some(&"style" | &"script"));
            assert!(code || !before.contains('>'), "a bare > in {before}");
            assert!(code || before.split('&').skip(1).all(|entity| entity.contains(';')), "a bare & in {before}");
            let end = rest[start..].find('>').expect("a tag ends") + start;
            let inside = &rest[start + 1..end];
            let name = inside.trim_start_matches('/').split([' ', '/']).next().unwrap();
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(), "<{inside}>");
            assert_eq!(inside.matches('"').count() % 2, 0, "<{inside}>");
            match inside.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
                None if inside.ends_with('/') => {}
                None => open.push(name),
            }
            rest = &rest[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "left open: {open:?}, left over: {rest}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_written_is_escaped_and_closed() {
        let element =
            tag("p").with("title", "a \"b\" & <c>").text("x < y\u{1}").holding([tag("br"), tag("i").text("z")]);
        let expected = "<p title=\"a &quot;b&quot; &amp; &lt;c&gt;\">x &lt; y\u{fffd}<br/><i>z</i></p>";
        assert_eq!(element.to_string(), expected);
        check::well_formed(expected);
    }

    #[test]
    fn coordinates_are_short_and_finite() {
        let texts = [1.0, 1.26, -0.01, f64::NAN, f64::INFINITY].map(px);
        assert_eq!(texts, ["1", "1.3", "0", "0", "0"]);
        assert_eq!(path([(0.0, 1.0), (2.0, 3.5)]).to_string(), "<path d=\"M0 1L2 3.5\"></path>");
        assert!(rect(0.0, 0.0, -1.0, 2.0).to_string().contains("width=\"0\""));
    }

    #[test]
    #[should_panic(expected = "</a>")]
    fn the_check_finds_what_is_not_closed_in_order() {
        check::well_formed("<a><b></a></b>");
    }

    #[test]
    #[should_panic(expected = "left open")]
    fn the_check_finds_what_is_left_open() {
        check::well_formed("<a><b></b>");
    }

    proptest! {
        #[test]
        fn any_text_is_well_formed(text in any::<String>(), attribute in any::<String>()) {
            check::well_formed(&tag("p").with("title", attribute).text(text).to_string());
        }
    }
}
