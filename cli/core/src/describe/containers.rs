//! The containers of a pod, or of a pod's template.

use super::common::{NONE, list, scalar, sorted, text, text_or_none, time, truth};
use super::page::Page;
use dhow_api::quantity::Quantity;
use dhow_api::{Tree, meta};

/// Where containers stand.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    /// In this pod: they have a status, and fields of the pod have values.
    Pod(&'a Tree),
    /// In a template, a little further in.
    Template,
}

pub(super) fn write(page: &mut Page, title: &str, containers: &Tree, place: Place<'_>) {
    let (indent, name_indent) = match place {
        Place::Pod(_) => ("", ""),
        Place::Template => ("  ", " "),
    };
    page.line(0, format!("{indent}{title}:{}", if list(containers).is_empty() { " <none>" } else { "" }));
    for container in list(containers) {
        let name = text(&container["name"]);
        let status = match place {
            Place::Pod(pod) => status_of(pod, name),
            Place::Template => None,
        };
        page.line(1, format!("{name_indent}{name}:"));
        basics(page, container, status);
        if let Some(status) = status {
            state(page, status);
        }
        resources(page, &container["resources"]);
        for (title, field) in
            [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
        {
            if container[field].is_object() {
                page.line(2, format!("{title}:\t{}", probe(&container[field])));
            }
        }
        environment(page, container, place);
        mounts(page, container);
    }
}

fn status_of<'a>(pod: &'a Tree, name: &str) -> Option<&'a Tree> {
    let lists = ["initContainerStatuses", "containerStatuses"].map(|field| list(&pod["status"][field]));
    lists.into_iter().flatten().find(|status| status["name"] == name)
}

fn basics(page: &mut Page, container: &Tree, status: Option<&Tree>) {
    if let Some(status) = status {
        page.line(2, format!("Container ID:\t{}", text(&status["containerID"])));
    }
    page.line(2, format!("Image:\t{}", text(&container["image"])));
    if let Some(status) = status {
        page.line(2, format!("Image ID:\t{}", text(&status["imageID"])));
    }
    let ports = list(&container["ports"]);
    for (title, field) in [("Port", "containerPort"), ("Host Port", "hostPort")] {
        let port = |port: &Tree| {
            let name = match text(&port["name"]) {
                "" => String::new(),
                name => format!(" ({name})"),
            };
            format!("{}/{}{name}", port[field].as_i64().unwrap_or(0), text_or_none(&port["protocol"]))
        };
        let written: Vec<String> = ports.iter().map(port).collect();
        let plural = if written.len() > 1 { "s" } else { "" };
        let written = if written.is_empty() { NONE.to_owned() } else { written.join(", ") };
        page.line(2, format!("{title}{plural}:\t{written}"));
    }
    for (title, field) in [("Command", "command"), ("Args", "args")] {
        let words = list(&container[field]);
        if !words.is_empty() {
            page.line(2, format!("{title}:"));
        }
        words.iter().flat_map(|word| text(word).split('\n')).for_each(|line| page.line(3, line));
    }
}

fn state(page: &mut Page, status: &Tree) {
    one_state(page, "State", &status["state"]);
    if status["lastState"]["terminated"].is_object() {
        one_state(page, "Last State", &status["lastState"]);
    }
    page.line(2, format!("Ready:\t{}", truth(status["ready"] == true)));
    page.line(2, format!("Restart Count:\t{}", status["restartCount"].as_i64().unwrap_or(0)));
}

fn one_state(page: &mut Page, title: &str, state: &Tree) {
    if state["running"].is_object() {
        page.line(2, format!("{title}:\tRunning"));
        return page.line(3, format!("Started:\t{}", time(&state["running"]["startedAt"])));
    }
    let ended = &state["terminated"];
    if !ended.is_object() {
        page.line(2, format!("{title}:\tWaiting"));
        if let Some(reason) = state["waiting"]["reason"].as_str() {
            page.line(3, format!("Reason:\t{reason}"));
        }
        return;
    }
    page.line(2, format!("{title}:\tTerminated"));
    for (title, field) in [("Reason", "reason"), ("Message", "message")] {
        if !text(&ended[field]).is_empty() {
            page.line(3, format!("{title}:\t{}", text(&ended[field])));
        }
    }
    page.line(3, format!("Exit Code:\t{}", ended["exitCode"].as_i64().unwrap_or(0)));
    if let Some(signal) = ended["signal"].as_i64().filter(|signal| *signal > 0) {
        page.line(3, format!("Signal:\t{signal}"));
    }
    page.line(3, format!("Started:\t{}", time(&ended["startedAt"])));
    page.line(3, format!("Finished:\t{}", time(&ended["finishedAt"])));
}

fn resources(page: &mut Page, resources: &Tree) {
    for (title, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let amounts = sorted(&resources[field]);
        if !amounts.is_empty() {
            page.line(2, format!("{title}:"));
        }
        amounts.into_iter().for_each(|(name, amount)| page.line(3, format!("{name}:\t{}", scalar(amount))));
    }
}

fn probe(probe: &Tree) -> String {
    let number = |field: &str, default: i64| probe[field].as_i64().unwrap_or(default);
    let often = format!(
        "delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 0),
        number("periodSeconds", 0),
        number("successThreshold", 0),
        number("failureThreshold", 0)
    );
    let [exec, http, tcp, grpc] = ["exec", "httpGet", "tcpSocket", "grpc"].map(|field| &probe[field]);
    if exec.is_object() {
        let words: Vec<&str> = list(&exec["command"]).iter().map(text).collect();
        return format!("exec [{}] {often}", words.join(" "));
    }
    if http.is_object() {
        let scheme = text(&http["scheme"]).to_lowercase();
        let (host, port, path) = (text(&http["host"]), scalar(&http["port"]), text(&http["path"]));
        let slash = if path.starts_with('/') || path.is_empty() { "" } else { "/" };
        return format!("http-get {scheme}://{host}:{port}{slash}{path} {often}");
    }
    if tcp.is_object() {
        return format!("tcp-socket {}:{} {often}", text(&tcp["host"]), scalar(&tcp["port"]));
    }
    if grpc.is_object() {
        return format!("grpc <pod>:{} {} {often}", scalar(&grpc["port"]), text(&grpc["service"]));
    }
    format!("unknown {often}")
}

fn environment(page: &mut Page, container: &Tree, place: Place<'_>) {
    let from = list(&container["envFrom"]);
    if !from.is_empty() {
        page.line(2, "Environment Variables from:");
    }
    for source in from {
        let (kind, reference) = match &source["configMapRef"] {
            reference if reference.is_object() => ("ConfigMap", reference),
            _ => ("Secret", &source["secretRef"]),
        };
        let prefix = match text(&source["prefix"]) {
            "" => String::new(),
            prefix => format!(" with prefix '{prefix}'"),
        };
        let (name, optional) = (text(&reference["name"]), reference["optional"] == true);
        page.line(3, format!("{name}\t{kind}{prefix}\tOptional: {optional}"));
    }
    let variables = list(&container["env"]);
    page.line(2, if variables.is_empty() { format!("Environment:\t{NONE}") } else { "Environment:".to_owned() });
    for variable in variables {
        let name = text(&variable["name"]);
        for (index, line) in value(variable, container, place).split('\n').enumerate() {
            let name = if index == 0 { format!("{name}:") } else { String::new() };
            page.line(3, format!("{name}\t{line}"));
        }
    }
}

/// What a variable is set to, or from what.
fn value(variable: &Tree, container: &Tree, place: Place<'_>) -> String {
    let from = &variable["valueFrom"];
    let [field, resource, secret, config] =
        ["fieldRef", "resourceFieldRef", "secretKeyRef", "configMapKeyRef"].map(|name| &from[name]);
    if field.is_object() {
        let path = text(&field["fieldPath"]);
        let value = match place {
            Place::Pod(pod) => pod_field(pod, path),
            Place::Template => String::new(),
        };
        return format!("{value} ({}:{path})", text(&field["apiVersion"]));
    }
    if resource.is_object() {
        return format!("{} ({})", amount(resource, container), text(&resource["resource"]));
    }
    if secret.is_object() {
        let (key, name, optional) = (text(&secret["key"]), text(&secret["name"]), secret["optional"] == true);
        return format!("<set to the key '{key}' in secret '{name}'>\tOptional: {optional}");
    }
    if config.is_object() {
        let (key, name, optional) = (text(&config["key"]), text(&config["name"]), config["optional"] == true);
        return format!("<set to the key '{key}' of config map '{name}'>\tOptional: {optional}");
    }
    text(&variable["value"]).to_owned()
}

fn pod_field(pod: &Tree, path: &str) -> String {
    let keyed = |map: &str| {
        let key = path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(text(&pod["metadata"][map.trim_start_matches("metadata.")][key]).to_owned())
    };
    keyed("metadata.labels")
        .or_else(|| keyed("metadata.annotations"))
        .unwrap_or_else(|| meta::at(pod, path).map(scalar).unwrap_or_default())
}

/// A container's limit or request, in whole units of the divisor.
fn amount(reference: &Tree, container: &Tree) -> String {
    let quantity = |tree: Option<&Tree>| tree.and_then(|tree| Quantity::parse(&scalar(tree)).ok());
    let divisor = quantity(reference.get("divisor")).filter(|divisor| !divisor.is_zero());
    let amount = text(&reference["resource"])
        .split_once('.')
        .and_then(|(kind, name)| quantity(container["resources"][kind].get(name)))
        .unwrap_or(Quantity::ZERO);
    let divisor = divisor.map_or(1000, |divisor| divisor.milli()).max(1);
    ((amount.milli() + divisor - 1) / divisor).to_string()
}

fn mounts(page: &mut Page, container: &Tree) {
    let mut mounts: Vec<&Tree> = list(&container["volumeMounts"]).iter().collect();
    mounts.sort_by_key(|mount| text(&mount["mountPath"]));
    page.line(2, if mounts.is_empty() { format!("Mounts:\t{NONE}") } else { "Mounts:".to_owned() });
    for mount in mounts {
        let access = if mount["readOnly"] == true { "ro" } else { "rw" };
        let path = match text(&mount["subPath"]) {
            "" => String::new(),
            path => format!(",path=\"{path}\""),
        };
        page.line(3, format!("{} from {} ({access}{path})", text(&mount["mountPath"]), text(&mount["name"])));
    }
}
