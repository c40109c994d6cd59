//! A look at the arbiter: would a question be answered?

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::question::{Found, pair_prefix, post};
use super::sealed::{Call, Query, Verdict};
use super::{ArbiterId, Ask, Failure, base64, check_agreed};

/// "Would you give away a term?"
///
/// To an etcd it is a question whose comparison never holds, so that nothing is written, and whose write an arbiter judges all the
/// same: an etcd that is full, without a leader, or guarded by authentication refuses it as it would refuse a bid, and
/// for the same reason. A plain read would not tell: a full etcd answers it. (Its status page knows of alarms, but not
/// of permissions, nor whether a majority is there.) The key is no term's, so that not even an arbiter that does not
/// compare would give one away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    pair: String,
    agreed: Option<ArbiterId>,
}

impl Look {
    /// Looks for `pair`, whose name has at most [`MAX_NAME`](crate::pairing::MAX_NAME) bytes.
    #[must_use]
    pub fn new(pair: &str) -> Self {
        Self { pair: pair.into(), agreed: None }
    }

    /// From now on only this arbiter will do.
    pub fn agree_on(&mut self, agreed: Option<ArbiterId>) {
        self.agreed = agreed;
    }
}

impl Ask for Look {
    /// A question would be answered, by this arbiter if it has a number.
    type Answer = Option<ArbiterId>;

    fn request(&self, host: &str) -> Vec<u8> {
        let key = base64::encode((pair_prefix(&self.pair) + "look").as_bytes());
        // No key was created at a negative revision.
        post(
            host,
            &format!(
                "{{\"compare\":[{{\"target\":\"CREATE\",\"result\":\"EQUAL\",\"key\":\"{key}\",\"create_revision\":\"-1\"}}],\
                 \"success\":[{{\"request_put\":{{\"key\":\"{key}\",\"value\":\"\"}}}}]}}"
            ),
        )
    }

    fn judge(&self, body: &[u8]) -> Result<Option<ArbiterId>, Failure> {
        match Found::read(body, self.agreed)? {
            Found { header: true, succeeded: false, put: false, key: None, arbiter, .. } => Ok(arbiter),
            Found { succeeded: true, .. } => Err(Failure::Content("what cannot be holds there: it does not compare")),
            _ => Err(Failure::Content("it is not that of a transaction whose comparison fails")),
        }
    }

    fn call(&self) -> Call {
        Call { pair: self.pair.clone(), query: Query::Look }
    }

    fn heed(&self, arbiter: ArbiterId, verdict: Verdict) -> Result<Option<ArbiterId>, Failure> {
        check_agreed(self.agreed, arbiter)?;
        match verdict {
            Verdict::Well(_) => Ok(Some(arbiter)),
            _ => Err(Failure::Content("it is no answer to a look")),
        }
    }
}
