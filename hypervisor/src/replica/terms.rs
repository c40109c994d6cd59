//! Between the node, which wants terms, and the arbiter, which has them.

use pollux_ft::arbiter::Answer;
use pollux_ft::{Role, Term, Time, Verdict};

use super::{Replica, monitor};
use crate::host::interrupts::Fired;

/// What to do when the first term of a primary is taken.
const ADVICE: &str = "this pair has run before: start this machine with role=backup; or, if no machine of the pair runs \
                      any more, give a 'first-term' above every term that the arbiter has given it";

impl Replica {
    /// Begins to ask for `term`.
    pub(super) fn ask_arbiter(&mut self, term: Term) {
        let (Some(arbiter), Some(peer)) = (&mut self.arbiter, &mut self.peer) else { return };
        log::info!("asking the arbiter for term {}", term.0);
        monitor::event("asks-arbiter", "term", &term.0);
        arbiter.ask(self.now_us, term, &mut peer.link);
    }

    /// The question is withdrawn.
    pub(super) fn leave_arbiter(&mut self) {
        if let (Some(arbiter), Some(peer)) = (&mut self.arbiter, &mut self.peer) {
            arbiter.cancel(&mut peer.link);
        }
    }

    /// Lets the arbiter's ways move, and hands an answer to the node.
    pub(super) fn serve_arbiter(&mut self, fired: Fired) {
        let (Some(arbiter), Some(peer)) = (&mut self.arbiter, &mut self.peer) else { return };
        arbiter.interrupted(fired);
        let answer = arbiter.poll(self.now_us, peer.node.may_look_at_arbiter(), &mut peer.link, self.client.as_mut());
        peer.link.push(self.now_us);
        for news in arbiter.take_news() {
            if news.trouble.is_some() {
                log::warn!("{news}");
                monitor::event("arbiter-trouble", "what", &news);
            } else {
                log::info!("{news}");
                monitor::event("arbiter-well", "what", &news);
            }
        }
        let Some((term, answer)) = answer else { return };
        let verdict = match answer {
            Answer::Granted => {
                log::info!("term {} is ours", term.0);
                monitor::event("term-granted", "term", &term.0);
                Verdict::Granted
            }
            Answer::Taken { by } => {
                log::error!("term {} is taken by {by}", term.0);
                if peer.node.role() == Role::Starting {
                    log::error!("{ADVICE}");
                }
                monitor::event("term-taken", "by", &by);
                Verdict::Taken
            }
        };
        peer.node.arbiter_answered(Time(self.now_us), term, verdict);
        self.do_actions();
    }
}
