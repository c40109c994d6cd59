//! Guest time as a part of the platform's state; what it is, says [`pollux_driver::clock`].

use crate::state::{State, StateError, Visitor};

pub use pollux_driver::clock::{ClockError, GuestClock, GuestTime, Position, RATE_ONE};

impl State for GuestClock {
    fn visit(&mut self, v: &mut dyn Visitor) -> Result<(), StateError> {
        let (mut base, mut position, mut rate) = (self.base().0, self.base_position().0, self.rate());
        v.u64(&mut base)?;
        v.u64(&mut position)?;
        v.u64(&mut rate)?;
        *self = Self::at(GuestTime(base), Position(position), rate);
        Ok(())
    }
}
