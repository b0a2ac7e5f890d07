//! The administrator's kubeconfig: this control node first, the others to fall back on. A witness, which serves no objects,
//! comes last in its own.

use crate::app::{App, now};
use crate::member::Member;
use crate::{ServerError, certs, pki, witness};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dhow_pki::{Identity, Usage};
use dhow_tasks::Tasks;
use dhow_types::Chain;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// How often the administrator's certificate is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3600);

/// `https://ip:port`, as clients on this host reach it.
pub(crate) fn local_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("https://{address}")
}

/// The kubeconfig as it is now, and a task that keeps it true.
pub(crate) fn start(app: &Arc<App>, tasks: &Tasks, admin: &Identity, bound: SocketAddr) -> watch::Receiver<String> {
    let url = local_url(bound);
    let (sender, receiver) = watch::channel(render(app, &url, admin, &app.known_members()));
    tasks.spawn("kubeconfig", follow(app.clone(), url, admin.clone(), sender));
    receiver
}

async fn follow(app: Arc<App>, url: String, mut admin: Identity, sender: watch::Sender<String>) {
    certs::record(&app, &admin.cert_pem, &app.member.name).await;
    let mut members = app.members.subscribe();
    loop {
        let text = render(&app, &url, &admin, &app.known_members());
        sender.send_if_modified(|known| {
            let changed = *known != text;
            *known = text;
            changed
        });
        let look = LOOK_EVERY.min(app.certs.pause());
        let woken = app.stop.or(tokio::time::timeout(look, members.changed())).await;
        let (None | Some(Ok(Err(_)))) = woken else {
            if is_due(&admin) {
                match renewed(&app, &admin).await {
                    Ok(fresh) => {
                        info!("renewed the administrator's certificate");
                        certs::record(&app, &fresh.cert_pem, &app.member.name).await;
                        admin = fresh;
                    }
                    Err(error) => warn!(
                        error = %Chain(&error), "the administrator's certificate could not be renewed, tried again"
                    ),
                }
            }
            continue;
        };
        return;
    }
}

async fn renewed(app: &App, admin: &Identity) -> Result<Identity, ServerError> {
    match app.certs.ca.key_pem() {
        Some(_) => Ok(app.certs.issue(&pki::admin_subject(), &[], Usage::Client)?),
        None => witness::renew_admin(app, admin).await,
    }
}

fn is_due(identity: &Identity) -> bool {
    dhow_pki::facts_of_pem(&identity.cert_pem).is_ok_and(|facts| facts.renew_after() < now())
}

fn render(app: &App, url: &str, admin: &Identity, members: &[Member]) -> String {
    let others: Vec<&Member> = members.iter().filter(|member| member.id != app.member.id && !member.witness).collect();
    let ca = STANDARD.encode(app.certs.ca.cert_pem());
    let mut servers: Vec<(String, String)> =
        others.iter().map(|member| (format!("dhow-{}", member.name), member.url())).collect();
    let own = (format!("dhow-{}", app.member.name), url.to_owned());
    servers.insert(if app.member.witness { servers.len() } else { 0 }, own);
    // The one that clients begin with.
    "dhow".clone_into(&mut servers[0].0);
    let urls: String = servers.iter().map(|(_, url)| format!("      - {url}\n")).collect();
    let mut text = "apiVersion: v1\nkind: Config\nclusters:\n".to_owned();
    for (name, server) in &servers {
        text.push_str(&format!(
            "- name: {name}\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n    \
             extensions:\n    - name: dhow.dev/servers\n      extension:\n{urls}"
        ));
    }
    text.push_str(&format!(
        "users:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n",
        STANDARD.encode(&admin.cert_pem),
        STANDARD.encode(&admin.key_pem),
    ));
    for (name, _) in &servers {
        text.push_str(&format!("- name: {name}\n  context:\n    cluster: {name}\n    user: kubernetes-admin\n"));
    }
    text.push_str("current-context: dhow\n");
    text
}
