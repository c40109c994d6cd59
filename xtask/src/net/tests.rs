//! Whole fabrics between fake machines.
