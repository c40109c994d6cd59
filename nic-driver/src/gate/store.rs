//! Storage of held frames: a ring of bytes, no allocation per frame.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;

/// A held frame's place and age.
#[derive(Debug, Clone, Copy)]
struct Entry {
    start: usize,
    len: usize,
    held_at_us: u64,
}

/// Frames in order. Each is contiguous: one that does not fit before the end of the ring starts at its beginning.
#[derive(Debug)]
pub(super) struct FrameStore {
    bytes: Box<[u8]>,
    /// Where the next frame goes, if it fits there.
    tail: usize,
    entries: VecDeque<Entry>,
    max_frames: usize,
    held_bytes: usize,
}

impl FrameStore {
    /// Room for `frames` of together `bytes`, less what is lost at the end of the ring: less than one frame.
    pub(super) fn new(frames: usize, bytes: usize) -> Self {
        Self {
            bytes: vec![0; bytes].into_boxed_slice(),
            tail: 0,
            entries: VecDeque::with_capacity(frames),
            max_frames: frames,
            held_bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.held_bytes
    }

    /// Appends a frame; `false` if there is no room.
    pub(super) fn push(&mut self, frame: &[u8], held_at_us: u64) -> bool {
        if self.entries.len() == self.max_frames {
            return false;
        }
        let Some(start) = self.place(frame.len()) else { return false };
        let end = start + frame.len();
        self.bytes[start..end].copy_from_slice(frame);
        self.tail = end;
        self.held_bytes += frame.len();
        self.entries.push_back(Entry { start, len: frame.len(), held_at_us });
        true
    }

    /// The oldest frame and when it came.
    pub(super) fn front(&self) -> Option<(&[u8], u64)> {
        self.entries.front().map(|entry| (&self.bytes[entry.start..entry.start + entry.len], entry.held_at_us))
    }

    /// Removes the oldest frame.
    pub(super) fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.held_bytes -= entry.len;
        }
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.held_bytes = 0;
    }

    /// Where `len` contiguous bytes are free.
    fn place(&self, len: usize) -> Option<usize> {
        let Some(front) = self.entries.front() else {
            return (len <= self.bytes.len()).then_some(0);
        };
        // Frames are not empty, so a tail at the front's start means that the ring has wrapped and is full.
        if self.tail <= front.start {
            return (len <= front.start - self.tail).then_some(self.tail);
        }
        if len <= self.bytes.len() - self.tail {
            return Some(self.tail);
        }
        (len <= front.start).then_some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A store so small that it wraps, fills to the last byte and runs empty all the time.
        #[test]
        fn frames_come_back_whole_and_in_order(
            steps in proptest::collection::vec(prop_oneof![(1usize..5).prop_map(|n| n * 4), Just(0)], 1..200),
        ) {
            let mut store = FrameStore::new(6, 32);
            let mut model = VecDeque::new();
            for (number, len) in steps.into_iter().enumerate() {
                if len == 0 {
                    let front = store.front().map(|(frame, _)| frame.to_vec());
                    prop_assert_eq!(front, model.pop_front());
                    store.pop();
                } else {
                    let frame = vec![number as u8; len];
                    let bytes = model.iter().map(Vec::len).sum::<usize>();
                    let taken = store.push(&frame, 0);
                    // It may refuse only for want of entries, or of bytes, where less than the longest frame (16) is
                    // lost at the end of the ring.
                    prop_assert!(taken || model.len() == 6 || bytes + len + 16 > 32);
                    if taken {
                        model.push_back(frame);
                    }
                }
                prop_assert_eq!(store.len(), model.len());
                prop_assert_eq!(store.bytes(), model.iter().map(Vec::len).sum::<usize>());
            }
        }
    }
}
