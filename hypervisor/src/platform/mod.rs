//! The guest's machine: pure, deterministic device models.
