//! The toolbox as a pod has it: its own tests run its sources natively, without WASI between it and the files.

use dhow_runtime_contract::ExitReason;

use crate::rig::{Net, guests, rig, run, with_data};

#[tokio::test]
async fn the_toolbox_does_in_a_pod_what_it_does_natively() {
    let dir = tempfile::tempdir().unwrap();
    let path = guests().join("../../runtime/toolbox/toolbox.wasm");
    let toolbox = rig().engine.load(&path, "sha256:toolbox").await.unwrap();
    for (script, code, said) in [
        ("yes | head -n 2; head -c 5 /dev/urandom | wc -c; seq 3 | sha256sum | cut -c 1-8", 0, "y\ny\n5\n14c5e74c\n"),
        (
            "seq 9999 >/data/f; wc -l </data/f; sed -n '$p' /data/f | tee /data/g; stat -c %s /data/g",
            0,
            "9999\n9999\n5\n",
        ),
        ("cat /dev/zero | head -c 20000000 | wc -c; echo x 2>/dev/null >/nowhere/x || echo no", 0, "20000000\nno\n"),
        // What waits to be written is written at the end.
        ("exec >/data/end; echo one; echo two; exit 3", 3, ""),
        ("cat /data/end; while :; do printf '%0100000d' 1 || break; done 2>/dev/null | wc -c", 1, "one\ntwo\n"),
    ] {
        let (exit, output) =
            run(&toolbox, with_data(dir.path(), false, &["sh", "-c", script]), Net::new().pod(2)).await;
        let reason = if code == 0 { ExitReason::Completed } else { ExitReason::Error };
        assert_eq!((exit.code, exit.reason, output.as_str()), (code, reason, said), "{script}: {exit:?}");
    }
}
