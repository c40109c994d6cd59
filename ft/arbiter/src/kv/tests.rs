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
                "header": { "cluster_id": store.cluster().to_string(), "member_id": "1", "revision": "2", "raft_term": "1" },
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
                assert_eq!((found["key"].as_str(), found["value"].as_str()), (Some(&*key), Some(&*value)), "{other}");
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
