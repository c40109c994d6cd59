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

/// As etcd's: of a cluster of one, with one term.
pub fn header(store: &Store) -> Value {
    json!({ "cluster_id": "1", "member_id": "1", "revision": store.revision().to_string(), "raft_term": "1" })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with_store<T>(test: impl FnOnce(&mut Store) -> T) -> T {
        let directory = tempfile::tempdir().unwrap();
        test(&mut Store::open(&directory.path().join("file")).unwrap())
    }

    fn claim(key: &str, value: &str) -> String {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        json!({
            "compare": [{ "target": "CREATE", "result": "EQUAL", "key": key, "create_revision": "0" }],
            "success": [{ "request_put": { "key": key, "value": value } }],
            "failure": [{ "request_range": { "key": key } }],
        })
        .to_string()
    }

    #[test]
    fn the_first_one_wins() {
        with_store(|store| {
            let first = transaction(store, claim("pollux/p/1", "castor").as_bytes()).unwrap();
            assert_eq!(
                first,
                json!({
                    "header": { "cluster_id": "1", "member_id": "1", "revision": "2", "raft_term": "1" },
                    "succeeded": true,
                    "responses": [{ "response_put": { "header": { "revision": "2" } } }],
                })
            );
            let second = transaction(store, claim("pollux/p/1", "pollux").as_bytes()).unwrap();
            assert_eq!(second["succeeded"], Value::Null);
            let found = &second["responses"][0]["response_range"]["kvs"][0];
            assert_eq!((&found["value"], &found["create_revision"]), (&STANDARD.encode("castor").into(), &"2".into()));
        });
    }

    #[test]
    fn the_version_can_be_compared_too() {
        with_store(|store| {
            let key = STANDARD.encode("k");
            let put = json!([{ "request_put": { "key": key, "value": STANDARD.encode("v") } }]);
            let body = json!({ "compare": [{ "key": key, "version": 0 }], "success": put }).to_string();
            assert_eq!(transaction(store, body.as_bytes()).unwrap()["succeeded"], true);
            assert_eq!(transaction(store, body.as_bytes()).unwrap(), json!({ "header": header(store) }));
        });
    }

    /// The same claim in every way in which etcd, or a later one, takes it.
    #[test]
    fn all_spellings_mean_the_same() {
        let spellings = |key: &str, value: &str| {
            let url_safe = |text: &str| text.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned();
            let claim = |target: Value, result: Value, zero: Value, key: &str| {
                json!({
                    "compare": [{ "target": target, "result": result, "key": key, "createRevision": zero }],
                    "success": [{ "requestPut": { "key": key, "value": value } }],
                    "failure": [{ "requestRange": { "key": key, "rangeEnd": null } }],
                })
            };
            [
                claim("CREATE".into(), "EQUAL".into(), "0".into(), key),
                claim(1.into(), 0.into(), 0.into(), key),
                claim("CREATE".into(), Value::Null, Value::Null, &url_safe(key)),
                claim(1.into(), "EQUAL".into(), "-0".into(), key.trim_end_matches('=')),
            ]
        };
        // Their base64 has all of `+`, `/` and `=`.
        let (key, value) = (STANDARD.encode("k>>?~z"), STANDARD.encode("v??>>"));
        for first in 0..4 {
            with_store(|store| {
                let claims = spellings(&key, &value);
                let won = transaction(store, claims[first].to_string().as_bytes()).unwrap();
                assert_eq!(won["succeeded"], true);
                for other in claims {
                    let lost = transaction(store, other.to_string().as_bytes()).unwrap();
                    assert_eq!(lost["succeeded"], Value::Null, "{other}");
                    let found = &lost["responses"][0]["response_range"]["kvs"][0];
                    assert_eq!(
                        (found["key"].as_str(), found["value"].as_str()),
                        (Some(&*key), Some(&*value)),
                        "{other}"
                    );
                }
            });
        }
    }

    #[test]
    fn comparisons_are_those_of_etcd() {
        with_store(|store| {
            transaction(store, claim("k", "v").as_bytes()).unwrap();
            let mut holds = |compare: Value| {
                let body = json!({ "compare": [compare] }).to_string();
                transaction(store, body.as_bytes()).unwrap()["succeeded"] == true
            };
            let (key, none) = (STANDARD.encode("k"), STANDARD.encode("none"));
            for (compare, expected) in [
                (json!({ "key": key, "target": "CREATE", "create_revision": 2 }), true),
                (json!({ "key": key, "target": "CREATE", "create_revision": -1 }), false),
                (json!({ "key": none, "target": "CREATE", "create_revision": -1 }), false),
                (json!({ "key": none, "target": "CREATE", "version": 9 }), true),
                (json!({ "key": key, "target": "MOD", "result": "GREATER", "modRevision": 1 }), true),
                (json!({ "key": key, "target": 2, "result": 2, "mod_revision": 1 }), false),
                (json!({ "key": key, "result": "NOT_EQUAL", "version": 1 }), false),
                (json!({ "key": key, "target": "VALUE", "value": STANDARD.encode("v") }), true),
                (json!({ "key": key, "target": "VALUE", "result": 3, "value": STANDARD.encode("v") }), false),
                (json!({ "key": none, "target": "VALUE", "value": "" }), false),
                (json!({ "key": key, "target": "LEASE", "lease": 0 }), true),
            ] {
                assert_eq!(holds(compare.clone()), expected, "{compare}");
            }
            assert_eq!(transaction(store, b"").unwrap()["succeeded"], true);
        });
    }

    /// A look, as machines do it.
    #[test]
    fn it_can_be_found_out_whether_a_write_would_be_taken() {
        let look = |store: &mut Store| {
            let key = STANDARD.encode("pollux/p/look");
            let body = json!({
                "compare": [{ "target": "CREATE", "key": key, "create_revision": "-1" }],
                "success": [{ "request_put": { "key": key, "value": "" } }],
            });
            transaction(store, body.to_string().as_bytes())
        };
        with_store(|store| {
            assert_eq!(look(store).unwrap(), json!({ "header": header(store) }));
            assert_eq!(store.revision(), 1);
            store.set_limit(10);
            let error = look(store).unwrap_err();
            assert!(matches!(&error, CallError::Unwritable(_)) && error.to_string().contains("is full"), "{error}");
            let error = transaction(store, claim("k", "v").as_bytes()).unwrap_err();
            assert!(matches!(error, CallError::Unwritable(_)), "{error}");
        });
    }

    #[test]
    fn ranges_are_for_people() {
        with_store(|store| {
            for key in ["pollux/a/1", "pollux/a/2", "pollux/b/1"] {
                transaction(store, claim(key, "x").as_bytes()).unwrap();
            }
            let ask = |key: &str, end: &str| {
                let body = json!({ "key": STANDARD.encode(key), "range_end": STANDARD.encode(end) }).to_string();
                range(store, body.as_bytes()).unwrap()
            };
            assert_eq!(ask("pollux/a/", "pollux/a0")["count"], "2");
            assert_eq!(ask("pollux/b/1", "")["kvs"][0]["key"], STANDARD.encode("pollux/b/1"));
            assert_eq!(ask("q", "r")["kvs"], Value::Null);
            assert_eq!(ask("pollux/a/2", "\0")["count"], "2", "to the end of all keys");
            let ask = |more: Value| {
                let mut body = json!({ "key": "AA==", "rangeEnd": "AA==" });
                body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                range(store, body.to_string().as_bytes()).unwrap()
            };
            assert_eq!(ask(json!({ "countOnly": true })), json!({ "header": header(store), "count": "3" }));
            let two = ask(json!({ "limit": "2", "sort_order": "DESCEND", "keys_only": true }));
            assert_eq!((&two["count"], &two["more"]), (&json!("3"), &json!(true)));
            let keys: Vec<_> = two["kvs"].as_array().unwrap().iter().map(|kv| kv["key"].clone()).collect();
            assert_eq!(keys, ["pollux/b/1", "pollux/a/2"].map(|key| Value::from(STANDARD.encode(key))));
            assert_eq!(two["kvs"][0]["value"], Value::Null);
            for bad in ["{}", "[]", "{\"key\":\"AA==\",\"revision\":1}", "{\"key\":7}"] {
                assert!(range(store, bad.as_bytes()).is_err(), "{bad}");
            }
        });
    }

    #[test]
    fn what_is_not_known_is_refused_and_changes_nothing() {
        with_store(|store| {
            let key = STANDARD.encode("k");
            let put = json!({ "request_put": { "key": key, "value": key } });
            for body in [
                json!({ "success": [put, put] }),
                json!({ "success": [put], "failure": [put, put] }),
                json!({ "compares": [{ "key": key }], "success": [put] }),
                json!({ "compare": [{ "target": "mod", "key": key }], "success": [put] }),
                json!({ "compare": [{ "target": 5, "key": key }], "success": [put] }),
                json!({ "compare": [{ "target": "1", "key": key }], "success": [put] }),
                json!({ "compare": [{ "key": key, "range_end": key }], "success": [put] }),
                json!({ "compare": [{ "key": "!" }], "success": [put] }),
                json!({ "compare": [{ "version": "0" }], "success": [put] }),
                json!({ "compare": [{ "key": key, "version": 0.5 }], "success": [put] }),
                json!({ "compare": [{ "key": key, "version": "x" }], "success": [put] }),
                json!({ "compare": [{ "key": key, "version": 0, "createRevision": 0, "create_revision": 0 }], "success": [put] }),
                json!({ "compare": [{ "key": key, "version": u64::MAX }], "success": [put] }),
                json!({ "success": [{ "request_put": { "key": key }, "request_range": { "key": key } }] }),
                json!({ "success": [{ "request_put": { "value": key } }] }),
                json!({ "success": [put], "failure": [{ "request_range": {} }] }),
                json!({ "success": [{}] }),
                json!({ "success": [null] }),
                json!([[], [put]]),
                json!({ "success": [{ "request_delete_range": { "key": key } }] }),
                json!({ "success": [{ "request_put": { "key": key, "value": key, "lease": "1" } }] }),
                json!({ "success": [{ "request_put": { "key": STANDARD.encode([0xFF]), "value": key } }] }),
                json!(7),
                json!({ "compare": vec![json!({ "key": key }); 129], "success": [put] }),
            ] {
                assert!(transaction(store, body.to_string().as_bytes()).is_err(), "{body}");
            }
            assert_eq!(store.revision(), 1);
            let twice = json!({ "success": [put] }).to_string();
            assert!(transaction(store, twice.as_bytes()).is_ok());
            assert!(transaction(store, twice.as_bytes()).is_err(), "keys are written once");
        });
    }

    proptest! {
        #[test]
        fn any_body_is_survived(bytes: Vec<u8>) {
            with_store(|store| {
                let _ = transaction(store, &bytes);
                let _ = range(store, &bytes);
            });
        }
    }
}
