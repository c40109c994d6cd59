//! The counter against models of machines: honest ones, on which every stop is exact, and lying ones, which are refused.

mod core;
mod exactness;
mod lies;
mod model;
