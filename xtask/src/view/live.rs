//! The live view on a terminal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};
use ratatui::{DefaultTerminal, Frame};

use super::wrap::{first, last, wrap};
use super::{Key, View, machine, text};
use crate::rig::roles::Role;
use crate::rig::snapshot::{MachineSnapshot, Notice, Snapshot};
use crate::rig::{Rig, tail};

/// How often the screen is drawn.
const PERIOD: Duration = Duration::from_millis(250);
/// Lines of each machine's log that are read for the screen.
const LOG_LINES: usize = 120;

/// Draws on the terminal, which is restored when this is dropped.
#[derive(Debug)]
pub struct Live {
    terminal: DefaultTerminal,
    next: Instant,
    answer: String,
}

impl Live {
    /// Takes the terminal.
    pub fn new() -> Result<Self> {
        let terminal = ratatui::try_init().context("cannot use the terminal (try --headless)")?;
        Ok(Self { terminal, next: Instant::now(), answer: String::new() })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

impl View for Live {
    fn notice(&mut self, _notice: &Notice) -> Result<()> {
        // Part of what is drawn anyway.
        self.next = Instant::now();
        Ok(())
    }

    fn refresh(&mut self, rig: &Rig) -> Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next = Instant::now() + PERIOD;
        let snapshot = rig.snapshot();
        let logs: Vec<_> = snapshot.machines.iter().map(|machine| tail(&machine.serial, LOG_LINES)).collect();
        self.terminal.draw(|frame| draw(frame, &snapshot, &logs, &self.answer)).context("cannot draw")?;
        Ok(())
    }

    fn key(&mut self) -> Result<Option<Key>> {
        while event::poll(Duration::ZERO).context("cannot read the keyboard")? {
            let Some(pressed) = event::read().context("cannot read the keyboard")?.as_key_event() else { continue };
            if pressed.kind == KeyEventKind::Release {
                continue;
            }
            let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
            if let Some(key) = meaning(pressed.code, control) {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    fn answer(&mut self, text: String) -> Result<()> {
        if !text.is_empty() {
            self.answer = text;
        }
        Ok(())
    }
}

fn meaning(code: KeyCode, control: bool) -> Option<Key> {
    match (code, control) {
        (KeyCode::Char('c'), true) | (KeyCode::Char('q') | KeyCode::Esc, false) => Some(Key::Quit),
        (KeyCode::Char('p'), false) => Some(Key::KillPrimary),
        (KeyCode::Char('b'), false) => Some(Key::KillBackup),
        (KeyCode::Char('n'), false) => Some(Key::NewBackup),
        _ => None,
    }
}

/// Draws everything; `logs` holds the last lines of each machine's log.
fn draw(frame: &mut Frame<'_>, snapshot: &Snapshot, logs: &[Vec<String>], answer: &str) {
    let area = frame.area();
    let foot = foot(answer, width(area.width, 0));
    let rooms = Rooms::new(area, foot.len(), snapshot);
    let rows = [rooms.head, rooms.machines, rooms.links, rooms.happened, rooms.logs, rooms.foot];
    let [head, machines, middle, happened, log, keys] = Layout::vertical(rows.map(Constraint::Length)).areas(area);
    draw_head(frame, head, snapshot);
    let columns = Layout::horizontal(vec![Constraint::Fill(1); snapshot.machines.len()]);
    for (machine, area) in snapshot.machines.iter().zip(columns.split(machines).iter()) {
        draw_machine(frame, *area, machine);
    }
    if rooms.happened > 0 {
        draw_links(frame, middle, snapshot);
        draw_happened(frame, happened, snapshot);
    } else {
        let [left, right] = Layout::horizontal([Constraint::Fill(1); 2]).areas(middle);
        draw_happened(frame, left, snapshot);
        draw_links(frame, right, snapshot);
    }
    for ((machine, lines), area) in snapshot.machines.iter().zip(logs).zip(columns.split(log).iter()) {
        let entries = lines.iter().filter(|line| !says_nothing(line));
        let entries = entries.map(|line| wrap(line, width(area.width, BORDERS), 4)).collect();
        draw_panel(frame, *area, &format!("log of {}", machine.name), last(entries, height(area.height)));
    }
    let foot: Vec<_> = foot.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(foot).style(Style::new().add_modifier(Modifier::DIM)), keys);
}

/// How many lines each part of the screen gets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rooms {
    head: u16,
    machines: u16,
    /// The links or, on a wide screen, they and what happened side by side.
    links: u16,
    /// What happened, on a narrow screen.
    happened: u16,
    /// None if there is no room for lines that say something.
    logs: u16,
    foot: u16,
}

impl Rooms {
    /// Machines come first, then links, then what happened, then the logs, which are files, too.
    fn new(area: Rect, foot: usize, snapshot: &Snapshot) -> Self {
        let foot = lines(foot).min(area.height);
        let head = 2.min(area.height - foot);
        let room = area.height - foot - head;
        let across = area.width / lines(snapshot.machines.len().max(1));
        let wanted = snapshot.machines.iter().map(|machine| machine_lines(machine, width(across, BORDERS)).len()).max();
        let wanted = lines(wanted.unwrap_or(0)) + BORDERS;
        let half = width(if area.width < WIDE { area.width } else { area.width / 2 }, BORDERS);
        let links = lines(link_entries(snapshot, half).iter().map(Vec::len).sum()) + BORDERS;
        let mut rooms = Self { head, foot, ..Self::default() };
        if area.width < WIDE {
            rooms.links = links.min(room / 3);
            rooms.machines = wanted.min(room.saturating_sub(rooms.links + HAPPENED));
            rooms.happened = HAPPENED.min(room - rooms.links - rooms.machines);
        } else {
            rooms.links = links.max(room / 4).min(room / 3);
            rooms.machines = wanted.min(room - rooms.links);
        }
        let left = room - rooms.links - rooms.machines - rooms.happened;
        match left {
            LOGS.. => rooms.logs = left,
            _ if rooms.happened > 0 => rooms.happened += left,
            _ => rooms.links += left,
        }
        rooms
    }
}

/// Narrower screens have one panel across for the links and one for what happened.
const WIDE: u16 = 100;
/// Lines of the panel for what happened on a narrow screen.
const HAPPENED: u16 = 4;
/// Fewer lines of the logs say nothing.
const LOGS: u16 = 5;
/// What a panel's borders take of its width, and of its height.
const BORDERS: u16 = 2;

fn lines(count: usize) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX / 4)
}

/// Cells within borders.
fn width(outer: u16, borders: u16) -> usize {
    usize::from(outer.saturating_sub(borders))
}

/// Lines within borders.
fn height(outer: u16) -> usize {
    usize::from(outer.saturating_sub(BORDERS))
}

/// The keys, and what became of the last one.
fn foot(answer: &str, width: usize) -> Vec<String> {
    let keys = "p kill primary   b kill backup   n new backup   q quit";
    let together = format!("{keys}      {answer}");
    if !answer.contains('\n') && wrap(&together, width, 0).len() == 1 {
        return vec![together];
    }
    let answer = answer.lines().flat_map(|line| wrap(line, width, 2));
    [keys.to_owned()].into_iter().chain(answer).collect()
}

/// What is known of the rig as a whole: as much of it as fits in a line.
fn draw_head(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let color = if snapshot.protected { Color::Green } else { Color::Yellow };
    let mut first = format!("Pollux  {}  up {:.0} s", snapshot.service, snapshot.uptime_s);
    for (what, seconds) in [("answered", snapshot.first_answer_s), ("protected", snapshot.first_protected_s)] {
        let part = seconds.map_or_else(String::new, |seconds| format!("  {what} after {seconds:.1} s"));
        if first.len() + part.len() <= usize::from(area.width) {
            first += &part;
        }
    }
    let protection = Line::styled(text::protection(snapshot), Style::new().fg(color).add_modifier(Modifier::BOLD));
    frame.render_widget(Paragraph::new(vec![Line::raw(first), protection]), area);
}

/// The rows of a machine, each as one or more lines.
fn machine_entries(machine: &MachineSnapshot, width: usize) -> Vec<Vec<String>> {
    machine::rows(machine).iter().map(|(name, text)| wrap(&format!("{name:<8} {text}"), width, 9)).collect()
}

fn machine_lines(machine: &MachineSnapshot, width: usize) -> Vec<String> {
    machine_entries(machine, width).concat()
}

fn draw_machine(frame: &mut Frame<'_>, area: Rect, machine: &MachineSnapshot) {
    let color = match machine.role {
        Role::Primary => Color::Green,
        Role::Backup => Color::Cyan,
        Role::Joining => Color::Yellow,
        Role::Dead => Color::Red,
    };
    let lines = first(machine_entries(machine, width(area.width, BORDERS)), height(area.height));
    let block = Block::bordered().title(machine::title(machine)).border_style(Style::new().fg(color));
    let lines: Vec<_> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn draw_happened(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let entry = |notice| wrap(&text::notice(notice), width(area.width, BORDERS), 4);
    let entries = snapshot.notices.iter().map(entry).collect();
    draw_panel(frame, area, "what happened", last(entries, height(area.height)));
}

fn link_entries(snapshot: &Snapshot, width: usize) -> Vec<Vec<String>> {
    text::links(snapshot).iter().map(|line| wrap(line, width, 4)).collect()
}

/// All links, and as many of the last takeovers as there is room for.
fn draw_links(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let (width, height) = (width(area.width, BORDERS), height(area.height));
    let mut lines = first(link_entries(snapshot, width), height);
    let takeovers = snapshot.takeovers.iter().map(|takeover| wrap(&text::takeover(takeover), width, 4)).collect();
    lines.extend(last(takeovers, height - lines.len()));
    draw_panel(frame, area, &format!("links, takeovers: {}", snapshot.takeovers.len()), lines);
}

fn draw_panel(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<String>) {
    let lines: Vec<_> = lines.into_iter().map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title.to_owned())), area);
}

/// Whether a line of a log is empty, or belongs to the table of a self-test and says only that something is as it must be.
/// The file has it; here a whole table of them would hide what else there is.
fn says_nothing(line: &str) -> bool {
    let is_head = || line.trim_start().starts_with("check ") && line.ends_with(" got");
    line.trim().is_empty() || line.starts_with("  ") && (line.ends_with(" ok") || is_head())
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::view::text::tests::example;

    fn screen(width: u16, height: u16) -> String {
        let logs = [vec!["boot".to_owned()], vec!["self-test passed".to_owned()]];
        draw_on(width, height, &example(), &logs, "killed castor")
    }

    /// A rig that has seen a lot: long lines everywhere.
    fn crowded(roles: [Role; 2]) -> Snapshot {
        let mut snapshot = example();
        let status = snapshot.machine(Role::Primary).and_then(|machine| machine.status.clone());
        for (machine, role) in snapshot.machines.iter_mut().zip(roles) {
            (machine.role, machine.status) = (role, status.clone());
            if let Some(status) = &mut machine.status {
                status.protected = role == Role::Primary && roles[1] == Role::Backup;
                (status.lag_ticks, status.gate.released) = (133_000_000, 123_456);
                status.errors.insert("log_refused_order".into(), 3);
            }
        }
        let notice = |at_s, text: &str| Notice { at_s, text: text.into() };
        snapshot.notices.extend([
            notice(
                41.0,
                "pollux: protected again, after 1.2 s without protection, in term 2, by castor's whole new state",
            ),
            notice(42.0, "castor: started as backup (pid 12345)"),
        ]);
        snapshot
    }

    fn draw_on(width: u16, height: u16, snapshot: &Snapshot, logs: &[Vec<String>], answer: &str) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, snapshot, logs, answer)).unwrap();
        terminal.backend().to_string()
    }

    /// The words on a screen, without borders and line ends.
    fn words(screen: &str) -> String {
        let line = |line: &str| line.trim_matches('"').replace(|c: char| "│┌┐└┘─".contains(c), " ");
        let all = screen.lines().map(line).collect::<Vec<_>>().join(" ");
        all.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_screen_shows_what_matters() {
        for (width, height) in [(160, 40), (150, 48), (120, 40), (80, 24)] {
            let screen = screen(width, height);
            for part in ["protected for 12 s", "pollux: primary", "321.5 MIPS", "killed castor", "took over"] {
                assert!(words(&screen).contains(part), "{part} is not in\n{screen}");
            }
        }
    }

    /// All entries of a part of the screen are there in full: side by side or one below the other, so that each line of
    /// an entry is looked for by itself.
    fn assert_whole(screen: &str, entries: &[Vec<String>]) {
        for line in entries.concat() {
            assert!(screen.contains(line.trim()), "`{line}` is not whole in\n{screen}");
        }
    }

    #[test]
    fn nothing_that_matters_is_cut() {
        for roles in [[Role::Primary, Role::Backup], [Role::Primary, Role::Joining], [Role::Primary, Role::Dead]] {
            let snapshot = crowded(roles);
            for (width, height) in [(150, 48), (120, 40), (80, 24)] {
                let screen = draw_on(width, height, &snapshot, &[vec![], vec![]], "started castor as backup");
                for machine in &snapshot.machines {
                    let entries = machine_entries(machine, usize::from(width / 2 - BORDERS));
                    // Small screens lack room for what matters least.
                    let count = if height < 40 { 4 } else { entries.len() };
                    assert_whole(&screen, &entries[..count]);
                }
                let across = if width < WIDE { width } else { width / 2 };
                assert_whole(&screen, &link_entries(&snapshot, usize::from(across - BORDERS)));
                assert!(words(&screen).contains("castor: started as backup (pid 12345)"), "{screen}");
                if height >= 40 {
                    assert!(words(&screen).contains("by castor's whole new state"), "{screen}");
                }
            }
        }
    }

    /// What `rig status --json` said of a rig with a client, after a takeover and a new backup.
    #[test]
    fn a_real_rig_fits() {
        let snapshot: Snapshot = serde_json::from_str(include_str!("testdata/protected-again.json")).unwrap();
        for (width, height) in [(150, 48), (120, 40), (80, 24)] {
            let screen = draw_on(width, height, &snapshot, &[vec![], vec![]], "");
            for machine in &snapshot.machines {
                let entries = machine_entries(machine, usize::from(width / 2 - BORDERS));
                let count = if height < 40 { 3 } else { entries.len() };
                assert_whole(&screen, &entries[..count]);
            }
            let words = words(&screen);
            for part in
                ["castor: backup, pid", "8 retained", "pollux: primary, pid", "lag", "protected again, after 8.0 s"]
            {
                assert!(words.contains(part), "{part} is not in\n{screen}");
            }
            assert_eq!(words.matches(" lag ").count(), 1, "{screen}");
        }
    }

    #[test]
    fn a_passed_self_test_does_not_fill_the_logs() {
        let table = (0..60).map(|n| format!("  a loop of {n} instructions, and what it costs {n:>19} {n:>9} ok"));
        let mut log = vec!["[    0.000100] INFO  metal: Pollux 0.1.0, Pvh: role=primary name=castor".to_owned()];
        log.push(format!("  {:<52} {:>9} {:>9}", "check", "want", "got"));
        log.extend(table);
        log.push("  single steps that go wrong                                   0         1 FAILED".into());
        log.push("[    0.500000] INFO  replica: protected".into());
        let screen = draw_on(150, 48, &example(), &[log, vec![]], "");
        for shown in ["Pollux 0.1.0", "FAILED", "replica: protected"] {
            assert!(screen.contains(shown), "{shown} is not in\n{screen}");
        }
        assert!(!screen.contains("a loop of"), "{screen}");
    }

    #[test]
    fn long_answers_get_lines_of_their_own() {
        assert_eq!(foot("killed castor", 80).len(), 1);
        let lines = foot("nothing to start: castor is primary, pollux is backup\nsecond line", 40);
        assert_eq!(lines[1..], ["nothing to start: castor is primary,", "  pollux is backup", "second line"]);
    }

    #[test]
    fn any_terminal_is_no_error() {
        for (width, height) in (1..130).step_by(7).flat_map(|width| (1..50).map(move |height| (width, height))) {
            screen(width, height);
        }
    }

    #[test]
    fn keys() {
        assert_eq!(meaning(KeyCode::Char('p'), false), Some(Key::KillPrimary));
        assert_eq!(meaning(KeyCode::Char('c'), true), Some(Key::Quit));
        assert_eq!(meaning(KeyCode::Char('c'), false), None);
        assert_eq!(meaning(KeyCode::Char('p'), true), None);
    }
}
