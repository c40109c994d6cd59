//! A recording that somebody hands us.

use pollux_ft::message::{Hello, Message};
use pollux_ft::pairing::{Claim, Settings};
use pollux_ft::record::HELLO;
use pollux_ft::{Config, Identity, NodeId, Span, Term, Time};
use pollux_record::{Player, Reader, Record, Writer, scan};

/// The file as it is, and with checksums that are right around what it says.
pub(crate) fn recording(data: &[u8]) {
    look(data);
    let mut file = Vec::new();
    let mut writer = Writer::new(&mut file).expect("memory takes it");
    let mut rest = data;
    while let Some((&[kind, len], content)) = rest.split_first_chunk() {
        let (content, behind) = content.split_at(content.len().min(len.into()));
        rest = behind;
        let text = || String::from_utf8_lossy(content).into_owned();
        let record = match kind {
            0x80 => Record::Setup(text()),
            0x81 => Record::File("kernel".to_owned(), content.to_vec()),
            0x82 => Record::Session { machine: text() },
            0x83 => Record::Time(len.into()),
            0x84 => Record::SessionEnd(text()),
            kind => Record::Message(kind & 0x7F, content.to_vec()),
        };
        let begins = matches!(record, Record::Session { .. });
        writer.write(&record).expect("it is not too long");
        if begins {
            let mut hello = Vec::new();
            Message::Hello(hello_of_a_machine()).encode(&mut hello);
            writer.write(&Record::Message(HELLO, hello)).expect("it is not too long");
        }
    }
    writer.finish().expect("memory takes it");
    look(&file);
}

fn hello_of_a_machine() -> Hello {
    let settings = Settings {
        arbiter: false,
        sealed_arbiter: false,
        heartbeat: Span(1),
        suspect: Span(3),
        log_buffer: 1 << 20,
        key: 0,
    };
    let identity = Identity { guest_memory: 1 << 20, ..Identity::default() };
    Hello::Known {
        joining: true,
        term: Term(1),
        beats: 0,
        claim: Box::new(Claim { identity, settings, arbiter: None }),
    }
}

/// Reads it, looks through it, and plays it to nobody.
fn look(file: &[u8]) {
    let mut bytes = 0;
    let scanned = scan(file, |_, piece| {
        bytes += piece.len();
        Ok(())
    });
    let Ok(contents) = scanned else { return };
    let Some(session) = contents.sessions.first() else { return };
    assert!(session.entries.is_none_or(|(first, last)| last.0 - first.0 + 1 == session.count()));
    let identity = Identity { node: NodeId(1), ..session.claim.identity.clone() };
    let Ok(mut player) = Player::new(Time(0), Config::default(), identity, NodeId(2)) else { return };
    let Ok(mut reader) = Reader::new(file) else { return };
    while let Ok(Some(record)) = reader.next_record() {
        if let Record::Message(kind, payload) = record {
            let _ = player.message(Time(1), kind, &payload);
        }
    }
    player.complete();
    player.turn(Time(2));
}
