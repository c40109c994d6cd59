//! Splits a command line into `key=value` and bare-word tokens.
//!
//! Tokens are separated by white space. Double quotes keep white space together, around a whole token (`"a=b c"`) or a value
//! (`a="b c"`); there is no escape character. What keys and values mean is the caller's business.

use core::fmt;

/// One token of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandOption<'a> {
    /// What stands before the first `=`, or the whole token.
    pub key: &'a str,
    /// What stands behind the first `=`; `None` for a bare word.
    pub value: Option<&'a str>,
}

/// A token that cannot be split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandLineError<'a> {
    /// A double quote is not closed.
    Unterminated(&'a str),
    /// A double quote where none is understood: within a word or directly before other text.
    StrayQuote(&'a str),
    /// Nothing stands before the `=`.
    NoKey(&'a str),
}

impl fmt::Display for CommandLineError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unterminated(token) => write!(f, "option `{token}`: the double quote is not closed"),
            Self::StrayQuote(token) => {
                write!(f, "option `{token}`: double quotes go around a whole option or a whole value")
            }
            Self::NoKey(token) => write!(f, "option `{token}`: nothing stands before the `=`"),
        }
    }
}

impl core::error::Error for CommandLineError<'_> {}

/// The tokens of `line` in order. After an error the iterator goes on with the next token.
#[must_use]
pub fn options(line: &str) -> Options<'_> {
    Options { rest: line }
}

/// See [`options`].
#[derive(Debug, Clone)]
pub struct Options<'a> {
    rest: &'a str,
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<CommandOption<'a>, CommandLineError<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.trim_start();
        if rest.is_empty() {
            self.rest = rest;
            return None;
        }
        let mut quoted = false;
        let end = rest.find(|c: char| {
            quoted ^= c == '"';
            !quoted && c.is_whitespace()
        });
        let (token, rest) = rest.split_at(end.unwrap_or(rest.len()));
        self.rest = rest;
        // Without white space outside quotes `quoted` is exact; with it, the search stopped there unquoted.
        Some(if end.is_none() && quoted { Err(CommandLineError::Unterminated(token)) } else { split(token) })
    }
}

/// Splits one token, whose quotes are balanced.
fn split(token: &str) -> Result<CommandOption<'_>, CommandLineError<'_>> {
    let bare = unquote(token).ok_or(CommandLineError::StrayQuote(token));
    let (key, value) = match bare {
        Ok(text) => text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value))),
        Err(error) => {
            let (key, value) = token.split_once('=').ok_or(error)?;
            (key, Some(unquote(value).ok_or(error)?))
        }
    };
    if key.contains('"') {
        return Err(CommandLineError::StrayQuote(token));
    }
    if key.is_empty() && value.is_some() {
        return Err(CommandLineError::NoKey(token));
    }
    Ok(CommandOption { key, value })
}

/// The text without the quotes around it; `None` when there are quotes elsewhere.
fn unquote(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    (!inner.contains('"')).then_some(inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn option<'a>(key: &'a str, value: Option<&'a str>) -> Result<CommandOption<'a>, CommandLineError<'a>> {
        Ok(CommandOption { key, value })
    }

    #[test]
    fn words_values_and_quotes() {
        let line = " role=primary\tsolo \"a=b c\" name=\"two words\" empty= e=\"\" x=1=2 ";
        let expected = [
            option("role", Some("primary")),
            option("solo", None),
            option("a", Some("b c")),
            option("name", Some("two words")),
            option("empty", Some("")),
            option("e", Some("")),
            option("x", Some("1=2")),
        ];
        assert!(options(line).eq(expected));
    }

    #[test]
    fn errors_name_the_token_and_the_rest_goes_on() {
        let line = "=x a\"b\" c=\"d\"e ok f=\"g h";
        let expected = [
            Err(CommandLineError::NoKey("=x")),
            Err(CommandLineError::StrayQuote("a\"b\"")),
            Err(CommandLineError::StrayQuote("c=\"d\"e")),
            option("ok", None),
            Err(CommandLineError::Unterminated("f=\"g h")),
        ];
        assert!(options(line).eq(expected));
    }

    proptest! {
        #[test]
        fn ends_and_never_panics(line in ".*") {
            prop_assert!(options(&line).count() <= line.len());
        }

        #[test]
        fn what_was_joined_is_split_again(pairs in prop::collection::vec(("[a-z_]{1,8}", "[^\"]{0,8}"), 0..6)) {
            let line: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
            let line = line.join(" ");
            let expected = pairs.iter().map(|(key, value)| option(key, Some(value)));
            prop_assert!(options(&line).eq(expected));
        }
    }
}
