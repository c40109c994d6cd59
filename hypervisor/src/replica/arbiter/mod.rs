//! Wins terms at the arbiter, by every way that leads there: the log network, and the client network in the machine's
//! own name, so that a dead log link does not hide it; and each of its addresses, where several programs give the terms of
//! one store. All are tried at once, and the first answer counts: the arbiter grants a term again to whom it belongs, so
//! that two questions are as good as one. With a key only what was sealed with it is an answer.
//!
//! A question stays open until it is answered or withdrawn. What it means is the node's business.
//!
//! While no question is open, and the node allows it, each way is looked at now and then.

mod caller;
#[cfg(test)]
mod tests;
mod watch;
mod way;

use alloc::string::String;
use alloc::vec::Vec;

use pollux_ft::arbiter::{Answer, ArbiterId, Look, Manner, Question, Seen};
use pollux_ft::{NodeId, Span, Term, Time};

use self::caller::Counts;
use self::way::{News, Way};
use super::link::Link;
use super::station::Station;
use crate::config::{ArbiterOptions, Routes};
use crate::random::Random;

/// What was counted and measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ArbiterFigures {
    /// Questions of the node.
    pub questions: u64,
    /// Connections begun for them.
    pub tries: u64,
    /// Those that brought no answer.
    pub failures: u64,
    /// Answers that were not the arbiter's, to questions and looks.
    pub unauthentic: u64,
    /// Terms won.
    pub granted: u64,
    /// Terms that others held.
    pub taken: u64,
    /// How long the last answer took.
    pub answer: Span,
    /// Looks whether a question would be answered.
    pub looks: u64,
    /// Those that found that it would not.
    pub looks_in_vain: u64,
}

/// The ways over the client network.
struct Own {
    station: Station,
    ways: Vec<Way>,
}

/// The asking machine.
pub struct Arbiter {
    pair: String,
    machine: String,
    node: NodeId,
    question: Option<Question>,
    asked: Time,
    look: Look,
    /// The only arbiter whose answers count, if the twins have agreed on one.
    agreed: Option<ArbiterId>,
    /// Looks are allowed.
    watching: bool,
    sealed: bool,
    log: Vec<Way>,
    own: Option<Own>,
    figures: ArbiterFigures,
}

impl Arbiter {
    /// Prepares the ways to the arbiter, which is spoken to in one of these manners; asks nothing yet.
    ///
    /// `station` is this machine's place on the client network.
    pub fn new(
        (pair, machine, node): (&str, &str, NodeId),
        routes: Routes,
        (manners, options): (&[Manner], &ArbiterOptions),
        mut random: Random,
        link: &mut Link,
        station: Option<Station>,
    ) -> Self {
        let Routes { log, machine: client } = routes;
        let log = link.with_stack(|stack| {
            let way = |server| Way::new("log", server, manners, options, &mut random, stack);
            (log.into_iter().map(way).collect(), false)
        });
        let own = station.filter(|_| !client.is_empty()).map(|mut station| {
            client.iter().for_each(|server| station.talk_to(*server.ip()));
            let way = |server| Way::new("client", server, manners, options, &mut random, &mut station.stack);
            let ways = client.into_iter().map(way).collect();
            Own { station, ways }
        });
        Self {
            pair: pair.into(),
            machine: machine.into(),
            node,
            question: None,
            asked: Time(0),
            look: Look::new(pair),
            agreed: None,
            watching: false,
            sealed: manners.iter().all(|manner| matches!(manner, Manner::Sealed(_))),
            log,
            own,
            figures: ArbiterFigures::default(),
        }
    }

    /// Speaks in these manners from now on: a key came, or went.
    pub fn set_manners(&mut self, now: Time, manners: &[Manner], link: &mut Link) {
        for way in &mut self.log {
            link.with_stack(|stack| (way.set_manners(now, manners, stack), true));
        }
        if let Some(Own { station, ways }) = &mut self.own {
            ways.iter_mut().for_each(|way| way.set_manners(now, manners, &mut station.stack));
        }
    }

    /// Whether it will answer when it is spoken to in this manner alone, as far as looks have found out lately: by one way at least,
    /// and no way leads to one that answers in another manner only.
    #[must_use]
    pub fn understands(&self, now: Time, manner: &Manner) -> bool {
        let mut known = self.ways().filter_map(|way| way.understands(now, manner));
        known.next().is_some_and(|first| first) && known.all(|other| other)
    }

    /// From now on only this arbiter's answers count, or any one's.
    pub fn agree_on(&mut self, agreed: Option<ArbiterId>) {
        if self.agreed != agreed {
            self.agreed = agreed;
            self.look.agree_on(agreed);
            self.question = self.question.take().map(|question| question.of(agreed));
        }
    }

    /// Whether looks ask which term is the newest.
    pub fn want_newest(&mut self, wanted: bool) {
        self.look.want_newest(wanted);
    }

    /// What an arbiter has answered to a look since this was last asked.
    pub fn take_seen(&mut self) -> Option<Seen> {
        self.ways_mut().find_map(Way::take_seen)
    }

    /// Asks for `term` until there is an answer; an earlier question is dropped.
    pub fn ask(&mut self, now: Time, term: Term, link: &mut Link) {
        self.cancel(link);
        self.figures.questions += 1;
        self.question = Some(Question::new(&self.pair, term, self.node, &self.machine).of(self.agreed));
        self.asked = now;
        self.log.iter_mut().for_each(|way| way.begin(now));
        if let Some(own) = &mut self.own {
            own.begin(now);
        }
    }

    /// Asks no more.
    pub fn cancel(&mut self, link: &mut Link) {
        self.question = None;
        for way in &mut self.log {
            link.with_stack(|stack| ((), way.stop(stack)));
        }
        if let Some(Own { station, ways }) = &mut self.own {
            for way in ways {
                way.stop(&mut station.stack);
            }
        }
    }

    /// The term that is asked for.
    #[must_use]
    pub fn asks_for(&self) -> Option<Term> {
        self.question.as_ref().map(Question::term)
    }

    /// The machine's place on the client network, if the arbiter is asked from there; what it has to say is to be sent
    /// after each [`poll`](Self::poll).
    pub fn station(&mut self) -> Option<&mut Station> {
        self.own.as_mut().map(|own| &mut own.station)
    }

    /// Moves everything that waits. Returns the answer to the question, which is closed then. With `watching`, and
    /// while no question is open, the arbiter is looked at now and then.
    pub fn poll(&mut self, now: Time, watching: bool, link: &mut Link) -> Option<(Term, Answer)> {
        self.watching = watching && self.question.is_none();
        let look = self.watching.then_some(&self.look);
        let mut answer = None;
        for way in &mut self.log {
            let other = link.with_stack(|stack| way.poll(now, self.question.as_ref(), look, stack));
            answer = answer.or(other);
        }
        if let Some(own) = &mut self.own {
            let other = own.turn(now, self.question.as_ref(), look);
            answer = answer.or(other);
        }
        let answer = answer?;
        let term = self.asks_for()?;
        self.cancel(link);
        self.figures.answer = now.since(self.asked);
        match answer {
            Answer::Granted => self.figures.granted += 1,
            Answer::Taken { .. } => self.figures.taken += 1,
        }
        Some((term, answer))
    }

    /// When [`poll`](Self::poll) has something to do even if no frame comes.
    #[must_use]
    pub fn poll_at(&mut self, now: Time) -> Option<Time> {
        let log = self.log.iter().filter_map(|way| way.poll_at(self.watching)).min();
        let own = self.own.as_mut().and_then(|own| own.poll_at(now, self.watching));
        [log, own].into_iter().flatten().min()
    }

    /// What was counted.
    #[must_use]
    pub fn figures(&self) -> ArbiterFigures {
        let [questions, looks] = self.ways().map(Way::counts).fold([Counts::default(); 2], |sums, way| {
            core::array::from_fn(|kind| Counts {
                tries: sums[kind].tries + way[kind].tries,
                failures: sums[kind].failures + way[kind].failures,
                unauthentic: sums[kind].unauthentic + way[kind].unauthentic,
            })
        });
        ArbiterFigures {
            tries: questions.tries,
            failures: questions.failures,
            unauthentic: questions.unauthentic + looks.unauthentic,
            looks: looks.tries,
            looks_in_vain: looks.failures,
            ..self.figures
        }
    }

    /// Why the arbiter would be of no use now, for each way of which that is known.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        self.ways().filter_map(Way::trouble).collect()
    }

    /// Whether no way leads to a term now, as far as is known.
    #[must_use]
    pub fn is_useless(&self) -> bool {
        self.ways().all(|way| way.trouble().is_some())
    }

    /// What looks have found out since this was last asked.
    pub fn take_news(&mut self) -> impl Iterator<Item = News> + use<'_> {
        self.ways_mut().filter_map(Way::take_news)
    }

    /// Whether it is asked in sealed words, so that nobody else can answer.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    fn ways(&self) -> impl Iterator<Item = &Way> {
        self.log.iter().chain(self.own.iter().flat_map(|own| &own.ways))
    }

    fn ways_mut(&mut self) -> impl Iterator<Item = &mut Way> {
        self.log.iter_mut().chain(self.own.iter_mut().flat_map(|own| &mut own.ways))
    }
}

impl Own {
    fn begin(&mut self, now: Time) {
        self.station.wake(true);
        self.station.set_urgent(true);
        self.ways.iter_mut().for_each(|way| way.begin(now));
    }

    /// Moves everything between the station's queues of frames, and the question or the look.
    fn turn(&mut self, now: Time, question: Option<&Question>, look: Option<&Look>) -> Option<Answer> {
        let due = look.is_some() && self.ways_poll_at(true).is_some_and(|at| at <= now);
        if !self.station.is_awake() && !due {
            return None;
        }
        self.station.wake(true);
        self.station.poll(now);
        let mut answer = None;
        for way in &mut self.ways {
            let (other, _) = way.poll(now, question, look, &mut self.station.stack);
            answer = answer.or(other);
        }
        // What that gave to say, perhaps a last reset, is said now.
        self.station.poll(now);
        self.station.wake(self.ways.iter().any(Way::is_busy));
        self.station.set_urgent(question.is_some() && answer.is_none());
        answer
    }

    fn poll_at(&mut self, now: Time, watching: bool) -> Option<Time> {
        if !self.station.is_awake() {
            return self.ways_poll_at(watching);
        }
        if self.station.waiting() > 0 {
            return Some(now);
        }
        [self.ways_poll_at(watching), self.station.poll_at(now)].into_iter().flatten().min()
    }

    fn ways_poll_at(&self, watching: bool) -> Option<Time> {
        self.ways.iter().filter_map(|way| way.poll_at(watching)).min()
    }
}
