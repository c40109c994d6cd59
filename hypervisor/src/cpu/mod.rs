//! The guest's CPU: one small trait, and the vendors' mirror images behind it.

pub mod registers;
