//! Captures in the classic pcap format with nanoseconds, readable by Wireshark and tcpdump.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::frame::MAX_FRAME;

const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
const LINKTYPE_ETHERNET: u32 = 1;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// A capture that stops growing at its bound.
#[derive(Debug)]
pub struct Capture<W: Write> {
    file: BufWriter<W>,
    room: u64,
    unflushed: bool,
    /// Frames that were not recorded, because the file is full or cannot be written.
    pub skipped: u64,
}

impl Capture<File> {
    /// Creates or empties the file.
    pub fn create(path: &Path, max_bytes: u64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create the capture {}", path.display()))?;
        Self::new(file, max_bytes).with_context(|| format!("cannot write the capture {}", path.display()))
    }
}

impl<W: Write> Capture<W> {
    /// Writes the file's header.
    pub fn new(file: W, max_bytes: u64) -> std::io::Result<Self> {
        let mut header = [0; FILE_HEADER];
        header[0..4].copy_from_slice(&MAGIC_NANOSECONDS.to_le_bytes());
        header[4..6].copy_from_slice(&2u16.to_le_bytes());
        header[6..8].copy_from_slice(&4u16.to_le_bytes());
        header[16..20].copy_from_slice(&(MAX_FRAME as u32).to_le_bytes());
        header[20..24].copy_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        let mut file = BufWriter::new(file);
        file.write_all(&header)?;
        let room = max_bytes.saturating_sub(FILE_HEADER as u64);
        Ok(Self { file, room, unflushed: true, skipped: 0 })
    }

    /// Records a frame of at most [`MAX_FRAME`] bytes with the wall clock's time.
    pub fn record(&mut self, frame: &[u8]) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.record_at(since_epoch, frame);
    }

    fn record_at(&mut self, time: Duration, frame: &[u8]) {
        let size = (RECORD_HEADER + frame.len()) as u64;
        if size > self.room {
            self.skipped += 1;
            return;
        }
        let length = frame.len() as u32;
        // Seconds wrap in 2106, as the format has it.
        let words = [time.as_secs() as u32, time.subsec_nanos(), length, length];
        let mut header = [0; RECORD_HEADER];
        for (bytes, word) in header.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        if self.file.write_all(&header).and_then(|()| self.file.write_all(frame)).is_err() {
            // The disk is full, or the like. The networks matter more than their record.
            self.room = 0;
            self.skipped += 1;
            return;
        }
        self.room -= size;
        self.unflushed = true;
    }

    /// Hands everything to the operating system, so that a reader sees it.
    pub fn flush(&mut self) {
        if std::mem::take(&mut self.unflushed) && self.file.flush().is_err() {
            self.room = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(capture: Capture<Vec<u8>>) -> Vec<u8> {
        capture.file.into_inner().unwrap()
    }

    #[test]
    fn the_format_is_classic_pcap() {
        let mut capture = Capture::new(Vec::new(), 1000).unwrap();
        capture.record_at(Duration::new(0x0102_0304, 5), &[0xab; 14]);
        let bytes = written(capture);
        let header = [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 5, 0, 0, 1, 0, 0, 0];
        assert_eq!(bytes[..24], header);
        assert_eq!(bytes[24..40], [4, 3, 2, 1, 5, 0, 0, 0, 14, 0, 0, 0, 14, 0, 0, 0]);
        assert_eq!(bytes[40..], [0xab; 14]);
    }

    #[test]
    fn the_bound_holds_and_records_stay_whole() {
        let mut capture = Capture::new(Vec::new(), 24 + 2 * (16 + 100) + 50).unwrap();
        for _ in 0..5 {
            capture.record(&[0; 100]);
        }
        assert_eq!(capture.skipped, 3);
        assert_eq!(written(capture).len(), 24 + 2 * (16 + 100));
    }
}
