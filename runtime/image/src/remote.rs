//! A registry somewhere, asked over HTTP/1.1: TLS, who one is, and redirects.
//!
//! A [`Remote`] is one registry, or one mirror of it, for the time of one pull. It keeps one connection and, once it had
//! to show who it is, what it showed. A secret is sent only after the registry asked for it, only to the registry or
//! the token server that the registry names, and never without TLS unless the configuration allows that registry plain
//! HTTP.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::challenge::Challenge;
use crate::config::{Endpoint, Registries};
use crate::credentials::Credential;
use crate::pull::{PullError, chain};

/// How long dialling may take, name look-up, TCP and TLS together.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a registry may think about a request.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// Redirects that are followed: a registry and its storage need one or two.
const REDIRECTS_MAX: usize = 5;
/// What a token server, or a refusal, may be long.
const SMALL_BYTES_MAX: usize = 1 << 20;
const AGENT: &str = concat!("dhow/", env!("CARGO_PKG_VERSION"));

/// One registry during one pull.
pub(crate) struct Remote<'a> {
    pub(crate) image: &'a str,
    pub(crate) repository: &'a str,
    /// What the settings are looked up by.
    name: &'a str,
    endpoint: Endpoint,
    registries: &'a Registries,
    /// What may be shown, in this order.
    credentials: Vec<Credential>,
    authorization: Option<HeaderValue>,
    /// What was shown, if something was.
    shown: Option<String>,
    connection: Option<Connection>,
}

/// An open connection.
struct Connection {
    origin: (bool, String),
    sender: SendRequest<Full<Bytes>>,
    _driver: Driver,
}

/// The task that moves a connection's bytes; ends with it.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A request, without who sends it.
struct Question<'q> {
    method: Method,
    accept: &'q str,
    authorization: Option<HeaderValue>,
    form: Option<Bytes>,
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl<'a> Remote<'a> {
    pub(crate) fn new(
        (image, name, repository): (&'a str, &'a str, &'a str),
        endpoint: Endpoint,
        registries: &'a Registries,
        credentials: Vec<Credential>,
    ) -> Self {
        let (authorization, shown, connection) = (None, None, None);
        Self { image, repository, name, endpoint, registries, credentials, authorization, shown, connection }
    }

    /// Where it is, for people.
    pub(crate) fn authority(&self) -> &str {
        &self.endpoint.authority
    }

    /// The fingerprint of what had to be shown; `None` where anybody is let in.
    pub(crate) fn shown(&self) -> Option<String> {
        self.shown.clone()
    }

    /// Asks for a path below the repository; any status but a refusal that a credential could turn is an answer.
    pub(crate) async fn get(&mut self, path: &str, accept: &str) -> Result<Response<Incoming>, PullError> {
        let url = format!("{}://{}/v2/{}/{path}", self.endpoint.scheme(), self.endpoint.authority, self.repository);
        let url: Uri = url.parse().map_err(|err| self.unreachable(format!("the address `{url}`: {err}")))?;
        let mut question =
            Question { method: Method::GET, accept, authorization: self.authorization.clone(), form: None };
        let answer = self.follow(&url, &question).await?;
        if !asks(answer.status()) {
            return Ok(answer);
        }
        let Some(challenge) = Challenge::of(answer.headers()) else { return Ok(answer) };
        let mut refused = self.refused(answer).await;
        let mut candidates: Vec<_> = std::mem::take(&mut self.credentials).into_iter().map(Some).collect();
        if candidates.is_empty() {
            candidates.push(None);
        }
        for credential in candidates {
            let authorization = match self.authorize(&challenge, credential.as_ref()).await {
                Ok(Some(authorization)) => authorization,
                Ok(None) => continue,
                Err(error) => {
                    refused = error;
                    continue;
                }
            };
            question.authorization = Some(authorization.clone());
            let answer = self.follow(&url, &question).await?;
            if asks(answer.status()) {
                refused = self.refused(answer).await;
                continue;
            }
            self.authorization = Some(authorization);
            self.shown = credential.as_ref().map(Credential::fingerprint);
            self.credentials = credential.into_iter().collect();
            return Ok(answer);
        }
        Err(refused)
    }

    /// What to answer a challenge with; `None` if this credential is of no use for it.
    async fn authorize(
        &mut self,
        challenge: &Challenge,
        credential: Option<&Credential>,
    ) -> Result<Option<HeaderValue>, PullError> {
        let (realm, service, scope) = match (challenge, credential) {
            (_, Some(Credential::Registry(token))) => return Ok(secret(&format!("Bearer {token}"))),
            (Challenge::Basic, Some(Credential::Password { username, password })) => {
                return Ok(secret(&basic(username, password)));
            }
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { realm, service, scope }, _) => (realm, service, scope),
        };
        let url: Uri = realm.parse().map_err(|_| self.unreachable(format!("it names the token server `{realm}`")))?;
        if url.scheme() != Some(&Scheme::HTTPS) && !self.endpoint.plain {
            return Err(self.unreachable(format!("its token server `{realm}` has no TLS")));
        }
        let scope = scope.clone().unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut fields = vec![("scope", scope.as_str())];
        fields.extend(service.as_deref().map(|service| ("service", service)));
        let mut question =
            Question { method: Method::GET, accept: "application/json", authorization: None, form: None };
        let url = match credential {
            Some(Credential::Identity(token)) => {
                fields.extend([("grant_type", "refresh_token"), ("client_id", "dhow"), ("refresh_token", token)]);
                question.method = Method::POST;
                question.form = Some(form(&fields).into());
                url
            }
            _ => {
                if let Some(Credential::Password { username, password }) = credential {
                    question.authorization = secret(&basic(username, password));
                }
                let separator = if url.query().is_some() { '&' } else { '?' };
                format!("{realm}{separator}{}", form(&fields))
                    .parse()
                    .map_err(|_| self.unreachable(format!("it names the token server `{realm}`")))?
            }
        };
        let answer = self.follow(&url, &question).await?;
        if answer.status() != StatusCode::OK {
            return Err(self.refused(answer).await);
        }
        let body = self.small(answer.into_body()).await?;
        // The answer itself is not shown to anybody: it is a secret.
        let Ok(Token { token, access_token }) = serde_json::from_slice(&body) else {
            return Err(self.unreachable(format!("the answer of the token server `{realm}` holds no token")));
        };
        Ok(secret(&format!("Bearer {}", if token.is_empty() { access_token } else { token })))
    }

    /// Sends a request, and sends it again to where the answer says that the thing is.
    async fn follow(&mut self, url: &Uri, question: &Question<'_>) -> Result<Response<Incoming>, PullError> {
        let mut url = url.clone();
        let mut authorization = question.authorization.clone();
        for _ in 0..=REDIRECTS_MAX {
            let answer = self.send(&url, question, authorization.clone()).await?;
            let redirects = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirects || question.method != Method::GET {
                return Ok(answer);
            }
            let location = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve(&url, location));
            let next = next.ok_or_else(|| self.unreachable("it redirects to nowhere".to_owned()))?;
            if next.scheme() != Some(&Scheme::HTTPS) && !self.endpoint.plain {
                return Err(self.unreachable(format!("it redirects to `{next}`, which has no TLS")));
            }
            if next.authority() != url.authority() {
                authorization = None;
            }
            // A body that is not read keeps the connection from being used again.
            self.connection = None;
            url = next;
        }
        Err(self.unreachable(format!("it redirects more than {REDIRECTS_MAX} times")))
    }

    async fn send(
        &mut self,
        url: &Uri,
        question: &Question<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, PullError> {
        let authority = url.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
        let plain = url.scheme() != Some(&Scheme::HTTPS);
        let mut request = Request::builder()
            .method(question.method.clone())
            .uri(url.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, &authority)
            .header(header::USER_AGENT, AGENT)
            .header(header::ACCEPT, question.accept);
        if let Some(authorization) = authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if question.form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        let body = Full::new(question.form.clone().unwrap_or_default());
        let request = request.body(body).map_err(|err| self.unreachable(err.to_string()))?;
        let mut open = self.connection.take().filter(|open| open.origin == (plain, authority.clone()));
        if let Some(kept) = &mut open
            && kept.sender.ready().await.is_err()
        {
            open = None;
        }
        let mut connection = match open {
            Some(open) => open,
            None => self.connect(plain, authority).await?,
        };
        let answer = timeout(HEAD_MAX, connection.sender.send_request(request)).await;
        let answer = answer.map_err(|_| self.unreachable(format!("no answer in {} s", HEAD_MAX.as_secs())))?;
        let answer = answer.map_err(|err| self.unreachable(chain(&err)))?;
        self.connection = Some(connection);
        Ok(answer)
    }

    async fn connect(&self, plain: bool, authority: String) -> Result<Connection, PullError> {
        let failed = |err: io::Error| self.unreachable(format!("connecting to `{authority}`: {}", chain(&err)));
        let uri: http::uri::Authority =
            authority.parse().map_err(|_| self.unreachable(format!("`{authority}` is no host")))?;
        let host = uri.host().trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if plain { 80 } else { 443 });
        let tls = if plain {
            None
        } else {
            let tls = self.registries.tls(self.name).map_err(|err| self.unreachable(chain(&err)))?;
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other).map_err(failed)?;
            Some((TlsConnector::from(tls), name))
        };
        let dial = async {
            let tcp = TcpStream::connect((host, port)).await?;
            tcp.set_nodelay(true)?;
            Ok::<Box<dyn Stream>, io::Error>(match tls {
                None => Box::new(tcp),
                Some((tls, name)) => Box::new(tls.connect(name, tcp).await?),
            })
        };
        let stream = timeout(CONNECT_MAX, dial).await.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?;
        let shake = http1::handshake(TokioIo::new(stream.map_err(failed)?)).await;
        let (sender, connection) = shake.map_err(|err| self.unreachable(chain(&err)))?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a registry ended");
            }
        }));
        Ok(Connection { origin: (plain, authority), sender, _driver: driver })
    }

    async fn small(&self, body: Incoming) -> Result<Bytes, PullError> {
        let body = timeout(HEAD_MAX, Limited::new(body, SMALL_BYTES_MAX).collect()).await;
        let body = body.map_err(|_| self.unreachable("an answer does not end".to_owned()))?;
        Ok(body.map_err(|err| self.unreachable(format!("an answer broke off: {err}")))?.to_bytes())
    }

    async fn refused(&self, answer: Response<Incoming>) -> PullError {
        let status = answer.status();
        let body = self.small(answer.into_body()).await.unwrap_or_default();
        let detail = format!("`{}` answered {status}: {}", self.endpoint.authority, said(&body));
        PullError::Unauthorized { name: self.image.to_owned(), detail }
    }

    fn unreachable(&self, detail: String) -> PullError {
        let detail = format!("the registry `{}`: {detail}", self.endpoint.authority);
        PullError::Unreachable { name: self.image.to_owned(), detail }
    }
}

fn asks(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

/// The beginning of what a registry said, on one line.
pub(crate) fn said(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(300)]);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { "nothing more".to_owned() } else { text }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// A header that is not shown in logs; `None` if it could not be one.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn form(fields: &[(&str, &str)]) -> String {
    let pairs = fields.iter().map(|(key, value)| format!("{key}={}", dhow_client::escape(value)));
    pairs.collect::<Vec<_>>().join("&")
}

/// Where a `Location` leads from an address.
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let next: Uri = location.parse().ok()?;
    if next.authority().is_some() {
        return matches!(next.scheme_str(), Some("http" | "https")).then_some(next);
    }
    let path = next.path_and_query()?.as_str();
    if !path.starts_with('/') {
        return None;
    }
    Uri::builder().scheme(from.scheme()?.clone()).authority(from.authority()?.clone()).path_and_query(path).build().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_absolute_or_stay_with_the_host() {
        let from: Uri = "https://a:5000/v2/x".parse().unwrap();
        for (location, expected) in [
            ("/y?z=1", Some("https://a:5000/y?z=1")),
            ("https://b/y", Some("https://b/y")),
            ("http://b/y", Some("http://b/y")),
            ("ftp://b/y", None),
            ("", None),
        ] {
            assert_eq!(resolve(&from, location).map(|uri| uri.to_string()).as_deref(), expected, "{location}");
        }
    }
}
