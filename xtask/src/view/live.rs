//! The live view on a terminal.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph};
use ratatui::{DefaultTerminal, Frame};

use super::{Key, View, text};
use crate::rig::roles::Role;
use crate::rig::snapshot::{MachineSnapshot, Notice, Snapshot};
use crate::rig::{Rig, tail};

/// How often the screen is drawn.
const PERIOD: Duration = Duration::from_millis(250);
/// Lines of each machine's log that are read for the screen.
const LOG_LINES: usize = 40;

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
    let rows = [
        Constraint::Length(2),
        Constraint::Length(13),
        Constraint::Length(8),
        Constraint::Min(3),
        Constraint::Length(1),
    ];
    let [head, machines, happened, log, keys] = Layout::vertical(rows).areas(frame.area());
    draw_head(frame, head, snapshot);
    let columns = Layout::horizontal(vec![Constraint::Fill(1); snapshot.machines.len()]);
    for (machine, area) in snapshot.machines.iter().zip(columns.split(machines).iter()) {
        draw_machine(frame, *area, machine);
    }
    draw_happened(frame, happened, snapshot);
    for ((machine, lines), area) in snapshot.machines.iter().zip(logs).zip(columns.split(log).iter()) {
        draw_tail(frame, *area, &format!("log of {}", machine.name), lines.clone());
    }
    let help = "p kill primary   b kill backup   n new backup   q quit";
    frame.render_widget(
        Paragraph::new(format!("{help}      {answer}")).style(Style::new().add_modifier(Modifier::DIM)),
        keys,
    );
}

fn draw_head(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let color = if snapshot.protected { Color::Green } else { Color::Yellow };
    let since =
        |what: &str, seconds: Option<f64>| seconds.map_or_else(String::new, |s| format!("   {what} after {s:.1} s"));
    let first = format!(
        "Pollux   {}   up {:.0} s{}{}",
        snapshot.service,
        snapshot.uptime_s,
        since("answered", snapshot.first_answer_s),
        since("protected", snapshot.first_protected_s)
    );
    let protection = Line::styled(text::protection(snapshot), Style::new().fg(color).add_modifier(Modifier::BOLD));
    frame.render_widget(Paragraph::new(vec![Line::raw(first), protection]), area);
}

fn draw_machine(frame: &mut Frame<'_>, area: Rect, machine: &MachineSnapshot) {
    let color = match machine.role {
        Role::Primary => Color::Green,
        Role::Backup => Color::Cyan,
        Role::Joining => Color::Yellow,
        Role::Dead => Color::Red,
    };
    let mut lines = text::machine(machine);
    let title = if lines.is_empty() { String::new() } else { lines.remove(0) };
    let lines = lines.into_iter().map(|line| Line::raw(line.trim_start().to_owned()));
    let block = Block::bordered().title(title).border_style(Style::new().fg(color));
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(block), area);
}

fn draw_happened(frame: &mut Frame<'_>, area: Rect, snapshot: &Snapshot) {
    let columns = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]);
    let [left, right] = columns.areas(area);
    draw_tail(frame, left, "what happened", snapshot.notices.iter().map(text::notice).collect());
    let mut lines = text::links(snapshot);
    lines.extend(snapshot.takeovers.iter().map(text::takeover));
    draw_tail(frame, right, &format!("links, {} takeovers", snapshot.takeovers.len()), lines);
}

/// As many of the last lines as fit.
fn draw_tail(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<String>) {
    let room = usize::from(area.height.saturating_sub(2));
    let hidden = lines.len().saturating_sub(room);
    let lines: Vec<_> = lines.into_iter().skip(hidden).map(Line::raw).collect();
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(title.to_owned())), area);
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::view::text::tests::example;

    fn screen(width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let logs = [vec!["boot".to_owned()], vec!["self-test passed".to_owned()]];
        terminal.draw(|frame| draw(frame, &example(), &logs, "killed castor")).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn the_screen_shows_what_matters() {
        let screen = screen(160, 40);
        let parts = [
            "protected for 12 s",
            "pollux: primary",
            "321.5 MIPS",
            "counter    pmu",
            "1003 ms",
            "self-test passed",
            "killed castor",
        ];
        for part in parts {
            assert!(screen.contains(part), "{part} is not in\n{screen}");
        }
    }

    #[test]
    fn a_small_terminal_is_no_error() {
        for (width, height) in [(1, 1), (20, 5), (80, 24)] {
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
