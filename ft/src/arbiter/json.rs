//! Reads JSON from front to back: the caller says what it expects, everything else is an error or skipped.
//! See: RFC 8259.

use alloc::string::String;
use core::str;

/// Deepest nesting that is followed; an answer of the arbiter has five levels.
const MAX_DEPTH: u8 = 16;

/// The text is not JSON, or not of the expected shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadJson;

/// What is left to be read.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    depth: u8,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { rest: text, depth: 0 }
    }

    /// Nothing but white space may be left.
    pub(super) fn finish(mut self) -> Result<(), BadJson> {
        if self.peek().is_none() { Ok(()) } else { Err(BadJson) }
    }

    /// The first byte behind white space.
    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    /// Whether `byte` comes next; it is read then.
    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<(), BadJson> {
        if self.take(byte) { Ok(()) } else { Err(BadJson) }
    }

    /// Reads items, separated by commas, between two brackets.
    fn sequence(
        &mut self,
        [open, close]: [u8; 2],
        mut item: impl FnMut(&mut Self) -> Result<(), BadJson>,
    ) -> Result<(), BadJson> {
        self.expect(open)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(BadJson);
        }
        if !self.take(close) {
            item(self)?;
            while self.take(b',') {
                item(self)?;
            }
            self.expect(close)?;
        }
        self.depth -= 1;
        Ok(())
    }

    /// Reads an object; `member` gets each name and must read or skip its value.
    pub(super) fn object(
        &mut self,
        mut member: impl FnMut(&mut Self, &str) -> Result<(), BadJson>,
    ) -> Result<(), BadJson> {
        self.sequence(*b"{}", |reader| {
            let name = reader.string()?;
            reader.expect(b':')?;
            member(reader, &name)
        })
    }

    /// Reads an array; `item` must read or skip each item.
    pub(super) fn array(&mut self, item: impl FnMut(&mut Self) -> Result<(), BadJson>) -> Result<(), BadJson> {
        self.sequence(*b"[]", item)
    }

    /// The string that comes next; what else comes is skipped.
    pub(super) fn string_if_one(&mut self) -> Result<Option<String>, BadJson> {
        if self.peek() == Some(b'"') { self.string().map(Some) } else { self.skip().map(|()| None) }
    }

    pub(super) fn boolean(&mut self) -> Result<bool, BadJson> {
        match self.word() {
            b"true" => Ok(true),
            b"false" => Ok(false),
            _ => Err(BadJson),
        }
    }

    pub(super) fn string(&mut self) -> Result<String, BadJson> {
        self.expect(b'"')?;
        let mut text = String::new();
        loop {
            let plain = self.rest.iter().position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ');
            let (head, tail) = self.rest.split_at(plain.ok_or(BadJson)?);
            text.push_str(str::from_utf8(head).map_err(|_| BadJson)?);
            let (&stop, tail) = tail.split_first().ok_or(BadJson)?;
            self.rest = tail;
            match stop {
                b'"' => return Ok(text),
                b'\\' => text.push(self.escape()?),
                _ => return Err(BadJson),
            }
        }
    }

    fn escape(&mut self) -> Result<char, BadJson> {
        let (&kind, tail) = self.rest.split_first().ok_or(BadJson)?;
        self.rest = tail;
        Ok(match kind {
            b'"' | b'\\' | b'/' => char::from(kind),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => match self.code_unit()? {
                high @ 0xD800..0xDC00 => {
                    let low = self.rest.strip_prefix(b"\\u").ok_or(BadJson)?;
                    self.rest = low;
                    let pair = [high, self.code_unit()?];
                    char::decode_utf16(pair).next().and_then(Result::ok).ok_or(BadJson)?
                }
                unit => char::from_u32(unit.into()).ok_or(BadJson)?,
            },
            _ => return Err(BadJson),
        })
    }

    /// Four hexadecimal digits.
    fn code_unit(&mut self) -> Result<u16, BadJson> {
        let (digits, tail) = self.rest.split_first_chunk::<4>().ok_or(BadJson)?;
        self.rest = tail;
        let value = |digit: u8| char::from(digit).to_digit(16).ok_or(BadJson);
        digits.iter().try_fold(0, |unit, &digit| Ok(unit << 4 | value(digit)? as u16))
    }

    /// A number or a literal, as it stands there.
    fn word(&mut self) -> &'a [u8] {
        self.rest = self.rest.trim_ascii_start();
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
        let end = self.rest.iter().position(|byte| !is_part(byte)).unwrap_or(self.rest.len());
        let (word, tail) = self.rest.split_at(end);
        self.rest = tail;
        word
    }

    /// Reads past any value.
    pub(super) fn skip(&mut self) -> Result<(), BadJson> {
        match self.peek() {
            Some(b'{') => self.object(|reader, _| reader.skip()),
            Some(b'[') => self.array(Self::skip),
            Some(b'"') => self.string().map(drop),
            _ => match self.word() {
                b"true" | b"false" | b"null" => Ok(()),
                [b'-' | b'0'..=b'9', rest @ ..] if rest.iter().all(|byte| b"0123456789+-.eE".contains(byte)) => Ok(()),
                _ => Err(BadJson),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn skip(text: &str) -> Result<(), BadJson> {
        let mut reader = Reader::new(text.as_bytes());
        reader.skip()?;
        reader.finish()
    }

    fn string(text: &str) -> Result<String, BadJson> {
        let mut reader = Reader::new(text.as_bytes());
        let string = reader.string()?;
        reader.finish()?;
        Ok(string)
    }

    #[test]
    fn any_json_can_be_skipped() {
        for good in ["{}", "[]", " [ 1 , -2.5e+3, true,false ,null,\"x\" ] ", "{\"a\":{\"b\":[{}]},\"c\":\"\"}", "0"] {
            assert_eq!(skip(good), Ok(()), "{good}");
        }
        for bad in
            ["", "{", "[1,]", "[,1]", "{\"a\"}", "{\"a\":}", "{a:1}", "[1 2]", "\"x", "nul", "truex", "1 1", "-x"]
        {
            assert_eq!(skip(bad), Err(BadJson), "{bad}");
        }
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(skip(&nested(usize::from(MAX_DEPTH))), Ok(()));
        assert_eq!(skip(&nested(usize::from(MAX_DEPTH) + 1)), Err(BadJson));
        assert_eq!(skip(&nested(100_000)), Err(BadJson));
        let beside = format!("[{}1]", "[[]],".repeat(1000));
        assert_eq!(skip(&beside), Ok(()), "what is over does not count");
    }

    #[test]
    fn strings_have_escapes() {
        assert_eq!(string(r#""a\"\\\/\b\f\n\r\tä\u00e4\ud83d\ude00""#).unwrap(), "a\"\\/\u{8}\u{c}\n\r\tää😀");
        for bad in [r#""\x""#, r#""\u12""#, r#""\ud83d""#, r#""\ud83dx""#, r#""\ud83d\u0041""#, r#""\ude00""#, "\"\n\""]
        {
            assert_eq!(string(bad), Err(BadJson), "{bad}");
        }
    }

    #[test]
    fn members_are_handed_out() {
        let mut seen = Vec::new();
        let mut reader = Reader::new(br#"{"yes":true,"list":["a","b"],"other":{"x":1}}"#);
        let result = reader.object(|reader, name| {
            match name {
                "yes" => assert!(reader.boolean()?),
                "list" => reader.array(|reader| {
                    seen.push(reader.string()?);
                    Ok(())
                })?,
                _ => reader.skip()?,
            }
            Ok(())
        });
        assert_eq!((result, seen), (Ok(()), vec!["a".to_owned(), "b".to_owned()]));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = Reader::new(&bytes).skip();
        }

        #[test]
        fn almost_json_is_survived(text in "[\\[\\]{}\",:\\\\u0-9a-f ]{0,60}") {
            let _ = skip(&text);
        }
    }
}
