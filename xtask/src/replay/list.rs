//! What is in a recording, for people.

use std::path::Path;

use anyhow::{Context, Result};
use pollux_ft::Position;
use pollux_ft::entry::Kind;
use pollux_record::{Contents, Session};

use crate::output::say;
use crate::rig::printable;
use crate::units::format_bytes;

/// Says what is in a recording.
pub fn list(path: &Path, contents: &Contents) -> Result<()> {
    let size = path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    say!("{}: {}, {} sessions", path.display(), format_bytes(size as f64), contents.sessions.len());
    for (number, session) in (1..).zip(&contents.sessions) {
        let Session { state, term, times: [begun, _, ended], .. } = session;
        let from = state.map_or_else(
            || "no complete state".to_owned(),
            |state| format!("positions {state} to {}", session.position),
        );
        let end = printable(session.end.as_deref().unwrap_or("the file breaks off"));
        say!(
            "session {number}: term {}, {from}, state of {}, {} entries, {} digests, {:.1} s to {:.1} s; {end}",
            term.0,
            format_bytes(session.state_bytes as f64),
            session.count(),
            session.of_kind(Kind::Digest),
            *begun as f64 / 1e6,
            *ended as f64 / 1e6,
        );
    }
    for (end, state) in gaps(contents.sessions.iter().map(|session| (session.state, session.position))) {
        say!("not recorded: positions {end} to {state}");
    }
    if let Some(offset) = contents.broken_off {
        say!("the recording breaks off at byte {offset}: what came before is whole");
    }
    Ok(())
}

/// Where the guest stood at the end of a session, and at the beginning of the next one if it ran in between. Each session is
/// where its state stands and how far its log leads; one without a complete state cannot be replayed, and counts for nothing.
fn gaps(sessions: impl Iterator<Item = (Option<Position>, Position)>) -> Vec<(Position, Position)> {
    let whole: Vec<_> = sessions.filter_map(|(state, end)| Some((state?, end))).collect();
    let between = whole.windows(2).map(|pair| (pair[0].1, pair[1].0));
    between.filter(|(end, state)| state > end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_lie_between_whole_sessions() {
        let gaps = |sessions: &[(Option<u64>, u64)]| {
            let gaps = gaps(sessions.iter().map(|(state, end)| (state.map(Position), Position(*end))));
            gaps.into_iter().map(|(end, state)| (end.0, state.0)).collect::<Vec<_>>()
        };
        assert_eq!(gaps(&[(Some(5), 10), (Some(12), 20), (Some(20), 30)]), [(10, 12)]);
        assert_eq!(gaps(&[(Some(5), 10), (None, 0), (Some(30), 40)]), [(10, 30)]);
        assert_eq!(gaps(&[(None, 0), (Some(30), 40), (None, 0)]), []);
    }
}
