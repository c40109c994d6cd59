//! Control registers that hold something else than the guest's: what the guest reads must exit, or be its own.

use alloc::boxed::Box;

use super::{Bench, CODE, HLT, Report, Want, place};
use crate::cpu::registers::{CpuState, Table, gpr};
use crate::cpu::{Exit, Mode, Paging};
use crate::memory::PAGE_SIZE;
use crate::mmu::WINDOW;

/// What the guest has in a control register.
type Own = fn(&Mode) -> u64;
/// `mov eax, cr0`, `cr3` and `cr4`.
const READS: [([u8; 3], Own); 3] = [
    ([0x0F, 0x20, 0xC0], |mode| mode.cr0),
    ([0x0F, 0x20, 0xD8], |mode| mode.cr3),
    ([0x0F, 0x20, 0xE0], |mode| mode.cr4),
];
/// Present, writable, accessed; and a page of 2 MiB.
const TABLE: u64 = 0x23;
const LARGE: u64 = 0xA3;
/// Where the guest finds its first page.
const BASE: u64 = 2 << 20;
/// What the guest has in CR3.
const GUESTS_CR3: u64 = 0x5000;
/// Ticks in which a read has ended.
const ENOUGH: u64 = 100;

/// Tables of all levels in one page, for the CPU to walk at [`WINDOW`].
#[repr(C, align(4096))]
struct Others([u64; 512]);

const _: () = assert!(size_of::<Others>() as u64 == PAGE_SIZE);

impl Others {
    fn new() -> Box<Self> {
        let mut entries = [0; 512];
        (entries[0], entries[1]) = (WINDOW.0 | TABLE, LARGE);
        Box::new(Self(entries))
    }
}

impl Bench<'_> {
    /// Checks what the guest reads of its control registers without paging, and, if its paging is `tracked`, while the CPU
    /// walks other tables. `tracked` needs a page for good.
    pub(in crate::counter) fn hidden_registers(&mut self, tracked: bool, report: &mut Report) {
        let others = READS.into_iter().filter(|(code, own)| {
            place(self.stand, &program(*code));
            !self.reads_own(*own)
        });
        report.check("reads of CR0, CR3, CR4 that show others, no paging", Want::Is(0), others.count() as u64);
        if !tracked {
            return;
        }
        let tables = core::ptr::from_ref(Box::leak(Others::new())) as u64;
        if !self.stand.vcpu().track_paging((tables, PAGE_SIZE)) {
            return;
        }
        let others = READS.into_iter().filter(|(code, own)| {
            self.stand.write(CODE, &program(*code));
            self.walk_others();
            !self.reads_own(*own)
        });
        report.check("the same while the CPU walks other tables", Want::Is(0), others.count() as u64);
    }

    /// The guest stands at the code in 64-bit mode, without CR0.WP.
    fn walk_others(&mut self) {
        let state = CpuState::linux(BASE + CODE, 0, GUESTS_CR3, Table::default());
        let vcpu = self.stand.vcpu();
        vcpu.load(&state);
        let paging = Paging::from(&vcpu.mode());
        vcpu.set_paging(&paging, Some(WINDOW.0));
    }

    /// Whether the next instruction exits, or gives what the guest has there.
    fn reads_own(&mut self, own: Own) -> bool {
        let own = own(&self.stand.vcpu().mode());
        match self.run(ENOUGH).0 {
            Some(Exit::Control) => true,
            Some(Exit::Hlt) => self.registers().gpr[gpr::RAX] == own,
            _ => false,
        }
    }
}

fn program([first, second, third]: [u8; 3]) -> [u8; 4] {
    [first, second, third, HLT]
}
