//! The piece of etcd's v3 JSON gateway that the arbiter speaks: transactions that create keys, and ranges to look at.
//! See: etcd 3.4, `rpc.proto`; Protocol Buffers, "JSON Mapping".
//!
//! Names are taken in both spellings (`create_revision`, `createRevision`), numbers and enumerations as numbers or
//! text, bytes in base64 of either alphabet. A key that exists is never written again, unlike in etcd; and what we do
//! not know is refused, while etcd ignores what *it* does not know: a misspelt `compare` would grant every term.

use std::fmt;

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::store::{Record, Store};

/// Comparisons, or operations, in one transaction.
const MAX_LIST: usize = 128;
/// Keys in one answer.
const MAX_KEYS: usize = 10_000;

/// Why a call is not carried out. Nothing was written then.
#[derive(Debug)]
pub enum CallError {
    /// It is malformed, or not of the kind that we know.
    Bad(String),
    /// Nothing can be written any more.
    Unwritable(anyhow::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(text) => f.write_str(text),
            Self::Unwritable(error) => write!(f, "{error:#}"),
        }
    }
}

fn bad(text: impl Into<String>) -> CallError {
    CallError::Bad(text.into())
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(default, deserialize_with = "or_default")]
    compare: Vec<Compare>,
    #[serde(default, deserialize_with = "or_default")]
    success: Vec<Operation>,
    #[serde(default, deserialize_with = "or_default")]
    failure: Vec<Operation>,
}

/// "How does that, of this key, compare to what is given?"
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compare {
    #[serde(default)]
    target: Target,
    #[serde(default)]
    result: Relation,
    #[serde(default, deserialize_with = "bytes")]
    key: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    version: i64,
    #[serde(default, alias = "createRevision", deserialize_with = "number")]
    create_revision: i64,
    #[serde(default, alias = "modRevision", deserialize_with = "number")]
    mod_revision: i64,
    #[serde(default, deserialize_with = "number")]
    lease: i64,
    #[serde(default, deserialize_with = "some_bytes")]
    value: Option<Vec<u8>>,
}

/// An enumeration: each value has a name and, by its place, a number.
macro_rules! enumeration {
    ($(#[$meta:meta])* $name:ident { $first:ident = $first_text:literal $(, $value:ident = $text:literal)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        enum $name {
            #[default]
            $first
            $(, $value)*
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                enumerated(deserializer, &[($first_text, Self::$first) $(, ($text, Self::$value))*])
            }
        }
    };
}

enumeration! {
    /// What of a key is compared.
    Target { Version = "VERSION", Create = "CREATE", Mod = "MOD", Value = "VALUE", Lease = "LEASE" }
}

enumeration! {
    /// How it must compare.
    Relation { Equal = "EQUAL", Greater = "GREATER", Less = "LESS", NotEqual = "NOT_EQUAL" }
}

enumeration! {
    /// In which order keys are listed.
    Order { None = "NONE", Ascend = "ASCEND", Descend = "DESCEND" }
}

enumeration! {
    /// By what they are ordered.
    Sort { Key = "KEY", Version = "VERSION", Create = "CREATE", Mod = "MOD", Value = "VALUE" }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    #[serde(alias = "requestPut")]
    RequestPut(Put),
    #[serde(alias = "requestRange")]
    RequestRange(Range),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    #[serde(default, deserialize_with = "bytes")]
    key: Vec<u8>,
    #[serde(default, deserialize_with = "bytes")]
    value: Vec<u8>,
}

/// The keys from `key` to `range_end`; without it, that one key; all from `key` on if it is a zero byte.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    #[serde(default, deserialize_with = "bytes")]
    key: Vec<u8>,
    #[serde(default, alias = "rangeEnd", deserialize_with = "bytes")]
    range_end: Vec<u8>,
    #[serde(default, deserialize_with = "number")]
    limit: i64,
    #[serde(default, alias = "sortOrder")]
    sort_order: Order,
    #[serde(default, alias = "sortTarget")]
    sort_target: Sort,
    /// All that is answered is on the disk already.
    #[serde(default, rename = "serializable", deserialize_with = "or_default")]
    _serializable: bool,
    #[serde(default, alias = "keysOnly", deserialize_with = "or_default")]
    keys_only: bool,
    #[serde(default, alias = "countOnly", deserialize_with = "or_default")]
    count_only: bool,
}

/// `null` stands for the default.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn some_bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
    const EITHER: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const ENGINE: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, EITHER);
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    let text = text.replace('-', "+").replace('_', "/");
    ENGINE.decode(text).map(Some).map_err(D::Error::custom)
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    some_bytes(deserializer).map(Option::unwrap_or_default)
}

/// 64-bit numbers may be text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = match &value {
        Value::Null => Some(0),
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    number.ok_or_else(|| D::Error::custom(format!("{value} is not an integer of 64 bits")))
}

fn enumerated<'de, T: Copy + Default, D: Deserializer<'de>>(
    deserializer: D,
    values: &[(&str, T)],
) -> Result<T, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let found = match &value {
        Value::Null => return Ok(T::default()),
        Value::String(text) => values.iter().find(|(name, _)| name == text),
        number => number.as_u64().and_then(|place| values.get(usize::try_from(place).ok()?)),
    };
    let names = || values.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    found.map(|(_, value)| *value).ok_or_else(|| D::Error::custom(format!("{value} is none of {}", names())))
}

/// The message in a body. As in etcd, nothing is as good as `{}`.
fn parse<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, CallError> {
    let body = match body.trim_ascii() {
        b"" | b"null" => b"{}",
        body => body,
    };
    // Structures could be read from arrays, too.
    let parsed = match body {
        [b'{', ..] => serde_json::from_slice(body),
        _ => Err(serde_json::Error::custom("it is not a JSON object")),
    };
    parsed.map_err(|error| bad(format!("not a {what} that this arbiter knows: {error}")))
}

/// Carries out the transaction in `body`.
///
/// # Errors
/// See [`CallError`].
pub fn transaction(store: &mut Store, body: &[u8]) -> Result<Value, CallError> {
    let Transaction { compare, success, failure } = parse(body, "transaction")?;
    let lists = [compare.len(), success.len(), failure.len()];
    if lists.iter().any(|&length| length > MAX_LIST) {
        return Err(bad("etcdserver: too many operations in txn request"));
    }
    for compare in &compare {
        named(&compare.key)?;
    }
    let mut writes = false;
    for branch in [&success, &failure] {
        writes |= check(branch)?;
    }
    if writes {
        // As etcd: also if it is the other branch. So a machine can find out whether a write would be taken.
        store.check_writable().map_err(CallError::Unwritable)?;
    }
    let succeeded = compare.iter().all(|compare| compare.holds(store));
    let operations = if succeeded { &success } else { &failure };
    let responses = operations.iter().map(|operation| operation.run(store)).collect::<Result<Vec<_>, _>>()?;
    let mut answer = json!({ "header": header(store) });
    // As in etcd's JSON, what is false or empty is left out.
    if succeeded {
        answer["succeeded"] = true.into();
    }
    if !responses.is_empty() {
        answer["responses"] = responses.into();
    }
    Ok(answer)
}

/// Checks a branch before anything is done; whether it writes.
fn check(branch: &[Operation]) -> Result<bool, CallError> {
    let mut puts = 0;
    for operation in branch {
        match operation {
            Operation::RequestPut(put) => {
                named(&put.key)?;
                puts += 1;
            }
            Operation::RequestRange(range) => range.check()?,
        }
    }
    // Two could not be made at once.
    if puts > 1 { Err(bad("more than one write in a branch is not supported by this arbiter")) } else { Ok(puts > 0) }
}

fn named(key: &[u8]) -> Result<(), CallError> {
    if key.is_empty() { Err(bad("etcdserver: key is not provided")) } else { Ok(()) }
}

/// Answers the range in `body`.
///
/// # Errors
/// When it is malformed or not of the kind that we know.
pub fn range(store: &Store, body: &[u8]) -> Result<Value, CallError> {
    let range: Range = parse(body, "range")?;
    range.check()?;
    Ok(range.run(store))
}

fn get<'a>(store: &'a Store, key: &[u8]) -> Option<&'a Record> {
    std::str::from_utf8(key).ok().and_then(|key| store.get(key))
}

impl Compare {
    /// What does not exist has the numbers 0 and no value, which nothing compares to.
    fn holds(&self, store: &Store) -> bool {
        let record = get(store, &self.key);
        let revision = record.map_or(0, |record| record.revision as i64);
        let ordering = match self.target {
            Target::Create => revision.cmp(&self.create_revision),
            Target::Mod => revision.cmp(&self.mod_revision),
            Target::Version => i64::from(record.is_some()).cmp(&self.version),
            Target::Lease => 0.cmp(&self.lease),
            Target::Value => match record {
                Some(record) => record.value.as_bytes().cmp(self.value.as_deref().unwrap_or_default()),
                None => return false,
            },
        };
        match self.result {
            Relation::Equal => ordering.is_eq(),
            Relation::NotEqual => ordering.is_ne(),
            Relation::Greater => ordering.is_gt(),
            Relation::Less => ordering.is_lt(),
        }
    }
}

impl Operation {
    fn run(&self, store: &mut Store) -> Result<Value, CallError> {
        match self {
            Self::RequestPut(put) => {
                let text =
                    |bytes| std::str::from_utf8(bytes).map_err(|_| bad("this arbiter keeps printable ASCII only"));
                let created = store.create(text(&put.key)?, text(&put.value)?);
                created.map_err(|error| match store.check_writable() {
                    Ok(()) => bad(format!("{error:#}")),
                    Err(_) => CallError::Unwritable(error),
                })?;
                Ok(json!({ "response_put": { "header": { "revision": store.revision().to_string() } } }))
            }
            Self::RequestRange(range) => {
                let mut answer = range.run(store);
                answer["header"] = json!({ "revision": store.revision().to_string() });
                Ok(json!({ "response_range": answer }))
            }
        }
    }
}

impl Range {
    fn check(&self) -> Result<(), CallError> {
        named(&self.key)
    }

    fn run(&self, store: &Store) -> Value {
        let mut found: Vec<_> = match self.range_end.as_slice() {
            [] => get(store, &self.key).into_iter().map(|record| (self.key.as_slice(), record)).collect(),
            end => {
                let all = store.range("", None).map(|(key, record)| (key.as_bytes(), record));
                // A zero byte means to the end of all keys.
                all.filter(|(key, _)| *key >= self.key.as_slice() && (end == [0] || *key < end)).collect()
            }
        };
        let count = found.len();
        match self.sort_target {
            // They are in this order; all have the version 1.
            Sort::Key | Sort::Version => {}
            Sort::Create | Sort::Mod => found.sort_by_key(|(_, record)| record.revision),
            Sort::Value => found.sort_by(|a, b| a.1.value.cmp(&b.1.value)),
        }
        if self.sort_order == Order::Descend {
            found.reverse();
        }
        let limit = usize::try_from(self.limit).ok().filter(|&limit| limit > 0).unwrap_or(MAX_KEYS).min(MAX_KEYS);
        found.truncate(if self.count_only { 0 } else { limit });
        let mut answer = json!({ "header": header(store) });
        if !found.is_empty() {
            let more = found.len() < count;
            answer["kvs"] = found.iter().map(|(key, record)| entry(key, record, self.keys_only)).collect();
            if more {
                answer["more"] = true.into();
            }
        }
        if count > 0 {
            answer["count"] = count.to_string().into();
        }
        answer
    }
}

fn entry(key: &[u8], record: &Record, key_only: bool) -> Value {
    let revision = record.revision.to_string();
    let mut entry = json!({
        "key": STANDARD.encode(key), "create_revision": revision, "mod_revision": revision, "version": "1",
    });
    if !key_only && !record.value.is_empty() {
        entry["value"] = STANDARD.encode(&record.value).into();
    }
    entry
}

/// As etcd's: of a cluster of one, with one term. The cluster's number is the file's.
pub fn header(store: &Store) -> Value {
    let cluster = store.cluster().to_string();
    json!({ "cluster_id": cluster, "member_id": "1", "revision": store.revision().to_string(), "raft_term": "1" })
}

#[cfg(test)]
mod tests;
