//! Wall-clock time of this machine, in microseconds since boot.
//!
//! In the QEMU rig the TSC counts instructions and not time, so time comes from the RTC: its periodic interrupt gives
//! the ticks, its seconds anchor them (a tick lost while the emulator was descheduled is made good within a second).
//! Between two ticks the TSC interpolates, never past the next one: time never runs backwards. A tick that does not come
//! is looked for: the RTC interrupts no more while an interrupt that got lost is not acknowledged, and it counts on
//! even where no interrupt arrives. If it has stopped, this machine knows no time, and no other clock that is time in
//! every emulator: it halts, since a clock that stands still would suspect nobody and send no sign of life. How fast TSC and APIC
//! timer run while the machine sleeps is measured at the start, by the RTC's ticks. See: MC146818A datasheet.
#![allow(unsafe_code)]

use core::arch::x86_64::_rdtsc;

use pollux_ft::Time;
use x86_64::instructions::port::Port;

use super::apic::Apic;
use super::{interrupts, pic};

/// PIC line of the RTC, which is edge-triggered.
pub const RTC_LINE: u8 = 8;
/// Periodic interrupts a second: rate select 8. See: MC146818A, table 5.
const TICKS_PER_SECOND: u64 = 256;
const RATE_SELECT: u8 = 8;
/// 8192 interrupts a second.
const FASTEST: u8 = 3;
const TICK_US: u64 = 1_000_000 / TICKS_PER_SECOND;

const INDEX: u16 = 0x70;
const DATA: u16 = 0x71;
const REGISTER_A: u8 = 0x0A;
/// How often the calendar is read at most: each takes some tens of microseconds.
const CALENDAR_READS: u32 = 1000;
const REGISTER_B: u8 = 0x0B;
const REGISTER_C: u8 = 0x0C;
const B_PERIODIC: u8 = 1 << 6;
const B_UPDATE_ENDED: u8 = 1 << 4;
const C_PERIODIC: u8 = 1 << 6;
const C_UPDATE_ENDED: u8 = 1 << 4;

fn read(register: u8) -> u8 {
    // SAFETY: the RTC's two ports; reading has no effect but acknowledging its interrupt (register C).
    unsafe {
        Port::new(INDEX).write(register);
        Port::new(DATA).read()
    }
}

fn write(register: u8, value: u8) {
    // SAFETY: the RTC's two ports; only the interrupt and rate settings are written.
    unsafe {
        Port::new(INDEX).write(register);
        Port::<u8>::new(DATA).write(value);
    }
}

/// The cycle counter.
#[must_use]
pub fn cycles() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU.
    unsafe { _rdtsc() }
}

/// The pure part: ticks, seconds and cycles in, monotonic microseconds out.
#[derive(Debug, Default)]
struct Timekeeper {
    /// Time at the newest tick, in microseconds.
    tick_us: u64,
    /// Time at the newest change of seconds; `None` before the first.
    second_us: Option<u64>,
    /// TSC at the newest tick.
    tick_tsc: u64,
    /// The last answer.
    last_us: u64,
    /// TSC when the time was last asked for.
    asked_tsc: u64,
    /// Cycles without a tick that were watched: of a pause that nobody saw, such as that of a stopped emulator, only a
    /// part counts.
    missing: u64,
    /// A tick or a second was taken in, and nobody has been told.
    ticked: bool,
}

/// The RTC gave no tick for [`PATIENCE_US`], by the TSC.
#[derive(Debug, PartialEq, Eq)]
struct Stopped;

/// A pause between two questions for the time counts as this at most: as long as a machine sleeps.
const WATCHED_US: u64 = 1_000_000;
/// Without a tick for as long as this, the RTC has stopped. By the TSC, which runs no faster than time in any emulator
/// known; on a machine where it did, still some hundred ticks are missing.
const PATIENCE_US: u64 = 5_000_000;

impl Timekeeper {
    /// Takes in what the RTC's register C reports; whether there was anything.
    fn take(&mut self, flags: u8, tsc: u64) -> bool {
        if flags & C_PERIODIC != 0 {
            self.tick(tsc);
        }
        if flags & C_UPDATE_ENDED != 0 {
            self.second(tsc);
        }
        let alive = flags & (C_PERIODIC | C_UPDATE_ENDED) != 0;
        if alive {
            self.missing = 0;
            self.ticked = true;
        }
        alive
    }

    fn tick(&mut self, tsc: u64) {
        // Where an emulator makes up for lost time, ticks come too fast; the seconds are right.
        let latest = self.second_us.unwrap_or(0) + 1_000_000;
        self.tick_us = (self.tick_us + TICK_US).min(latest);
        self.tick_tsc = tsc;
    }

    /// Another whole second has passed.
    fn second(&mut self, tsc: u64) {
        let now = match self.second_us {
            Some(previous) => previous + 1_000_000,
            None => self.tick_us,
        };
        self.second_us = Some(now);
        // Ticks may have been lost, which makes time late; it is never early by more than one tick.
        if now > self.tick_us {
            self.tick_us = now;
            self.tick_tsc = tsc;
        }
    }

    /// The time, where `flags` reads the RTC's register C, which is done when a tick is overdue. `ticks_per_us` scales
    /// the TSC; the answer never passes the next tick.
    fn ask(&mut self, tsc: u64, ticks_per_us: u64, flags: impl FnOnce() -> u8) -> Result<u64, Stopped> {
        let asked = core::mem::replace(&mut self.asked_tsc, tsc);
        if tsc.saturating_sub(self.tick_tsc) / ticks_per_us > 2 * TICK_US && !self.take(flags(), tsc) {
            self.missing += tsc.saturating_sub(asked.max(self.tick_tsc)).min(WATCHED_US * ticks_per_us);
            if self.missing >= PATIENCE_US * ticks_per_us {
                return Err(Stopped);
            }
        }
        Ok(self.now(tsc, ticks_per_us))
    }

    fn now(&mut self, tsc: u64, ticks_per_us: u64) -> u64 {
        let since = (tsc.saturating_sub(self.tick_tsc) / ticks_per_us).min(TICK_US - 1);
        self.last_us = self.last_us.max(self.tick_us + since);
        self.last_us
    }
}

/// How fast counters run while the machine sleeps, in ticks per microsecond, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speeds {
    /// The TSC.
    pub tsc: u64,
    /// The local APIC's timer.
    pub timer: u64,
}

/// Ticks of the RTC over which speeds are measured: 62 ms.
const MEASURED_TICKS: usize = 16;
/// Ticks of the APIC timer that are enough for all of them: at 1 GHz half a second.
const ENOUGH: u32 = 1 << 29;

impl Speeds {
    /// Sleeps from tick to tick of the RTC, which interrupts already, for `patience` ticks of the timer at most.
    ///
    /// # Errors
    /// When the RTC gives no ticks.
    fn measure(apic: &Apic, patience: u32) -> Result<Self, &'static str> {
        const NO_TICKS: &str = "the RTC does not interrupt: there is no wall clock";
        let (mut tsc, mut timer) = ([0; MEASURED_TICKS], [0; MEASURED_TICKS]);
        // It ends the sleep if there are none.
        apic.arm_timer(patience);
        wait_tick(apic).ok_or(NO_TICKS)?;
        let mut before = (cycles(), apic.timer_left());
        for (tsc, timer) in tsc.iter_mut().zip(&mut timer) {
            wait_tick(apic).ok_or(NO_TICKS)?;
            let now = (cycles(), apic.timer_left());
            (*tsc, *timer) = (now.0 - before.0, u64::from(before.1 - now.1));
            before = now;
        }
        apic.arm_timer(0);
        Ok(Self { tsc: per_us(tsc), timer: per_us(timer) })
    }
}

/// Sleeps until the RTC's next tick; `None` when the timer has fired before.
fn wait_tick(apic: &Apic) -> Option<()> {
    while read(REGISTER_C) & C_PERIODIC == 0 {
        if apic.timer_left() == 0 {
            return None;
        }
        interrupts::wait();
    }
    Some(())
}

/// Speed from what a counter ran in each tick. The median: now and then an emulator's tick comes late.
fn per_us(mut ran: [u64; MEASURED_TICKS]) -> u64 {
    ran.sort_unstable();
    ((ran[MEASURED_TICKS / 2] * TICKS_PER_SECOND + 500_000) / 1_000_000).max(1)
}

/// The machine's wall clock.
#[derive(Debug)]
pub struct WallClock {
    keeper: Timekeeper,
    speeds: Speeds,
}

impl WallClock {
    /// Starts the RTC's periodic interrupt and measures the speeds by it.
    ///
    /// # Errors
    /// When the RTC does not interrupt.
    pub fn start(apic: &Apic) -> Result<Self, &'static str> {
        write(REGISTER_A, (read(REGISTER_A) & 0x70) | RATE_SELECT);
        write(REGISTER_B, read(REGISTER_B) | B_PERIODIC | B_UPDATE_ENDED);
        read(REGISTER_C);
        pic::unmask(RTC_LINE);
        let speeds = Speeds::measure(apic, ENOUGH).or_else(|_| {
            // On a busy desk the timer may be first although ticks come.
            if !interrupts::take_fired().line(RTC_LINE) {
                log::info!("legacy interrupts are external ones: no tick of the RTC came by the local APIC");
                apic.acknowledge_legacy();
            }
            Speeds::measure(apic, u32::MAX)
        })?;
        Ok(Self { keeper: Timekeeper { tick_tsc: cycles(), ..Timekeeper::default() }, speeds })
    }

    /// How fast counters run while the machine sleeps.
    #[must_use]
    pub fn speeds(&self) -> Speeds {
        self.speeds
    }

    /// From here on the RTC ticks as often as it can, and the time is wrong: to disturb whatever runs.
    pub fn hurry(&mut self) {
        write(REGISTER_A, (read(REGISTER_A) & 0x70) | FASTEST);
    }

    /// Takes in what the RTC reports. Called whenever an interrupt came.
    pub fn poll(&mut self) {
        self.keeper.take(read(REGISTER_C), cycles());
    }

    /// Whether the RTC has ticked since this was last asked.
    pub fn has_ticked(&mut self) -> bool {
        core::mem::take(&mut self.keeper.ticked)
    }

    /// The time, which begins at boot. Never runs backwards.
    ///
    /// # Panics
    /// When the RTC has stopped: without a time this machine is none of a pair.
    pub fn now(&mut self) -> Time {
        let now = self.keeper.ask(cycles(), self.speeds.tsc, || read(REGISTER_C));
        Time(now.unwrap_or_else(|Stopped| {
            let seconds = PATIENCE_US / 1_000_000;
            panic!("the wall clock stands still: the RTC has neither interrupted nor counted for {seconds} s")
        }))
    }
}

/// Seconds since 1970 by the RTC's calendar, for the guest's first date. The rig's RTC runs in UTC.
#[must_use]
pub fn unix_time() -> u64 {
    // During an update, of 2 ms, the registers may show anything, and one between two of them mixes two dates. One that never
    // ends is a clock that does not work, and is believed as it is.
    for _ in 0..CALENDAR_READS {
        let before = is_updated();
        let seen = read_calendar();
        if !before && !is_updated() && read_calendar() == seen {
            return seen;
        }
    }
    read_calendar()
}

/// Whether the calendar is being changed, or will be within 244 us. See: MC146818, "Update Cycle".
fn is_updated() -> bool {
    read(REGISTER_A) & 1 << 7 != 0
}

fn read_calendar() -> u64 {
    let decode = |raw: u8, binary: bool| if binary { raw } else { (raw & 0xF) + (raw >> 4) * 10 };
    let binary = read(REGISTER_B) & (1 << 2) != 0;
    let field = |register| u64::from(decode(read(register), binary));
    let (year, month, day) = (2000 + field(9), field(8), field(7));
    let (hour, minute, second) = (field(4), field(2), field(0));
    days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second
}

/// Days between 1970-01-01 and a date of the Gregorian calendar from 2000 on.
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March put the leap day last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let since_era = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day.saturating_sub(1);
    since_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_become_days() {
        assert_eq!(days_since_1970(2000, 1, 1), 10_957);
        assert_eq!(days_since_1970(2024, 2, 29), 19_782);
        assert_eq!(days_since_1970(2026, 11, 23), 20_780);
    }

    #[test]
    fn late_ticks_do_not_change_the_speed() {
        let mut ran = [3_906_250; MEASURED_TICKS];
        (ran[3], ran[4], ran[9]) = (39_000_000, 1000, 7_000_000);
        assert_eq!(per_us(ran), 1000);
        assert_eq!(per_us([195_300; MEASURED_TICKS]), 50);
        assert_eq!(per_us([3; MEASURED_TICKS]), 1);
    }

    #[test]
    fn time_is_monotonic_and_lost_ticks_are_made_good() {
        let mut keeper = Timekeeper::default();
        keeper.second(0);
        let mut last = 0;
        let mut cycles = 0;
        for tick in 0..TICKS_PER_SECOND {
            cycles += TICK_US * 1000;
            // Every third tick gets lost.
            if tick % 3 != 0 {
                keeper.tick(cycles);
            }
            let now = keeper.now(cycles + 5_000_000, 1000);
            assert!(now >= last);
            last = now;
        }
        assert!(last < 1_000_000);
        keeper.second(cycles);
        assert_eq!(keeper.now(cycles, 1000), 1_000_000);
    }

    /// An RTC that ticks, whether its interrupt arrives or not.
    struct FakeRtc {
        us: u64,
        runs: bool,
        read_us: u64,
        read_second: u64,
        reads: u64,
    }

    impl FakeRtc {
        fn flags(&mut self) -> u8 {
            self.reads += 1;
            let ticked = self.us / TICK_US > self.read_us / TICK_US;
            let second = self.us / 1_000_000 > self.read_second;
            (self.read_us, self.read_second) = (self.us, self.us / 1_000_000);
            (u8::from(ticked) * C_PERIODIC) | (u8::from(second) * C_UPDATE_ENDED)
        }

        fn pass(&mut self, us: u64) {
            self.us += if self.runs { us } else { 0 };
        }
    }

    const PER_US: u64 = 1000;

    /// No interrupt ever arrives; time is asked for every `step` microseconds, until `until`.
    fn go_without_interrupts(
        keeper: &mut Timekeeper,
        rtc: &mut FakeRtc,
        tsc: &mut u64,
        step: u64,
        us: u64,
    ) -> Result<u64, Stopped> {
        let mut now = 0;
        for _ in 0..us / step {
            *tsc += step * PER_US;
            rtc.pass(step);
            now = keeper.ask(*tsc, PER_US, || rtc.flags())?;
        }
        Ok(now)
    }

    #[test]
    fn time_goes_on_without_interrupts() {
        for step in [50, 1000, 20_000, 300_000] {
            let (mut keeper, mut tsc) = (Timekeeper::default(), 0);
            let mut rtc = FakeRtc { us: 0, runs: true, read_us: 0, read_second: 0, reads: 0 };
            let now = go_without_interrupts(&mut keeper, &mut rtc, &mut tsc, step, 60_000_000).unwrap();
            assert!((58_000_000..=60_000_000).contains(&now), "asked every {step} us: {now}");
        }
    }

    #[test]
    fn an_rtc_that_has_stopped_is_found_out_whether_the_machine_is_busy_or_sleeps() {
        for step in [100, 10_000, 1_000_000] {
            let (mut keeper, mut tsc) = (Timekeeper::default(), 0);
            let mut rtc = FakeRtc { us: 0, runs: true, read_us: 0, read_second: 0, reads: 0 };
            go_without_interrupts(&mut keeper, &mut rtc, &mut tsc, 1000, 3_000_000).unwrap();
            rtc.runs = false;
            let go = |keeper: &mut _, rtc: &mut _, tsc: &mut _, us| go_without_interrupts(keeper, rtc, tsc, step, us);
            assert!(go(&mut keeper, &mut rtc, &mut tsc, 4_000_000).is_ok(), "asked every {step} us");
            assert_eq!(go(&mut keeper, &mut rtc, &mut tsc, 3_000_000), Err(Stopped), "asked every {step} us");
        }
    }

    /// An emulator was stopped for an hour, and its TSC was not: the next tick comes soon.
    #[test]
    fn a_pause_is_no_stopped_rtc() {
        let (mut keeper, mut tsc) = (Timekeeper::default(), 0);
        let mut rtc = FakeRtc { us: 0, runs: true, read_us: 0, read_second: 0, reads: 0 };
        for _ in 0..20 {
            go_without_interrupts(&mut keeper, &mut rtc, &mut tsc, 1000, 100_000).unwrap();
            tsc += 3_600_000_000 * PER_US;
            go_without_interrupts(&mut keeper, &mut rtc, &mut tsc, 100, 1000).unwrap();
        }
    }

    /// The RTC is on a slow bus: it is left alone as long as ticks arrive.
    #[test]
    fn nobody_looks_while_ticks_come() {
        let (mut keeper, mut rtc) =
            (Timekeeper::default(), FakeRtc { us: 0, runs: true, read_us: 0, read_second: 0, reads: 0 });
        for us in (0..1_000_000).step_by(500) {
            if us % TICK_US < 500 {
                keeper.take(C_PERIODIC, us * PER_US);
            }
            keeper.ask(us * PER_US, PER_US, || rtc.flags()).unwrap();
        }
        assert_eq!(rtc.reads, 0);
    }

    #[test]
    fn ticks_that_come_too_fast_wait_for_the_second() {
        let mut keeper = Timekeeper::default();
        for second in 1..5 {
            for tick in 0..3 * TICKS_PER_SECOND {
                keeper.tick(tick);
            }
            let now = keeper.now(u64::MAX, 1000);
            let latest = second * 1_000_000;
            assert!((latest..latest + TICK_US).contains(&now), "{now}");
            keeper.second(0);
        }
    }
}
