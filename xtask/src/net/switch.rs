//! A learning switch: which ports a frame leaves by.

use std::collections::HashMap;

use super::frame::{Header, Mac};

/// A set of port numbers below 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortSet(u8);

impl PortSet {
    /// Ports 0 to `count` − 1.
    pub fn first(count: usize) -> Self {
        debug_assert!(count < 8);
        Self((1 << count) - 1)
    }

    /// One port.
    pub fn only(port: usize) -> Self {
        Self(1 << port)
    }

    /// This set and a port.
    pub fn with(self, port: usize) -> Self {
        Self(self.0 | 1 << port)
    }

    /// This set without a port.
    pub fn without(self, port: usize) -> Self {
        Self(self.0 & !(1 << port))
    }

    /// Whether a port is in it.
    pub fn contains(self, port: usize) -> bool {
        self.0 & (1 << port) != 0
    }
}

/// Addresses remembered at most. A flood of forged sources empties the table; then frames are flooded until the real
/// owners have spoken again, which is slow but right.
const MAX_ADDRESSES: usize = 1024;

/// Where each address was heard last. Entries do not age: an owner that moves says so with its first frame.
#[derive(Debug)]
pub struct Switch {
    ports: PortSet,
    owners: HashMap<Mac, usize>,
    moves: u64,
}

impl Switch {
    /// A switch with these ports that knows no address.
    pub fn new(ports: PortSet) -> Self {
        Self { ports, owners: HashMap::new(), moves: 0 }
    }

    /// Learns the source of a frame that came in at `ingress`, and tells the ports it leaves by; never `ingress`.
    pub fn forward(&mut self, ingress: usize, header: &Header) -> PortSet {
        self.learn(ingress, header.source);
        let others = self.ports.without(ingress);
        match self.owners.get(&header.destination) {
            Some(&port) if port == ingress => PortSet::default(),
            Some(&port) => PortSet::only(port),
            None => others,
        }
    }

    /// Forgets who was heard at a port, as switches do when a cable is pulled: whoever is known only there is looked
    /// for everywhere.
    pub fn forget(&mut self, port: usize) {
        self.owners.retain(|_, owner| *owner != port);
    }

    /// Times that an address was heard at another port than before.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    fn learn(&mut self, ingress: usize, source: Mac) {
        if source.is_group() {
            return;
        }
        if self.owners.len() >= MAX_ADDRESSES && !self.owners.contains_key(&source) {
            self.owners.clear();
        }
        if self.owners.insert(source, ingress).is_some_and(|before| before != ingress) {
            self.moves += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const B: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ALL: Mac = Mac([0xff; 6]);

    fn frame(source: Mac, destination: Mac) -> Header {
        Header { destination, source, ethertype: 0x0800 }
    }

    #[test]
    fn floods_what_it_does_not_know_and_learns() {
        let mut switch = Switch::new(PortSet::first(3));
        assert_eq!(switch.forward(0, &frame(A, B)), PortSet::first(3).without(0));
        assert_eq!(switch.forward(2, &frame(B, A)), PortSet::only(0));
        assert_eq!(switch.forward(0, &frame(A, B)), PortSet::only(2));
        assert_eq!(switch.forward(0, &frame(A, ALL)), PortSet::first(3).without(0));
    }

    #[test]
    fn an_announcement_moves_an_address() {
        let mut switch = Switch::new(PortSet::first(3));
        switch.forward(0, &frame(A, ALL));
        assert_eq!(switch.moves(), 0);
        switch.forward(1, &frame(A, ALL));
        assert_eq!(switch.forward(2, &frame(B, A)), PortSet::only(1));
        assert_eq!(switch.moves(), 1);
    }

    #[test]
    fn addresses_of_a_dead_port_are_looked_for_everywhere() {
        let mut switch = Switch::new(PortSet::first(3));
        switch.forward(0, &frame(A, ALL));
        switch.forward(2, &frame(B, ALL));
        switch.forget(0);
        assert_eq!(switch.forward(2, &frame(B, A)), PortSet::first(2));
        assert_eq!(switch.forward(1, &frame(A, B)), PortSet::only(2));
    }

    #[test]
    fn a_frame_never_returns_to_its_port() {
        let mut switch = Switch::new(PortSet::first(3));
        switch.forward(0, &frame(A, ALL));
        assert_eq!(switch.forward(0, &frame(B, A)), PortSet::default());
    }

    #[test]
    fn group_sources_are_not_learned() {
        let mut switch = Switch::new(PortSet::first(3));
        switch.forward(0, &frame(ALL, B));
        assert_eq!(switch.forward(2, &frame(B, ALL)), PortSet::first(2));
    }

    #[test]
    fn forged_sources_cannot_fill_memory_or_divert_for_good() {
        let mut switch = Switch::new(PortSet::first(3));
        switch.forward(0, &frame(A, ALL));
        for number in 0u32..100_000 {
            let [a, b, c, d] = number.to_be_bytes();
            switch.forward(1, &frame(Mac([6, 0, a, b, c, d]), ALL));
            assert!(switch.owners.len() <= MAX_ADDRESSES);
        }
        assert!(switch.forward(2, &frame(B, A)).contains(0));
        switch.forward(0, &frame(A, ALL));
        assert_eq!(switch.forward(2, &frame(B, A)), PortSet::only(0));
    }
}
