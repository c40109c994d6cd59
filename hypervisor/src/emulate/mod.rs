//! Instruction decoding and MMIO emulation, the same for every CPU vendor.
