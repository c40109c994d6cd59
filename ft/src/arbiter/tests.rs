//! Whole answers, as etcd gives them and as it does not.

use super::*;
use crate::pairing::MAX_NAME;
use crate::types::Term;
use proptest::prelude::*;

/// etcd 3.4.23 when the key was made.
const MADE: &str = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Headers: accept, content-type, authorization\r\n\
    Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\nAccess-Control-Allow-Origin: *\r\n\
    Content-Type: application/json\r\nGrpc-Metadata-Content-Type: application/grpc\r\n\
    Date: Tue, 24 Nov 2026 03:28:42 GMT\r\nContent-Length: 187\r\nConnection: close\r\n\r\n\
    {\"header\":{\"cluster_id\":\"324952591200643719\",\"member_id\":\"3319814642761637952\",\"revision\":\"2\",\
    \"raft_term\":\"2\"},\"succeeded\":true,\"responses\":[{\"response_put\":{\"header\":{\"revision\":\"2\"}}}]}";

/// etcd 3.4.23 when the key `pollux/pair/7` was there, with the value `00000000000000aa castor`.
const THERE: &str = "HTTP/1.1 200 OK\r\nAccess-Control-Allow-Headers: accept, content-type, authorization\r\n\
    Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE\r\nAccess-Control-Allow-Origin: *\r\n\
    Content-Type: application/json\r\nGrpc-Metadata-Content-Type: application/grpc\r\n\
    Date: Tue, 24 Nov 2026 03:28:42 GMT\r\nContent-Length: 321\r\nConnection: close\r\n\r\n\
    {\"header\":{\"cluster_id\":\"324952591200643719\",\"member_id\":\"3319814642761637952\",\"revision\":\"2\",\
    \"raft_term\":\"2\"},\"responses\":[{\"response_range\":{\"header\":{\"revision\":\"2\"},\"kvs\":\
    [{\"key\":\"cG9sbHV4L3BhaXIvNw==\",\"create_revision\":\"2\",\"mod_revision\":\"2\",\"version\":\"1\",\
    \"value\":\"MDAwMDAwMDAwMDAwMDBhYSBjYXN0b3I=\"}],\"count\":\"1\"}}]}";

/// The arbiter that all of these come from.
const ETCD: ArbiterId = ArbiterId(324_952_591_200_643_719);

fn ask(term: u64, node: u64) -> Question {
    Question::new("pair", Term(term), NodeId(node), "castor")
}

/// What comes out of `response`, cut after each of `cuts` bytes in turn.
fn outcome(question: &Question, response: &[u8], cuts: &[usize]) -> Result<Answer, Failure> {
    let mut attempt = Try::default();
    let mut rest = response;
    for &cut in cuts.iter().cycle() {
        let (piece, tail) = rest.split_at(cut.min(rest.len()));
        if let Some(answer) = attempt.receive(question, piece)? {
            return Ok(answer);
        }
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    attempt.closed(question)
}

fn judge(body: &str) -> Result<Answer, Failure> {
    ask(7, 1).judge(body.as_bytes())
}

fn castor() -> Winner {
    Winner { node: Some(NodeId(0xAA)), machine: "castor".into() }
}

#[test]
fn the_request_is_what_etcd_understands() {
    let request = String::from_utf8(ask(7, 0xAA).request("10.0.2.2:2379")).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        head,
        format!(
            "POST /v3/kv/txn HTTP/1.1\r\nHost: 10.0.2.2:2379\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close",
            body.len()
        )
    );
    assert_eq!(
        body,
        "{\"compare\":[{\"target\":\"CREATE\",\"result\":\"EQUAL\",\"key\":\"cG9sbHV4L3BhaXIvNw==\",\
         \"create_revision\":\"0\"}],\"success\":[{\"request_put\":{\"key\":\"cG9sbHV4L3BhaXIvNw==\",\
         \"value\":\"MDAwMDAwMDAwMDAwMDBhYSBjYXN0b3I=\"}}],\
         \"failure\":[{\"request_range\":{\"key\":\"cG9sbHV4L3BhaXIvNw==\"}}]}"
    );
}

#[test]
fn answers_of_etcd() {
    assert_eq!(outcome(&ask(7, 1), MADE.as_bytes(), &[10_000]), Ok(Answer::Granted));
    assert_eq!(outcome(&ask(7, 1), THERE.as_bytes(), &[10_000]), Ok(Answer::Taken { by: castor() }));
    // The first answer was lost on the way.
    assert_eq!(outcome(&ask(7, 0xAA), THERE.as_bytes(), &[10_000]), Ok(Answer::Granted));
    assert!(matches!(outcome(&ask(8, 0xAA), THERE.as_bytes(), &[10_000]), Err(Failure::Content(_))));
}

#[test]
fn the_same_node_on_another_machine_is_another() {
    let pollux = Question::new("pair", Term(7), NodeId(0xAA), "pollux");
    assert_eq!(outcome(&pollux, THERE.as_bytes(), &[1]), Ok(Answer::Taken { by: castor() }));
}

#[test]
fn a_term_with_a_strange_value_is_taken() {
    for (value, text) in [("aGVsbG8=", "hello"), ("", ""), ("AAECgHg=", "\u{fffd}x"), ("MTIgY2FzdG9y", "12 castor")] {
        let body = format!(
            "{{\"responses\":[{{\"response_range\":{{\"kvs\":[{{\"key\":\"cG9sbHV4L3BhaXIvNw==\",\
             \"value\":\"{value}\"}}]}}}}]}}"
        );
        assert_eq!(judge(&body), Ok(Answer::Taken { by: Winner { node: None, machine: text.into() } }));
    }
}

#[test]
fn what_is_no_clear_answer_is_none() {
    const KEY: &str = "\"key\":\"cG9sbHV4L3BhaXIvNw==\"";
    for body in [
        String::new(),
        "{}".into(),
        "[]".into(),
        "{\"succeeded\":true}".into(),
        "{\"succeeded\":1,\"responses\":[{\"response_put\":{}}]}".into(),
        "{\"succeeded\":true,\"responses\":[{\"response_put\":{}}]} x".into(),
        "{\"succeeded\":true,\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}".into(),
        "{\"succeeded\":false,\"responses\":[{\"response_put\":{}}]}".into(),
        "{\"responses\":[{\"response_range\":{\"header\":{}}}]}".into(),
        "{\"responses\":[{\"response_range\":{\"kvs\":[{\"value\":\"\"}]}}]}".into(),
        format!("{{\"responses\":[{{\"response_range\":{{\"kvs\":[{{{KEY},\"value\":\"?\"}}]}}}}]}}"),
        format!("{{\"responses\":[{{\"response_range\":{{\"kvs\":[{{{KEY}}},{{{KEY}}}]}}}}]}}"),
        format!("{{\"responses\":[{{\"response_range\":{{\"kvs\":[{{{KEY},{KEY}}}]}}}}]}}"),
        format!("{{\"succeeded\":true,\"responses\":[{{\"response_range\":{{\"kvs\":[{{{KEY}}}]}}}}]}}"),
        "{\"error\":\"etcdserver: no leader\",\"code\":14,\"message\":\"etcdserver: no leader\"}".into(),
    ] {
        assert!(matches!(judge(&body), Err(Failure::Content(_))), "{body}: {:?}", judge(&body));
    }
}

/// etcd 3.4.23 to a look.
const LOOKED: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 111\r\n\r\n\
    {\"header\":{\"cluster_id\":\"324952591200643719\",\"member_id\":\"3319814642761637952\",\"revision\":\"1\",\
    \"raft_term\":\"2\"}}";

/// etcd 3.4.23 that is full, to a look and to a question alike.
const FULL: &str = "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n\
    Trailer: Grpc-Trailer-Content-Type\r\nTransfer-Encoding: chunked\r\n\r\n\
    74\r\n{\"error\":\"etcdserver: mvcc: database space exceeded\",\
    \"message\":\"etcdserver: mvcc: database space exceeded\",\"code\":8}\r\n0\r\n\
    Grpc-Trailer-Content-Type: application/grpc\r\n\r\n";

#[test]
fn a_look_tells_whether_a_question_would_be_answered() {
    let look = Look::new("pair");
    let seen = |response: &str| Try::default().receive(&look, response.as_bytes());
    let well = Seen { arbiter: Some(ETCD), newest: None };
    assert_eq!(seen(LOOKED), Ok(Some(well)));
    let full = Failure::Refused(Refusal { status: 429, said: "etcdserver: mvcc: database space exceeded".into() });
    assert_eq!(seen(FULL), Err(full.clone()));
    assert_eq!(outcome(&ask(7, 1), FULL.as_bytes(), &[3]), Err(full));
    for wrong in [MADE, THERE, "HTTP/1.1 200 OK\r\n\r\n{}"] {
        let mut attempt = Try::default();
        let outcome =
            attempt.receive(&look, wrong.as_bytes()).and_then(|seen| seen.map_or_else(|| attempt.closed(&look), Ok));
        assert!(matches!(outcome, Err(Failure::Content(_))), "{wrong}: {outcome:?}");
    }
}

/// It asks for no term, and what it would write is no term's key.
#[test]
fn a_look_is_no_bid() {
    let request = String::from_utf8(Look::new("pair").request("10.0.2.2:2379")).unwrap();
    let (_, body) = request.split_once("\r\n\r\n").unwrap();
    let key = base64::encode(b"pollux/pair/look");
    assert_eq!(
        body,
        format!(
            "{{\"compare\":[{{\"target\":\"CREATE\",\"result\":\"EQUAL\",\"key\":\"{key}\",\"create_revision\":\"-1\"}}],\
             \"success\":[{{\"request_put\":{{\"key\":\"{key}\",\"value\":\"\"}}}}]}}"
        )
    );
}

/// The newest terms may have been given away in another order; what is no term of this pair's is none.
#[test]
fn a_look_shows_the_newest_term() {
    let mut look = Look::new("pair");
    look.want_newest(true);
    let request = String::from_utf8(look.request("h")).unwrap();
    let [first, end] = ["pollux/pair/", "pollux/pair0"].map(|key| base64::encode(key.as_bytes()));
    assert!(request.contains(&format!("\"range_end\":\"{end}\"")) && request.contains(&first), "{request}");
    let newest = |look: &Look, names: &[&str]| {
        let kvs = names.iter().map(|name| format!("{{\"key\":\"{}\"}}", base64::encode(name.as_bytes())));
        let kvs = kvs.collect::<Vec<_>>().join(",");
        let body = format!("{{\"header\":{{}},\"responses\":[{{\"response_range\":{{\"kvs\":[{kvs}]}}}}]}}");
        look.judge(body.as_bytes()).map(|seen| seen.newest)
    };
    assert_eq!(newest(&look, &[]), Ok(Some(Term(0))));
    let keys =
        ["pollux/pair/9", "pollux/pair/12", "pollux/pair/x", "pollux/other/99", "pollux/pair/18446744073709551615"];
    assert_eq!(newest(&look, &keys), Ok(Some(Term(12))));
    // Who does not look does not show.
    assert!(matches!(look.judge(b"{\"header\":{}}"), Err(Failure::Content(_))));
    look.want_newest(false);
    assert!(newest(&look, &keys).is_err());
}

#[test]
fn the_other_spelling_is_understood() {
    let put = "{\"succeeded\":true,\"responses\":[{\"responsePut\":{}}]}";
    assert_eq!(judge(put), Ok(Answer::Granted));
    let there = "{\"responses\":[{\"responseRange\":{\"kvs\":[{\"key\":\"cG9sbHV4L3BhaXIvNw==\",\
                 \"value\":\"MDAwMDAwMDAwMDAwMDBhYSBjYXN0b3I=\"}]}}]}";
    assert_eq!(judge(there), Ok(Answer::Taken { by: castor() }));
}

/// The answer of an arbiter that the twin does not ask is none, be it to a question or to a look.
#[test]
fn another_arbiter_does_not_count() {
    let (strange, stranger) = (ArbiterId(5), Failure::Stranger { agreed: ArbiterId(5), found: ETCD });
    for response in [MADE, THERE] {
        let asked = |agreed| outcome(&ask(7, 1).of(agreed), response.as_bytes(), &[10_000]);
        assert_eq!(asked(Some(strange)), Err(stranger.clone()));
        assert_eq!(asked(Some(ETCD)), asked(None));
        assert!(asked(None).is_ok());
    }
    let mut look = Look::new("pair");
    for (agreed, want) in
        [(Some(strange), Err(stranger)), (Some(ETCD), Ok(Some(Seen { arbiter: Some(ETCD), newest: None })))]
    {
        look.agree_on(agreed);
        assert_eq!(Try::default().receive(&look, LOOKED.as_bytes()), want);
    }
    // Who has no number cannot be told from others.
    let body = "{\"header\":{\"cluster_id\":\"x\"},\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}";
    assert_eq!(ask(7, 1).of(Some(strange)).judge(body.as_bytes()), Ok(Answer::Granted));
}

/// Whole names, so that no two pairs share a term; the largest question fits what callers buffer.
#[test]
fn long_names_are_not_cut() {
    let name = "x".repeat(crate::pairing::MAX_NAME);
    let long = |pair: &str| Question::new(pair, Term(u64::MAX), NodeId(u64::MAX), &name).request("h");
    assert!(long(&name).len() < 1200);
    let other = name.replacen('x', "y", 1);
    assert_ne!(long(&name), long(&other.chars().rev().collect::<String>()));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        response in prop::sample::select(vec![MADE, THERE]),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
        cuts in prop::collection::vec(1usize..60, 1..20),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = response.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        prop_assert_eq!(outcome(&ask(7, 1), &bytes, &cuts), outcome(&ask(7, 1), &bytes, &[usize::MAX]));
    }

    #[test]
    fn any_body_is_survived(bytes: Vec<u8>) {
        let _ = ask(7, 1).judge(&bytes);
        let _ = Look::new("pair").judge(&bytes);
    }

    /// A whole answer is never mistaken for its opposite because a part is missing.
    #[test]
    fn a_part_is_no_answer(response in prop::sample::select(vec![MADE, THERE]), keep in any::<prop::sample::Index>()) {
        let part = &response.as_bytes()[..keep.index(response.len())];
        prop_assert!(outcome(&ask(7, 1), part, &[7]).is_err());
    }
}

#[test]
fn a_look_that_succeeds_is_told_from_nonsense() {
    let made = br#"{"succeeded":true,"responses":[{"response_put":{}}]}"#;
    let why = |body: &[u8]| Look::new("pair").judge(body).unwrap_err().to_string();
    assert!(why(made).contains("what cannot be holds") && !why(b"{}").contains("what cannot be holds"));
}

#[test]
fn an_answer_says_one_thing() {
    assert_eq!(ask(7, 1).term(), Term(7));
    let key = r#"{"response_range":{"kvs":[{"key":"cG9sbHV4L3BhaXIvNw==","value":"eA=="}]}}"#;
    let taken = format!(r#"{{"responses":[{key}]}}"#);
    assert!(matches!(judge(&taken), Ok(Answer::Taken { .. })));
    assert_eq!(judge(&taken.replace("{\"responses", "{\"succeeded\":false,\"responses")), judge(&taken));
    for bad in [
        format!(r#"{{"succeeded":true,"responses":[{{"response_put":{{}}}},{key}]}}"#),
        format!(r#"{{"responses":[{key},{key}]}}"#),
        r#"{"responses":[{"response_range":{}}]}"#.into(),
        r#"{"succeeded":true,"succeeded":true,"responses":[{"response_put":{}}]}"#.into(),
        r#"{"succeeded":true,"responses":[{"response_put":{}}],"responses":[]}"#.into(),
    ] {
        assert!(judge(&bad).is_err(), "{bad}");
    }
}

/// Names of machines are bounded: nobody's is longer.
#[test]
fn a_winner_with_an_endless_name_is_cut() {
    let value = base64::encode(format!("00000000000000aa {}", "x".repeat(1000)).as_bytes());
    let body = format!(
        r#"{{"responses":[{{"response_range":{{"kvs":[{{"key":"cG9sbHV4L3BhaXIvNw==","value":"{value}"}}]}}}}]}}"#
    );
    let by = Winner { node: Some(NodeId(0xAA)), machine: "x".repeat(MAX_NAME) };
    assert_eq!(judge(&body), Ok(Answer::Taken { by }));
}

#[test]
fn a_winner_is_named_as_it_signed() {
    assert_eq!(castor().to_string(), "castor (node 00000000000000aa)");
    let stranger = Winner { node: None, machine: "x".into() };
    assert_eq!(stranger.to_string(), "'x', which is no machine's entry");
}

#[test]
fn failures_have_words_of_their_own() {
    use sealed::Unauthentic;
    let (agreed, found) = (ArbiterId(1), ArbiterId(2));
    let mut failures = vec![
        Failure::Content("what"),
        Failure::Unanswered,
        Failure::Told("why".into()),
        Failure::Stranger { agreed, found },
        Failure::Http(HttpError::Status(500)),
        Failure::Http(HttpError::Malformed),
        Failure::Http(HttpError::TooLarge),
        Failure::Http(HttpError::Truncated),
    ];
    let unauthentic = [
        Unauthentic::Malformed,
        Unauthentic::Tag,
        Unauthentic::Nonce,
        Unauthentic::Pair,
        Unauthentic::Term,
        Unauthentic::Node,
        Unauthentic::Query,
    ];
    failures.extend(unauthentic.map(Failure::Unauthentic));
    let words: alloc::collections::BTreeSet<_> = failures.iter().map(|failure| failure.to_string()).collect();
    assert!(words.len() == failures.len() && words.iter().all(|words| words.len() > 20), "{words:?}");
}
