//! Registers that are not a CPU's.

use alloc::rc::Rc;
use core::cell::Cell;

use super::{ExtendedRegisters, ExtendedState, Layout};

/// Registers in memory.
#[derive(Debug)]
pub struct MadeUp {
    /// What there is.
    pub layout: Layout,
    /// What they hold.
    pub state: ExtendedState,
    /// How often they were loaded.
    pub loads: Rc<Cell<usize>>,
}

impl MadeUp {
    /// Those of a CPU with `layout`, as after a reset.
    pub fn new(layout: Layout) -> Self {
        Self { layout, state: ExtendedState::initial(&layout), loads: Rc::default() }
    }
}

impl Default for MadeUp {
    fn default() -> Self {
        Self::new(Layout::LEGACY)
    }
}

impl ExtendedRegisters for MadeUp {
    fn layout(&self) -> Layout {
        self.layout
    }

    fn save(&self) -> ExtendedState {
        self.state
    }

    fn load(&mut self, state: &ExtendedState) {
        assert_eq!(state.check_loading(&self.layout), Ok(()));
        self.state = ExtendedState { components: self.layout.components(), ..*state };
        self.loads.set(self.loads.get() + 1);
    }

    fn xcr0(&self) -> u64 {
        self.state.xcr0
    }

    fn set_xcr0(&mut self, value: u64) {
        assert!(self.layout.allows(value));
        self.state.xcr0 = value;
    }
}
