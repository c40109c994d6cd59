//! Writes one JSON object a line, for the monitor.

use alloc::string::String;
use core::fmt::Write;

use pollux_ft::Span;

/// A JSON object under construction.
#[derive(Debug)]
pub struct Json {
    kind: &'static str,
    text: String,
    first: bool,
}

impl Json {
    /// An object whose kind is `kind`: `{"t":"kind"`.
    #[must_use]
    pub fn line(kind: &'static str) -> Self {
        let mut json = Self { kind, text: String::from("{"), first: true };
        json.text("t", kind);
        json
    }

    /// What kind of object it is.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        self.kind
    }

    fn key(&mut self, key: &str) {
        if !self.first {
            self.text.push(',');
        }
        self.first = false;
        self.quoted(key);
        self.text.push(':');
    }

    fn quoted(&mut self, text: &str) {
        self.text.push('"');
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    self.text.push('\\');
                    self.text.push(character);
                }
                '\n' => self.text.push_str("\\n"),
                // Writing to a string never fails.
                c if c < ' ' => drop(write!(self.text, "\\u{:04x}", u32::from(c))),
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// A number.
    pub fn number(&mut self, key: &str, value: u64) -> &mut Self {
        self.key(key);
        // Writing to a string never fails.
        let _ = write!(self.text, "{value}");
        self
    }

    /// Milliseconds with three decimals.
    pub fn millis(&mut self, key: &str, Span(us): Span) -> &mut Self {
        self.key(key);
        // Writing to a string never fails.
        let _ = write!(self.text, "{}.{:03}", us / 1000, us % 1000);
        self
    }

    /// A flag.
    pub fn flag(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key);
        self.text.push_str(if value { "true" } else { "false" });
        self
    }

    /// A text.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.key(key);
        self.quoted(value);
        self
    }

    /// An object within.
    pub fn object(&mut self, key: &str, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.key(key);
        self.text.push('{');
        self.first = true;
        fill(self);
        self.text.push('}');
        self.first = false;
        self
    }

    /// The finished line with its end.
    #[must_use]
    pub fn finish(mut self) -> String {
        self.text.push_str("}\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_json() {
        let mut json = Json::line("status");
        json.number("n", 7).flag("f", false).text("s", "a\"b\\c\n\u{1}").object("o", |o| {
            o.number("x", 1).millis("ms", Span(1234));
        });
        json.object("empty", |_| {}).number("last", 0);
        assert_eq!(
            json.finish(),
            "{\"t\":\"status\",\"n\":7,\"f\":false,\"s\":\"a\\\"b\\\\c\\n\\u0001\",\"o\":{\"x\":1,\"ms\":1.234},\
             \"empty\":{},\"last\":0}\n"
        );
    }
}
