//! Outgoing `wasi:http`: requests are dialled through the Pod's network.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dhow_switch::{NetError, PodNet};
use http::uri::Scheme;
use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep, timeout};
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::tls;

/// How long a connection may take when the guest names no limit.
const CONNECT_DEFAULT: Duration = Duration::from_secs(60);
/// How long the first byte of an answer, and each next part of its body, may take when the guest names no limit.
const ANSWER_DEFAULT: Duration = Duration::from_secs(600);

/// Sends the requests of one guest.
pub(crate) struct Outgoing {
    net: PodNet,
}

impl Outgoing {
    pub(crate) fn new(net: PodNet) -> Self {
        Self { net }
    }
}

type Finish = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(Response<WasiBody>, Finish), Error>;

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Finish,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(send(self.net.clone(), request, options.unwrap_or_default()))
    }

    // The failures below are the guest's to handle; the defaults would write each one into the node's log.

    fn p2_error_from_hyper(&mut self, error: &hyper::Error) -> ErrorCode {
        tracing::debug!(%error, "a guest's HTTP exchange failed");
        ErrorCode::HttpProtocolError
    }

    fn p2_error_from_connect(&mut self, error: &std::io::Error) -> ErrorCode {
        tracing::debug!(%error, "a guest's connection failed");
        ErrorCode::ConnectionRefused
    }

    fn p2_error_from_tls(&mut self, error: &std::io::Error) -> ErrorCode {
        tracing::debug!(%error, "a guest's TLS handshake failed");
        ErrorCode::TlsProtocolError
    }
}

async fn send(net: PodNet, mut request: Request<WasiBody>, options: RequestOptions) -> Sent {
    let connect_limit = options.connect_timeout.unwrap_or(CONNECT_DEFAULT);
    let answer_limit = options.first_byte_timeout.unwrap_or(ANSWER_DEFAULT);
    let part_limit = options.between_bytes_timeout.unwrap_or(ANSWER_DEFAULT);
    let stream = timeout(connect_limit, dial(&net, request.uri())).await.map_err(|_| Error::ConnectionTimeout)??;
    // On the wire a request to an origin names the path only; its host stands in the `host` header.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = Uri::try_from(path).map_err(|_| Error::HttpRequestUriInvalid)?;

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let mut connection = Box::pin(connection);
    let mut connected = true;
    let response = {
        let response = timeout(answer_limit, sender.send_request(request));
        tokio::pin!(response);
        loop {
            tokio::select! {
                response = &mut response => break response.map_err(|_| Error::ConnectionReadTimeout)??,
                ended = &mut connection, if connected => {
                    connected = false;
                    ended?;
                }
            }
        }
    };
    let response = response
        .map(|incoming| AnswerBody { incoming, limit: part_limit, timer: Box::pin(sleep(part_limit)) }.boxed_unsync());
    let finish = async move {
        // The guest learns of a broken connection from the body that it reads.
        if connected && let Err(error) = connection.await {
            tracing::debug!(%error, "a guest's connection broke");
        }
        Ok(())
    };
    Ok((response, Box::new(finish)))
}

/// A plain or a TLS connection.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

async fn dial(net: &PodNet, uri: &Uri) -> Result<Box<dyn Duplex>, Error> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let addresses = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => net.resolve(host).await.map_err(dial_error)?,
    };
    let mut failure = Error::DestinationNotFound;
    for address in addresses {
        match net.connect(SocketAddr::new(address, port)).await {
            Ok(stream) if secure => return secured(stream, host).await,
            Ok(stream) => return Ok(Box::new(stream)),
            Err(error) => failure = dial_error(error),
        }
    }
    Err(failure)
}

async fn secured(stream: dhow_switch::Stream, host: &str) -> Result<Box<dyn Duplex>, Error> {
    let config = tls::client_config().map_err(|why| Error::InternalError(Some(why.to_owned())))?;
    let name = rustls_pki_types::ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
    let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.map_err(Error::Tls)?;
    Ok(Box::new(stream))
}

fn dial_error(error: NetError) -> Error {
    match error {
        NetError::Refused => Error::ConnectionRefused,
        NetError::TimedOut => Error::ConnectionTimeout,
        NetError::Reset => Error::ConnectionTerminated,
        NetError::NameNotFound => Error::DnsError { rcode: Some("NXDOMAIN".to_owned()), info_code: None },
        NetError::ResolverFailure => Error::DnsError { rcode: Some("SERVFAIL".to_owned()), info_code: None },
        NetError::Denied => Error::DestinationIpProhibited,
        NetError::HostUnreachable => Error::DestinationIpUnroutable,
        other => Error::InternalError(Some(other.to_string())),
    }
}

/// The body of an answer; it fails when the next part takes too long.
struct AnswerBody {
    incoming: Incoming,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(frame) => {
                let next = Instant::now() + self.limit;
                self.timer.as_mut().reset(next);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                std::task::ready!(self.timer.as_mut().poll(cx));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
