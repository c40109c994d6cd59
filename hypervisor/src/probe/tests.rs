use super::*;
use crate::counter::Skid;

fn figures() -> Figures {
    let mut skid = Skid::default();
    (0..7).for_each(|late| skid.note(late));
    Figures { checks: 20, skid, margin: 256, steps_per_stop: 9, ..Figures::default() }
}

fn guests() -> Guests {
    Guests {
        kind: "Intel VMX",
        pmu: Some(Ok(figures())),
        ticks: None,
        native_paging: Some(Err("stale translations: want 0, got 3".into())),
        control_registers: Some(Ok(())),
    }
}

fn card(at: &str, driver: Option<&'static str>) -> Device {
    Device { at: at.into(), ids: (0x8086, 0x10D3), driver }
}

fn good() -> Facts {
    Facts {
        cpu: Cpu { brand: "A CPU".into(), signature: [6, 0x55, 7], microcode: Some(0x500_3000), is_virtual: false },
        apic: Ok("xAPIC"),
        clock: Some(Ok(Clock { speeds: Speeds { tsc: 2400, timer: 25 }, invariant: true })),
        guests: Some(Ok(guests())),
        memory: Memory { usable: 8 << 30, guest: 3 << 30 },
        iommu: Ok(Vec::new()),
        cards: [card("1:0.0", Some("82574L (e1000e)")), card("2:0.0", Some("82574L (e1000e)"))].into(),
        drives: [Device { at: "3:0.0".into(), ids: (0x144D, 0xA808), driver: None }].into(),
        watchdog: None,
        random: ("RDSEED".into(), true),
    }
}

fn verdict(facts: &Facts) -> String {
    Report::new(facts).to_string().lines().last().unwrap().to_owned()
}

/// What people compare with what they see, and send.
#[test]
fn the_text_is_stable() {
    let expected = "\
role=probe: what this machine is to Pollux
cpu                A CPU                                             ok
cpu model          family 06h, model 55h, stepping 7                 ok
microcode          0x5003000                                         ok
machine            real, or does not say                             ok
local APIC         xAPIC                                             ok
wall clock         RTC                                               ok
TSC                2400 ticks per microsecond, invariant             ok
APIC timer         25 ticks per microsecond                          ok
virtualization     Intel VMX                                         ok
counter pmu        exact in 20 checks, margin 256, 9 steps a stop    ok
skid               largest 6, <1: 1, <2: 1, <4: 2, <8: 3             ok
counter ticks      -                                                 not tried
positions          retired instructions                              ok
mmu=native         not exact, mmu=auto takes tracked                 stale translations: want 0, got 3
control registers  the guest reads its own                           ok
memory             8192 MiB usable                                   ok
largest guest      3072 MiB fit                                      ok, the most that Pollux gives
IOMMU              none                                              ok
card 1:0.0         8086:10d3 82574L (e1000e)                         ok, link not looked at
card 2:0.0         8086:10d3 82574L (e1000e)                         ok, link not looked at
cards              2 with a driver                                   ok
drive 3:0.0        144d:a808 NVMe                                    ok, not touched
watchdog           -                                                 missing
random numbers     RDSEED                                            ok
GO";
    let report = Report::new(&good());
    assert_eq!(report.to_string(), expected);
    assert!(report.is_go());
}

#[test]
fn an_emulator_may_count_ticks() {
    let pmu = Some(Err("the counter does not count".into()));
    let guests = Guests { pmu, ticks: Some(Ok(figures())), ..guests() };
    let report = Report::new(&Facts { guests: Some(Ok(guests)), ..good() });
    assert!(report.is_go());
    assert!(report.to_string().contains("ok, for an emulator: a real TSC counts cycles"), "{report}");
}

/// Each reason alone, and nothing else.
#[test]
fn each_reason_is_enough() {
    let with = |guests: Guests| Facts { guests: Some(Ok(guests)), ..good() };
    let refused = || Some(Err("it is refused".into()));
    let cases = [
        (Facts { apic: Err("x2APIC mode".into()), clock: None, guests: None, ..good() }, "x2APIC mode"),
        (Facts { clock: Some(Err("no ticks".into())), ..good() }, "no ticks"),
        (Facts { guests: Some(Err("this CPU's VMX lacks INVEPT".into())), ..good() }, "this CPU's VMX lacks INVEPT"),
        (
            with(Guests { pmu: refused(), ticks: refused(), native_paging: None, control_registers: None, ..guests() }),
            "no exact counter, and without one Pollux runs no guest, alone or in a pair",
        ),
        (
            with(Guests { control_registers: Some(Err("it is refused".into())), ..guests() }),
            "the guest would read control registers that are not its own: it is refused",
        ),
        (
            Facts { memory: Memory { usable: 64 << 20, guest: 6 << 20 }, ..good() },
            "too little memory: a guest of 6 MiB fits, and the smallest has 8 MiB",
        ),
        (
            Facts { cards: [card("1:0.0", Some("82574L (e1000e)")), card("2:0.0", None)].into(), ..good() },
            "1 network cards that Pollux drives, and a pair needs 2 (role=solo runs with less)",
        ),
    ];
    for (facts, reason) in cases {
        assert_eq!(verdict(&facts), format!("NO-GO: {reason}"));
        assert!(!Report::new(&facts).is_go());
    }
}

#[test]
fn all_reasons_are_said() {
    let facts = Facts { cards: Vec::new(), memory: Memory { usable: 0, guest: 0 }, ..good() };
    let verdict = verdict(&facts);
    assert!(verdict.starts_with("NO-GO: too little memory") && verdict.contains("; 0 network cards"), "{verdict}");
}

/// They are told to a person, who decides.
#[test]
fn what_is_no_reason() {
    let facts = Facts {
        iommu: Ok(["DMAR"].into()),
        cpu: Cpu { microcode: None, ..good().cpu },
        random: ("the clock".into(), false),
        drives: Vec::new(),
        ..good()
    };
    let text = Report::new(&facts).to_string();
    assert!(text.ends_with("\nGO") && text.contains("switch it off") && text.contains("module 'seed'"), "{text}");
    let text = Report::new(&Facts { iommu: Err("no ACPI root pointer was found"), ..good() }).to_string();
    assert!(text.ends_with("\nGO") && text.contains("no ACPI root pointer"), "{text}");
}
