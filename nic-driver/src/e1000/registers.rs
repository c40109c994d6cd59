//! Register offsets and bits that the driver uses.
//!
//! See: 8254x family SDM (317453), chapter 13; 82574L datasheet (317694), chapter 10. Offsets are the same in both.

/// Device control.
pub(super) const CTRL: usize = 0x0000;
/// Device status.
pub(super) const STATUS: usize = 0x0008;
/// EEPROM control (82574L: has the bit that tells when the EEPROM was loaded).
pub(super) const EEC: usize = 0x0010;
/// EEPROM read.
pub(super) const EERD: usize = 0x0014;
/// Interrupt cause read: reading clears it.
pub(super) const ICR: usize = 0x00C0;
/// Interrupt throttling.
pub(super) const ITR: usize = 0x00C4;
/// Interrupt mask set.
pub(super) const IMS: usize = 0x00D0;
/// Interrupt mask clear.
pub(super) const IMC: usize = 0x00D8;
/// Receive control.
pub(super) const RCTL: usize = 0x0100;
/// Transmit control.
pub(super) const TCTL: usize = 0x0400;
/// Transmit inter-packet gap.
pub(super) const TIPG: usize = 0x0410;
/// Receive descriptors: base, low half.
pub(super) const RDBAL: usize = 0x2800;
/// Receive descriptors: base, high half.
pub(super) const RDBAH: usize = 0x2804;
/// Receive descriptors: length in bytes.
pub(super) const RDLEN: usize = 0x2808;
/// Receive descriptors: head.
pub(super) const RDH: usize = 0x2810;
/// Receive descriptors: tail.
pub(super) const RDT: usize = 0x2818;
/// Receive interrupt delay.
pub(super) const RDTR: usize = 0x2820;
/// Receive interrupt absolute delay.
pub(super) const RADV: usize = 0x282C;
/// Transmit descriptors: base, low half.
pub(super) const TDBAL: usize = 0x3800;
/// Transmit descriptors: base, high half.
pub(super) const TDBAH: usize = 0x3804;
/// Transmit descriptors: length in bytes.
pub(super) const TDLEN: usize = 0x3808;
/// Transmit descriptors: head.
pub(super) const TDH: usize = 0x3810;
/// Transmit descriptors: tail.
pub(super) const TDT: usize = 0x3818;
/// Transmit interrupt delay.
pub(super) const TIDV: usize = 0x3820;
/// Transmit descriptor control.
pub(super) const TXDCTL: usize = 0x3828;
/// Frames that found no receive buffer; reading clears it.
pub(super) const MPC: usize = 0x4010;
/// Frames longer than 1522 bytes that were dropped; reading clears it. See: 8254x SDM, 13.7.33.
pub(super) const ROC: usize = 0x40AC;
/// Receive checksum control.
pub(super) const RXCSUM: usize = 0x5000;
/// Receive filter control (82574L).
pub(super) const RFCTL: usize = 0x5008;
/// Multicast table, 128 words.
pub(super) const MTA: usize = 0x5200;
/// Words in the multicast table.
pub(super) const MTA_WORDS: usize = 128;
/// Receive address 0, low half.
pub(super) const RAL0: usize = 0x5400;
/// Receive address 0, high half.
pub(super) const RAH0: usize = 0x5404;
/// Pairs of receive address registers (82574L: the sixteenth belongs to management).
pub(super) const RECEIVE_ADDRESSES: usize = 15;
/// PCI Express control (82574L).
pub(super) const GCR: usize = 0x5B00;
/// PCI Express control 2 (82574L).
pub(super) const GCR2: usize = 0x5B64;
/// Multiple receive queues (82574L).
pub(super) const MRQC: usize = 0x5818;

/// CTRL: full duplex.
pub(super) const CTRL_FD: u32 = 1 << 0;
/// CTRL: no new bus requests (82574L).
pub(super) const CTRL_GIO_MASTER_DISABLE: u32 = 1 << 2;
/// CTRL: link reset.
pub(super) const CTRL_LRST: u32 = 1 << 3;
/// CTRL: automatic speed detection.
pub(super) const CTRL_ASDE: u32 = 1 << 5;
/// CTRL: set link up.
pub(super) const CTRL_SLU: u32 = 1 << 6;
/// CTRL: invert loss of signal.
pub(super) const CTRL_ILOS: u32 = 1 << 7;
/// CTRL: force speed.
pub(super) const CTRL_FRCSPD: u32 = 1 << 11;
/// CTRL: force duplex.
pub(super) const CTRL_FRCDPLX: u32 = 1 << 12;
/// CTRL: reset, clears itself.
pub(super) const CTRL_RST: u32 = 1 << 26;
/// CTRL: VLAN mode.
pub(super) const CTRL_VME: u32 = 1 << 30;
/// CTRL: reset the PHY.
pub(super) const CTRL_PHY_RST: u32 = 1 << 31;

/// STATUS: link up.
pub(super) const STATUS_LU: u32 = 1 << 1;
/// STATUS: bus requests are possible (82574L).
pub(super) const STATUS_GIO_MASTER_ENABLE: u32 = 1 << 19;

/// EEC: the EEPROM's content was loaded (82574L).
pub(super) const EEC_AUTO_RD: u32 = 1 << 9;
/// EERD: start a read.
pub(super) const EERD_START: u32 = 1 << 0;

/// RCTL: receiver enabled.
pub(super) const RCTL_EN: u32 = 1 << 1;
/// RCTL: take unicast frames to any address.
pub(super) const RCTL_UPE: u32 = 1 << 3;
/// RCTL: take all multicast frames.
pub(super) const RCTL_MPE: u32 = 1 << 4;
/// RCTL: take broadcast frames.
pub(super) const RCTL_BAM: u32 = 1 << 15;
/// RCTL: strip the frame check sequence.
pub(super) const RCTL_SECRC: u32 = 1 << 26;

/// TCTL: transmitter enabled.
pub(super) const TCTL_EN: u32 = 1 << 1;
/// TCTL: pad short packets.
pub(super) const TCTL_PSP: u32 = 1 << 3;
/// TCTL: collision threshold 15.
pub(super) const TCTL_CT: u32 = 0xF << 4;
/// TCTL: collision distance 64, for full duplex.
pub(super) const TCTL_COLD: u32 = 0x40 << 12;

/// TXDCTL: reserved on the 82574L, must be one.
pub(super) const TXDCTL_MUST_BE_ONE: u32 = 1 << 22;
/// TXDCTL: thresholds count descriptors.
pub(super) const TXDCTL_GRAN: u32 = 1 << 24;

/// RAH: the address is valid.
pub(super) const RAH_AV: u32 = 1 << 31;
