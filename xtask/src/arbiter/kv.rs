//! The piece of etcd's v3 JSON gateway that the arbiter speaks: transactions that create a key, and ranges to look at.
//! See: etcd 3.4, `rpc.proto`.
//!
//! Keys and values are base64. What etcd knows and we do not is refused, never ignored.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::store::{Record, Store};

/// Comparisons, or operations, in one transaction.
const MAX_LIST: usize = 8;
/// Keys in one answer.
const MAX_KEYS: usize = 1000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(default)]
    compare: Vec<Compare>,
    #[serde(default)]
    success: Vec<Operation>,
    #[serde(default)]
    failure: Vec<Operation>,
}

/// "Is this key's number equal to that?", where the number of an absent key is 0.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compare {
    #[serde(default)]
    target: Target,
    #[serde(default, rename = "result")]
    _result: Relation,
    #[serde(deserialize_with = "text")]
    key: String,
    #[serde(default, deserialize_with = "number")]
    create_revision: u64,
    #[serde(default, deserialize_with = "number")]
    version: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Target {
    #[default]
    Version,
    Create,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Relation {
    #[default]
    Equal,
}

#[derive(Debug, Deserialize)]
enum Operation {
    #[serde(rename = "request_put")]
    Put(Put),
    #[serde(rename = "request_range")]
    Range(Range),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Put {
    #[serde(deserialize_with = "text")]
    key: String,
    #[serde(deserialize_with = "text")]
    value: String,
}

/// The keys from `key` to `range_end`; without it, that one key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    #[serde(deserialize_with = "text")]
    key: String,
    #[serde(default, deserialize_with = "text")]
    range_end: String,
}

fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let encoded = String::deserialize(deserializer)?;
    let bytes = STANDARD.decode(encoded).map_err(serde::de::Error::custom)?;
    String::from_utf8(bytes).map_err(serde::de::Error::custom)
}

/// 64-bit numbers may be strings. See: Protocol Buffers, "JSON Mapping".
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Text(String),
        Plain(u64),
    }
    match Number::deserialize(deserializer)? {
        Number::Text(text) => text.parse().map_err(serde::de::Error::custom),
        Number::Plain(value) => Ok(value),
    }
}

/// Carries out the transaction in `body`.
///
/// # Errors
/// When it is malformed or not of the kind that we know; nothing was written then. Or when the disk fails.
pub fn transaction(store: &mut Store, body: &[u8]) -> Result<Value> {
    let transaction: Transaction = serde_json::from_slice(body).context("not a transaction that this arbiter knows")?;
    let Transaction { compare, success, failure } = transaction;
    let lists = [compare.len(), success.len(), failure.len()];
    ensure!(lists.iter().all(|&length| length <= MAX_LIST), "more than {MAX_LIST} comparisons or operations");
    let succeeded = compare.iter().all(|compare| compare.holds(store));
    let operations = if succeeded { &success } else { &failure };
    // One write only: two could not be made at once.
    let puts = operations.iter().filter(|operation| matches!(operation, Operation::Put(_))).count();
    ensure!(puts <= 1, "more than one write in a transaction");
    let responses = operations.iter().map(|operation| operation.run(store)).collect::<Result<Vec<_>>>()?;
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

/// Answers the range in `body`.
///
/// # Errors
/// When it is malformed or not of the kind that we know.
pub fn range(store: &Store, body: &[u8]) -> Result<Value> {
    let range: Range = serde_json::from_slice(body).context("not a range that this arbiter knows")?;
    Ok(range.run(store))
}

impl Compare {
    fn holds(&self, store: &Store) -> bool {
        let record = store.get(&self.key);
        match self.target {
            Target::Create => record.map_or(0, |record| record.revision) == self.create_revision,
            Target::Version => u64::from(record.is_some()) == self.version,
        }
    }
}

impl Operation {
    fn run(&self, store: &mut Store) -> Result<Value> {
        match self {
            Self::Put(put) => {
                store.create(&put.key, &put.value)?;
                Ok(json!({ "response_put": { "header": { "revision": store.revision().to_string() } } }))
            }
            Self::Range(range) => Ok(json!({ "response_range": range.run(store) })),
        }
    }
}

impl Range {
    fn run(&self, store: &Store) -> Value {
        let found: Vec<_> = if self.range_end.is_empty() {
            store.get(&self.key).into_iter().map(|record| entry(&self.key, record)).collect()
        } else {
            let keys = store.range(&self.key, Some(&self.range_end)).take(MAX_KEYS);
            keys.map(|(key, record)| entry(key, record)).collect()
        };
        let mut answer = json!({ "header": header(store) });
        if !found.is_empty() {
            answer["count"] = found.len().to_string().into();
            answer["kvs"] = found.into();
        }
        answer
    }
}

fn entry(key: &str, record: &Record) -> Value {
    let revision = record.revision.to_string();
    json!({
        "key": STANDARD.encode(key), "create_revision": revision, "mod_revision": revision, "version": "1",
        "value": STANDARD.encode(&record.value),
    })
}

fn header(store: &Store) -> Value {
    json!({ "revision": store.revision().to_string() })
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
                    "header": { "revision": "2" }, "succeeded": true,
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
            assert_eq!(transaction(store, body.as_bytes()).unwrap(), json!({ "header": { "revision": "2" } }));
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
        });
    }

    #[test]
    fn what_is_not_known_is_refused_and_changes_nothing() {
        with_store(|store| {
            let key = STANDARD.encode("k");
            let put = json!({ "request_put": { "key": key, "value": key } });
            for body in [
                json!({ "success": [put, put] }),
                json!({ "compare": [{ "target": "MOD", "key": key }], "success": [put] }),
                json!({ "compare": [{ "result": "GREATER", "key": key }], "success": [put] }),
                json!({ "compare": [{ "key": "!" }], "success": [put] }),
                json!({ "compare": [{ "key": key, "version": -1 }], "success": [put] }),
                json!({ "success": [{ "request_delete_range": { "key": key } }] }),
                json!({ "success": [{ "request_put": { "key": key, "value": key, "lease": "1" } }] }),
                json!({ "success": [{ "request_put": { "key": STANDARD.encode([0xFF]), "value": key } }] }),
                json!(7),
                json!({ "success": vec![put.clone(); 9] }),
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
