//! The page: what happened at a glance, each takeover from near, how to read it, and everything that was told.

use super::lanes;
use super::markup::{Element, tag};
use super::picture::{Canvas, Scale};
use super::story::{Blackout, Story};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("cursor.js");
/// Takeovers that are shown from near.
const MAX_CLOSE: usize = 6;
/// Lines of the table of events.
const MAX_EVENTS: usize = 400;
/// What is shown before and after a takeover, in seconds and in parts of its own time.
const AROUND: (f64, f64) = (0.25, 0.2);

/// The whole page.
pub fn page(story: &Story, name: &str) -> String {
    let title = format!("Timeline of the rig {name}");
    let head = tag("head").holding([
        tag("meta").with("charset", "utf-8"),
        tag("meta").with("name", "viewport").with("content", "width=device-width"),
        tag("title").text(&title),
        tag("style").verbatim(STYLE),
    ]);
    let mut body = tag("body").holding([tag("h1").text(&title), tag("p").text(summary(story))]);
    body = body.holding([figure(overview(story), &overview_words(story))]);
    for (number, blackout) in story.blackouts.iter().enumerate().take(MAX_CLOSE) {
        let heading = format!("Takeover {} of {}: {}", number + 1, story.blackouts.len(), told(story, blackout));
        body = body.holding([tag("h2").text(heading), figure(close(story, number), &close_words(story))]);
    }
    if story.blackouts.len() > MAX_CLOSE {
        body = body.holding([tag("p").text(format!("Only the first {MAX_CLOSE} takeovers are shown from near."))]);
    }
    body = body.holding([tag("h2").text("How to read this"), legend(), tag("h2").text("What was told"), table(story)]);
    body = body.holding([tag("script").verbatim(SCRIPT)]);
    format!("<!doctype html>{}\n", tag("html").with("lang", "en").holding([head, body]))
}

/// A takeover as a picture of its own, for documents; none if there is no such.
pub fn picture(story: &Story, number: usize) -> Option<String> {
    story.blackouts.get(number)?;
    let style = tag("style").verbatim(STYLE);
    Some(format!("{}\n", close(story, number).holding([style])))
}

fn figure(picture: Element, words: &str) -> Element {
    tag("figure").holding([picture, tag("figcaption").text(words)])
}

fn summary(story: &Story) -> String {
    let machines: Vec<_> = story.machines.iter().map(|machine| machine.name.as_str()).collect();
    let count = match story.blackouts.len() {
        0 => "no takeover".to_owned(),
        1 => "one takeover".to_owned(),
        many => format!("{many} takeovers"),
    };
    let state = if story.runs { " so far" } else { "" };
    let emulator = if story.emulator.is_empty() { String::new() } else { format!(" in {}", story.emulator) };
    let mut text = format!("{}{emulator}: {:.1} s{state}, {count}.", machines.join(" and "), story.end);
    if let Some(requests) = &story.requests {
        let unanswered = requests.all.iter().filter(|request| request.answered.is_none()).count();
        text += &format!(" {} requests of clients on {} connections", requests.all.len(), requests.conversations);
        text += &requests.longest().map_or_else(String::new, |wait| {
            format!("; the longest wait for an answer was {}", lanes::milliseconds(wait * 1e3))
        });
        text += &match unanswered {
            0 => "; all were answered.".to_owned(),
            some => format!("; {some} without an answer in the capture."),
        };
        if requests.left_out > 0 {
            text += &format!(" {} more are not shown.", requests.left_out);
        }
    }
    text
}

/// The whole rig.
fn overview(story: &Story) -> Element {
    let scale = Scale::new(0.0, story.end, 0.0);
    let mut canvas = Canvas::new(scale);
    lanes::events(&mut canvas, &scale, story);
    lanes::protection(&mut canvas, &scale, story);
    for index in 0..story.machines.len() {
        lanes::machine(&mut canvas, &scale, story, index);
    }
    lanes::blackouts(&mut canvas, &scale, &story.blackouts.iter().collect::<Vec<_>>(), false);
    lanes::faults(&mut canvas, &scale, story);
    if let Some(requests) = &story.requests {
        lanes::waits(&mut canvas, &scale, requests);
    }
    lanes::steps(&mut canvas, &scale, story, "held output", "frames", |sample| sample.held as f64);
    lanes::steps(&mut canvas, &scale, story, "backup's lag", "ms", |sample| sample.lag_us as f64 / 1e3);
    lanes::digests(&mut canvas, &scale, story);
    canvas.finish("The whole rig over time")
}

/// A takeover from near.
fn close(story: &Story, number: usize) -> Element {
    let blackout = &story.blackouts[number];
    let around = AROUND.0.max((blackout.end - blackout.start()) * AROUND.1);
    let scale = Scale::new(blackout.start() - around, blackout.end + around, blackout.start());
    let mut canvas = Canvas::new(scale);
    lanes::events(&mut canvas, &scale, story);
    for index in 0..story.machines.len() {
        lanes::machine(&mut canvas, &scale, story, index);
    }
    lanes::blackouts(&mut canvas, &scale, &[blackout], true);
    lanes::faults(&mut canvas, &scale, story);
    if let Some(requests) = &story.requests {
        lanes::conversations(&mut canvas, &scale, requests);
    }
    canvas.finish(&told(story, blackout))
}

fn told(story: &Story, blackout: &Blackout) -> String {
    let heir = story.machines.get(blackout.heir).map_or("?", |machine| machine.name.as_str());
    let how = if blackout.times.planned { "is handed the guest" } else { "takes over" };
    format!("{heir} {how} in {}", lanes::milliseconds(blackout.times.total_ms))
}

fn overview_words(story: &Story) -> String {
    let log = if story.log_captured {
        "What machines sent on the log network was captured"
    } else {
        "What machines sent on the log network was counted ten times a second, heartbeats too"
    };
    let requests = if story.requests.is_some() { "" } else { " Requests of clients are known with --capture only." };
    format!("Seconds since the rig's start. {log}; its columns grow with the logarithm of the bytes.{requests}")
}

fn close_words(story: &Story) -> String {
    let zero = "Zero is the old primary's last sign of life, or the moment in which it began to hand over.";
    match story.requests {
        Some(_) => format!(
            "{zero} A request's bar ends when its answer begins. Marks below the bars: data that was sent again."
        ),
        None => zero.to_owned(),
    }
}

fn legend() -> Element {
    let entries = [
        (
            "primary, backup",
            "The primary runs the guest for its clients; the backup runs the same guest from the primary's log, its output stays inside.",
        ),
        (
            "joining, dead",
            "A joining machine gets the guest's state. A dead one has no power, has halted, or was replaced without knowing it.",
        ),
        (
            "sent to its twin",
            "Columns below a machine's role: entries of the log and the state from a primary, acknowledgements from a backup.",
        ),
        (
            "takeover",
            "Detection: silence until the backup suspects. Drain: the rest of the log is executed. Arbiter: the next term is won. Announcement: the switch learns the guest's new place.",
        ),
        ("link", "A cable or network that was cut (red) or made worse (yellow), and how."),
        (
            "client waits",
            "From a request to the first byte of its answer, on a logarithmic scale; a cross: no answer came.",
        ),
        (
            "requests",
            "A row for each connection, a bar for each request. Red bars got no answer. Red marks: the guest's data came twice; grey marks: the client asked again.",
        ),
        (
            "held output",
            "Frames that wait in the gate until the twin has the log up to them. Asked once a second; blue is the first machine, green the second.",
        ),
        ("backup's lag", "How far the backup's guest is behind, as the machines said it once a second."),
        ("digests", "CPU, devices and memory of both guests were compared."),
    ];
    let items = entries.into_iter().flat_map(|(term, words)| [tag("dt").text(term), tag("dd").text(words)]);
    tag("dl").holding(items)
}

fn table(story: &Story) -> Element {
    let rows = story
        .notices
        .iter()
        .take(MAX_EVENTS)
        .map(|(at, text)| tag("tr").holding([tag("td").text(format!("{at:.3} s")), tag("td").text(text)]));
    let more = story.notices.len().saturating_sub(MAX_EVENTS);
    let more = (more > 0).then(|| tag("tr").holding([tag("td"), tag("td").text(format!("and {more} more"))]));
    tag("table").holding(rows.chain(more))
}

#[cfg(test)]
mod tests {
    use super::super::capture::{Packet, Transport, tests::frame};
    use super::super::markup::check::well_formed;
    use super::super::story::of_history;
    use super::*;
    use crate::rig::history::parse;

    /// A rig whose primary was killed while a client asked.
    fn recorded() -> Story {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/timeline/testdata/kill.jsonl");
        of_history(&parse(&std::fs::read_to_string(path).unwrap()))
    }

    #[test]
    fn a_recorded_kill_becomes_a_page() {
        let story = recorded();
        assert_eq!(story.blackouts.len(), 1);
        let page = page(&story, "<kill & co>");
        well_formed(&page);
        for word in [
            "takes over in 10",
            "detection 10",
            "primary, term 2",
            "castor",
            "&lt;kill &amp; co&gt;",
            "prefers-color-scheme",
        ] {
            assert!(page.contains(word), "no `{word}`");
        }
        for word in ["http://", "https://", "NaN", "inf\"", "src="] {
            let found = page.replace("http://www.w3.org/2000/svg", "").contains(word);
            assert!(!found, "`{word}` in the page");
        }
        well_formed(&picture(&story, 0).unwrap());
        assert_eq!(picture(&story, 1), None);
    }

    #[test]
    fn requests_are_shown_where_they_are_known() {
        let mut story = recorded();
        let (guest, client) = (([10, 0, 2, 15], 6379), ([10, 0, 2, 2], 50_000));
        let mut file = [&0xa1b2_3c4du32.to_le_bytes()[..], &[0; 20]].concat();
        for (at, from, to, sequence, acknowledges) in
            [(1.0, client, guest, 0, 0), (1.004, guest, client, 0, 1), (2.0, client, guest, 1, 1)]
        {
            let transport = Transport::Tcp { sequence, acknowledges, opens: false };
            let bytes = frame(&Packet { source_mac: [1; 6], from, to, transport, data: b"x" });
            let unix: f64 = story.unix_s + at;
            let length = u32::try_from(bytes.len()).unwrap();
            for word in [unix as u32, (unix.fract() * 1e9) as u32, length, length] {
                file.extend(word.to_le_bytes());
            }
            file.extend(bytes);
        }
        assert_eq!(story.add_client_capture(&file, guest.0), Some(()));
        let page = page(&story, "x");
        well_formed(&page);
        assert!(
            page.contains(
                "2 requests of clients on 1 connections; the longest wait for an answer was 4.0 ms; 1 without"
            )
        );
        assert_eq!(story.add_client_capture(b"none", guest.0), None);
    }

    #[test]
    fn a_rig_of_which_nothing_is_known_has_a_page() {
        well_formed(&page(&of_history(&[]), "empty"));
    }
}
