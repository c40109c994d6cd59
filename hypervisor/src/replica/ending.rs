//! Whether the guest still has a life on this machine, and how that ends: never without the node.

use alloc::string::String;

use pollux_ft::{AppendError, Control, EntryRef, Node, Position, Role, Time};

/// What there is to do for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Run it for the clients.
    Live,
    /// Replay the log.
    Follow,
    /// Nothing: there is no guest here, or no more, or it stands still while the twin takes it over.
    Wait,
}

/// The guest's end on this machine.
#[derive(Debug, Default)]
pub struct Ending {
    reason: Option<String>,
}

impl Ending {
    /// Why the guest does not run here any more; `None` while it may.
    #[must_use]
    pub fn reason(&self) -> Option<&String> {
        self.reason.as_ref()
    }

    /// What this machine has to do, with its node if it has a twin.
    #[must_use]
    pub fn duty(&self, node: Option<&Node>) -> Duty {
        if self.reason.is_some() {
            return Duty::Wait;
        }
        match node.map(Node::role) {
            None => Duty::Live,
            Some(role) if role.runs_guest() => Duty::Live,
            Some(Role::Backup | Role::Draining) => Duty::Follow,
            Some(_) => Duty::Wait,
        }
    }

    /// The guest runs here no more. The node ends with it: one that went on would promise its twin a guest, and joiners
    /// a state. Whether this is news.
    pub fn end(&mut self, node: Option<&mut Node>, now: Time, reason: String) -> bool {
        if let Some(node) = node {
            node.stop(now);
        }
        self.note(reason)
    }

    /// The guest, which stands at `position`, switched itself off: it runs here no more. A node with a backup goes on until
    /// that knows, one without ends at once. Whether there was a log to say it in.
    ///
    /// # Errors
    /// [`AppendError::Full`]: the log takes no more, nothing happened, try again.
    pub fn power_off(&mut self, node: Option<&mut Node>, now: Time, position: u64) -> Result<bool, AppendError> {
        let off = EntryRef::Control(Control::PowerOff);
        let logged = match node.map(|node| node.append(now, Position(position), off)) {
            Some(Ok(_)) => true,
            None | Some(Err(AppendError::NotLogging)) => false,
            Some(Err(error)) => return Err(error),
        };
        self.note("the guest powered off".into());
        Ok(logged)
    }

    fn note(&mut self, reason: String) -> bool {
        let news = self.reason.is_none();
        self.reason.get_or_insert(reason);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use pollux_ft::{Action, Config, Identity, NodeId, Start};

    const NOW: Time = Time(1000);

    fn node(start: Start, number: u64) -> Node {
        let text = || "test".into();
        let identity = Identity {
            node: NodeId(number),
            pair: text(),
            build: text(),
            cpu_digest: 1,
            cpu_name: text(),
            counter: text(),
            guest_memory: 1 << 20,
            guest_image: text(),
        };
        Node::new(Time(0), start, Config::default(), identity).unwrap()
    }

    fn pump(nodes: &mut [Node; 2]) {
        let [one, other] = nodes;
        while !one.transmit().is_empty() || !other.transmit().is_empty() {
            let taken = other.receive(NOW, one.transmit());
            one.transmitted(taken);
            let taken = one.receive(NOW, other.transmit());
            other.transmitted(taken);
        }
    }

    /// A primary and a machine that joins it, which has got its state if `complete`.
    fn pair(complete: bool) -> [Node; 2] {
        let mut nodes = [node(Start::Primary, 1), node(Start::Backup, 2)];
        for node in &mut nodes {
            node.connected(NOW);
        }
        pump(&mut nodes);
        if complete {
            nodes[0].finish_state(Position(5), 0).unwrap();
            pump(&mut nodes);
            nodes[1].joined(NOW);
            pump(&mut nodes);
            assert_eq!(nodes.each_ref().map(Node::role), [Role::Protected, Role::Backup]);
        }
        nodes
    }

    #[test]
    fn a_guest_that_powers_off_alone_leaves_no_node_that_takes_joiners() {
        let (mut ending, mut primary) = (Ending::default(), node(Start::Primary, 1));
        assert_eq!(ending.duty(Some(&primary)), Duty::Live);
        assert_eq!(ending.power_off(Some(&mut primary), NOW, 7), Ok(false));
        assert_eq!((ending.duty(Some(&primary)), primary.role()), (Duty::Wait, Role::Halted));
        assert!(!primary.wants_connection(), "it would accept a joiner and never feed it");
        // One that was about to be fed hears of it.
        let (mut ending, mut nodes) = (Ending::default(), pair(false));
        assert_eq!(ending.power_off(Some(&mut nodes[0]), NOW, 7), Ok(false));
        pump(&mut nodes);
        assert_eq!(nodes.each_ref().map(Node::role), [Role::Halted, Role::Joining]);
    }

    #[test]
    fn a_node_outlives_a_power_off_until_its_twin_knows() {
        let (mut ending, mut nodes) = (Ending::default(), pair(true));
        assert_eq!(ending.power_off(Some(&mut nodes[0]), NOW, 7), Ok(true));
        assert_eq!((ending.duty(Some(&nodes[0])), nodes[0].role()), (Duty::Wait, Role::Protected));
        nodes[0].flush(NOW);
        pump(&mut nodes);
        assert_eq!(nodes[0].role(), Role::Halted);
    }

    #[test]
    fn whatever_ends_the_guest_ends_the_node() {
        for (start, role) in [(Start::Primary, Role::Alone), (Start::Backup, Role::Joining)] {
            let (mut ending, mut node) = (Ending::default(), node(start, 1));
            assert_eq!(node.role(), role);
            assert!(ending.end(Some(&mut node), NOW, "it is over".into()));
            assert_eq!((ending.duty(Some(&node)), node.role()), (Duty::Wait, Role::Halted));
            assert!(!node.wants_connection());
        }
        let (mut ending, mut nodes) = (Ending::default(), pair(true));
        assert!(ending.end(Some(&mut nodes[0]), NOW, "it cannot be started again".into()));
        pump(&mut nodes);
        let actions: Vec<_> = core::iter::from_fn(|| nodes[1].poll_action()).collect();
        assert!(matches!(actions.last(), Some(Action::TakeOver { .. })), "{actions:?}");
        assert!(!ending.end(Some(&mut nodes[0]), NOW, "again".into()));
        assert_eq!(ending.reason().map(String::as_str), Some("it cannot be started again"));
    }

    #[test]
    fn a_machine_without_a_twin_runs_its_guest_until_it_ends() {
        let mut ending = Ending::default();
        assert_eq!(ending.duty(None), Duty::Live);
        assert_eq!(ending.power_off(None, NOW, 7), Ok(false));
        assert_eq!(ending.duty(None), Duty::Wait);
    }
}
