//! The request side of the Redis protocol, the same in all its versions: arrays of bulk strings, and inline commands.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// Most arguments of a command.
pub const MAX_ARGUMENTS: usize = 4096;
/// Longest argument in bytes.
pub const MAX_ARGUMENT: usize = 512 * 1024;
/// Longest line: an inline command, or the head of an array or a bulk string. As in Redis.
pub const MAX_LINE: usize = 64 * 1024;
/// Most bytes of all arguments of one command.
const MAX_COMMAND: usize = MAX_ARGUMENT + 64 * 1024;

/// The arguments of a command, the first of them its name; empty for an empty line or array.
pub type Arguments<'a> = Vec<&'a [u8]>;

/// What is wrong with the input, in Redis' words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolError {
    /// No line end within [`MAX_LINE`].
    LineTooLong(&'static str),
    /// An array that is no command, or has too many arguments.
    Count,
    /// This byte stands where a bulk string must begin.
    NoBulk(u8),
    /// A bulk string, or all of them, that are no strings or too long.
    Length,
    /// An inline command whose quotes do not end, or end within a word.
    Quotes,
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LineTooLong(text) => f.write_str(text),
            Self::Count => f.write_str("invalid multibulk length"),
            Self::NoBulk(byte) => write!(f, "expected '$', got '{}'", char::from(*byte)),
            Self::Length => f.write_str("invalid bulk length"),
            Self::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// Why the front of the input is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is the beginning of one. It is no use to look again before the input has at least this length.
    Incomplete(usize),
    /// The connection cannot go on.
    Invalid(ProtocolError),
}

impl From<ProtocolError> for Stop {
    fn from(error: ProtocolError) -> Self {
        Self::Invalid(error)
    }
}

/// Parses the command at the front of the input; returns it and its length. `unquoted` is where words stand that are not in
/// the input as they are meant.
///
/// # Errors
/// When there is no whole command, or none at all.
pub fn parse<'a>(input: &'a [u8], unquoted: &'a mut Vec<u8>) -> Result<(Arguments<'a>, usize), Stop> {
    match input.first() {
        None => Err(Stop::Incomplete(1)),
        Some(b'*') => parse_array(input),
        Some(_) => parse_inline(input, unquoted),
    }
}

/// Takes a line off the input: its content without the line end, and where the next begins.
fn line<'a>(input: &'a [u8], at: usize, too_long: &'static str) -> Result<(&'a [u8], usize), Stop> {
    let rest = input.get(at..).unwrap_or(&[]);
    let window = &rest[..rest.len().min(MAX_LINE)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok((window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]), at + end + 1)),
        None if window.len() == MAX_LINE => Err(ProtocolError::LineTooLong(too_long).into()),
        None => Err(Stop::Incomplete(input.len() + 1)),
    }
}

fn parse_array(input: &[u8]) -> Result<(Arguments<'_>, usize), Stop> {
    let (head, mut at) = line(input, 0, "too big mbulk count string")?;
    let count = integer(&head[1..]).filter(|count| *count <= MAX_ARGUMENTS as i64).ok_or(ProtocolError::Count)?;
    let mut arguments = Arguments::new();
    let mut total = 0;
    for _ in 0..count {
        let kind = *input.get(at).ok_or(Stop::Incomplete(at + 1))?;
        if kind != b'$' {
            return Err(ProtocolError::NoBulk(kind).into());
        }
        let (head, start) = line(input, at, "too big bulk count string")?;
        let len = integer(&head[1..]).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= MAX_ARGUMENT).ok_or(ProtocolError::Length)?;
        total += len;
        if total > MAX_COMMAND {
            return Err(ProtocolError::Length.into());
        }
        at = start + len + 2;
        // Like Redis, does not look at the two bytes behind the string.
        let argument = input.get(start..at).ok_or(Stop::Incomplete(at))?;
        arguments.push(&argument[..len]);
    }
    Ok((arguments, at))
}

/// A line of words, some of them perhaps in quotes.
fn parse_inline<'a>(input: &'a [u8], unquoted: &'a mut Vec<u8>) -> Result<(Arguments<'a>, usize), Stop> {
    let (content, end) = line(input, 0, "too big inline request")?;
    let arguments: Arguments<'_> = if content.iter().any(|byte| matches!(byte, b'"' | b'\'')) {
        let words = unquote(content, unquoted)?;
        words.into_iter().map(|word| &unquoted[word]).collect()
    } else {
        content.split(|byte| is_space(*byte)).filter(|word| !word.is_empty()).collect()
    };
    if arguments.len() > MAX_ARGUMENTS {
        return Err(ProtocolError::Count.into());
    }
    Ok((arguments, end))
}

/// As C's `isspace`.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// Appends the words of a line to `out` as they are meant, and says where each stands there. Within `"…"` a backslash
/// escapes, within `'…'` only a quote.
fn unquote(line: &[u8], out: &mut Vec<u8>) -> Result<Vec<Range<usize>>, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = line;
    loop {
        let spaces = rest.iter().take_while(|byte| is_space(**byte)).count();
        rest = &rest[spaces..];
        if rest.is_empty() {
            return Ok(words);
        }
        let start = out.len();
        while let Some((byte, behind)) = rest.split_first().filter(|(byte, _)| !is_space(**byte)) {
            rest = behind;
            match byte {
                b'"' | b'\'' => rest = quoted(*byte, rest, out)?,
                byte => out.push(*byte),
            }
        }
        words.push(start..out.len());
    }
}

/// Appends what stands up to the closing quote, behind which the word must end; returns what follows.
fn quoted<'a>(quote: u8, mut rest: &'a [u8], out: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (byte, used) = match rest {
            [end, behind @ ..] if *end == quote => {
                let ends = behind.first().is_none_or(|byte| is_space(*byte));
                return if ends { Ok(behind) } else { Err(ProtocolError::Quotes) };
            }
            [b'\\', b'x', high, low, ..] if quote == b'"' && high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex_digit(*high) << 4 | hex_digit(*low), 4)
            }
            [b'\\', escaped, ..] if quote == b'"' => (escape(*escaped), 2),
            [b'\\', b'\'', ..] => (b'\'', 2),
            [byte, ..] => (*byte, 1),
            [] => return Err(ProtocolError::Quotes),
        };
        out.push(byte);
        rest = &rest[used..];
    }
}

fn escape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex_digit(digit: u8) -> u8 {
    // At most 15.
    char::from(digit).to_digit(16).unwrap_or(0) as u8
}

/// A decimal number in the form that Redis takes: no plus sign, no leading zeros, no white space.
#[must_use]
pub fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let leading_zero = digits.len() > 1 && digits[0] == b'0' || text == b"-0";
    if leading_zero || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reply::{Replies, push_integer};

    /// Arguments and length, without a scratch that must live on.
    fn parse(input: &[u8]) -> Result<(Vec<Vec<u8>>, usize), Stop> {
        let mut unquoted = Vec::new();
        super::parse(input, &mut unquoted).map(|(words, len)| (words.into_iter().map(<[u8]>::to_vec).collect(), len))
    }

    fn command(arguments: &[&[u8]], len: usize) -> Result<(Vec<Vec<u8>>, usize), Stop> {
        Ok((arguments.iter().map(|argument| argument.to_vec()).collect(), len))
    }

    fn invalid(error: ProtocolError) -> Result<(Vec<Vec<u8>>, usize), Stop> {
        Err(Stop::Invalid(error))
    }

    #[test]
    fn commands() {
        assert_eq!(parse(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\nrest"), command(&[b"GET", b"k"], 20));
        assert_eq!(parse(b"*1\r\n$0\r\n\r\n"), command(&[b""], 10));
        assert_eq!(parse(b"*0\r\n"), command(&[], 4));
        assert_eq!(parse(b"*-1\r\n"), command(&[], 5));
        assert_eq!(parse(b"  SET  a b\nx"), command(&[b"SET", b"a", b"b"], 11));
        assert_eq!(parse(b"\r\n"), command(&[], 2));
    }

    /// Each was given to Redis 7.0.15, which understood the same.
    #[test]
    fn inline_commands_may_be_quoted() {
        let words = |line: &str| parse(format!("{line}\r\n").as_bytes()).map(|(words, _)| words);
        let same = |line, expected: &[&[u8]]| assert_eq!(words(line).unwrap(), expected, "{line}");
        same(r#"SET a "b c""#, &[b"SET", b"a", b"b c"]);
        same(r#"ECHO "\x41\n\"\q""#, &[b"ECHO", b"A\n\"q"]);
        same(r"ECHO 'it\'s \n'", &[b"ECHO", br"it's \n"]);
        same(r#"ECHO """#, &[b"ECHO", b""]);
        same(r#"ECHO pre"fix d""#, &[b"ECHO", b"prefix d"]);
        same(r#"ECHO "\xzz""#, &[b"ECHO", b"xzz"]);
        for line in [r#"ECHO "a"#, r#"ECHO "a"b"#, "ECHO it's", r#"ECHO "\"#] {
            assert_eq!(words(line), Err(Stop::Invalid(ProtocolError::Quotes)), "{line}");
        }
    }

    #[test]
    fn incomplete_input_says_how_much_is_missing() {
        assert_eq!(parse(b""), Err(Stop::Incomplete(1)));
        assert_eq!(parse(b"*1\r\n"), Err(Stop::Incomplete(5)));
        assert_eq!(parse(b"*1\r\n$5\r\nab"), Err(Stop::Incomplete(15)));
        assert_eq!(parse(b"PIN"), Err(Stop::Incomplete(4)));
    }

    #[test]
    fn protocol_errors() {
        assert_eq!(parse(b"*x\r\n"), invalid(ProtocolError::Count));
        assert_eq!(parse(b"*4097\r\n"), invalid(ProtocolError::Count));
        assert_eq!(parse(b"*1\r\n:1\r\n"), invalid(ProtocolError::NoBulk(b':')));
        assert_eq!(ProtocolError::NoBulk(b':').to_string(), "expected '$', got ':'");
        assert_eq!(parse(b"*1\r\n$-1\r\n"), invalid(ProtocolError::Length));
        assert_eq!(parse(b"*1\r\n$524289\r\n"), invalid(ProtocolError::Length));
        assert_eq!(parse(&[b'a'; MAX_LINE]), invalid(ProtocolError::LineTooLong("too big inline request")));
        assert_eq!(parse(b"*3\r\n$1\r\na\r\n$0\r\n\r\n?"), invalid(ProtocolError::NoBulk(b'?')));
        assert_eq!(parse(&[&b"a ".repeat(MAX_ARGUMENTS + 1)[..], b"\n"].concat()), invalid(ProtocolError::Count));
    }

    proptest! {
        #[test]
        fn integers_round_trip(value in any::<i64>()) {
            let mut out = Vec::new();
            push_integer(&mut out, value);
            prop_assert_eq!(&out, &value.to_string().into_bytes());
            prop_assert_eq!(integer(&out), Some(value));
        }

        #[test]
        fn integers_in_other_forms_are_none(text in "[-+ 0-9]{0,4}") {
            let expected = text.parse::<i64>().ok().filter(|value| value.to_string() == text);
            prop_assert_eq!(integer(text.as_bytes()), expected);
        }

        #[test]
        fn what_is_encoded_is_parsed(arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..10)) {
            let mut out = Replies::default();
            out.array(arguments.len());
            arguments.iter().for_each(|argument| out.bulk(argument));
            let out = out.pending();
            for len in 0..out.len() {
                match parse(&out[..len]) {
                    Err(Stop::Incomplete(need)) => prop_assert!(need > len && need <= out.len()),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(parse(out), Ok((arguments, out.len())));
        }

        #[test]
        fn what_is_quoted_is_parsed(arguments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..6)) {
            let quote = |word: &Vec<u8>| {
                let hex: String = word.iter().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("\"{hex}\"")
            };
            let line: Vec<_> = arguments.iter().map(quote).collect();
            let (words, _) = parse(format!("{}\n", line.join(" ")).as_bytes()).unwrap();
            prop_assert_eq!(words, arguments);
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(prop_oneof![
            Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), Just(b'"'), Just(b'\''),
            Just(b'\\'), Just(b'x'), any::<u8>()], 0..64)) {
            if let Ok((_, len)) = parse(&input) {
                prop_assert!(len > 0 && len <= input.len());
            }
        }
    }
}
