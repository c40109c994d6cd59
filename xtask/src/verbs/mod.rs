//! Verbs that join several parts: what a rig is made of, how it is shown, media made for machines elsewhere. The parts do
//! not know them.

pub mod image;
pub mod netboot;
mod probe;
pub mod rig;
pub mod run;
