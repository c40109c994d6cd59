//! Lines for the user. A reader that has gone away (`| head`) ends neither a rig nor us, as `println!` would.

use std::fmt::{Arguments, Display};
use std::io::Write;

/// Writes a line to the standard output: `say!("directory: {}", path.display())`.
macro_rules! say {
    ($($text:tt)*) => { $crate::output::to(&mut std::io::stdout().lock(), format_args!($($text)*)) };
}

/// Writes a line to the standard error output.
macro_rules! complain {
    ($($text:tt)*) => { $crate::output::to(&mut std::io::stderr().lock(), format_args!($($text)*)) };
}

pub(crate) use {complain, say};

/// Writes each of `lines` to the standard output.
pub fn lines<T: Display>(lines: impl IntoIterator<Item = T>) {
    for line in lines {
        say!("{line}");
    }
}

/// Writes one line. What the reader does not take is lost.
pub fn to(output: &mut impl Write, text: Arguments<'_>) {
    let _ = writeln!(output, "{text}").and_then(|()| output.flush());
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Result};

    use super::*;

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> Result<usize> {
            Err(Error::from(ErrorKind::BrokenPipe))
        }

        fn flush(&mut self) -> Result<()> {
            Err(Error::from(ErrorKind::BrokenPipe))
        }
    }

    #[test]
    fn a_reader_that_has_gone_does_not_matter() {
        to(&mut Gone, format_args!("line"));
        let mut taken = Vec::new();
        to(&mut taken, format_args!("two {}", 2));
        assert_eq!(taken, b"two 2\n");
    }
}
