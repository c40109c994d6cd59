//! What somebody without the key, or with old records, can make of a question and its answer: nothing.

use pollux_ft::arbiter::sealed::*;
use pollux_ft::arbiter::{Answer, ArbiterId, Ask, Failure, Look, Manner, Question, Seen, Try, Winner};
use pollux_ft::pairing::MAX_NAME;
use pollux_ft::{NodeId, PairKey, Term};
use proptest::prelude::*;

const ARBITER: ArbiterId = ArbiterId(0xA5);
/// How records look: magic and length; fingerprint and nonce of a question, nonce of an answer; body and tag.
const QUESTION: [u8; 4] = *b"PLq1";
const ANSWER: [u8; 4] = *b"PLa1";
const BEGIN: usize = 6;
const QUESTION_HEAD: usize = BEGIN + 8 + NONCE_BYTES;

fn key(byte: u8) -> ArbiterKey {
    ArbiterKey::from(&PairKey::new(&[byte; 32]))
}

fn call(pair: &str, term: u64, node: u64, machine: &str) -> Call {
    Call { pair: pair.into(), query: Query::Term { term: Term(term), node: NodeId(node), machine: machine.into() } }
}

fn ours() -> Call {
    call("pollux", 7, 0xC, "castor")
}

/// A question that was asked, and its answer.
fn exchange(call: &Call, nonce: u8, verdict: &Verdict) -> (Pending, Vec<u8>, Vec<u8>) {
    let (pending, question) = Pending::ask(&key(1), call.clone(), [nonce; 24]);
    let answer = Received::open(&key(1), &question).unwrap().answer(&key(1), [nonce ^ 0x80; 24], ARBITER, verdict);
    (pending, question, answer)
}

/// What the pair's arbiter would say to our question if it answered `call`: nobody but it can make that.
fn answer_about(call: Call) -> Vec<u8> {
    exchange(&call, 3, &Verdict::Granted).2
}

fn text(longest: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(any::<char>(), 0..=longest).prop_map(move |chars| {
        let text: String = chars.into_iter().collect();
        text[..text.floor_char_boundary(longest)].into()
    })
}

fn any_call() -> impl Strategy<Value = Call> {
    let term = (any::<u64>(), any::<u64>(), text(MAX_NAME));
    let term = term.prop_map(|(term, node, machine)| Query::Term { term: Term(term), node: NodeId(node), machine });
    let query = prop_oneof![term, Just(Query::Look)];
    (text(MAX_NAME), query).prop_map(|(pair, query)| Call { pair, query })
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Granted),
        text(MAX_HOLDER).prop_map(Verdict::Taken),
        Just(Verdict::Well(None)),
        (any::<u64>(), text(MAX_HOLDER)).prop_map(|(term, by)| Verdict::Well(Some((Term(term), by)))),
        text(MAX_TOLD).prop_map(Verdict::Refused),
    ]
}

#[test]
fn a_question_has_about_a_hundred_bytes_and_shows_nothing() {
    let (_, question, answer) = exchange(&ours(), 3, &Verdict::Granted);
    assert_eq!((question.len(), answer.len()), (85, 110));
    for record in [question, answer] {
        assert!(record.windows(6).all(|window| window != b"castor" && window != b"pollux"));
    }
}

/// The arbiter's key is not the pair's, and is not shown.
#[test]
fn each_key_is_another_one() {
    let pair = PairKey::new(&[1; 32]);
    let arbiter = ArbiterKey::from(&pair);
    assert!(*pair.arbiter() != [1; 32] && PairKey::new(pair.arbiter()) != pair);
    assert!(ArbiterKey::new(&[1; 32]) != arbiter && ArbiterKey::new(pair.arbiter()) == arbiter);
    assert!(arbiter != key(2) && arbiter.fingerprint() != key(2).fingerprint());
    assert_eq!(format!("{arbiter:?}"), format!("ArbiterKey({:016x})", arbiter.fingerprint()));
}

#[test]
fn an_answer_of_before_is_none() {
    let (first, _, answer) = exchange(&ours(), 3, &Verdict::Granted);
    let (second, ..) = exchange(&ours(), 4, &Verdict::Granted);
    assert_eq!(first.open(&answer), Ok((ARBITER, Verdict::Granted)));
    assert_eq!(second.open(&answer), Err(Unauthentic::Nonce));
}

#[test]
fn an_answer_about_something_else_is_none() {
    let (pending, ..) = exchange(&ours(), 3, &Verdict::Granted);
    assert_eq!(pending.open(&answer_about(ours())), Ok((ARBITER, Verdict::Granted)));
    for (other, why) in [
        (call("pollux", 8, 0xC, "castor"), Unauthentic::Term),
        (call("helen", 7, 0xC, "castor"), Unauthentic::Pair),
        (call("pollux", 7, 0xD, "castor"), Unauthentic::Node),
        (call("pollux", 7, 0xC, "pollux"), Unauthentic::Node),
        (Call { pair: "pollux".into(), query: Query::Look }, Unauthentic::Query),
    ] {
        assert_eq!(pending.open(&answer_about(other)), Err(why));
    }
}

#[test]
fn another_key_opens_nothing() {
    let (_, question, answer) = exchange(&ours(), 3, &Verdict::Granted);
    assert_eq!(Received::open(&key(2), &question), Err(Unauthentic::Tag));
    let (pending, _) = Pending::ask(&key(2), ours(), [3; 24]);
    assert_eq!(pending.open(&answer), Err(Unauthentic::Tag));
    // One that says it is ours.
    let mut forged = Pending::ask(&key(2), ours(), [3; 24]).1;
    forged[BEGIN..BEGIN + 8].copy_from_slice(&key(1).fingerprint().to_le_bytes());
    assert_eq!(Received::open(&key(1), &forged), Err(Unauthentic::Tag));
}

/// A question that is sent back opens as no answer, nor an answer as a question, however its head is written.
#[test]
fn a_reflection_is_no_answer() {
    let (pending, question, answer) = exchange(&ours(), 3, &Verdict::Granted);
    assert_eq!(pending.open(&question), Err(Unauthentic::Malformed));
    assert_eq!(Received::open(&key(1), &answer), Err(Unauthentic::Malformed));
    let nonce = &question[QUESTION_HEAD - NONCE_BYTES..QUESTION_HEAD];
    let length = (question.len() - 8) as u16;
    let reflected = [&ANSWER[..], &length.to_le_bytes(), nonce, &question[QUESTION_HEAD..]].concat();
    assert_eq!(pending.open(&reflected), Err(Unauthentic::Tag));
    let length = (answer.len() + 8) as u16;
    let print = key(1).fingerprint().to_le_bytes();
    let reflected = [&QUESTION[..], &length.to_le_bytes(), &print, &answer[BEGIN..]].concat();
    assert_eq!(Received::open(&key(1), &reflected), Err(Unauthentic::Tag));
}

/// Each of the attacks above would do harm if the rule against it were broken.
#[cfg(feature = "mutations")]
#[test]
fn a_rule_that_is_not_kept_is_noticed() {
    use pollux_ft::Mutation;

    let takes = |record: &[u8], rule| {
        let (pending, ..) = exchange(&ours(), 3, &Verdict::Granted);
        assert!(pending.open(record).is_err());
        pending.break_rule(Broken(Some(rule))).open(record)
    };
    let granted = Ok((ARBITER, Verdict::Granted));
    let (_, _, stale) = exchange(&ours(), 4, &Verdict::Granted);
    assert_eq!(takes(&stale, Mutation::ArbiterNonceNotCompared), granted);
    assert_eq!(takes(&answer_about(call("pollux", 8, 0xC, "castor")), Mutation::ArbiterTermNotCompared), granted);
    let (_, _, mut taken) = exchange(&ours(), 3, &Verdict::Taken("x".into()));
    let name = taken.len() - pollux_ft::key::TAG_BYTES - 1;
    taken[name] ^= 1;
    assert_eq!(takes(&taken, Mutation::ArbiterTagNotChecked), Ok((ARBITER, Verdict::Taken("y".into()))));
}

#[test]
fn a_question_asks_and_a_try_hears() {
    let question = Question::new("pollux", Term(7), NodeId(0xC), "castor");
    let hears = |verdict: &Verdict| {
        let (mut attempt, record) = Try::begin(&question, &Manner::Sealed(key(1)), "h", [3; 24]);
        let received = Received::open(&key(1), &record).unwrap();
        assert_eq!(*received.call(), ours());
        attempt.receive(&question, &received.answer(&key(1), [8; 24], ARBITER, verdict))
    };
    assert_eq!(hears(&Verdict::Granted), Ok(Some(Answer::Granted)));
    let by = Winner { node: Some(NodeId(0xD)), machine: "pollux".into() };
    assert_eq!(hears(&Verdict::Taken("000000000000000d pollux".into())), Ok(Some(Answer::Taken { by })));
    assert_eq!(hears(&Verdict::Refused("the disk\n is full".into())), Err(Failure::Told("the disk is full".into())));
    assert!(matches!(hears(&Verdict::Well(None)), Err(Failure::Content(_))));
    let stranger = Failure::Stranger { agreed: ArbiterId(1), found: ARBITER };
    assert_eq!(question.clone().of(Some(ArbiterId(1))).heed(ARBITER, Verdict::Granted), Err(stranger.clone()));
    let mut look = Look::new("pollux");
    assert_eq!(look.call(), Call { pair: "pollux".into(), query: Query::Look });
    let seen = |newest| Ok(Seen { arbiter: Some(ARBITER), newest: Some(Term(newest)) });
    assert_eq!(look.heed(ARBITER, Verdict::Well(None)), seen(0), "there was none yet");
    assert_eq!(look.heed(ARBITER, Verdict::Well(Some((Term(9), "000000000000000d pollux".into())))), seen(9));
    assert!(matches!(look.heed(ARBITER, Verdict::Granted), Err(Failure::Content(_))), "a look is never a term");
    look.agree_on(Some(ArbiterId(1)));
    assert_eq!(look.heed(ARBITER, Verdict::Well(None)), Err(stranger));
    let (mut attempt, _) = Try::begin(&look, &Manner::Sealed(key(1)), "h", [3; 24]);
    assert_eq!(attempt.closed(&look), Err(Failure::Unanswered));
}

proptest! {
    #[test]
    fn what_is_said_arrives(call in any_call(), verdict in any_verdict(), nonce: Nonce, other: Nonce, byte: u8) {
        let key = key(byte);
        let (pending, question) = Pending::ask(&key, call.clone(), nonce);
        prop_assert_eq!(length(&question), Ok(Some(question.len())));
        prop_assert_eq!(fingerprint(&question), Ok(key.fingerprint()));
        let received = Received::open(&key, &question).unwrap();
        prop_assert_eq!(received.call(), &call);
        let answer = received.answer(&key, other, ARBITER, &verdict);
        prop_assert!(answer.len() <= MAX_RECORD && length(&answer) == Ok(Some(answer.len())));
        prop_assert_eq!(pending.open(&answer), Ok((ARBITER, verdict)));
    }

    #[test]
    fn a_flipped_bit_is_found(call in any_call(), verdict in any_verdict(), at: prop::sample::Index, bit in 0u8..8) {
        let (pending, mut question, mut answer) = exchange(&call, 3, &verdict);
        let place = at.index(question.len());
        question[place] ^= 1 << bit;
        prop_assert!(Received::open(&key(1), &question).is_err());
        let place = at.index(answer.len());
        answer[place] ^= 1 << bit;
        prop_assert!(pending.open(&answer).is_err());
    }

    #[test]
    fn other_lengths_are_refused(cut: prop::sample::Index, extra in prop::collection::vec(any::<u8>(), 1..20)) {
        let (pending, question, answer) = exchange(&ours(), 3, &Verdict::Granted);
        for (record, opens) in [
            (&question, &(|bytes: &[u8]| Received::open(&key(1), bytes).is_ok()) as &dyn Fn(&[u8]) -> bool),
            (&answer, &|bytes: &[u8]| pending.open(bytes).is_ok()),
        ] {
            prop_assert!(opens(record));
            prop_assert!(!opens(&record[..cut.index(record.len())]));
            prop_assert!(!opens(&[&record[..], &extra].concat()));
            // The same with a length that says so.
            let cut = cut.index(record.len() - BEGIN) + BEGIN;
            for mut other in [record[..cut].to_vec(), [&record[..], &extra].concat()] {
                let length = (other.len() as u16).to_le_bytes();
                other[4..BEGIN].copy_from_slice(&length);
                prop_assert!(!opens(&other));
            }
        }
    }

    #[test]
    fn any_bytes_are_survived_and_refused(bytes: Vec<u8>, question: bool) {
        let magic = if question { QUESTION } else { ANSWER };
        let (pending, ..) = exchange(&ours(), 3, &Verdict::Granted);
        let mut framed = [&magic[..], &[0; 2], &bytes].concat();
        let bytes_in_all = (framed.len() as u16).to_le_bytes();
        framed[4..BEGIN].copy_from_slice(&bytes_in_all);
        for bytes in [bytes, framed] {
            prop_assert!(Received::open(&key(1), &bytes).is_err() && pending.open(&bytes).is_err());
            let _ = (length(&bytes), fingerprint(&bytes));
        }
    }

    /// However it is cut, and whatever follows it.
    #[test]
    fn an_answer_comes_in_any_pieces(piece in 1usize..120, tail in prop::collection::vec(any::<u8>(), 0..600)) {
        let question = Question::new("pollux", Term(7), NodeId(0xC), "castor");
        let (mut attempt, record) = Try::begin(&question, &Manner::Sealed(key(1)), "h", [3; 24]);
        let answer = Received::open(&key(1), &record).unwrap().answer(&key(1), [8; 24], ARBITER, &Verdict::Granted);
        let mut outcome = Ok(None);
        for piece in [&answer[..], &tail].concat().chunks(piece) {
            outcome = attempt.receive(&question, piece);
            if outcome != Ok(None) {
                break;
            }
        }
        prop_assert_eq!(outcome, Ok(Some(Answer::Granted)));
    }
}

/// The shortest and the longest record there can be, and the shortest question.
#[test]
fn records_have_bounds() {
    let begin = |length: usize| [&ANSWER[..], &(length as u16).to_le_bytes()].concat();
    let (pending, question, answer) = exchange(&ours(), 1, &Verdict::Granted);
    assert_eq!(length(&answer), Ok(Some(answer.len())));
    drop(pending);
    let shortest = (0..MAX_RECORD).find(|&len| length(&begin(len)).is_ok()).unwrap();
    // Magic and length, a nonce, and a tag.
    assert_eq!(shortest, BEGIN + NONCE_BYTES + 16);
    assert_eq!(length(&begin(MAX_RECORD)), Ok(Some(MAX_RECORD)));
    assert!(length(&begin(MAX_RECORD + 1)).is_err());
    let least = QUESTION_HEAD + 16;
    assert!(fingerprint(&question[..least]).is_ok() && fingerprint(&question[..least - 1]).is_err());
}
