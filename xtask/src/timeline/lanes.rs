//! The lanes of a picture: what a story tells, drawn over the time that a scale shows.

use super::markup::{Element, group, label, line, path, rect, tag};
use super::picture::{COLUMN, Canvas, LEFT, Scale, WIDTH, bar, fits, place, width};
use super::requests::Requests;
use super::story::{Blackout, Machine, Story};
use crate::rig::history::Sample;
use crate::rig::roles::Role;
use crate::units::format_count;

const BAR: f64 = 22.0;
/// The tallest column of what a machine sent.
const FLOW: f64 = 18.0;
/// Rows of labels of events.
const ROWS: usize = 4;
const ROW: f64 = 14.0;
/// Conversations that get a row each.
const MAX_CONVERSATIONS: usize = 8;
/// Machines speak once a second; longer gaps are no line, in seconds.
const LONGEST_SILENCE: f64 = 2.5;
/// Waits that are drawn reach from a tenth of a millisecond to a hundred seconds, by powers of ten.
const SHORTEST: f64 = 1e-4;
const DECADES: f64 = 6.0;

/// What happened, in words: as many as have room, the weighty ones first; a mark for each of the others.
pub fn events(canvas: &mut Canvas, scale: &Scale, story: &Story) {
    let shown: Vec<_> = story.notices.iter().filter(|(at, _)| scale.shows(*at)).collect();
    let mut order: Vec<_> = shown.iter().filter_map(|(at, text)| Some((weight(text)?, *at, shorten(text)))).collect();
    order.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let wanted: Vec<_> = order.iter().map(|(_, at, text)| (scale.x(*at) + 3.0, width(text))).collect();
    let places = place(&wanted, ROWS);
    let height = ROWS as f64 * ROW;
    canvas.lane("events", "", height, |y| {
        let ticks = shown.iter().map(|(at, text)| {
            let x = scale.x(*at);
            line((x, y + height - 4.0), (x, y + height + 4.0)).class("event").tip(format!("{at:.3} s: {text}"))
        });
        let base = |row: usize| y + (row as f64 + 0.8) * ROW;
        let told: Vec<_> = order.iter().zip(places).filter_map(|(event, place)| Some((event, place?))).collect();
        let stems = told.iter().map(|((_, at, _), (row, _))| {
            line((scale.x(*at), base(*row) - 8.0), (scale.x(*at), y + height)).class("stem")
        });
        // Above the stems, which would cross them.
        let labels = told.iter().map(|((.., text), (row, from))| label(*from, base(*row), text));
        ticks.chain([group("stems", stems), group("told", labels)]).collect()
    });
}

/// How weighty an event is, the weightiest 0; none if the lanes show it anyway.
fn weight(text: &str) -> Option<u8> {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match () {
        () if has(&["took over", "was handed", "process has ended", "diverged", "link "]) => Some(0),
        () if has(&["halt", "term-", "asks-arbiter", "refused"]) => Some(1),
        () if has(&[" is primary", " is backup", " is joining", " is dead", "protected"]) => None,
        () => Some(2),
    }
}

/// The part before details.
fn shorten(text: &str) -> String {
    const LONGEST: usize = 50;
    let fits = text.chars().count() <= LONGEST && !text.contains("(pid");
    let short = if fits { text } else { text.find(" (").map_or(text, |at| &text[..at]) };
    if short.chars().count() <= LONGEST {
        return short.to_owned();
    }
    short.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// While a backup followed.
pub fn protection(canvas: &mut Canvas, scale: &Scale, story: &Story) {
    canvas.lane("protected", "", 8.0, |y| {
        let spans = story.protected.iter().filter(|span| scale.shows_some(span));
        spans.map(|span| bar(scale, span, y, 8.0, "protected", "", "a backup follows the primary")).collect()
    });
}

/// A machine's roles, and below what it sent on the log network.
pub fn machine(canvas: &mut Canvas, scale: &Scale, story: &Story, index: usize) {
    let machine = &story.machines[index];
    let sums: Vec<_> = story.log.iter().map(|flows| scale.sums(flows)).collect();
    let most = sums.iter().flatten().copied().fold(1.0, f64::max);
    canvas.lane(&machine.name, "sent to its twin ▾", BAR + FLOW + 3.0, |y| {
        let shown = machine.roles.iter().filter(|span| scale.shows_some(span));
        let bars = shown.map(|span| {
            let word = span.what.word();
            let term = (span.what == Role::Primary).then(|| term(machine, span.from, span.to)).flatten();
            let text = term.map_or_else(|| word.to_owned(), |term| format!("{word}, term {term}"));
            bar(
                scale,
                span,
                y,
                BAR,
                word,
                &text,
                &format!("{}: {text}, {:.3} s to {:.3} s", machine.name, span.from, span.to),
            )
        });
        let base = y + BAR + FLOW + 3.0;
        let columns = sums.get(index).into_iter().flatten().enumerate().filter(|(_, sum)| **sum > 0.0);
        let flow = columns.map(|(column, sum)| {
            let height = (FLOW * (1.0 + sum).ln() / (1.0 + most).ln()).max(1.0);
            rect(LEFT + column as f64 * COLUMN, base - height, COLUMN, height)
        });
        bars.chain([group("flow", flow)]).collect()
    });
}

/// The newest term that a machine was in within a span.
fn term(machine: &Machine, from: f64, to: f64) -> Option<u64> {
    let samples = machine.samples.iter().filter(|(at, _)| (from..=to).contains(at));
    samples.map(|(_, sample)| sample.term).max().filter(|term| *term > 0)
}

/// Takeovers in their parts, with how long each took in words below.
pub fn blackouts(canvas: &mut Canvas, scale: &Scale, shown: &[&Blackout], in_words: bool) {
    if shown.is_empty() {
        return;
    }
    canvas.lane("takeover", "", BAR + if in_words { 18.0 } else { 0.0 }, |y| {
        let mut elements = Vec::new();
        for blackout in shown {
            let parts = blackout.parts();
            let duration = |part: &super::story::Span<&str>| milliseconds((part.to - part.from) * 1e3);
            for part in &parts {
                let text = format!("{} {}", part.what, duration(part));
                elements.push(bar(scale, part, y, BAR, part.what, &text, &text));
            }
            if in_words {
                elements.extend(key(
                    scale.x(blackout.start()),
                    y + BAR + 14.0,
                    &parts.map(|part| (part.what, format!("{} {}", part.what, duration(&part)))),
                ));
            }
        }
        elements
    });
}

/// Coloured squares, each with a text behind it.
pub fn key(x: f64, base: f64, entries: &[(&str, String)]) -> Vec<Element> {
    let total: f64 = entries.iter().map(|(_, text)| width(text) + 30.0).sum();
    let mut x = x.min(WIDTH - 16.0 - total).max(LEFT);
    let mut elements = Vec::new();
    for (class, text) in entries {
        elements.push(rect(x, base - 9.0, 10.0, 10.0).class(class));
        elements.push(label(x + 14.0, base, text));
        x += width(text) + 30.0;
    }
    elements
}

/// A time that reads well.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 10_000.0 => format!("{:.1} s", ms / 1e3),
        ms if ms >= 10.0 => format!("{ms:.0} ms"),
        ms if ms >= 0.05 || ms <= 0.0 => format!("{ms:.1} ms"),
        _ => "< 0.1 ms".to_owned(),
    }
}

/// Links that were not as they should be, a row for each.
pub fn faults(canvas: &mut Canvas, scale: &Scale, story: &Story) {
    let mut names: Vec<_> =
        story.faults.iter().filter(|span| scale.shows_some(span)).map(|span| &span.what.0).collect();
    names.dedup();
    for name in names {
        canvas.lane(&format!("link {name}"), "", BAR, |y| {
            let spans: Vec<_> =
                story.faults.iter().filter(|span| span.what.0 == *name && scale.shows_some(span)).collect();
            let bars = spans.iter().enumerate().flat_map(|(index, span)| {
                let cut = ["down", "mute", "deaf"].iter().any(|word| span.what.1.contains(word));
                let text = span.what.1.trim_start_matches("up ");
                let (from, to) = (scale.x(span.from), scale.x(span.to));
                // A short one has its words beside it, as far as nothing else begins there.
                let room = spans.get(index + 1).map_or(WIDTH, |next| scale.x(next.from)) - to;
                let outside = !fits(text, to - from) && fits(text, room);
                let beside = outside.then(|| label(to + 5.0, y + BAR / 2.0 + 4.0, text).class("beside"));
                let tip = format!("{name}: {}", span.what.1);
                [Some(bar(scale, span, y, BAR, if cut { "cut" } else { "bad" }, text, &tip)), beside]
                    .into_iter()
                    .flatten()
            });
            bars.collect()
        });
    }
}

/// Each request by how long its answer took: one column of pixels shows the shortest and the longest of its time.
pub fn waits(canvas: &mut Canvas, scale: &Scale, requests: &Requests) {
    const HEIGHT: f64 = 84.0;
    let mut columns = vec![None::<(f64, f64)>; scale.columns()];
    let mut silent = vec![0usize; scale.columns()];
    for request in requests.all.iter().filter(|request| scale.shows(request.asked)) {
        let column = scale.column(request.asked);
        match request.answered {
            None => silent[column] += 1,
            Some(answered) => {
                let wait = (answered - request.asked).max(0.0);
                let (least, most) = columns[column].unwrap_or((wait, wait));
                columns[column] = Some((least.min(wait), most.max(wait)));
            }
        }
    }
    canvas.lane("client waits", "each request", HEIGHT, |y| {
        let height = |wait: f64| y + HEIGHT * (1.0 - ((wait / SHORTEST).log10() / DECADES).clamp(0.0, 1.0));
        let rules = [(1e-3, "1 ms"), (1e-1, "100 ms"), (1e1, "10 s")].map(|(wait, text)| {
            let at = height(wait);
            group("rule", [line((LEFT, at), (WIDTH - 16.0, at)), label(LEFT - 4.0, at + 4.0, text).class("right")])
        });
        let x = |column: usize| LEFT + (column as f64 + 0.5) * COLUMN;
        let answered = columns.iter().enumerate().filter_map(|(column, waits)| {
            let (least, most) = (*waits)?;
            let (low, high) = (height(least) + 1.0, height(most) - 1.0);
            Some(rect(x(column) - 1.0, high, COLUMN, low - high).tip(format!(
                "{} to {}",
                milliseconds(least * 1e3),
                milliseconds(most * 1e3)
            )))
        });
        let silent = silent.iter().enumerate().filter(|(_, count)| **count > 0);
        let silent = silent.map(|(column, count)| cross(x(column), y + 4.0).tip(format!("{count} without an answer")));
        rules.into_iter().chain([group("waits", answered), group("silent", silent)]).collect()
    });
}

fn cross(x: f64, y: f64) -> Element {
    let arms = [(-3.0, -3.0, 3.0, 3.0), (-3.0, 3.0, 3.0, -3.0)];
    tag("g").holding(arms.map(|(a, b, c, d)| line((x + a, y + b), (x + c, y + d))))
}

/// Each request as a bar from the question to the answer, a row for each conversation; data that was sent again as marks.
pub fn conversations(canvas: &mut Canvas, scale: &Scale, requests: &Requests) {
    const STEP: f64 = 10.0;
    let ends = |request: &super::requests::Request| request.answered.unwrap_or(scale.to);
    let shown: Vec<_> =
        requests.all.iter().filter(|request| ends(request) >= scale.from && request.asked <= scale.to).collect();
    let mut rows: Vec<_> = shown.iter().map(|request| request.conversation).collect();
    rows.sort_unstable();
    rows.dedup();
    let note = if rows.len() > MAX_CONVERSATIONS { "the first connections" } else { "by connection" };
    rows.truncate(MAX_CONVERSATIONS);
    let height = (rows.len() as f64 * STEP).max(20.0) + 8.0;
    canvas.lane("requests", note, height, |y| {
        let mut bars = Vec::new();
        for (row, conversation) in rows.iter().enumerate() {
            let top = y + row as f64 * STEP;
            let mut drawn = f64::MIN;
            for request in shown.iter().filter(|request| request.conversation == *conversation) {
                let (from, to) = (scale.x(request.asked), scale.x(ends(request)));
                // What is within a pixel that is painted already adds nothing.
                if to < drawn + 1.0 {
                    continue;
                }
                drawn = to;
                let class = if request.answered.is_some() { "answered" } else { "unanswered" };
                // A little shorter, so that what follows at once is another bar.
                let drawing = rect(from, top, (to - from - 0.6).max(0.8), STEP - 4.0).class(class);
                let took = milliseconds((ends(request) - request.asked) * 1e3);
                bars.push(if to - from > 3.0 { drawing.tip(took) } else { drawing });
            }
        }
        let base = y + height - 6.0;
        let again = requests.again.iter().filter(|again| scale.shows(again.at));
        let again = again.map(|again| {
            let x = scale.x(again.at);
            let class = if again.by_guest { "guest-again" } else { "client-again" };
            line((x, base), (x, base + 6.0)).class(class)
        });
        bars.into_iter().chain([group("again", again)]).collect()
    });
}

/// What machines told of themselves about once a second, as a line of steps: the largest of all machines counts.
pub fn steps(
    canvas: &mut Canvas,
    scale: &Scale,
    story: &Story,
    name: &str,
    unit: &str,
    value: impl Fn(&Sample) -> f64,
) {
    const HEIGHT: f64 = 34.0;
    let of_machine = |machine: &Machine| -> Vec<(f64, f64)> {
        machine.samples.iter().map(|(at, sample)| (*at, value(sample))).filter(|(at, _)| scale.shows(*at)).collect()
    };
    let lines: Vec<_> = story.machines.iter().map(of_machine).collect();
    let most = lines.iter().flatten().map(|(_, value)| *value).fold(0.0, f64::max);
    let note = format!("up to {} {unit}", format_count(most));
    canvas.lane(name, &note, HEIGHT, |y| {
        let height = |value: f64| y + HEIGHT * (1.0 - if most > 0.0 { value / most } else { 0.0 });
        let draw = |(index, samples): (usize, &Vec<(f64, f64)>)| {
            // A machine that has died says nothing more.
            let stairs = samples.windows(2).filter(|pair| pair[1].0 - pair[0].0 <= LONGEST_SILENCE).map(|pair| {
                let [a, b] = [pair[0], pair[1]].map(|(at, value)| (scale.x(at), height(value)));
                path([a, (b.0, a.1), b])
            });
            let dots = samples.iter().map(|(at, value)| {
                let tip = format!("{} at {at:.2} s: {} {unit}", story.machines[index].name, format_count(*value));
                rect(scale.x(*at) - 1.5, height(*value) - 1.5, 3.0, 3.0).tip(tip)
            });
            group(if index == 0 { "first steps" } else { "second steps" }, stairs).holding(dots)
        };
        lines.iter().enumerate().map(draw).collect()
    });
}

/// Marks where digests were compared since the sample before.
pub fn digests(canvas: &mut Canvas, scale: &Scale, story: &Story) {
    let mut marks = Vec::new();
    for machine in &story.machines {
        for pair in machine.samples.windows(2) {
            let [before, after] = [&pair[0], &pair[1]].map(|(_, sample)| sample.digests);
            if after > before && scale.shows(pair[1].0) {
                marks.push((pair[1].0, after - before));
            }
        }
    }
    let total: u64 = marks.iter().map(|(_, count)| count).sum();
    canvas.lane("digests", &format!("{total} compared"), 22.0, |y| {
        let draw = |(at, count): (f64, u64)| {
            line((scale.x(at), y + 2.0), (scale.x(at), y + 18.0))
                .class("digest")
                .tip(format!("{count} compared by {at:.2} s"))
        };
        marks.into_iter().map(draw).collect()
    });
}
