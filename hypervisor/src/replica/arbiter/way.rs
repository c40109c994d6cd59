//! One way to the arbiter: who asks there, and who looks whether asking would help.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::net::SocketAddrV4;

use pollux_ft::Time;
use pollux_ft::arbiter::{Answer, Look, Manner, Question, Seen};

use super::caller::{Caller, Counts, Times, Trouble};
use super::watch::{RETRY, Watch};
use crate::config::ArbiterOptions;
use crate::random::Random;
use crate::replica::stack::Stack;

/// What a look has found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// The arbiter's address, and the network that leads there.
    pub server: SocketAddrV4,
    /// That network.
    pub network: &'static str,
    /// Why no term could be had there; none if that is over.
    pub trouble: Option<Trouble>,
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the arbiter at {}, over the {} network, ", self.server, self.network)?;
        match &self.trouble {
            Some(trouble) => write!(f, "would give no term now: {trouble}"),
            None => f.write_str("is well again"),
        }
    }
}

/// A way.
#[derive(Debug)]
pub struct Way {
    network: &'static str,
    caller: Caller,
    watch: Watch,
    /// The last trouble of this question, so that it is reported when it changes.
    trouble: Option<Trouble>,
    news: Option<News>,
}

impl Way {
    /// The way to `server` over the network of `stack`, where it is spoken to in one of these manners.
    pub fn new(
        network: &'static str,
        server: SocketAddrV4,
        manners: &[Manner],
        options: &ArbiterOptions,
        random: &mut Random,
        stack: &mut Stack,
    ) -> Self {
        let mut caller = |retry| {
            let times = Times { timeout: options.timeout, retry };
            Caller::new(server, manners, times, random.fork(), stack)
        };
        let (caller, looker) = (caller(options.retry), caller(options.retry.max(RETRY)));
        Self { network, caller, watch: Watch::new(looker, options.watch), trouble: None, news: None }
    }

    /// Speaks in these manners from now on, and looks at once whether they are understood.
    pub fn set_manners(&mut self, now: Time, manners: &[Manner], stack: &mut Stack) {
        self.caller.set_manners(now, manners, stack);
        self.watch.set_manners(now, manners, stack);
    }

    /// Whether the arbiter answers in this manner, as far as a look has found out lately.
    pub fn understands(&self, now: Time, manner: &Manner) -> Option<bool> {
        self.watch.answered_in(now, manner)
    }

    /// Counts of questions, and of looks.
    pub fn counts(&self) -> [Counts; 2] {
        [self.caller.counts(), self.watch.counts()]
    }

    /// Why the arbiter would be of no use by this way now.
    pub fn trouble(&self) -> Option<String> {
        let (server, network) = (self.caller.server(), self.network);
        self.watch.trouble().map(|trouble| format!("at {server}, over the {network} network: {trouble}"))
    }

    /// What a look has found out since this was last asked.
    pub fn take_news(&mut self) -> Option<News> {
        self.news.take()
    }

    /// What an arbiter has answered to a look since this was last asked.
    pub fn take_seen(&mut self) -> Option<Seen> {
        self.watch.take_seen()
    }

    /// Begins to ask.
    pub fn begin(&mut self, now: Time) {
        self.trouble = None;
        self.caller.begin(now);
    }

    /// Asks no more. Whether a socket has something to send because of that.
    pub fn stop(&mut self, stack: &mut Stack) -> bool {
        self.caller.stop(stack)
    }

    /// Whether the stack is needed now.
    pub fn is_busy(&self) -> bool {
        !self.caller.is_idle() || self.watch.is_looking()
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    pub fn poll_at(&self, watching: bool) -> Option<Time> {
        let look = (watching || self.watch.is_looking()).then(|| self.watch.poll_at());
        [self.caller.poll_at(), look].into_iter().flatten().min()
    }

    /// Does what can be done: asks the question, or else looks, if that is allowed. Returns the answer, if there is one
    /// now, and whether a socket wants to send.
    pub fn poll(
        &mut self,
        now: Time,
        question: Option<&Question>,
        look: Option<&Look>,
        stack: &mut Stack,
    ) -> (Option<Answer>, bool) {
        let looked = match (question, look) {
            (None, Some(look)) => self.look(now, look, stack),
            _ => self.watch.stop(stack),
        };
        let Some(question) = question else { return (None, looked | self.caller.stop(stack)) };
        let (outcome, moved) = self.caller.poll(now, question, stack);
        let answer = match outcome {
            Some(Ok(answer)) => Some(answer),
            Some(Err(trouble)) => {
                if self.trouble.as_ref() != Some(&trouble) {
                    let (server, network) = (self.caller.server(), self.network);
                    log::warn!("asking the arbiter at {server} over the {network} network: {trouble}");
                    self.trouble = Some(trouble);
                }
                None
            }
            None => None,
        };
        (answer, looked | moved)
    }

    fn look(&mut self, now: Time, look: &Look, stack: &mut Stack) -> bool {
        let (changed, moved) = self.watch.poll(now, look, stack);
        if let Some(manner) = self.watch.understood() {
            self.caller.ask_first_in(manner);
        }
        if changed {
            let (server, network) = (self.caller.server(), self.network);
            self.news = Some(News { server, network, trouble: self.watch.trouble().cloned() });
        }
        moved
    }
}
