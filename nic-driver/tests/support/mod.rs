//! QEMU with a CPU that sleeps: its `qtest` protocol lets a test play the machine that the card sits in.
//!
//! The firmware is one `hlt` with interrupts off; with `-icount sleep=off` virtual time then jumps from one timer of a
//! device to the next. (The accelerator `qtest` would do the same without a CPU, but not every distribution has it.)
//! The machine's memory is a shared file, mapped here at some address and seen by the card from physical address 0;
//! registers are reached by commands over a pipe. See: QEMU, `docs/devel/testing/qtest.rst`.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use pollux_nic::e1000::REGISTER_BYTES;
use pollux_nic::{DmaMemory, Registers};
use rustix::mm::{MapFlags, ProtFlags, mmap};
use tempfile::TempDir;

const MEMORY_BYTES: usize = 16 << 20;
/// Where the card's buffers lie in the machine: above what firmware would use.
const DMA_START: usize = 8 << 20;
const BAR0: u32 = 0xFEB8_0000;
const SLOT: u32 = 4;
/// No step takes longer, however busy the host is.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Machine {
    qemu: Rc<RefCell<Qemu>>,
    wire: UnixDatagram,
    card_path: std::path::PathBuf,
    ram: File,
    _directory: TempDir,
}

struct Qemu {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // It may have ended by itself; either way nothing is left running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Qemu {
    /// Sends a command, returns what follows the answer's `OK`.
    fn command(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").expect("QEMU runs");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("QEMU answers");
        answer.strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {answer}")).trim().to_owned()
    }

    fn number(&mut self, command: &str) -> u32 {
        let answer = self.command(command);
        let digits = answer.strip_prefix("0x").expect("a hexadecimal number");
        u64::from_str_radix(digits, 16).expect("a hexadecimal number") as u32
    }

    fn pci_read(&mut self, offset: u32) -> u32 {
        self.command(&format!("outl 0xcf8 {:#x}", 0x8000_0000 | SLOT << 11 | offset));
        self.number("inl 0xcfc")
    }

    fn pci_write(&mut self, offset: u32, value: u32) {
        self.command(&format!("outl 0xcf8 {:#x}", 0x8000_0000 | SLOT << 11 | offset));
        self.command(&format!("outl 0xcfc {value:#x}"));
    }
}

/// The card's registers, by commands.
pub struct Port(Rc<RefCell<Qemu>>);

impl Registers for Port {
    fn read32(&self, offset: usize) -> u32 {
        self.0.borrow_mut().number(&format!("readl {:#x}", BAR0 as usize + offset))
    }

    fn write32(&mut self, offset: usize, value: u32) {
        self.0.borrow_mut().command(&format!("writel {:#x} {value:#x}", BAR0 as usize + offset));
    }

    fn len(&self) -> usize {
        REGISTER_BYTES
    }
}

/// `hlt` and a jump back to it, at the reset vector.
fn firmware() -> Vec<u8> {
    let mut rom = vec![0; 64 << 10];
    rom[0xFFF0..0xFFF3].copy_from_slice(&[0xF4, 0xEB, 0xFD]);
    rom
}

impl Machine {
    /// Starts a machine with the card `device`; `None` if there is no QEMU on this desk.
    pub fn start(device: &str, mac: &str) -> Option<Self> {
        let directory = TempDir::new().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let ram = File::create_new(path("ram")).expect("a file for the memory");
        ram.set_len(MEMORY_BYTES as u64).expect("room for the memory");
        drop(ram);
        let ram = File::options().read(true).write(true).open(path("ram")).expect("the file opens");
        std::fs::write(path("firmware"), firmware()).expect("room for the firmware");
        let wire = UnixDatagram::bind(path("wire")).expect("a socket");
        wire.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        wire.set_write_timeout(Some(Duration::from_millis(50))).expect("a timeout");

        let memory =
            format!("memory-backend-file,id=ram,size={MEMORY_BYTES},share=on,mem-path={}", path("ram").display());
        let network = format!(
            "dgram,id=net,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            path("card").display(),
            path("wire").display()
        );
        let spawned = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-icount", "shift=0,sleep=off", "-machine", "pc,memory-backend=ram", "-m", "16M"])
            .args(["-object", &memory, "-bios"])
            .arg(path("firmware"))
            .args(["-nodefaults", "-display", "none", "-qtest", "stdio", "-qtest-log", "none", "-netdev", &network])
            .args(["-device", &format!("{device},netdev=net,mac={mac},addr={SLOT:#x},romfile=")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => panic!("QEMU does not start: {error}"),
        };
        let commands = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut qemu = Qemu { child, commands, answers };
        // What the hypervisor does: place BAR 0, enable memory decoding and bus mastering.
        qemu.pci_write(0x10, BAR0);
        qemu.pci_write(0x04, 0b110);
        Some(Self { qemu: Rc::new(RefCell::new(qemu)), wire, card_path: path("card"), ram, _directory: directory })
    }

    pub fn pci_ids(&self) -> (u16, u16) {
        let ids = self.qemu.borrow_mut().pci_read(0);
        (ids as u16, (ids >> 16) as u16)
    }

    pub fn registers(&self) -> Port {
        Port(Rc::clone(&self.qemu))
    }

    /// Memory of the machine for the card. To be called once.
    pub fn dma_memory(&self, len: usize) -> DmaMemory {
        assert!(DMA_START + len <= MEMORY_BYTES);
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing else.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &self.ram,
                DMA_START as u64,
            )
        }
        .expect("the memory maps");
        // SAFETY: the mapping is `len` bytes long, never unmapped, and this is its only reference.
        let bytes = unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>(), len) };
        // SAFETY: the file is the machine's memory from address 0 on, so this is where the card reaches the bytes.
        unsafe { DmaMemory::new(DMA_START as u64, bytes) }
    }

    /// Puts a frame on the wire to the card.
    pub fn send(&self, frame: &[u8]) {
        self.wait("QEMU takes the frame", || self.try_send(frame).then_some(()));
    }

    /// Puts a frame on the wire, if QEMU takes it at once: it does not while frames wait for a buffer.
    pub fn try_send(&self, frame: &[u8]) -> bool {
        match self.wire.send_to(frame, &self.card_path) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            Err(error) => panic!("the wire broke: {error}"),
        }
    }

    /// The next frame that the card put on the wire.
    pub fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 4096];
        let len = self.wire.recv(&mut buffer).expect("a frame arrives");
        buffer[..len].to_vec()
    }

    /// Polls until there is something.
    pub fn wait<T>(&self, what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(value) = poll() {
                return value;
            }
            assert!(Instant::now() < end, "{what}: nothing in {PATIENCE:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}
