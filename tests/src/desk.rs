//! Who may use the desk's two cores: tests run two at a time, and a pair takes both cores, a machine alone takes one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// All cores that rigs may keep busy.
pub const CORES: usize = 2;

static DESK: Desk = Desk::new();

/// The cores, and those who use them or wait for them in the order in which they came: a pair waits no longer than others.
#[derive(Debug)]
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    free: usize,
    next_ticket: u64,
    serving: u64,
    /// A thread once for each place that it has.
    holders: Vec<ThreadId>,
}

/// Cores that are in use until it is dropped.
#[derive(Debug)]
pub struct Place {
    desk: &'static Desk,
    cores: usize,
    holder: ThreadId,
}

/// Waits until `cores` are free. A thread that has a place already gets another one at once, or it could wait for itself.
#[must_use]
pub fn take(cores: usize) -> Place {
    DESK.take(cores)
}

impl Desk {
    const fn new() -> Self {
        let state = State { free: CORES, next_ticket: 0, serving: 0, holders: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked holds the lock no longer than a line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&'static self, cores: usize) -> Place {
        let holder = thread::current().id();
        let mut state = self.lock();
        let cores = if state.holders.contains(&holder) { 0 } else { cores.min(CORES) };
        if cores > 0 {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            let waits = |state: &mut State| state.serving != ticket || state.free < cores;
            state = self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            state.serving += 1;
            state.free -= cores;
        }
        state.holders.push(holder);
        drop(state);
        self.changed.notify_all();
        Place { desk: self, cores, holder }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.desk.lock();
        state.free += self.cores;
        if let Some(at) = state.holders.iter().position(|holder| *holder == self.holder) {
            state.holders.swap_remove(at);
        }
        drop(state);
        self.desk.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn never_more_cores_than_there_are_and_all_get_theirs() {
        static DESK: Desk = Desk::new();
        static BUSY: AtomicUsize = AtomicUsize::new(0);
        thread::scope(|scope| {
            for number in 0..8 {
                scope.spawn(move || {
                    for round in 0..200 {
                        let cores = 1 + (number + round) % 2;
                        let place = DESK.take(cores);
                        assert!(BUSY.fetch_add(cores, Ordering::SeqCst) + cores <= CORES);
                        let again = DESK.take(CORES);
                        assert_eq!((place.cores, again.cores), (cores, 0));
                        BUSY.fetch_sub(cores, Ordering::SeqCst);
                        // In either order.
                        if round % 3 == 0 { drop((place, again)) } else { drop((again, place)) }
                    }
                });
            }
        });
        let state = DESK.lock();
        assert_eq!((state.free, state.holders.len()), (CORES, 0));
    }

    #[test]
    fn a_place_may_be_given_back_elsewhere() {
        static DESK: Desk = Desk::new();
        let place = DESK.take(2);
        assert!(thread::spawn(move || drop(place)).join().is_ok());
        assert_eq!(DESK.take(2).cores, 2);
    }
}
