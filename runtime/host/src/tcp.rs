//! `wasi:sockets/tcp` over the Pod's network.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use dhow_switch::{Bound, Connecting, Listener, NetError, ReadError, Stream};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, InputStream, OutputStream, Pollable, SocketResult, StreamError,
    StreamResult, subscribe,
};

use crate::bindings::wasi::sockets::tcp::{Host, HostTcpSocket, ShutdownType};
use crate::bindings::wasi::sockets::tcp_create_socket;
use crate::guest::SocketsView;
use crate::socket::{Tunables, check_family, error_code, is_invalid_destination, set_positive};

/// Connections that wait to be accepted when the guest names no backlog; more are refused.
const BACKLOG_DEFAULT: usize = 128;
/// The largest backlog a guest gets, as `net.core.somaxconn` of Linux.
pub(crate) const BACKLOG_MAX: u64 = 4096;
/// The most that one read hands to a guest: one full pipe.
pub(crate) const READ_BYTES_MAX: usize = 64 * 1024;

/// A guest's TCP socket.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct TcpSocket {
    state: State,
    options: Options,
}

/// Where a socket is on its way. `start_*` moves to a state in progress, `finish_*` on from it.
enum State {
    Unbound,
    /// `start-bind` was called.
    Binding(Bound),
    Bound(Bound),
    /// `start-connect` was called.
    Connecting(Pin<Box<Connecting>>),
    /// The connection is there or has failed, `finish-connect` has not been called.
    Connected(Result<Stream, NetError>),
    /// The guest has its streams.
    Open(Arc<Stream>),
    /// `start-listen` was called.
    StartedListening(Listener),
    Listening(Listener),
    Closed,
}

/// Values that a guest may set and read back; none has a meaning on a virtual network.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) backlog: usize,
    pub(crate) keep_alive: bool,
    pub(crate) keep_alive_idle_ns: u64,
    pub(crate) keep_alive_interval_ns: u64,
    pub(crate) keep_alive_count: u32,
    pub(crate) tunables: Tunables,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            backlog: BACKLOG_DEFAULT,
            keep_alive: false,
            keep_alive_idle_ns: 7_200_000_000_000,
            keep_alive_interval_ns: 75_000_000_000,
            keep_alive_count: 9,
            tunables: Tunables::default(),
        }
    }
}

impl TcpSocket {
    fn new() -> Self {
        Self { state: State::Unbound, options: Options::default() }
    }

    fn in_progress(&self) -> bool {
        matches!(
            self.state,
            State::Binding(_) | State::Connecting(_) | State::Connected(_) | State::StartedListening(_)
        )
    }

    /// Refuses a new operation while another is under way.
    fn check_idle(&self) -> SocketResult<()> {
        if self.in_progress() { Err(ErrorCode::ConcurrencyConflict.into()) } else { Ok(()) }
    }

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Connecting(connecting) => {
                let result = std::task::ready!(connecting.as_mut().poll(cx));
                self.state = State::Connected(result);
                Poll::Ready(())
            }
            State::Listening(listener) => listener.poll_acceptable(cx),
            _ => Poll::Ready(()),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_ready(cx)).await;
    }
}

impl tcp_create_socket::Host for SocketsView<'_> {
    fn create_tcp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        check_family(family)?;
        Ok(self.table.push(TcpSocket::new())?)
    }
}

impl SocketsView<'_> {
    fn options(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut Options> {
        Ok(&mut self.table.get_mut(this)?.options)
    }

    fn push_streams(
        &mut self,
        stream: &Arc<Stream>,
        parent: &Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let input: DynInputStream = Box::new(Incoming { stream: stream.clone(), ended: false });
        let output: DynOutputStream = Box::new(Outgoing { stream: stream.clone() });
        Ok((self.table.push_child(input, parent)?, self.table.push_child(output, parent)?))
    }
}

impl Host for SocketsView<'_> {}

impl HostTcpSocket for SocketsView<'_> {
    fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        _network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = SocketAddr::from(address);
        let net = self.net;
        let socket = self.table.get_mut(&this)?;
        socket.check_idle()?;
        if !matches!(socket.state, State::Unbound) {
            return Err(ErrorCode::InvalidState.into());
        }
        if address.is_ipv6() {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.state = State::Binding(net.bind(address).map_err(error_code)?);
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        match std::mem::replace(&mut socket.state, State::Closed) {
            State::Binding(bound) => {
                socket.state = State::Bound(bound);
                Ok(())
            }
            other => {
                socket.state = other;
                Err(ErrorCode::NotInProgress.into())
            }
        }
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        _network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let to = SocketAddr::from(address);
        let net = self.net;
        let socket = self.table.get_mut(&this)?;
        socket.check_idle()?;
        if !matches!(socket.state, State::Unbound | State::Bound(_)) {
            return Err(ErrorCode::InvalidState.into());
        }
        if is_invalid_destination(&to) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let connecting = match std::mem::replace(&mut socket.state, State::Closed) {
            State::Bound(bound) => bound.connect(to),
            _ => net.connect(to),
        };
        socket.state = State::Connecting(Box::pin(connecting));
        Ok(())
    }

    fn finish_connect(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.table.get_mut(&this)?;
        if !matches!(socket.state, State::Connecting(_) | State::Connected(_)) {
            return Err(ErrorCode::NotInProgress.into());
        }
        if socket.poll_ready(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        let State::Connected(result) = std::mem::replace(&mut socket.state, State::Closed) else {
            return Err(ErrorCode::InvalidState.into());
        };
        let stream = Arc::new(result.map_err(error_code)?);
        socket.state = State::Open(stream.clone());
        self.push_streams(&stream, &this)
    }

    fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        socket.check_idle()?;
        match std::mem::replace(&mut socket.state, State::Closed) {
            State::Bound(bound) => {
                socket.state = State::StartedListening(bound.listen(socket.options.backlog));
                Ok(())
            }
            other => {
                socket.state = other;
                Err(ErrorCode::InvalidState.into())
            }
        }
    }

    fn finish_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        match std::mem::replace(&mut socket.state, State::Closed) {
            State::StartedListening(listener) => {
                socket.state = State::Listening(listener);
                Ok(())
            }
            other => {
                socket.state = other;
                Err(ErrorCode::NotInProgress.into())
            }
        }
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<TcpSocket>, Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.table.get_mut(&this)?;
        let options = socket.options;
        let State::Listening(listener) = &socket.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        let stream = match listener.try_accept() {
            None => return Err(ErrorCode::WouldBlock.into()),
            Some(result) => Arc::new(result.map_err(error_code)?),
        };
        let accepted = self.table.push(TcpSocket { state: State::Open(stream.clone()), options })?;
        let (input, output) = self.push_streams(&stream, &accepted)?;
        Ok((accepted, input, output))
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let socket = self.table.get(&this)?;
        let address = match &socket.state {
            State::Bound(bound) => bound.local_addr(),
            State::Open(stream) => stream.local_addr(),
            State::Listening(listener) | State::StartedListening(listener) => listener.local_addr(),
            State::Connected(Ok(stream)) => stream.local_addr(),
            _ => return Err(ErrorCode::InvalidState.into()),
        };
        Ok(address.into())
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.table.get(&this)?.state {
            State::Open(stream) => Ok(stream.peer_addr().into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(matches!(self.table.get(&this)?.state, State::Listening(_)))
    }

    fn address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        self.table.get(&this)?;
        Ok(IpAddressFamily::Ipv4)
    }

    fn set_listen_backlog_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        match socket.state {
            State::Unbound | State::Bound(_) => {
                socket.options.backlog = value.min(BACKLOG_MAX) as usize;
                Ok(())
            }
            State::Listening(_) | State::StartedListening(_) => Err(ErrorCode::NotSupported.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.options(&this)?.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, this: Resource<TcpSocket>, value: bool) -> SocketResult<()> {
        self.options(&this)?.keep_alive = value;
        Ok(())
    }

    fn keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.keep_alive_idle_ns, value)
    }

    fn keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.keep_alive_interval_ns, value)
    }

    fn keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.options(&this)?.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.keep_alive_count, value)
    }

    fn hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.options(&this)?.tunables.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.tunables.hop_limit, value)
    }

    fn receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.tunables.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.tunables.receive_buffer, value)
    }

    fn send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.options(&this)?.tunables.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.options(&this)?.tunables.send_buffer, value)
    }

    fn subscribe(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn shutdown(&mut self, this: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let State::Open(stream) = &self.table.get(&this)?.state else {
            return Err(ErrorCode::InvalidState.into());
        };
        if matches!(how, ShutdownType::Receive | ShutdownType::Both) {
            stream.shutdown_read();
        }
        if matches!(how, ShutdownType::Send | ShutdownType::Both) {
            stream.shutdown_write();
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

/// The reading half of a connection.
struct Incoming {
    stream: Arc<Stream>,
    ended: bool,
}

impl InputStream for Incoming {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if self.ended {
            return Err(StreamError::Closed);
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        match self.stream.try_read(size.min(READ_BYTES_MAX)) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => Ok(Bytes::new()),
            Err(ReadError::Eof) => {
                self.ended = true;
                Err(StreamError::Closed)
            }
            Err(ReadError::Reset) => {
                self.ended = true;
                Err(connection_reset())
            }
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        if !self.ended {
            poll_fn(|cx| self.stream.poll_readable(cx)).await;
        }
    }
}

/// The writing half of a connection.
struct Outgoing {
    stream: Arc<Stream>,
}

impl OutputStream for Outgoing {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() > self.stream.writable_bytes() {
            return Err(StreamError::trap("write of more bytes than `check-write` allowed"));
        }
        self.stream.try_write(bytes).map_err(|_| connection_reset())
    }

    fn flush(&mut self) -> StreamResult<()> {
        // Written bytes are on their way at once; there is no buffer in between that could be pushed.
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.stream.writable_bytes())
    }
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        poll_fn(|cx| self.stream.poll_writable(cx)).await;
    }
}

fn connection_reset() -> StreamError {
    StreamError::LastOperationFailed(io::Error::from(io::ErrorKind::ConnectionReset).into())
}
