//! Rules that can be broken on purpose, so that a test of the protocol can show that it would notice.
//!
//! Only with the feature `mutations`; without it [`crate::Config::broken`] is a constant `false`.

/// A rule that is broken. Each is asked for in the one place that enforces the rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutation {
    /// The backup acks the last input of a batch without keeping it.
    AckBeforeBuffering,
    /// Output is released when it is logged.
    ReleaseBeforeAck,
    /// A backup goes live although entries are left.
    LiveBeforeDrained,
    /// A backup goes live without the next term.
    LiveWithoutArbiter,
    /// A backup may run beyond what the log says.
    HorizonIgnored,
    /// A primary that hears of a newer one goes on.
    SupersededGoesOn,
    /// Digests in the log are not handed out to be compared.
    DigestNotCompared,
    /// Any heartbeat counts as a sign of life of the twin.
    AnyHeartbeatCounts,
    /// A primary that lost a complete backup goes on without asking the arbiter.
    AloneWithoutAsking,
    /// A term that is another machine's is treated as granted.
    TakenAsGranted,
    /// A second joiner gets the state while there is a first one.
    JoinWhileBusy,
    /// The state is called complete although a message with pages was left out.
    PagesLeftOut,
    /// The backup is told that frames have left before they have.
    ReleasedTooEarly,
    /// Two inputs of a batch are applied in the wrong order.
    EntriesSwapped,
    /// A backup acks one entry more than it has, and the primary takes the ack.
    AckBeyondReceived,
    /// A backup takes over from a guest that switched itself off.
    PowerOffIgnored,
    /// A takeover goes on although the primary was heard again.
    TakeoverNotCalledOff,
    /// Output is not held while a lost backup may still take over.
    DetachingReleases,
    /// A backup that proposed to bid for a later term needs that one alone before its primary has agreed.
    BurntUnagreed,
    /// A primary sends what was acked, whenever it last was heard.
    LeaseIgnored,
    /// A primary keeps a backup that acks, and whose guest stands still.
    StandsStillUnseen,
    /// A joiner counts as complete whatever session it says it joined.
    JoinedOfAnySession,
    /// A heartbeat counts that is late or came before.
    OldHeartbeatCounts,
    /// The log of a new primary begins at 0 again.
    NumbersRestart,
    /// A hand-over counts as acked with the entry before it.
    HandOverAckedEarly,
    /// A power-off counts as acked with the entry before it.
    PowerOffAckedEarly,
    /// A primary keeps a backup that lives and acks nothing.
    AcksNotMissed,
    /// A machine that stood still takes its twin for dead.
    OwnPauseIgnored,
    /// Machines that are no twins pair.
    PairingSkipped,
    /// Whoever claims a newer term has taken over from a primary that hands over.
    HandOverToAnybody,
    /// A heartbeat from before its session tells a backup that it was let go of.
    OldSessionDrops,
    /// A backup bids while entries are left.
    BidBeforeDrained,
    /// A primary takes a joiner of a newer reign.
    NewerJoinerAccepted,
    /// A heartbeat counts that does not say that its sender heard us: one of a former life.
    EchoNotCompared,
    /// A heartbeat counts that was made without the key.
    TagNotChecked,
    /// A message on the stream counts that was made without the key.
    StreamTagNotChecked,
    /// A connection counts that was meant for another pair or another machine.
    PrologueIgnored,
    /// A connection counts that answers another greeting than ours.
    GreetingIgnored,
    /// An answer of the arbiter counts that was made without the key.
    ArbiterTagNotChecked,
    /// An answer of the arbiter counts that was given to an earlier question.
    ArbiterNonceNotCompared,
    /// An answer of the arbiter counts that is about another term.
    ArbiterTermNotCompared,
    /// A machine that starts by itself creates a guest without the word of its twin.
    CreatesUnasked,
    /// A machine that starts by itself takes one with a guest for one without, that yields.
    GuestUnheard,
    /// A promise counts that was made to an earlier offer.
    OldPromiseCounts,
    /// A machine that creates a guest does not ask which term is the newest.
    NewestUnasked,
    /// A primary logs the end of a disk request that its own disk has not ended.
    DiskDoneEarly,
    /// A primary logs the end of a disk request twice.
    DiskDoneTwice,
    /// A primary with a backup tells its guest of an error of its own disk.
    DiskErrorTold,
    /// A backup applies the end of a disk request that its own disk has not ended.
    DiskNotAwaited,
    /// A backup goes on although its disk failed what the primary's has done.
    DiskErrorIgnored,
    /// Disk requests are begun although earlier ones that they overlap with have not ended.
    DiskOrderIgnored,
    /// A machine that got a guest's state forgets the disk requests that were in flight.
    DiskNotBegunAgain,
    /// A machine with two keys says its heartbeats under the newest one alone.
    OldKeyFallsSilent,
    /// A machine forgets a key although its twin has not shown that it has the other one.
    KeyForgottenUnseen,
    /// A connection counts that was begun under a key that was forgotten meanwhile.
    ForgottenKeyOpens,
    /// A machine takes one whose words it cannot read, as under another key, for none.
    OtherKeyUnheard,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Self; 56] = [
        Self::AckBeforeBuffering,
        Self::ReleaseBeforeAck,
        Self::LiveBeforeDrained,
        Self::LiveWithoutArbiter,
        Self::HorizonIgnored,
        Self::SupersededGoesOn,
        Self::DigestNotCompared,
        Self::AnyHeartbeatCounts,
        Self::AloneWithoutAsking,
        Self::TakenAsGranted,
        Self::JoinWhileBusy,
        Self::PagesLeftOut,
        Self::ReleasedTooEarly,
        Self::EntriesSwapped,
        Self::AckBeyondReceived,
        Self::PowerOffIgnored,
        Self::TakeoverNotCalledOff,
        Self::DetachingReleases,
        Self::BurntUnagreed,
        Self::LeaseIgnored,
        Self::StandsStillUnseen,
        Self::JoinedOfAnySession,
        Self::OldHeartbeatCounts,
        Self::NumbersRestart,
        Self::HandOverAckedEarly,
        Self::PowerOffAckedEarly,
        Self::AcksNotMissed,
        Self::OwnPauseIgnored,
        Self::PairingSkipped,
        Self::HandOverToAnybody,
        Self::OldSessionDrops,
        Self::BidBeforeDrained,
        Self::NewerJoinerAccepted,
        Self::EchoNotCompared,
        Self::TagNotChecked,
        Self::StreamTagNotChecked,
        Self::PrologueIgnored,
        Self::GreetingIgnored,
        Self::ArbiterTagNotChecked,
        Self::ArbiterNonceNotCompared,
        Self::ArbiterTermNotCompared,
        Self::CreatesUnasked,
        Self::GuestUnheard,
        Self::OldPromiseCounts,
        Self::NewestUnasked,
        Self::DiskDoneEarly,
        Self::DiskDoneTwice,
        Self::DiskErrorTold,
        Self::DiskNotAwaited,
        Self::DiskErrorIgnored,
        Self::DiskOrderIgnored,
        Self::DiskNotBegunAgain,
        Self::OldKeyFallsSilent,
        Self::KeyForgottenUnseen,
        Self::ForgottenKeyOpens,
        Self::OtherKeyUnheard,
    ];
}
