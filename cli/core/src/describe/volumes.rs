//! The volumes of a pod, or of a pod's template.

use super::common::{NONE, list, scalar, text};
use super::page::Page;
use dhow_api::Tree;

pub(super) fn write(page: &mut Page, volumes: &Tree, indent: &str) {
    let volumes = list(volumes);
    page.line(0, format!("{indent}Volumes:{}", if volumes.is_empty() { format!("\t{NONE}") } else { String::new() }));
    for volume in volumes {
        let name_indent = if indent.is_empty() { "" } else { " " };
        page.line(1, format!("{name_indent}{}:", text(&volume["name"])));
        source(page, volume);
    }
}

fn source(page: &mut Page, volume: &Tree) {
    let ty = |page: &mut Page, what: &str| page.line(2, format!("Type:\t{what}"));
    let [empty, secret, config, downward, projected, claim, host] =
        ["emptyDir", "secret", "configMap", "downwardAPI", "projected", "persistentVolumeClaim", "hostPath"]
            .map(|field| volume.get(field));
    if let Some(empty) = empty {
        ty(page, "EmptyDir (a temporary directory that shares a pod's lifetime)");
        page.line(2, format!("Medium:\t{}", text(&empty["medium"])));
        let limit = scalar(&empty["sizeLimit"]);
        page.line(2, format!("SizeLimit:\t{}", if limit.is_empty() { "<unset>".to_owned() } else { limit }));
    } else if let Some(secret) = secret {
        ty(page, "Secret (a volume populated by a Secret)");
        named(page, "SecretName", &secret["secretName"], secret);
    } else if let Some(config) = config {
        ty(page, "ConfigMap (a volume populated by a ConfigMap)");
        named(page, "Name", &config["name"], config);
    } else if let Some(downward) = downward {
        ty(page, "DownwardAPI (a volume populated by information about the pod)");
        page.line(2, "Items:");
        for item in list(&downward["items"]) {
            let field = match item["fieldRef"]["fieldPath"].as_str() {
                Some(path) => path.to_owned(),
                None => text(&item["resourceFieldRef"]["resource"]).to_owned(),
            };
            page.line(3, format!("{field} -> {}", text(&item["path"])));
        }
    } else if let Some(projected) = projected {
        ty(page, "Projected (a volume that contains injected data from multiple sources)");
        list(&projected["sources"]).iter().for_each(|source| projection(page, source));
    } else if let Some(claim) = claim {
        ty(page, "PersistentVolumeClaim (a reference to a PersistentVolumeClaim in the same namespace)");
        page.line(2, format!("ClaimName:\t{}", text(&claim["claimName"])));
        page.line(2, format!("ReadOnly:\t{}", claim["readOnly"] == true));
    } else if let Some(host) = host {
        ty(page, "HostPath (bare host directory volume)");
        page.line(2, format!("Path:\t{}", text(&host["path"])));
        page.line(2, format!("HostPathType:\t{}", text(&host["type"])));
    } else {
        page.line(1, "<unknown>");
    }
}

fn named(page: &mut Page, title: &str, name: &Tree, of: &Tree) {
    page.line(2, format!("{title}:\t{}", text(name)));
    page.line(2, format!("Optional:\t{}", of["optional"] == true));
}

fn projection(page: &mut Page, source: &Tree) {
    if let Some(secret) = source.get("secret") {
        named(page, "SecretName", &secret["name"], secret);
    } else if let Some(config) = source.get("configMap") {
        named(page, "ConfigMapName", &config["name"], config);
    } else if source.get("downwardAPI").is_some() {
        page.line(2, "DownwardAPI:\ttrue");
    } else if let Some(token) = source.get("serviceAccountToken") {
        page.line(2, format!("TokenExpirationSeconds:\t{}", scalar(&token["expirationSeconds"])));
    }
}
