use serde_json::json;

use super::*;

const POD: &str = "io.k8s.api.core.v1.Pod";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
const SECRET: &str = "io.k8s.api.core.v1.Secret";
const LEASE: &str = "io.k8s.api.coordination.v1.Lease";

fn error(body: &str, type_name: &str, validation: Validation) -> String {
    let error = decode(body.as_bytes(), Media::Json, Some(type_name), validation).unwrap_err();
    assert_eq!(error.code, 400);
    error.message
}

#[test]
fn wrong_types_are_refused_in_upstreams_words() {
    let cases = [
        (
            DEPLOYMENT,
            r#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"replicas":"two"}}"#,
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"#,
        ),
        (
            DEPLOYMENT,
            r#"{"spec":{"replicas":1.5}}"#,
            r#"Deployment in version "v1" cannot be handled as a Deployment: json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32"#,
        ),
        (
            POD,
            r#"{"spec":{"containers":[{"name":"a","image":5}]}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field Container.spec.containers.image of type string"#,
        ),
        (
            POD,
            r#"{"spec":{"containers":{}}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"#,
        ),
        (
            POD,
            r#"{"spec":"x"}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec"#,
        ),
        (
            POD,
            r#"{"metadata":{"labels":{"a":1}}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string"#,
        ),
        (
            POD,
            r#"{"metadata":{"labels":[]}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal array into Go struct field ObjectMeta.metadata.labels of type map[string]string"#,
        ),
        (
            POD,
            r#"{"spec":{"restartPolicy":true}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal bool into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy"#,
        ),
        (
            POD,
            r#"{"spec":{"containers":[{"ports":[{"containerPort":99999999999}]}]}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number 99999999999 into Go struct field ContainerPort.spec.containers.ports.containerPort of type int32"#,
        ),
        (
            POD,
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"much"}}}]}}"#,
            r#"Pod in version "v1" cannot be handled as a Pod: quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$' (at spec.containers[0].resources.limits[cpu])"#,
        ),
        (
            SECRET,
            r#"{"data":{"a":"b*="}}"#,
            r#"Secret in version "v1" cannot be handled as a Secret: illegal base64 data at input byte 1 (at data[a])"#,
        ),
        (
            LEASE,
            r#"{"spec":{"renewTime":"yesterday"}}"#,
            r#"Lease in version "v1" cannot be handled as a Lease: parsing time "yesterday" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "yesterday" as "2006" (at spec.renewTime)"#,
        ),
        (
            POD,
            "[]",
            r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal array into Go value of type v1.Pod"#,
        ),
        (
            POD,
            r#"{"apiVersion":"v1","kind":"Service"}"#,
            r#"Service in version "v1" cannot be handled as a Pod: no kind "Service" is registered for version "v1""#,
        ),
        (
            POD,
            r#"{"apiVersion":"v2","kind":"Pod"}"#,
            "the API version in the data (v2) does not match the expected API version (v1)",
        ),
        (
            POD,
            "",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: EOF while parsing a value at line 1 column 0 (<empty>)",
        ),
        (
            POD,
            "{\"a\" 1}",
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: expected `:` at line 1 column 6 (7b2261222031 7d)",
        ),
    ];
    for (type_name, body, message) in cases {
        assert_eq!(error(body, type_name, Validation::Ignore), message.replace("2031 7d", "20317d"), "{body}");
    }
}

#[test]
fn unknown_and_duplicate_fields_are_what_the_mode_says() {
    let body = br#"{"apiVersion":"apps/v1","kind":"Deployment","spec":{"bogus":1,"replicas":1,"replicas":2,
        "template":{"spec":{"containers":[{"name":"a"},{"name":"b","imagee":"x"}]}}}}"#;
    let named = [
        r#"unknown field "spec.bogus""#,
        r#"unknown field "spec.template.spec.containers[1].imagee""#,
        r#"duplicate field "spec.replicas""#,
    ];
    let ignored = decode(body, Media::Json, Some(DEPLOYMENT), Validation::Ignore).unwrap();
    assert!(ignored.warnings.is_empty());
    assert_eq!(ignored.tree["spec"]["replicas"], json!(2));
    assert_eq!(ignored.tree["spec"]["bogus"], json!(1));
    let warned = decode(body, Media::Json, Some(DEPLOYMENT), Validation::Warn).unwrap();
    assert_eq!(warned.warnings, named);
    assert_eq!(
        error(std::str::from_utf8(body).unwrap(), DEPLOYMENT, Validation::Strict),
        format!(
            r#"Deployment in version "v1" cannot be handled as a Deployment: strict decoding error: {}"#,
            named.join(", ")
        )
    );
    let many: String = (0..80).map(|n| format!(r#","f{n}":1"#)).collect();
    let body = format!(r#"{{"kind":"Pod"{many}}}"#);
    let warned = decode(body.as_bytes(), Media::Json, Some(POD), Validation::Warn).unwrap();
    assert_eq!(warned.warnings.len(), NAMED_FIELDS_MAX + 1);
    assert_eq!(warned.warnings.last().unwrap(), "and 30 more");
}

#[test]
fn the_form_of_an_object_survives() {
    let text = r#"{"apiVersion":"v1","kind":"Pod","zeta":1.50,"alpha":{"x":null,"n":-0.0},"metadata":{"name":"p"},"spec":{"containers":[],"priority":12345678}}"#;
    let decoded = decode(text.as_bytes(), Media::Json, Some(POD), Validation::Ignore).unwrap();
    assert_eq!(decoded.tree.to_string(), text);
}

#[test]
fn null_is_absent_and_quantities_are_canonical() {
    let text = r#"{"metadata":{"name":"p","creationTimestamp":null,"labels":{"a":null}},"spec":{"containers":[
        {"name":"c","ports":null,"resources":{"limits":{"cpu":0.5,"memory":"1.5Gi"}}}]},"status":null}"#;
    let decoded = decode(text.as_bytes(), Media::Json, Some(POD), Validation::Strict).unwrap();
    assert_eq!(
        decoded.tree.to_string(),
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":""}},"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"500m","memory":"1536Mi"}}}]}}"#
    );
}

#[test]
fn yaml_is_read_as_upstream_converts_it() {
    let text = "
apiVersion: v1
kind: Pod
metadata:
  name: p
  labels: &l
    a: '1'
  annotations: *l
spec:
  terminationGracePeriodSeconds: 0x10
  containers:
  - name: c
    ports:
    - containerPort: 8080.0
    - containerPort: 81
";
    let decoded = decode(text.as_bytes(), Media::Yaml, Some(POD), Validation::Strict).unwrap();
    assert_eq!(
        decoded.tree.to_string(),
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","labels":{"a":"1"},"annotations":{"a":"1"}},"spec":{"terminationGracePeriodSeconds":16,"containers":[{"name":"c","ports":[{"containerPort":8080},{"containerPort":81}]}]}}"#
    );
    let twice = decode(b"kind: Pod\nspec: {}\nspec: {}\n1: 2\n", Media::Yaml, Some(POD), Validation::Warn).unwrap();
    assert_eq!(twice.warnings, [r#"unknown field "1""#, r#"duplicate field "spec""#]);
    for bad in ["a: [", "a: .nan", "a: !x 1", "a: 1\n---\nb: 2", "", "- 1", "\u{1}"] {
        assert!(decode(bad.as_bytes(), Media::Yaml, Some(POD), Validation::Ignore).is_err(), "{bad:?}");
    }
}

#[test]
fn octals_of_yaml_1_1_are_numbers_where_one_is_wanted() {
    let read = |mode: &str, media: Media| {
        let volume = format!(r#"{{"name": "v", "secret": {{"defaultMode": {mode}}}}}"#);
        let text = format!(r#"{{"metadata": {{"name": "0644"}}, "spec": {{"volumes": [{volume}]}}}}"#);
        decode(text.as_bytes(), media, Some(POD), Validation::Strict).map(|decoded| decoded.tree)
    };
    for (mode, expected) in [("0644", 420), ("00", 0), ("0o644", 420), ("420", 420), ("0", 0)] {
        let tree = read(mode, Media::Yaml).unwrap();
        assert_eq!(tree["spec"]["volumes"][0]["secret"]["defaultMode"], expected, "{mode}");
        assert_eq!(tree["metadata"]["name"], "0644");
    }
    for bad in ["0689", "abc", "'0x1a4'", "'420'", "0777777777777777777777777"] {
        assert!(read(bad, Media::Yaml).is_err(), "{bad}");
    }
    assert!(read("\"0644\"", Media::Json).is_err(), "JSON has no octals");
}

#[test]
fn bombs_are_refused() {
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(decode(deep.as_bytes(), Media::Json, Some(POD), Validation::Ignore).is_err());
    assert!(decode(deep.as_bytes(), Media::Yaml, Some(POD), Validation::Ignore).is_err());
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
    for n in 1..12 {
        let aliases = vec![format!("*a{}", n - 1); 9].join(",");
        bomb.push_str(&format!("a{n}: &a{n} [{aliases}]\n"));
    }
    assert!(decode(bomb.as_bytes(), Media::Yaml, None, Validation::Ignore).is_err());
    // Few levels and few aliases, and yet a hundred million values; or a long text a thousand times.
    let wide = format!("a: &a [{}]\nb: [{}]", "x,".repeat(10_000), "*a,".repeat(10_000));
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(10_000), "*a,".repeat(1_000));
    for bomb in [wide, long] {
        let error = decode(bomb.as_bytes(), Media::Yaml, None, Validation::Ignore).unwrap_err();
        assert!(error.message.contains("excessive aliasing"), "{}", error.message);
    }
}

#[test]
fn a_patched_tree_is_checked_without_being_changed() {
    let tree = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"nodeNam": "x"}});
    assert_eq!(check(&tree, POD, Validation::Warn).unwrap(), [r#"unknown field "spec.nodeNam""#]);
    assert_eq!(check(&tree, POD, Validation::Strict).unwrap_err().code, 400);
    let tree = json!({"spec": {"nodeName": 5}});
    assert_eq!(
        check(&tree, POD, Validation::Ignore).unwrap_err().message,
        r#"Pod in version "v1" cannot be handled as a Pod: json: cannot unmarshal number into Go struct field PodSpec.spec.nodeName of type string"#
    );
}

#[test]
fn spans_and_times_are_read_as_go_reads_them() {
    for (text, ns) in [
        ("1h30m", Some(5_400_000_000_000)),
        ("-1.5s", Some(-1_500_000_000)),
        ("0", Some(0)),
        ("1us", Some(1_000)),
        ("", None),
        ("5", None),
        (".s", None),
        ("1x", None),
        ("99999999999999999999h", None),
    ] {
        assert_eq!(duration_ns(text), ns, "{text}");
    }
    let time = |text: &str| {
        let body = json!({"metadata": {"creationTimestamp": text}}).to_string();
        decode(body.as_bytes(), Media::Json, Some(POD), Validation::Ignore).map_err(|error| error.message)
    };
    for good in ["2026-01-02T15:04:05Z", "2026-01-02T15:04:05.123Z", "2024-02-29T00:00:00+01:00"] {
        assert!(time(good).is_ok(), "{good}");
    }
    for (bad, why) in [
        ("2026-13-02T15:04:05Z", "month out of range"),
        ("2026-02-29T15:04:05Z", "day out of range"),
        ("2026-01-02 15:04:05Z", "cannot parse \" 15:04:05Z\" as \"T\""),
        ("2026-01-02T15:04:05", "cannot parse \"\" as \"Z07:00\""),
        ("2026-01-02T15:04:é", "cannot parse \"é\" as \"05\""),
    ] {
        assert!(time(bad).unwrap_err().contains(why), "{bad}: {:?}", time(bad));
    }
}

#[test]
fn a_patch_answers_only_for_what_it_brings() {
    let old = json!({"spec": {"nodeName": "n"}, "old": 1});
    let new = json!({"spec": {"nodeName": "n", "bogus": 1}, "old": 1});
    let patch = json!({"spec": {"bogus": 1}});
    let checked = |new: &Tree, validation| check_patched(new, &old, &patch, POD, validation);
    assert_eq!(checked(&new, Validation::Warn).unwrap(), [r#"unknown field "spec.bogus""#]);
    assert!(checked(&old, Validation::Strict).unwrap().is_empty());
    let error = checked(&new, Validation::Strict).unwrap_err();
    assert_eq!(error.code, 422);
    assert_eq!(
        error.message,
        r#" "" is invalid: patch: Invalid value: "{\"spec\":{\"bogus\":1}}": strict decoding error: unknown field "spec.bogus""#
    );
    let wrong = json!({"spec": {"nodeName": 5}});
    let error = checked(&wrong, Validation::Ignore).unwrap_err();
    assert_eq!(error.code, 422);
    assert!(error.message.contains("PodSpec.spec.nodeName of type string"), "{}", error.message);
}

#[test]
fn strange_bodies_do_not_panic() {
    const BYTES: &[u8] = b"{}[]\",:0aZ-\\\xc3&*\n #";
    let whole = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p","creationTimestamp":"2026-01-02T15:04:05Z"},
        "spec":{"containers":[{"name":"c","ports":[{"containerPort":80}],"resources":{"limits":{"cpu":"1"}}}]}}"#;
    let mut rng = dhow_types::Rng::new(3);
    for _ in 0..3_000 {
        let mut body = whole.to_vec();
        for _ in 0..=rng.below(5) {
            let at = rng.below(body.len() as u64) as usize;
            body[at] = BYTES[rng.below(BYTES.len() as u64) as usize];
        }
        for media in [Media::Json, Media::Yaml] {
            let _ = decode(&body, media, Some(POD), Validation::Warn);
        }
    }
}
