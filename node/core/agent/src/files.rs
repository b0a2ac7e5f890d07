//! The small files that every container has, and what one of them says at its end.

use std::net::IpAddr;

use dhow_runtime_contract::Exit;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::env;

/// What is taken of a termination message, as a kubelet does: of the file…
pub const MESSAGE_BYTES_MAX: u64 = 4096;
/// …and of the log in its stead.
pub const MESSAGE_LOG_LINES: u64 = 80;
/// The end of those lines, in bytes.
pub const MESSAGE_LOG_BYTES_MAX: usize = 2048;
/// The path of a container that names none.
const MESSAGE_PATH: &str = "/dev/termination-log";

/// Path and first content of each file that the container has, whatever its image and volumes hold.
pub fn own_files(pod: &Pod, container: &Container, ip: IpAddr) -> Vec<(String, String)> {
    vec![
        ("/etc/hosts".to_owned(), hosts(pod, ip)),
        ("/etc/hostname".to_owned(), format!("{}\n", env::hostname(pod))),
        (message_path(container).to_owned(), String::new()),
    ]
}

/// Where the container leaves a last word.
pub fn message_path(container: &Container) -> &str {
    container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(MESSAGE_PATH)
}

/// Whether the log stands in for a message that was not left, if the container failed.
pub fn falls_back_to_log(container: &Container) -> bool {
    container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
}

/// The message of an ended container: what it left in its file, else the end of its log if that was asked for, else
/// what the runtime says.
pub fn message(exit: &Exit, left: String, log: String) -> String {
    [left, log].into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| exit.message.clone())
}

/// Names and addresses that the pod's spec adds to those of the cluster.
pub fn host_aliases(pod: &Pod) -> Vec<(String, IpAddr)> {
    let aliases = pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten());
    let names = aliases.filter_map(|alias| {
        let ip: IpAddr = alias.ip.parse().ok()?;
        Some(alias.hostnames.iter().flatten().map(move |name| (name.clone(), ip)))
    });
    names.flatten().collect()
}

fn hosts(pod: &Pod, ip: IpAddr) -> String {
    let mut text = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned();
    text.push_str(&format!("{ip}\t{}\n", env::hostname(pod)));
    for alias in pod.spec.iter().flat_map(|spec| spec.host_aliases.iter().flatten()) {
        let names: Vec<&str> = alias.hostnames.iter().flatten().map(String::as_str).collect();
        text.push_str(&format!("{}\t{}\n", alias.ip, names.join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhow_runtime_contract::ExitReason;
    use dhow_types::Time;
    use serde_json::json;

    fn container(fields: serde_json::Value) -> Container {
        let mut container = json!({"name": "c"});
        container.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(container).unwrap()
    }

    #[test]
    fn the_hosts_file_has_the_pod_and_its_aliases() {
        let aliases = json!([{"ip": "192.0.2.9", "hostnames": ["db", "db.old"]}, {"ip": "bad", "hostnames": ["x"]}]);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web"}, "spec": {"containers": [], "hostAliases": aliases},
        }))
        .unwrap();
        let files = own_files(&pod, &container(json!({})), [10, 64, 0, 2].into());
        let names: Vec<_> = files.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(names, ["/etc/hosts", "/etc/hostname", "/dev/termination-log"]);
        assert!(files[0].1.ends_with("\n10.64.0.2\tweb\n192.0.2.9\tdb\tdb.old\nbad\tx\n"), "{}", files[0].1);
        assert_eq!(files[1].1, "web\n");
        let ip: IpAddr = [192, 0, 2, 9].into();
        assert_eq!(host_aliases(&pod), [("db".to_owned(), ip), ("db.old".to_owned(), ip)]);
    }

    #[test]
    fn the_file_is_preferred_and_the_log_stands_in_for_it_when_asked() {
        let exit = Exit {
            code: 1,
            reason: ExitReason::Error,
            message: "trap".to_owned(),
            started_at: Time::from_ms(0),
            finished_at: Time::from_ms(0),
        };
        for (left, log, expected) in [("left", "log", "left"), ("", "log", "log"), ("", "", "trap")] {
            assert_eq!(message(&exit, left.to_owned(), log.to_owned()), expected);
        }
        for (policy, expected) in [("FallbackToLogsOnError", true), ("File", false)] {
            let container = container(json!({"terminationMessagePolicy": policy}));
            assert_eq!(falls_back_to_log(&container), expected, "{policy}");
        }
    }
}
