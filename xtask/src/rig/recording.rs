//! `--record`: takes down what the rig's backups are told, and how the machines were made.

use std::fs::{self, OpenOptions};
use std::io::{BufWriter, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use pollux_ft::handshake::End;
use pollux_ft::record::RecordStream;
use pollux_ft::{PairKey, Protection, RecordKey};
use pollux_record::{Collector, Record, Writer};
use serde::{Deserialize, Serialize};

use super::accelerator::{Accelerator, Wish};
use super::emulator::{Emulator, NicModel};
use crate::guest::GuestFiles;
use crate::secret::{self, Secret};

/// Where machines find the recorder on the log network.
pub const RECORDER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 1, 0, 4), 7004);
/// The name of the hypervisor's image in a recording.
pub const HYPERVISOR: &str = "hypervisor";
/// How often what has come is put into the file.
const FLUSH: Duration = Duration::from_millis(500);
/// How long to wait when nothing comes.
const REST: Duration = Duration::from_millis(2);
/// How long what is still on its way may take to come in the end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Bytes taken from one machine before another has its turn.
const BATCH: usize = 256 << 10;

/// How the machines of a recording were made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// `qemu` or `bochs`.
    pub emulator: String,
    /// Whether by KVM.
    pub kvm: bool,
    /// Whether the network cards are those of the model e1000e.
    pub e1000e: bool,
    /// A machine's memory in MiB.
    pub memory_mib: u64,
    /// The options of the hypervisor that recorded, one by one.
    pub options: Vec<String>,
}

impl Setup {
    /// Of machines in `emulator`.
    pub fn new(emulator: Emulator, memory_mib: u64, options: Vec<String>) -> Self {
        let (name, kvm, e1000e) = match emulator {
            Emulator::Bochs => ("bochs", false, false),
            Emulator::Qemu(accelerator, hardware) => {
                ("qemu", accelerator != Accelerator::Tcg, hardware.nic == NicModel::E1000e)
            }
        };
        Self { emulator: name.to_owned(), kvm, e1000e, memory_mib, options }
    }

    /// How its emulator is to run instructions, and the model of its cards.
    pub fn wish(&self) -> (Wish, NicModel) {
        let nic = if self.e1000e { NicModel::E1000e } else { NicModel::E1000 };
        (if self.kvm { Wish::Kvm } else { Wish::Tcg }, nic)
    }
}

/// A recording that is being made, by a thread of its own.
#[derive(Debug)]
pub struct Recording {
    path: PathBuf,
    address: SocketAddr,
    keys: Arc<Mutex<Vec<RecordKey>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(u64, u64)>>>,
}

impl Recording {
    /// Begins the file at `path`, for its owner alone as there is all of the guest in it, with the setup and its files.
    /// Machines of `pair` with this key may be recorded.
    pub fn start(
        path: &Path,
        setup: &Setup,
        hypervisor: &Path,
        guest: &GuestFiles,
        pair: &str,
        key: Option<&Secret>,
    ) -> Result<Self> {
        let what = || format!("the recording {}", path.display());
        let file = secret::private(OpenOptions::new().create(true).truncate(true), path).with_context(what)?;
        let mut writer = Writer::new(BufWriter::new(file)).with_context(what)?;
        writer.write(&Record::Setup(serde_json::to_string(setup)?)).with_context(what)?;
        for (name, path) in [(HYPERVISOR, hypervisor)].into_iter().chain(guest.modules()) {
            let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            writer.write_file(name, &bytes).with_context(what)?;
        }
        writer.flush().with_context(what)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the recorder")?;
        listener.set_nonblocking(true).context("the recorder")?;
        let address = listener.local_addr().context("the recorder")?;
        let ends = Arc::new(AtomicBool::new(false));
        let pair_key = key.map(Secret::pair_key);
        let keys = Arc::new(Mutex::new(record_keys(pair_key.as_slice())));
        let recorder = Recorder {
            keys: Arc::clone(&keys),
            pair: pair.to_owned(),
            listener,
            collector: Collector::new(writer),
            machines: Vec::new(),
            connections: 0,
            started: Instant::now(),
        };
        let flag = Arc::clone(&ends);
        let thread = std::thread::Builder::new().name("recorder".to_owned()).spawn(move || recorder.run(&flag));
        let thread = thread.context("cannot start a thread")?;
        Ok(Self { path: path.to_owned(), address, keys, ends, thread: Some(thread) })
    }

    /// The machines have these keys from now on.
    pub fn set_keys(&self, keys: &[PairKey]) {
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = record_keys(keys);
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why it has ended by itself, if it has: a full disk, say. The rig goes on.
    pub fn trouble(&mut self) -> Option<String> {
        self.thread.take_if(|thread| thread.is_finished()).map(|thread| match thread.join() {
            Ok(Err(error)) => format!("{error:#}"),
            _ => "it has ended".to_owned(),
        })
    }

    /// Ends it: the file, how many sessions are in it, and its size in bytes. None if it had ended before.
    pub fn finish(mut self) -> Result<Option<(PathBuf, u64, u64)>> {
        self.ends.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(None) };
        let (sessions, size) = thread.join().map_err(|_| anyhow!("the recorder panicked"))??;
        Ok(Some((self.path.clone(), sessions, size)))
    }
}

/// What a recorder has of a pair's keys.
fn record_keys(keys: &[PairKey]) -> Vec<RecordKey> {
    keys.iter().flat_map(|key| Protection::from(key.clone()).records()).collect()
}

/// A machine that is recorded.
struct Machine {
    number: u64,
    socket: TcpStream,
    stream: RecordStream,
}

struct Recorder<W: Write> {
    keys: Arc<Mutex<Vec<RecordKey>>>,
    pair: String,
    listener: TcpListener,
    collector: Collector<W>,
    machines: Vec<Machine>,
    connections: u64,
    started: Instant,
}

impl<W: Write> Recorder<W> {
    /// Takes down what comes until it is told to end; sessions and size then.
    fn run(mut self, ends: &AtomicBool) -> Result<(u64, u64)> {
        let mut flush_at = Instant::now() + FLUSH;
        let mut until = None;
        loop {
            // What has come until then still belongs to the recording; machines that go on are not waited for.
            if until.is_none() && ends.load(Ordering::Relaxed) {
                until = Some(Instant::now() + LAST_WORDS);
            }
            self.accept();
            let moved = self.receive().context("cannot write the recording")?;
            if Instant::now() >= flush_at {
                self.collector.flush().context("cannot write the recording")?;
                flush_at = Instant::now() + FLUSH;
            }
            if until.is_some_and(|until| !moved || Instant::now() >= until) {
                let sessions = self.collector.sessions();
                return Ok((sessions, self.collector.finish().context("cannot write the recording")?));
            }
            if !moved {
                std::thread::sleep(REST);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            let Ok(random) = Secret::draw() else { continue };
            let Some(random) = random.bytes().first_chunk() else { continue };
            if socket.set_nonblocking(true).is_ok() {
                let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let stream = RecordStream::new(&keys, &self.pair, End::Listens, *random);
                self.machines.push(Machine { number: self.connections, socket, stream });
                self.connections += 1;
            }
        }
    }

    /// Whether anything came.
    fn receive(&mut self) -> std::io::Result<bool> {
        let us = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (mut moved, mut gone) = (false, Vec::new());
        let mut buffer = vec![0; BATCH];
        for machine in &mut self.machines {
            let mut result = Ok(());
            let why = match machine.socket.read(&mut buffer) {
                Ok(0) => Some("the machine has gone, or its recorder was too slow".to_owned()),
                Ok(len) => {
                    moved = true;
                    let (number, collector) = (machine.number, &mut self.collector);
                    let taken = machine.stream.receive(&buffer[..len], |kind, payload| {
                        if result.is_ok() {
                            result = collector.message(number, us, kind, payload);
                        }
                    });
                    taken.err().map(|error| error.to_string())
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => None,
                Err(error) if error.kind() == ErrorKind::Interrupted => None,
                Err(error) => Some(format!("the machine has gone: {error}")),
            };
            result?;
            // It has only greetings to say, which find room.
            if let Ok(sent @ 1..) = machine.socket.write(machine.stream.transmit()) {
                machine.stream.transmitted(sent);
            }
            if let Some(why) = why {
                self.collector.closed(machine.number, &why)?;
                gone.push(machine.number);
            }
        }
        self.machines.retain(|machine| !gone.contains(&machine.number));
        Ok(moved)
    }
}
