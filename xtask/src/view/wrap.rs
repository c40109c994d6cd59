//! Text in panels: lines broken between words, and as many whole entries as there is room for.

use ratatui::text::Span;

/// Breaks `text` into lines of at most `width` cells, between words where it can; all but the first line are indented by
/// `indent` cells. Spaces within a line stay as they are.
pub fn wrap(text: &str, width: usize, indent: usize) -> Vec<String> {
    let indent = if indent + MIN_WIDTH <= width { indent } else { 0 };
    let mut lines = Vec::new();
    let mut rest = text.trim_end().to_owned();
    // The start of a continued line is no place to break it.
    let mut earliest = 0;
    while cells(&rest) > width.max(1) {
        let fitting = fitting(&rest, width.max(1));
        let space = rest[..fitting].rfind(' ').or_else(|| rest[fitting..].starts_with(' ').then_some(fitting));
        // A space right behind what fits is the best of all.
        let space = if rest[fitting..].starts_with(' ') { Some(fitting) } else { space };
        let cut = space.filter(|&at| !rest[earliest..at.max(earliest)].trim().is_empty()).unwrap_or(fitting);
        let next = format!("{:indent$}{}", "", rest[cut..].trim_start());
        rest.truncate(cut);
        lines.push(rest.trim_end().to_owned());
        (rest, earliest) = (next, indent);
    }
    lines.push(rest);
    lines
}

/// Narrower than this, an indented line holds nothing.
const MIN_WIDTH: usize = 12;

fn cells(text: &str) -> usize {
    Span::raw(text).width()
}

/// How many bytes of `text` fit into `width` cells; at least its first character.
fn fitting(text: &str, width: usize) -> usize {
    let mut ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
    let first = ends.next().unwrap_or(0);
    ends.take_while(|&end| cells(&text[..end]) <= width).last().unwrap_or(first)
}

/// The first entries that fit into `room` lines as a whole.
pub fn first(entries: Vec<Vec<String>>, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in entries {
        if lines.len() + entry.len() <= room {
            lines.extend(entry);
        }
    }
    lines
}

/// The last entries that fit into `room` lines as a whole; of the very last one at least its beginning.
pub fn last(entries: Vec<Vec<String>>, room: usize) -> Vec<String> {
    let mut kept: Vec<Vec<String>> = Vec::new();
    let mut left = room;
    for mut entry in entries.into_iter().rev() {
        if entry.len() > left {
            if kept.is_empty() {
                entry.truncate(left);
                kept.push(entry);
            }
            break;
        }
        left -= entry.len();
        kept.push(entry);
    }
    kept.into_iter().rev().flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("one two three", 13, 2), ["one two three"]);
        assert_eq!(
            wrap("guest     running, 12 instructions", 24, 10),
            ["guest     running, 12", "          instructions"]
        );
        assert_eq!(wrap("exactly fits here now", 12, 0), ["exactly fits", "here now"]);
        assert_eq!(wrap("averylongwordindeed x", 10, 0), ["averylongw", "ordindeed", "x"]);
        assert_eq!(wrap("", 5, 3), [""]);
        assert_eq!(wrap("ab", 0, 0), ["a", "b"]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_wider(text in "[a-zä漢 ]{0,60}", width in 2usize..40, indent in 0usize..20) {
            let lines = wrap(&text, width, indent);
            prop_assert!(lines.iter().all(|line| cells(line) <= width), "{lines:?}");
            let bare = |text: &str| text.chars().filter(|c| *c != ' ').collect::<String>();
            prop_assert_eq!(bare(&lines.concat()), bare(&text));
            let words: Vec<_> = text.split_whitespace().collect();
            if words.iter().all(|word| cells(word) + indent <= width) && width >= indent + MIN_WIDTH {
                let broken: Vec<_> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
                prop_assert_eq!(broken, words);
            }
        }
    }

    #[test]
    fn entries_stay_whole() {
        let entries = || vec![vec!["a".to_owned()], vec!["b1".to_owned(), "b2".to_owned()], vec!["c".to_owned()]];
        assert_eq!(first(entries(), 2), ["a", "c"]);
        assert_eq!(first(entries(), 3), ["a", "b1", "b2"]);
        assert_eq!(last(entries(), 2), ["c"]);
        assert_eq!(last(entries(), 3), ["b1", "b2", "c"]);
        assert_eq!(last(vec![vec!["long".to_owned(), "er".to_owned()]], 1), ["long"]);
        assert_eq!(last(entries(), 0), [""; 0]);
    }
}
