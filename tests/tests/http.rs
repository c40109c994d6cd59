//! What machines answer people on the client network in their own name, and what they tell a syslog server.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pollux_tests::capture;
use pollux_tests::resp::Client;
use pollux_tests::rig::{Rig, TAKEOVER_LIMIT};

/// How long anybody waits for an answer.
const ANSWER: Duration = Duration::from_secs(20);
/// Clients that connect and say nothing.
const SILENT: usize = 40;
/// The survivor's address, and the server that it tells; a host that answers ARP is enough.
const SURVIVOR: [u8; 4] = [10, 0, 2, 22];
const SERVER: [u8; 4] = [10, 0, 2, 3];

fn connect(rig: &Rig, machine: &str) -> Result<TcpStream> {
    let file = rig.file()?;
    let address = file.machine(machine)?.http.clone().context("rig.json does not say where it answers")?;
    let stream = TcpStream::connect(&address).with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// Status and content of an answer.
fn request(rig: &Rig, machine: &str, line: &str) -> Result<(u16, String)> {
    let mut stream = connect(rig, machine)?;
    write!(stream, "{line} HTTP/1.1\r\nHost: {machine}\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, content) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP: {answer:?}"))?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).with_context(|| head.to_owned())?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    ensure!(length.and_then(|text| text.parse().ok()) == Some(content.len()), "{head}");
    ensure!(head.lines().any(|line| line == "Connection: close"), "{head}");
    Ok((status, content.to_owned()))
}

fn get(rig: &Rig, machine: &str, page: &str) -> Result<(u16, String)> {
    request(rig, machine, &format!("GET {page}"))
}

/// Reads Prometheus' text format strictly: each family has HELP and TYPE, once, right before all of its samples; counters
/// end in `_total`; no sample comes twice. Samples by name with labels.
fn metrics(text: &str) -> Result<BTreeMap<String, f64>> {
    let (mut family, mut families, mut samples) = ((String::new(), String::new()), BTreeSet::new(), BTreeMap::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, meaning) = help.split_once(' ').context("a metric without a meaning")?;
            let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
            family = (name.to_owned(), kind.with_context(|| format!("{name} has no type"))?.to_owned());
            ensure!(families.insert(name.to_owned()), "{name} comes twice");
            ensure!(!meaning.is_empty() && name.starts_with("pollux_"), "{line}");
            ensure!((family.1 == "counter") == name.ends_with("_total"), "{family:?}");
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').with_context(|| format!("no sample: {line}"))?;
        let name = sample.split('{').next().unwrap_or_default();
        ensure!(name == family.0, "{sample} is not in its family");
        ensure!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'), "{name}");
        let value = value.parse().with_context(|| line.to_owned())?;
        ensure!(samples.insert(sample.to_owned(), value).is_none(), "{sample} comes twice");
    }
    Ok(samples)
}

fn value(samples: &BTreeMap<String, f64>, sample: &str) -> Result<f64> {
    samples.get(sample).copied().with_context(|| format!("no {sample} in {:?}", samples.keys()))
}

#[test]
fn machines_answer_people_and_nobody_is_kept_out() -> Result<()> {
    let mut rig = Rig::protected("http", "counter", &["--capture", "--hypervisor-option", "syslog=10.0.2.3"])?;
    let [primary, backup] =
        ["primary", "backup"].map(|role| rig.file().and_then(|file| Ok(file.machine(role)?.name.clone())));
    let (primary, backup) = (primary?, backup?);
    for (machine, role) in [(&primary, "primary"), (&backup, "backup")] {
        let (status, text) = get(&rig, machine, "/status")?;
        let json: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        ensure!(status == 200 && json["name"] == **machine && json["role"] == role, "{text}");
        let samples = metrics(&get(&rig, machine, "/metrics")?.1)?;
        ensure!(value(&samples, &format!("pollux_role{{role=\"{role}\"}}"))? == 1.0);
        ensure!(value(&samples, "pollux_term")? == 1.0 && value(&samples, "pollux_position")? > 0.0);
        let (status, text) = get(&rig, machine, "/healthz")?;
        ensure!(status == 200, "{text}");
        for (line, expected) in
            [("GET /", 404), ("DELETE /status", 405), (&*format!("GET /{}", "x".repeat(2000)), 431), ("nonsense", 400)]
        {
            let (status, text) = request(&rig, machine, line)?;
            ensure!(status == expected, "{line:.20}: {status} {text}");
        }
    }

    // A crowd that says nothing keeps neither clients nor others who ask away.
    let silent = (0..SILENT).map(|_| connect(&rig, &primary)).collect::<Result<Vec<_>>>()?;
    let mut client = Client::connect(&rig.service()?, ANSWER)?;
    for expected in 1..=100 {
        ensure!(client.increment("x")? == expected);
    }
    // Who finds all doors taken comes again.
    let answered = rig.wait("an answer", ANSWER, |rig| Ok(get(rig, &primary, "/metrics").ok()))?;
    let samples = metrics(&answered.1)?;
    ensure!(value(&samples, "pollux_errors_total{kind=\"http_refused\"}")? >= 4.0);
    ensure!(value(&samples, "pollux_gate_released_total")? > 0.0);
    drop(silent);

    // The survivor says what it lacks, until it has it.
    rig.kill("primary")?;
    rig.wait_role(&backup, "primary", TAKEOVER_LIMIT)?;
    let (status, text) = get(&rig, &backup, "/healthz")?;
    ensure!(status == 503 && text.contains("without a backup"), "{status} {text}");
    rig.start_backup()?;
    rig.wait_protected()?;
    let (status, text) = get(&rig, &backup, "/healthz")?;
    ensure!(status == 200, "{status} {text}");

    let client = rig.directory().join("client.pcap");
    rig.stop()?;
    let messages: Vec<_> = capture::read(&client)?.iter().filter_map(|frame| told(frame)).collect();
    for message in &messages {
        check_message(message)?;
    }
    ensure!(messages.iter().any(|message| message.contains(" pollux pollux - takeover - {")), "{messages:?}");
    Ok(())
}

/// What the survivor tells the server in this frame, if it does.
fn told(frame: &[u8]) -> Option<String> {
    let (packet, is_udp) = (frame.get(14..)?, frame.get(12..14)? == [8, 0] && *frame.get(23)? == 17);
    let ours = is_udp && packet.get(12..16)? == SURVIVOR && packet.get(16..20)? == SERVER;
    let (datagram, port) = (packet.get(20..)?, 514_u16.to_be_bytes());
    let len = u16::from_be_bytes(*datagram.get(4..6)?.first_chunk()?);
    let text = datagram.get(8..len.into())?;
    (ours && datagram[2..4] == port).then(|| String::from_utf8_lossy(text).into_owned())
}

/// A message of RFC 5424: priority and version, time, host, program, process, id, no structured data, and an event.
fn check_message(message: &str) -> Result<()> {
    let parts: Vec<_> = message.splitn(8, ' ').collect();
    let &[head, time, host, program, process, id, data, text] = &parts[..] else { bail!("{message}") };
    let priority =
        head.strip_prefix('<').and_then(|rest| rest.strip_suffix(">1")).and_then(|text| text.parse::<u8>().ok());
    ensure!(priority.is_some_and(|priority| (24..32).contains(&priority)), "{message}");
    ensure!(time.len() == 20 && time.starts_with("20") && time.ends_with('Z') && &time[10..11] == "T", "{message}");
    ensure!((host, program, process, data) == ("pollux", "pollux", "-", "-"), "{message}");
    let event: serde_json::Value = serde_json::from_str(text).with_context(|| message.to_owned())?;
    ensure!(event["t"] == "event" && event["event"] == id, "{message}");
    Ok(())
}
