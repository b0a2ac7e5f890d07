use super::*;
use bytes::Bytes;
use dhow_types::{Rng, Time};
use std::collections::HashMap;

fn key(name: &str) -> Key {
    let mut parts = name.split('/');
    let mut part = || parts.next().unwrap_or_default();
    Key::new(part(), part(), part())
}

fn value(name: &str, extra: &str) -> Bytes {
    Bytes::from(format!("{{\"metadata\":{{\"name\":\"{name}\"{extra}}}}}"))
}

fn put(name: &str, expect: Expect) -> Op {
    Op::Put { key: key(name), value: value(name, ""), expect, expires: None }
}

fn delete(name: &str, expect: Expect) -> Op {
    Op::Delete { key: key(name), expect, last: None }
}

fn names<'a>(objects: impl Iterator<Item = &'a Arc<Object>>) -> Vec<String> {
    objects.map(|object| object.key.to_string()).collect()
}

/// A state in which `names` were put one after the other.
fn with(names: &[&str]) -> State {
    let mut state = State::new(HistoryMax::default());
    for (index, name) in (1..).zip(names) {
        state.apply(index, &Txn::one(put(name, Expect::Absent))).unwrap();
    }
    state
}

#[test]
fn expectations_decide() {
    let exists = || Err(Rejected::Exists { key: key("pods/a/x") });
    let missing = || Err(Rejected::Missing { key: key("pods/a/x") });
    let conflict = || Err(Rejected::Conflict { key: key("pods/a/x"), current: Revision(1) });
    type Ended = Result<(), Rejected>;
    // Expectation; then how a put and a delete end where the object is missing, and where it is at revision 1.
    let table: [(Expect, [Ended; 2], [Ended; 2]); 5] = [
        (Expect::Any, [Ok(()), Ok(())], [missing(), Ok(())]),
        (Expect::Absent, [Ok(()), exists()], [missing(), exists()]),
        (Expect::Present, [missing(), Ok(())], [missing(), Ok(())]),
        (Expect::At(Revision(1)), [missing(), Ok(())], [missing(), Ok(())]),
        (Expect::At(Revision(2)), [missing(), conflict()], [missing(), conflict()]),
    ];
    for (expect, puts, deletes) in table {
        for (op, [on_nothing, on_object]) in [(put("pods/a/x", expect), puts), (delete("pods/a/x", expect), deletes)] {
            for (mut state, want) in [(with(&["pods/b/y"]), on_nothing), (with(&["pods/a/x"]), on_object)] {
                let hash = state.hash();
                let got = state.apply(2, &Txn::one(op.clone()));
                assert_eq!(got.as_ref().map(|_| ()).map_err(Clone::clone), want, "{op:?}");
                assert_eq!(state.revision().0, 1 + u64::from(want.is_ok()));
                assert_eq!(state.hash() != hash, want.is_ok());
                assert_eq!(state.since(Revision(1)).unwrap().count(), usize::from(want.is_ok()));
            }
        }
    }
}

#[test]
fn a_transaction_is_done_whole_or_not_at_all() {
    let mut state = with(&["pods/a/x"]);
    let before = state.hash();
    let txn = Txn { ops: vec![put("pods/a/y", Expect::Absent), delete("pods/a/x", Expect::At(Revision(9)))] };
    assert!(matches!(state.apply(2, &txn), Err(Rejected::Conflict { .. })));
    assert_eq!((state.hash(), state.len(), state.revision().0), (before, 1, 1));

    let txn = Txn { ops: vec![put("pods/a/y", Expect::Absent), delete("pods/a/x", Expect::At(Revision(1)))] };
    let applied = state.apply(3, &txn).unwrap();
    assert_eq!(applied.revision, Revision(2));
    assert_eq!(names(applied.objects.iter()), ["pods/a/y", "pods/a/x"]);
    assert_eq!(names(state.iter()), ["pods/a/y"]);
    assert!(state.since(Revision(1)).unwrap().all(|change| change.revision == Revision(2)));
}

#[test]
fn senseless_transactions_are_refused() {
    let mut state = with(&["pods/a/x"]);
    let raw = |text: &'static str| Op::Put {
        key: key("pods/a/z"),
        value: Bytes::from_static(text.as_bytes()),
        expect: Expect::Any,
        expires: None,
    };
    let table = [
        (Txn { ops: vec![put("pods/a/z", Expect::Any), delete("pods/a/z", Expect::Any)] }, Malformed::Repeated),
        (Txn::one(raw("{")), Malformed::Json),
        (Txn::one(raw("{}")), Malformed::Metadata),
        (Txn::one(raw("[]")), Malformed::Metadata),
        (Txn::one(raw("{\"metadata\":[]}")), Malformed::Metadata),
    ];
    for (index, (txn, why)) in (2..).zip(table) {
        let got = state.apply(index, &txn);
        let why = |got| matches!(got, Rejected::Malformed { why: found, .. } if found == why);
        assert!(got.is_err_and(why), "{txn:?}");
    }
    assert_eq!(state.revision(), Revision(1));
    assert_eq!(state.apply(9, &Txn::default()).unwrap().revision, Revision(1));
    assert_eq!(state.index(), 9);
}

#[test]
fn changes_show_what_was_and_what_is() {
    let mut state = with(&["pods/a/x"]);
    let labelled = value("x", ",\"labels\":{\"a\":\"b\"}");
    let update = Op::Put { key: key("pods/a/x"), value: labelled, expect: Expect::Any, expires: None };
    state.apply(2, &Txn::one(update)).unwrap();
    let last = Some(value("x", ",\"finalizers\":[]"));
    state.apply(3, &Txn::one(Op::Delete { key: key("pods/a/x"), expect: Expect::Any, last })).unwrap();
    state.apply(4, &Txn::one(put("pods/a/y", Expect::Any))).unwrap();
    state.apply(5, &Txn::one(delete("pods/a/y", Expect::Any))).unwrap();
    let text = |object: &Object| String::from_utf8(object.json().to_vec()).unwrap();
    let seen: Vec<_> = state
        .since(Revision(1))
        .unwrap()
        .map(|change| (change.old.is_some(), change.new.is_some(), text(&change.last)))
        .collect();
    let want = [
        (true, true, r#"{"metadata":{"resourceVersion":"2","name":"x","labels":{"a":"b"}}}"#),
        (true, false, r#"{"metadata":{"resourceVersion":"3","name":"x","finalizers":[]}}"#),
        (false, true, r#"{"metadata":{"resourceVersion":"4","name":"pods/a/y"}}"#),
        (true, false, r#"{"metadata":{"resourceVersion":"5","name":"pods/a/y"}}"#),
    ];
    assert_eq!(seen, want.map(|(old, new, last)| (old, new, last.to_owned())));
    let labels = &state.since(Revision(1)).unwrap().next().unwrap().last.index.labels;
    assert_eq!(labels, &[("a".to_owned(), "b".to_owned())]);
}

#[test]
fn lists_are_ranges() {
    let state = with(&[
        "pods/a/x",
        "pods/a/y",
        "pods/ab/x",
        "pods/b/a",
        "pods/b/z",
        "nodes//n1",
        "podsx/a/q",
        "pod/a/q",
        "nodes//n2",
    ]);
    type After = Option<(&'static str, &'static str)>;
    let table: [(&str, Option<&str>, After, &[&str]); 12] = [
        ("pods", None, None, &["pods/a/x", "pods/a/y", "pods/ab/x", "pods/b/a", "pods/b/z"]),
        ("pods", Some("a"), None, &["pods/a/x", "pods/a/y"]),
        ("pods", Some("c"), None, &[]),
        ("nodes", None, None, &["nodes/n1", "nodes/n2"]),
        ("nodes", Some(""), None, &["nodes/n1", "nodes/n2"]),
        ("nodes", None, Some(("", "n1")), &["nodes/n2"]),
        ("pods", None, Some(("a", "y")), &["pods/ab/x", "pods/b/a", "pods/b/z"]),
        ("pods", None, Some(("a", "xx")), &["pods/a/y", "pods/ab/x", "pods/b/a", "pods/b/z"]),
        ("pods", Some("a"), Some(("a", "x")), &["pods/a/y"]),
        ("pods", Some("b"), Some(("a", "x")), &["pods/b/a", "pods/b/z"]),
        ("pods", Some("a"), Some(("b", "a")), &[]),
        ("nothing", None, None, &[]),
    ];
    for (resource, namespace, after, want) in table {
        assert_eq!(names(state.list_from(resource, namespace, after)), want, "{resource} {namespace:?} {after:?}");
        if after.is_none() {
            assert_eq!(state.count(resource, namespace), want.len());
        }
    }
}

fn id(object: &Arc<Object>) -> (String, Revision) {
    (object.key.to_string(), object.revision)
}

#[test]
fn older_lists_are_the_present_one_undone() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut state = State::new(HistoryMax { changes: 6, bytes: usize::MAX });
        let mut past: Vec<Vec<Arc<Object>>> = vec![Vec::new()];
        for index in 1..=100 {
            let txn = random_txn(&mut rng, state.revision().0);
            if state.apply(index, &txn).is_ok() && !txn.ops.is_empty() {
                past.push(state.iter().cloned().collect());
            }
        }
        for (revision, all) in past.iter().enumerate() {
            let revision = Revision(revision as u64);
            for namespace in [None, Some("0"), Some("1")] {
                for after in [None, Some(("0", "2")), Some(("0", "9"))] {
                    let want = all.iter().filter(|object| {
                        let key = &object.key;
                        &*key.resource == "pods"
                            && namespace.is_none_or(|namespace| &*key.namespace == namespace)
                            && after.is_none_or(|(ns, name)| (&*key.namespace, &*key.name) > (ns, name))
                    });
                    match state.list_at("pods", namespace, after, revision) {
                        Ok(got) => {
                            let (got, want): (Vec<_>, Vec<_>) = (got.map(id).collect(), want.map(id).collect());
                            assert_eq!(got, want, "seed {seed}, {revision} {namespace:?} {after:?}");
                        }
                        Err(compacted) => assert!(compacted.oldest > revision),
                    }
                }
            }
        }
        assert!(state.list_at("pods", None, None, Revision(0)).is_err(), "seed {seed}: the history is bounded");
    }
}

#[test]
fn objects_expire_when_their_last_writer_said() {
    let mut state = State::new(HistoryMax::default());
    let ms = Time::from_ms;
    let write = |state: &mut State, name: &str, expires: Option<i64>| {
        let (key, value) = (key(name), value(name, ""));
        let txn = Txn::one(Op::Put { key, value, expect: Expect::Any, expires: expires.map(Time::from_ms) });
        state.apply(state.index() + 1, &Txn::decode(txn.encode().into()).unwrap()).unwrap();
    };
    write(&mut state, "events/a/1", Some(300));
    write(&mut state, "events/a/2", Some(100));
    write(&mut state, "events/a/3", Some(200));
    write(&mut state, "events/a/4", None);
    assert_eq!(names(state.expired(ms(99))), Vec::<String>::new());
    assert_eq!(names(state.expired(ms(200))), ["events/a/2", "events/a/3"]);
    write(&mut state, "events/a/2", Some(400));
    write(&mut state, "events/a/3", None);
    assert_eq!(state.next_expiry(), Some(ms(300)));
    assert_eq!(names(state.expired(ms(999))), ["events/a/1", "events/a/2"]);
    let hash = state.hash();
    let kept = state.iter().map(|object| {
        let Object { key, revision, expires, .. } = &**object;
        Object::restore(key.clone(), *revision, object.json().clone()).unwrap().expiring(*expires)
    });
    let restored = State::restore(HistoryMax::default(), 9, state.revision(), kept);
    assert_eq!((restored.hash(), names(restored.expired(ms(999)))), (hash, names(state.expired(ms(999)))));
    state.apply(90, &Txn::one(delete("events/a/1", Expect::Any))).unwrap();
    assert_eq!(names(state.expired(ms(999))), ["events/a/2"]);
}

#[test]
fn the_history_is_bounded_and_says_so() {
    let mut state = State::new(HistoryMax { changes: 3, bytes: usize::MAX });
    for index in 1..=5 {
        state.apply(index, &Txn::one(put("pods/a/x", Expect::Any))).unwrap();
    }
    let revisions = |state: &State, after| -> Result<Vec<u64>, Compacted> {
        Ok(state.since(Revision(after))?.map(|change| change.revision.0).collect())
    };
    assert_eq!(revisions(&state, 2), Ok(vec![3, 4, 5]));
    assert_eq!(revisions(&state, 5), Ok(vec![]));
    assert_eq!(revisions(&state, 50), Ok(vec![]));
    assert_eq!(revisions(&state, 1), Err(Compacted { asked: Revision(1), oldest: Revision(2) }));
    // A transaction is remembered whole, however large.
    let many = (0..7).map(|n| put(&format!("pods/b/{n}"), Expect::Any)).collect();
    state.apply(6, &Txn { ops: many }).unwrap();
    assert_eq!(revisions(&state, 5), Ok(vec![6; 7]));
    assert!(revisions(&state, 4).is_err());

    let mut state = State::new(HistoryMax { changes: usize::MAX, bytes: 5_000 });
    for index in 1..=100 {
        state.apply(index, &Txn::one(put("pods/a/x", Expect::Any))).unwrap();
    }
    let kept = (0..100).find_map(|after| revisions(&state, after).ok()).unwrap().len();
    assert!((5..=12).contains(&kept), "{kept}");
    let restored = State::restore(HistoryMax::default(), 100, Revision(100), []);
    assert!(revisions(&restored, 99).is_err());
    assert_eq!(revisions(&restored, 100), Ok(vec![]));
}

/// What a state is, said as simply as possible.
#[derive(Default)]
struct Model {
    objects: HashMap<Key, (u64, Bytes)>,
    revision: u64,
    changes: Vec<(u64, Key, bool)>,
}

impl Model {
    fn accepts(&self, op: &Op) -> bool {
        let now = self.objects.get(op.key()).map(|(revision, _)| *revision);
        let expected = match op.expect() {
            Expect::Any => true,
            Expect::Absent => now.is_none(),
            Expect::Present => now.is_some(),
            Expect::At(revision) => now == Some(revision.0),
        };
        expected && (now.is_some() || matches!(op, Op::Put { .. }))
    }

    fn apply(&mut self, txn: &Txn) -> bool {
        let mut keys: Vec<_> = txn.ops.iter().map(Op::key).collect();
        keys.sort();
        keys.dedup();
        if keys.len() < txn.ops.len() || !txn.ops.iter().all(|op| self.accepts(op)) {
            return false;
        }
        self.revision += u64::from(!txn.ops.is_empty());
        for op in &txn.ops {
            self.changes.push((self.revision, op.key().clone(), matches!(op, Op::Put { .. })));
            match op {
                Op::Put { key, value, .. } => self.objects.insert(key.clone(), (self.revision, value.clone())),
                Op::Delete { key, .. } => self.objects.remove(key),
            };
        }
        true
    }
}

fn random_txn(rng: &mut Rng, revision: u64) -> Txn {
    let ops = (0..rng.below(4)).map(|_| {
        let name = format!("{}/{}/{}", ["pods", "nodes"][rng.below(2) as usize], rng.below(2), rng.below(5));
        let expect = match rng.below(5) {
            0 => Expect::Absent,
            1 => Expect::Present,
            2 => Expect::At(Revision(revision.saturating_sub(rng.below(8)))),
            _ => Expect::Any,
        };
        if rng.chance(1, 3) {
            return delete(&name, expect);
        }
        let label = format!(",\"labels\":{{\"a\":\"{}\"}}", rng.below(3));
        Op::Put { key: key(&name), value: value(&name, &label), expect, expires: None }
    });
    Txn { ops: ops.collect() }
}

#[test]
fn random_histories_agree_with_a_plain_model() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let mut state = State::new(HistoryMax::default());
        let mut prepared_state = State::new(HistoryMax::default());
        let mut model = Model::default();
        for index in 1..=300 {
            let txn = Txn::decode(random_txn(&mut rng, model.revision).encode().into()).unwrap();
            // What was read before its turn is applied as what is read then.
            let ended = match txn.clone().prepare() {
                Ok(prepared) => prepared_state.apply_prepared(index, prepared, &mut Vec::new()).map(|_| ()),
                Err(rejected) => {
                    prepared_state.apply_nothing(index);
                    Err(rejected)
                }
            };
            let applied = state.apply(index, &txn);
            assert_eq!(applied.is_ok(), model.apply(&txn), "seed {seed}, {txn:?}");
            assert_eq!((ended.is_ok(), prepared_state.hash()), (applied.is_ok(), state.hash()), "seed {seed}, {txn:?}");
            assert_eq!(state.revision().0, model.revision);
        }
        let mut want: Vec<_> = model.objects.iter().map(|(key, (revision, _))| (key.clone(), *revision)).collect();
        want.sort();
        let got: Vec<_> = state.iter().map(|object| (object.key.clone(), object.revision.0)).collect();
        assert_eq!(got, want, "seed {seed}");
        let changes: Vec<_> = state
            .since(Revision(0))
            .unwrap()
            .map(|change| (change.revision.0, change.key.clone(), change.new.is_some()))
            .collect();
        assert_eq!(changes, model.changes, "seed {seed}");
        // What a store would keep gives the same state back.
        let kept =
            state.iter().map(|object| Object::restore(object.key.clone(), object.revision, object.json().clone()));
        let restored = State::restore(HistoryMax::default(), 300, state.revision(), kept.map(Result::unwrap));
        assert_eq!(restored.hash(), state.hash(), "seed {seed}");
        assert_eq!(restored.count("pods", None), state.count("pods", None));
    }
}
