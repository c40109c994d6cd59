//! A look at the arbiter: would a question be answered?

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::question::{Found, pair_prefix, post};
use super::sealed::{Call, Query, Verdict};
use super::{ArbiterId, Ask, Failure, base64, check_agreed};
use crate::types::Term;

/// "Would you give away a term?"
///
/// To an etcd it is a question whose comparison never holds, so that nothing is written, and whose write an arbiter judges all the
/// same: an etcd that is full, without a leader, or guarded by authentication refuses it as it would refuse a bid, and
/// for the same reason. A plain read would not tell: a full etcd answers it. (Its status page knows of alarms, but not
/// of permissions, nor whether a majority is there.) The key is no term's, so that not even an arbiter that does not
/// compare would give one away.
///
/// It can ask which term is the newest, too, for a machine that may have to create a guest. The keys that were created last
/// are shown: a question that was long on its way may have come behind one for a later term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pair: String,
    /// Whether an etcd is asked which term is the newest; a Pollux arbiter says so in any case.
    newest: bool,
    agreed: Option<ArbiterId>,
}

impl Look {
    /// Looks for `pair`, whose name has at most [`MAX_NAME`](crate::pairing::MAX_NAME) bytes.
    #[must_use]
    pub fn new(pair: &str) -> Self {
        Self { pair: pair.into(), newest: false, agreed: None }
    }

    /// Whether to find out which term of the pair is the newest.
    pub fn want_newest(&mut self, wanted: bool) {
        self.newest = wanted;
    }

    /// From now on only this arbiter will do.
    pub fn agree_on(&mut self, agreed: Option<ArbiterId>) {
        self.agreed = agreed;
    }
}

/// How many of the newest keys are looked at, and the largest term that is one.
const NEWEST: usize = 16;
const LARGEST: u64 = u64::MAX / 2;

/// A question would be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// By this arbiter, if it has a number.
    pub arbiter: Option<ArbiterId>,
    /// The newest term that it gave away, 0 if it gave none; if that was asked.
    pub newest: Option<Term>,
}

impl Ask for Look {
    type Answer = Seen;

    fn request(&self, host: &str) -> Vec<u8> {
        let prefix = pair_prefix(&self.pair);
        let key = base64::encode(format!("{prefix}look").as_bytes());
        let newest = self.newest.then(|| {
            // Behind '/' comes '0'.
            let end = format!("{}0", &prefix[..prefix.len() - 1]);
            let (first, end) = (base64::encode(prefix.as_bytes()), base64::encode(end.as_bytes()));
            format!(
                ",\"failure\":[{{\"request_range\":{{\"key\":\"{first}\",\"range_end\":\"{end}\",\"keys_only\":true,\
                 \"sort_target\":\"CREATE\",\"sort_order\":\"DESCEND\",\"limit\":\"{NEWEST}\"}}}}]"
            )
        });
        let newest = newest.unwrap_or_default();
        // No key was created at a negative revision.
        post(
            host,
            &format!(
                "{{\"compare\":[{{\"target\":\"CREATE\",\"result\":\"EQUAL\",\"key\":\"{key}\",\"create_revision\":\"-1\"}}],\
                 \"success\":[{{\"request_put\":{{\"key\":\"{key}\",\"value\":\"\"}}}}]{newest}}}"
            ),
        )
    }

    fn judge(&self, body: &[u8]) -> Result<Seen, Failure> {
        match (Found::read(body, self.agreed)?, self.newest) {
            (Found { header: true, succeeded: false, put: false, range: true, keys, arbiter, .. }, true) => {
                let prefix = pair_prefix(&self.pair);
                let newest = keys.iter().filter_map(|key| term(&base64::decode(key)?, prefix.as_bytes())).max();
                Ok(Seen { arbiter, newest: Some(newest.unwrap_or(Term(0))) })
            }
            (Found { header: true, succeeded: false, put: false, range: false, arbiter, .. }, false) => {
                Ok(Seen { arbiter, newest: None })
            }
            (Found { succeeded: true, .. }, _) => {
                Err(Failure::Content("what cannot be holds there: it does not compare"))
            }
            _ => Err(Failure::Content("it is not that of a transaction whose comparison fails")),
        }
    }

    fn call(&self) -> Call {
        Call { pair: self.pair.clone(), query: Query::Look }
    }

    fn heed(&self, arbiter: ArbiterId, verdict: Verdict) -> Result<Seen, Failure> {
        check_agreed(self.agreed, arbiter)?;
        match verdict {
            Verdict::Well(newest) => {
                let newest = newest.map_or(Term(0), |(term, _)| term);
                Ok(Seen { arbiter: Some(arbiter), newest: Some(newest) })
            }
            _ => Err(Failure::Content("it is no answer to a look")),
        }
    }
}

/// The term whose key this is, among those that begin with `first`.
fn term(key: &[u8], first: &[u8]) -> Option<Term> {
    let number: u64 = core::str::from_utf8(key.strip_prefix(first)?).ok()?.parse().ok()?;
    (number <= LARGEST).then_some(Term(number))
}
