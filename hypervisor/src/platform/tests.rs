//! Tests of the whole platform.
