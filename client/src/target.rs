//! Whom a client calls and as whom; both may change while it runs.

use crate::conn::ClientError;
use http::Uri;
use rustls::ClientConfig;
use std::sync::Arc;

/// One address of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// As it was given.
    pub(crate) url: String,
    pub(crate) authority: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn parse(url: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::Address(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let (Some("https"), Some(host)) = (uri.scheme_str(), uri.host()) else { return Err(bad()) };
        Ok(Self {
            url: url.to_owned(),
            authority: uri.authority().ok_or_else(bad)?.to_string(),
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(443),
        })
    }
}

/// The servers in the order in which they are tried, and how to be known to them.
pub(crate) struct Target {
    servers: Vec<Arc<Server>>,
    /// The one that is called.
    at: usize,
    tls: Arc<ClientConfig>,
    /// Grows when an open connection is not to be used any more.
    version: u64,
}

/// What a connection is made for.
#[derive(Clone)]
pub(crate) struct Choice {
    /// Whom to call: the first that answers.
    pub(crate) servers: Vec<Arc<Server>>,
    pub(crate) tls: Arc<ClientConfig>,
    pub(crate) version: u64,
}

impl Target {
    pub(crate) fn new(servers: Vec<Server>, tls: ClientConfig) -> Self {
        Self { servers: servers.into_iter().map(Arc::new).collect(), at: 0, tls: Arc::new(tls), version: 0 }
    }

    /// Whom to call now, and who comes next if that one does not answer.
    pub(crate) fn choice(&self) -> Choice {
        let (after, before) = (&self.servers[self.at..], &self.servers[..self.at]);
        let servers = after.iter().chain(before).cloned().collect();
        Choice { servers, tls: self.tls.clone(), version: self.version }
    }

    /// This one answered.
    pub(crate) fn answered(&mut self, server: &Server) {
        if let Some(at) = self.servers.iter().position(|known| **known == *server) {
            self.at = at;
        }
    }

    /// This one is not able to serve: the next one is called from now on, if there is one.
    pub(crate) fn pass_over(&mut self, server: &Server) {
        if self.servers.len() > 1 && *self.servers[self.at] == *server {
            self.at = (self.at + 1) % self.servers.len();
            self.version += 1;
        }
    }

    /// These are the servers now; the one that is called stays, if it is among them. An empty list changes nothing.
    pub(crate) fn set_servers(&mut self, servers: Vec<Server>) {
        if servers.is_empty() {
            return;
        }
        let now = self.servers[self.at].clone();
        self.servers = servers.into_iter().map(Arc::new).collect();
        match self.servers.iter().position(|server| *server == now) {
            Some(at) => self.at = at,
            None => {
                self.at = 0;
                self.version += 1;
            }
        }
    }

    /// From now on it is known by these settings.
    pub(crate) fn set_tls(&mut self, tls: ClientConfig) {
        self.tls = Arc::new(tls);
        self.version += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> Server {
        Server::parse(&format!("https://{name}:6443")).unwrap()
    }

    fn target(names: &[&str]) -> Target {
        let tls = dhow_pki::pinned_client_config(&["h2"]).unwrap();
        Target::new(names.iter().map(|name| server(name)).collect(), tls)
    }

    fn order(target: &Target) -> Vec<String> {
        target.choice().servers.iter().map(|server| server.host.clone()).collect()
    }

    #[test]
    fn the_one_that_answered_is_called_first_and_the_others_after_it() {
        let mut target = target(&["a", "b", "c"]);
        assert_eq!(order(&target), ["a", "b", "c"]);
        target.answered(&server("b"));
        assert_eq!((order(&target), target.version), (vec!["b".into(), "c".into(), "a".into()], 0));
        target.pass_over(&server("a"));
        assert_eq!(target.version, 0, "an answer that came late");
        target.pass_over(&server("b"));
        assert_eq!((order(&target)[0].as_str(), target.version), ("c", 1));
    }

    #[test]
    fn servers_come_and_go_and_the_connection_stays_while_its_server_does() {
        let mut target = target(&["a", "b"]);
        target.answered(&server("b"));
        target.set_servers(vec![server("b"), server("c")]);
        assert_eq!((order(&target), target.version), (vec!["b".into(), "c".into()], 0));
        target.set_servers(Vec::new());
        assert_eq!(order(&target).len(), 2);
        target.set_servers(vec![server("c")]);
        assert_eq!((order(&target), target.version), (vec!["c".into()], 1));
        target.pass_over(&server("c"));
        assert_eq!(target.version, 1, "there is nobody else");
    }

    #[test]
    fn an_address_is_told_apart() {
        for (url, host, port) in [("https://[::1]:6443", "::1", 6443), ("https://dhow.example", "dhow.example", 443)] {
            let server = Server::parse(url).unwrap();
            assert_eq!((server.host.as_str(), server.port), (host, port));
        }
        for bad in ["http://a:1", "a:1", "https://", ""] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }
}
