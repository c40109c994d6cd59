//! The request side of the Redis protocol, RESP2: arrays of bulk strings, and inline commands.

use alloc::vec::Vec;

/// Most arguments of a command.
pub const MAX_ARGUMENTS: usize = 64;
/// Longest argument in bytes.
pub const MAX_ARGUMENT: usize = 64 * 1024;
/// Longest line: an inline command, or the head of an array or a bulk string.
pub const MAX_LINE: usize = 4 * 1024;
/// Most bytes of all arguments of one command.
const MAX_COMMAND: usize = 128 * 1024;

/// The arguments of a command, the first of them its name; empty for an empty line or array.
pub type Arguments<'a> = heapless::Vec<&'a [u8], MAX_ARGUMENTS>;

/// Why the front of the input is no command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It is the beginning of one. It is no use to look again before the input has at least this length.
    Incomplete(usize),
    /// The text of a protocol error, without `-ERR Protocol error: `. The connection cannot go on.
    Invalid(&'static str),
}

/// Parses the command at the front of the input; returns it and its length.
///
/// # Errors
/// When there is no whole command, or none at all.
pub fn parse(input: &[u8]) -> Result<(Arguments<'_>, usize), Stop> {
    match input.first() {
        None => Err(Stop::Incomplete(1)),
        Some(b'*') => parse_array(input),
        Some(_) => parse_inline(input),
    }
}

/// Takes a line off the input: its content without the line end, and where the next begins.
fn line<'a>(input: &'a [u8], at: usize, too_long: &'static str) -> Result<(&'a [u8], usize), Stop> {
    let rest = input.get(at..).unwrap_or(&[]);
    let window = &rest[..rest.len().min(MAX_LINE)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Ok((window[..end].strip_suffix(b"\r").unwrap_or(&window[..end]), at + end + 1)),
        None if window.len() == MAX_LINE => Err(Stop::Invalid(too_long)),
        None => Err(Stop::Incomplete(input.len() + 1)),
    }
}

fn parse_array(input: &[u8]) -> Result<(Arguments<'_>, usize), Stop> {
    const BAD_COUNT: Stop = Stop::Invalid("invalid multibulk length");
    const BAD_LENGTH: Stop = Stop::Invalid("invalid bulk length");
    let (head, mut at) = line(input, 0, "too big mbulk count string")?;
    let count = integer(&head[1..]).filter(|count| *count <= MAX_ARGUMENTS as i64).ok_or(BAD_COUNT)?;
    let mut arguments = Arguments::new();
    let mut total = 0;
    for _ in 0..count {
        let kind = *input.get(at).ok_or(Stop::Incomplete(at + 1))?;
        if kind != b'$' {
            return Err(Stop::Invalid("expected '$'"));
        }
        let (head, start) = line(input, at, "too big bulk count string")?;
        let len = integer(&head[1..]).and_then(|len| usize::try_from(len).ok());
        let len = len.filter(|len| *len <= MAX_ARGUMENT).ok_or(BAD_LENGTH)?;
        total += len;
        if total > MAX_COMMAND {
            return Err(BAD_LENGTH);
        }
        at = start + len + 2;
        // Like Redis, does not look at the two bytes behind the string.
        let argument = input.get(start..at).ok_or(Stop::Incomplete(at))?;
        // Cannot fail: `count` is at most the capacity.
        let _ = arguments.push(&argument[..len]);
    }
    Ok((arguments, at))
}

/// A line of words; unlike Redis without quotes.
fn parse_inline(input: &[u8]) -> Result<(Arguments<'_>, usize), Stop> {
    let (content, end) = line(input, 0, "too big inline request")?;
    let mut arguments = Arguments::new();
    for word in content.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        arguments.push(word).map_err(|_| Stop::Invalid("too many arguments"))?;
    }
    Ok((arguments, end))
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

/// Appends a number in decimal.
pub fn push_integer(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a simple string, error or integer: `kind` is its first byte.
pub fn push_line(out: &mut Vec<u8>, kind: u8, text: &str) {
    out.push(kind);
    out.extend_from_slice(text.as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of something counted: integer, array or bulk string.
pub fn push_number(out: &mut Vec<u8>, kind: u8, value: i64) {
    out.push(kind);
    push_integer(out, value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a bulk string.
pub fn push_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    push_number(out, b'$', bytes.len() as i64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command<'a>(arguments: &[&'a [u8]], len: usize) -> Result<(Arguments<'a>, usize), Stop> {
        Ok((arguments.iter().copied().collect(), len))
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

    #[test]
    fn incomplete_input_says_how_much_is_missing() {
        assert_eq!(parse(b""), Err(Stop::Incomplete(1)));
        assert_eq!(parse(b"*1\r\n"), Err(Stop::Incomplete(5)));
        assert_eq!(parse(b"*1\r\n$5\r\nab"), Err(Stop::Incomplete(15)));
        assert_eq!(parse(b"PIN"), Err(Stop::Incomplete(4)));
    }

    #[test]
    fn protocol_errors() {
        assert_eq!(parse(b"*x\r\n"), Err(Stop::Invalid("invalid multibulk length")));
        assert_eq!(parse(b"*65\r\n"), Err(Stop::Invalid("invalid multibulk length")));
        assert_eq!(parse(b"*1\r\n:1\r\n"), Err(Stop::Invalid("expected '$'")));
        assert_eq!(parse(b"*1\r\n$-1\r\n"), Err(Stop::Invalid("invalid bulk length")));
        assert_eq!(parse(b"*1\r\n$65537\r\n"), Err(Stop::Invalid("invalid bulk length")));
        assert_eq!(parse(&[b'a'; MAX_LINE]), Err(Stop::Invalid("too big inline request")));
        assert_eq!(parse(b"*3\r\n$1\r\na\r\n$0\r\n\r\n?"), Err(Stop::Invalid("expected '$'")));
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
            let mut out = Vec::new();
            push_number(&mut out, b'*', arguments.len() as i64);
            arguments.iter().for_each(|argument| push_bulk(&mut out, argument));
            for len in 0..out.len() {
                match parse(&out[..len]) {
                    Err(Stop::Incomplete(need)) => prop_assert!(need > len && need <= out.len()),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let slices: Vec<_> = arguments.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(parse(&out), command(&slices, out.len()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(input in prop::collection::vec(prop_oneof![
            Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'1'), Just(b'-'), any::<u8>()], 0..64)) {
            if let Ok((_, len)) = parse(&input) {
                prop_assert!(len > 0 && len <= input.len());
            }
        }
    }
}
