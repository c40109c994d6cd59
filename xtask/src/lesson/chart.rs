//! Pictures of letters, for a terminal.

/// Cells of the longest bar.
const WIDTH: f64 = 44.0;

/// A bar for each value, the longest as wide as there is room; behind it the value in words.
pub fn bars(rows: &[(String, f64, String)]) -> Vec<String> {
    let most = rows.iter().map(|(_, value, _)| *value).fold(0.0, f64::max);
    let names = rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0);
    let row = |(name, value, words): &(String, f64, String)| {
        let cells = if most > 0.0 { (value.max(0.0) / most * WIDTH).round() as usize } else { 0 };
        // What is not nothing is seen.
        let cells = if *value > 0.0 { cells.max(1) } else { 0 };
        format!("    {name:<names$}  {}{} {words}", "█".repeat(cells), if cells == 0 { "·" } else { "" })
    };
    rows.iter().map(row).collect()
}

/// What a client got, one answer a column; the last of each row is what matters.
pub fn answers(rows: &[(&str, Vec<String>)]) -> Vec<String> {
    let names = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let row = |(name, seen): &(&str, Vec<String>)| {
        let cells: Vec<_> = seen.iter().map(|cell| format!("{cell:^13}")).collect();
        format!("    {name:<names$}  {}", cells.join("│")).trim_end().to_owned()
    };
    rows.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_values() {
        let row = |name: &str, value| (name.to_owned(), value, format!("{value}"));
        let lines = bars(&[row("a", 2.0), row("long", 1.0), row("none", 0.0), row("tiny", 1e-9)]);
        let lengths: Vec<_> = lines.iter().map(|line| line.matches('█').count()).collect();
        assert_eq!(lengths, [44, 22, 0, 1]);
        assert!(lines[2].ends_with("· 0") && lines[0].starts_with("    a     █"), "{lines:?}");
        assert_eq!(bars(&[row("a", 0.0)]).len(), 1);
    }

    #[test]
    fn answers_stand_in_columns() {
        let lines = answers(&[("with", vec!["10".into(), "11".into()]), ("without it", vec!["10".into()])]);
        assert_eq!(lines, ["    with             10      │     11", "    without it       10"]);
    }
}
