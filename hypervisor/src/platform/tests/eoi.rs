//! Interrupts that the guest ends by a word in memory, beside such that it ends at the local APIC.

use proptest::prelude::*;

use super::*;
use crate::platform::kvm;
use crate::platform::lapic::DEFAULT_BASE as LAPIC;

const WORD: u64 = 0x1000;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// Something makes this vector pending.
    Raise(u8),
    /// The guest takes what is pending.
    Take,
    /// The guest ends what it serves, if it serves anything.
    End,
    /// The guest lowers or raises its priority.
    Priority(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0x30..0x38_u8).prop_map(Step::Raise),
        1 => (0x40..0x42_u8).prop_map(Step::Raise),
        5 => Just(Step::Take),
        5 => Just(Step::End),
        1 => (0..5_u8).prop_map(Step::Priority),
    ];
    prop::collection::vec(step, 1..200)
}

/// A guest, and how it does.
struct Guest {
    rig: Rig,
    taken: Vec<u8>,
    serving: usize,
    /// Ends that cost an exit.
    exits: usize,
}

impl Guest {
    fn new(by_memory: bool) -> Self {
        let mut rig = Rig::new();
        rig.write(LAPIC + 0xF0, Size::Dword, 0x1FF);
        if by_memory {
            rig.wrmsr(kvm::EOI, WORD | 1).unwrap();
        }
        Self { rig, taken: Vec::new(), serving: 0, exits: 0 }
    }

    /// An exit, and what is done for it.
    fn exit(&mut self, work: impl FnOnce(&mut Rig)) {
        self.rig.platform.take_end(&self.rig.memory);
        work(&mut self.rig);
        self.rig.platform.let_end(&mut self.rig.memory);
    }

    fn word(&self) -> u32 {
        u32::from_le_bytes(self.rig.memory.read(Gpa(WORD)).unwrap())
    }

    fn go(&mut self, step: Step) {
        match step {
            Step::Raise(vector) => {
                self.exit(|rig| rig.write(LAPIC + 0x300, Size::Dword, 1 << 18 | u64::from(vector)));
            }
            Step::Priority(class) => self.exit(|rig| rig.platform.set_cr8(class)),
            Step::Take => {
                if let Some(vector) = self.rig.platform.pending_interrupt() {
                    self.rig.platform.interrupt_taken(vector);
                    self.taken.push(vector);
                    self.serving += 1;
                }
            }
            Step::End if self.serving == 0 => {}
            Step::End => {
                self.serving -= 1;
                let word = self.word();
                if word & 1 != 0 {
                    self.rig.memory.write(Gpa(WORD), &(word & !1).to_le_bytes()).unwrap();
                } else {
                    self.exits += 1;
                    self.exit(|rig| rig.write(LAPIC + 0xB0, Size::Dword, 0));
                }
            }
        }
    }

    fn go_on(&mut self, steps: &[Step]) {
        steps.iter().for_each(|&step| self.go(step));
    }

    /// What a digest sees at an exact stop.
    fn end(&mut self) -> (u64, u32, Vec<u8>) {
        self.exit(|_| {});
        (state::hash(&mut self.rig.platform), self.word(), self.taken.clone())
    }
}

#[test]
fn an_interrupt_that_comes_alone_ends_without_an_exit() {
    let mut guest = Guest::new(true);
    for _ in 0..10 {
        guest.go_on(&[Step::Raise(0x31), Step::Take, Step::End]);
    }
    assert_eq!((guest.exits, guest.taken.len()), (0, 10));
    // Another joins it, and must be told when the first ends.
    guest.go_on(&[Step::Raise(0x31), Step::Take, Step::Raise(0x32), Step::End]);
    assert_eq!((guest.exits, guest.rig.platform.pending_interrupt()), (1, Some(0x32)));
}

#[test]
fn who_stops_using_the_word_is_left_without_it() {
    let mut guest = Guest::new(true);
    guest.go(Step::Raise(0x31));
    assert_eq!(guest.word(), 1);
    guest.rig.wrmsr(kvm::EOI, 0).unwrap();
    assert_eq!(guest.word(), 0);
    guest.go(Step::Raise(0x31));
    assert_eq!(guest.word(), 0);
    for bad in [(WORD + 2) | 1, MEMORY | 1, u64::MAX] {
        assert_eq!(guest.rig.wrmsr(kvm::EOI, bad), Err(Gp), "{bad:#x}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_guest_takes_what_it_would_without(steps in steps()) {
        let (mut running, mut plain) = (Guest::new(true), Guest::new(false));
        for &step in &steps {
            running.go(step);
            plain.go(step);
        }
        let (end, plain_end) = (running.end(), plain.end());
        prop_assert_eq!(end.2, plain_end.2);
        prop_assert_eq!(running.rig.platform.pending_interrupt(), plain.rig.platform.pending_interrupt());
        prop_assert!(running.exits <= plain.exits);
    }
}
