use super::*;

const PAIR: &str =
    "role=primary name=castor client-nic=0:4.0 log-nic=0:5.0 log-address=10.1.0.1/24 log-peer=10.1.0.2 arbiter=none";

#[test]
fn a_pair_is_understood() {
    let config =
        Config::parse(&format!("{PAIR} guest-memory=32M suspect=2s counter=pmu guest-args=\"ip=1 gw=2\"")).unwrap();
    assert_eq!(config.role, StartRole::Primary);
    assert_eq!(config.guest_memory, 32 << 20);
    assert_eq!(config.suspect, Span::from_millis(2000));
    assert_eq!((config.counter, Config::default().counter), (Wanted::Pmu, Wanted::Auto));
    let vectors =
        ["none", "sse", "avx", "avx512"].map(|most| Config::parse(&format!("vectors={most}")).unwrap().vectors);
    assert_eq!((vectors, Config::default().vectors), ([0, 3, 7, 0xE7], 0xE7));
    let disks = ["none", "image", "ram:512", "ram:3M"].map(|text| Config::parse(&format!("disk={text}")).unwrap().disk);
    assert_eq!(disks, [Disk::None, Disk::Image, Disk::Ram(512), Disk::Ram(3 << 20)]);
    let drive = |text: &str| match Config::parse(&format!("role=solo disk=nvme:0:6.0{text}")).unwrap().disk {
        Disk::Drive(choice) => (choice.part, choice.bytes, choice.stale),
        other => panic!("{other:?}"),
    };
    assert_eq!(drive(""), (Part::Whole, None, false));
    assert_eq!(drive(",whole,stale"), (Part::WholeByForce, None, true));
    assert_eq!(drive(",size=3M,partition=data"), (Part::Named("data".into()), Some(3 << 20), false));
    assert!(Config::parse("vectors=mmx").unwrap_err().to_string().contains("avx512"));
    assert_eq!(config.guest_args, "ip=1 gw=2");
    let seeded = Config::parse(&format!("role=solo guest-seed={}", "0a".repeat(32))).unwrap();
    assert_eq!((config.guest_seed, seeded.guest_seed), (None, Some([10; 32])));
    assert_eq!(config.log_peer, Some(Ipv4Addr::new(10, 1, 0, 2)));
}

#[test]
fn a_probe_needs_nothing() {
    let config = Config::parse("role=probe").unwrap();
    assert_eq!((config.role, config.exit_port), (StartRole::Probe, None));
    assert_eq!(Config::parse("role=probe exit-port=0xf4").unwrap().exit_port, Some(0xF4));
    for bad in ["role=probe exit-port=244", "role=probe exit-port=0x1ffff", "role=solo exit-port=0xf4"] {
        assert!(Config::parse(bad).unwrap_err().to_string().contains("exit-port"), "{bad}");
    }
}

#[test]
fn a_pair_has_a_key_or_says_that_it_needs_none() {
    let key = Some(&[7; 32]);
    let of = |options: &str, key, good| {
        let config = Config::parse(options).unwrap();
        config.protection([key, None], good).map(|protection| protection.is_secure()).map_err(|error| error.0)
    };
    assert_eq!(of(PAIR, key, true), Ok(true));
    assert!(of(PAIR, None, true).unwrap_err().contains("say insecure=on"));
    assert!(of(PAIR, key, false).unwrap_err().contains("module called 'seed'"));
    // Another one may follow it.
    let config = Config::parse(PAIR).unwrap();
    let both = config.protection([key, Some(&[8; 32])], true).unwrap().fingerprints();
    let alone = config.protection([key, None], true).unwrap().fingerprint();
    assert!(both[0] != 0 && both[0] != alone && both[1] == alone);
    assert!(config.protection([key, key], true).unwrap_err().0.contains("are the same key"));
    assert!(config.protection([None, key], true).unwrap_err().0.contains("'key', which is missing"));
    let insecure = format!("{PAIR} insecure=on");
    assert_eq!(of(&insecure, None, false), Ok(false));
    // Only an etcd is asked in plain words.
    let asks = |arbiter: &str| insecure.replace("arbiter=none", arbiter);
    assert!(of(&asks("arbiter=10.1.0.3"), None, true).unwrap_err().contains("arbiter=etcd://"));
    assert_eq!(of(&asks("arbiter=etcd://10.1.0.3"), None, true), Ok(false));
    for options in [&insecure, &asks("arbiter=10.1.0.3")] {
        assert!(of(options, key, true).unwrap_err().contains("contradict"));
    }
    assert!(of(&format!("{PAIR} insecure=off"), None, true).is_err());
    assert_eq!(of("role=solo", None, false), Ok(false));
    assert!(Config::parse("role=solo insecure=yes").unwrap_err().0.contains("one of on, off"));
}

#[test]
fn a_machine_that_finds_out_what_it_is_waits_unless_it_is_told_otherwise() {
    let auto = PAIR.replace("role=primary", "role=auto").replace("arbiter=none", "arbiter=10.1.0.3");
    let of = |extra: &str| Config::parse(&format!("{auto} {extra}"));
    let config = of("").unwrap();
    assert_eq!((config.role, config.protocol().alone_after, config.resets), (StartRole::Auto, None, false));
    assert_eq!(of("cold-start=wait").unwrap().protocol().alone_after, None);
    assert_eq!(of("cold-start=alone-after:60s").unwrap().protocol().alone_after, Some(Span(60_000_000)));
    let early = of("cold-start=alone-after:1s").unwrap_err();
    assert!(early.0.contains("twice the time to suspicion"), "{early}");
    assert!(of("on-halt=reset resets-an-hour=6").is_ok_and(|config| config.resets && config.resets_an_hour == 6));
    assert!(of("on-halt=reset watchdog=30s").is_ok_and(|config| config.watchdog == Some(Span(30_000_000))));
    assert!(of("watchdog=off").is_ok_and(|config| config.watchdog.is_none()));
    assert!(Config::parse("role=auto").unwrap_err().0.contains("client-nic"));
    for (options, named) in [
        (format!("{PAIR} on-halt=reset"), "beside the successor's"),
        (auto.replace("arbiter=10.1.0.3", "arbiter=none cold-start=alone-after:60s"), "needs an arbiter"),
    ] {
        let error = Config::parse(&options).unwrap_err();
        assert!(error.0.contains(named), "{error}");
    }
}

#[test]
fn a_card_has_one_task_in_every_role() {
    let error = Config::parse("role=solo client-nic=0:4.0 log-nic=0:4.0").unwrap_err();
    assert!(error.0.contains("'client-nic' and 'log-nic' name the same device"), "{error}");
}

#[test]
fn what_is_refused_is_named() {
    let refused = |extra: &str, named: &str| {
        let error = Config::parse(&format!("{PAIR} {extra}")).unwrap_err();
        assert!(error.0.contains(named), "{extra}: {error}");
    };
    refused("colour=blue", "'colour'");
    refused("verbose", "'verbose'");
    refused(&format!("pair={}", "x".repeat(33)), "'pair=xxx");
    assert!(Config::parse(&format!("{PAIR} pair={}", "x".repeat(32))).is_ok());
    refused("role=backup", "'role' is given twice");
    refused("cold-start=alone-after:60s", "role=auto");
    refused("cold-start=alone", "alone-after:60s");
    refused("on-halt=reboot", "one of stay, reset");
    refused("watchdog=30s", "on-halt=reset");
    refused("on-halt=reset watchdog=1s", "between 2s and 2097s");
    refused("on-halt=reset watchdog=on", "'watchdog=on'");
    refused("resets-an-hour=0", "between 1 and 3600");
    refused("guest-memory=5M", "guest-memory");
    refused("guest-memory=99999999999G", "guest-memory");
    refused("guest-mac=01:00:00:00:00:00", "guest-mac");
    refused("guest-mac=52:54", "guest-mac");
    refused("heartbeat=1s", "contradict");
    refused("heartbeat=10ms suspect=50ms", "'suspect' (50000 us): suspicion must take longer");
    refused("machine-address=10.0.2.3/24 arbiter-nic=0:5.0", "'log-nic' and 'arbiter-nic'");
    refused("guest-sources=all", "one of own, any");
    refused("suspect=fast", "suspect");
    refused("disk=nvme", "one of none, image, ram:64M, nvme:B:D.F");
    refused("disk=nvme:6.0", "a PCI address is");
    for bad in [
        "size=1",
        "size=0",
        "size=1M,size=1M",
        "partition=",
        "partition=a,whole",
        "partition=a,partition=b",
        "stale,stale",
        "fast",
        "",
    ] {
        refused(&format!("disk=nvme:0:6.0,{bad}"), "'disk");
    }
    refused("disk-latency=1ms", "there is no disk");
    refused("disk=image disk-latency=2s", "at most 1s");
    refused("disk=image disk-latency=2", "a time looks like");
    for size in ["0", "1000", "", "99999999999G"] {
        refused(&format!("disk=ram:{size}"), "'disk=ram:");
    }
    refused("break=everything", "one of output-rule, exact-stop, time, bounce-buffer, drain");
    refused("mmu=shadow", "one of auto, tracked, native");
    refused("counter=tsc", "one of auto, pmu, ticks");
    refused("guest-args=\"open", "guest-args");
    refused("guest-seed=0123", "guest-seed");
    refused(&format!("guest-seed={}", "+1".repeat(32)), "guest-seed");
    for (line, named) in [
        ("role=backup", "client-nic"),
        ("role=king", "role=king"),
        (&PAIR.replace("0:5.0", "0:4.0"), "same device"),
        (&PAIR.replace("10.1.0.2", "10.1.0.1"), "same machine"),
    ] {
        assert!(Config::parse(line).unwrap_err().0.contains(named), "{line}");
    }
}

#[test]
fn a_machine_answers_people_where_it_has_an_address() {
    let http = |line: &str| Config::parse(line).map(|config| config.http).map_err(|error| error.0);
    let place = format!("{PAIR} machine-address=10.0.2.21/24");
    assert_eq!(http(&place), Ok(None));
    for (value, port) in [("on", Some(80)), ("off", None), ("8080", Some(8080)), ("49151", Some(49_151))] {
        assert_eq!(http(&format!("{place} http={value}")), Ok(port));
    }
    for bad in ["", "0", "49152", "99999", "yes"] {
        assert!(http(&format!("{place} http={bad}")).unwrap_err().contains("on (port 80)"), "{bad}");
    }
    assert!(http(&format!("{PAIR} http=on")).unwrap_err().contains("'machine-address', which is missing"));
    let syslog = |text: &str| Config::parse(&format!("{place} syslog={text}")).map(|config| config.syslog);
    assert_eq!(syslog("10.0.2.9"), Ok(Some("10.0.2.9:514".parse().unwrap())));
    assert_eq!(syslog("10.9.0.9:5514 machine-gateway=10.0.2.1"), Ok(Some("10.9.0.9:5514".parse().unwrap())));
    for bad in ["", "me", "10.0.2.9:0", "10.0.2.21", "10.9.0.9"] {
        assert!(syslog(bad).unwrap_err().0.contains("'syslog"), "{bad}");
    }
    assert!(http(&format!("{PAIR} syslog=10.0.2.9")).unwrap_err().contains("'machine-address', which is missing"));
    let solo = "role=solo machine-address=10.0.2.21/24 http=on";
    assert!(http(solo).unwrap_err().contains("'client-nic' or 'arbiter-nic'"));
    assert_eq!(http(&format!("{solo} client-nic=0:4.0")), Ok(Some(80)));
    let station = |line: &str| Config::parse(line).unwrap().has_station();
    assert!(station(&format!("{place} http=on")) && !station(&place));
    assert!(station(&place.replace("arbiter=none", "arbiter=10.1.0.3")));
}

#[test]
fn a_machine_may_be_recorded() {
    let record = |text: &str| Config::parse(&format!("{PAIR} record={text}")).map_err(|error| error.0);
    let config = record("10.1.0.4").unwrap();
    assert_eq!(config.record, Some("10.1.0.4:7004".parse().unwrap()));
    assert!(config.protocol().record_bytes > 0 && Config::parse(PAIR).unwrap().protocol().record_bytes == 0);
    assert_eq!(record("10.1.0.4:9").unwrap().record, Some("10.1.0.4:9".parse().unwrap()));
    for bad in ["", "me", "10.1.0.4:0", "10.1.0.4:x", "10.1.0.1", "10.1.0.2:9", "10.9.0.4"] {
        assert!(record(bad).unwrap_err().contains("'record"), "{bad}");
    }
    // What waits for the recorder and what waits of the log have to fit into one heap.
    assert!(record("10.1.0.4 log-buffer=12M").is_ok());
    assert!(record("10.1.0.4 log-buffer=13M").unwrap_err().contains("'log-buffer' must be at most 12M with 'record'"));
    assert!(Config::parse(&format!("{PAIR} log-buffer=24M")).is_ok());
}

#[test]
fn a_machine_that_replays_has_no_clients() {
    const REPLAY: &str = "role=replay log-nic=0:5.0 log-address=10.1.0.2/24 log-peer=10.1.0.1";
    let protocol = Config::parse(REPLAY).unwrap().protocol();
    assert!(protocol.follows_only && !Config::parse(PAIR).unwrap().protocol().follows_only);
    assert!(Config::parse(&format!("{REPLAY} arbiter=none")).is_ok());
    for extra in ["client-nic=0:4.0", "arbiter=10.1.0.3", "record=10.1.0.4"] {
        let error = Config::parse(&format!("{REPLAY} {extra}")).unwrap_err().0;
        assert!(error.contains("never goes live"), "{error}");
    }
    // It has a key, as any machine of a pair.
    assert!(Config::parse(REPLAY).unwrap().protection([None, None], true).is_err());
}

#[test]
fn networks_contain_their_addresses() {
    let contains = |network: &str, address: &str| network.parse::<Cidr>().unwrap().contains(address.parse().unwrap());
    assert!(contains("10.1.0.1/24", "10.1.0.255") && !contains("10.1.0.1/24", "10.1.1.1"));
    assert!(contains("10.1.0.1/0", "192.0.2.1"));
    assert!(contains("10.1.0.1/32", "10.1.0.1") && !contains("10.1.0.1/32", "10.1.0.0"));
}

proptest::proptest! {
    #[test]
    fn no_line_panics(line in ".{0,200}") {
        let _ = Config::parse(&line);
    }
}
