//! `wasi:sockets/types.tcp-socket` of 0.3 over the Pod's network.
//!
//! A stream that the guest hands over or takes is a producer or consumer on a [`Stream`]: nothing lies in between, so
//! that whoever does not read holds up whoever writes.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use dhow_switch::{Bound, Listener, ReadError, Stream};
use tokio::sync::oneshot;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, Resource, Source, StreamConsumer, StreamProducer, StreamReader,
    StreamResult,
};
use wasmtime::{AsContextMut, StoreContextMut};

use super::bindings::wasi::sockets::types::{
    ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use super::{SocketError, SocketResult, check_family, error_code, set_positive};
use crate::guest::{Sockets, SocketsView};
use crate::socket::is_invalid_destination;
use crate::tcp::{BACKLOG_MAX, Options, READ_BYTES_MAX};

/// A guest's TCP socket.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct TcpSocket {
    state: State,
    options: Options,
}

enum State {
    Unbound,
    Bound(Bound),
    /// `connect` waits.
    Connecting,
    Open(Connection),
    Listening(SocketAddr),
    /// An operation failed after which the socket is of no use.
    Closed,
}

struct Connection {
    stream: Arc<Stream>,
    /// Whether `send` and `receive` were called: each may be once.
    sent: bool,
    received: bool,
}

impl TcpSocket {
    fn new(state: State, options: Options) -> Self {
        Self { state, options }
    }

    fn open(stream: Stream, options: Options) -> Self {
        let stream = Arc::new(stream);
        Self::new(State::Open(Connection { stream, sent: false, received: false }), options)
    }
}

/// Any port of the Pod's.
fn anywhere() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

/// How long a future of ours takes to fail: no time.
async fn failed(code: ErrorCode) -> wasmtime::Result<Result<(), ErrorCode>> {
    Ok(Err(code))
}

/// What is told when a stream has come to its end; `Ok` if it is dropped before.
struct Told(Option<oneshot::Sender<Result<(), ErrorCode>>>);

impl Told {
    fn tell(&mut self, result: Result<(), ErrorCode>) {
        if let Some(sender) = self.0.take() {
            // A guest that does not care has dropped its future.
            sender.send(result).ok();
        }
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.tell(Ok(()));
    }
}

/// What the peer sends, on its way to the guest.
struct Incoming {
    stream: Arc<Stream>,
    told: Told,
}

impl<T> StreamProducer<T> for Incoming {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        destination: Destination<'a, u8, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if self.stream.poll_readable(cx).is_pending() {
            return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
        }
        // A read of nothing asks whether there is something.
        if destination.remaining(store.as_context_mut()) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut destination = destination.as_direct(store, READ_BYTES_MAX);
        let room = destination.remaining();
        let read = self.stream.try_read(room.len().min(READ_BYTES_MAX));
        let result = match read {
            Ok(Some(bytes)) => {
                room[..bytes.len()].copy_from_slice(&bytes);
                destination.mark_written(bytes.len());
                StreamResult::Completed
            }
            // Somebody else was faster; this task is woken again.
            Ok(None) if finish => StreamResult::Cancelled,
            Ok(None) => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Err(ReadError::Eof) => {
                self.told.tell(Ok(()));
                StreamResult::Dropped
            }
            Err(ReadError::Reset) => {
                self.told.tell(Err(ErrorCode::ConnectionReset));
                StreamResult::Dropped
            }
        };
        Poll::Ready(Ok(result))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.stream.shutdown_read();
    }
}

/// What the guest sends, on its way to the peer. Its end is the end of this direction.
struct Outgoing {
    stream: Arc<Stream>,
    told: Told,
}

impl<T> StreamConsumer<T> for Outgoing {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, T>,
        source: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if self.stream.poll_writable(cx).is_pending() {
            return if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
        }
        let mut source = source.as_direct(store);
        let bytes = source.remaining();
        let len = bytes.len().min(self.stream.writable_bytes());
        // A write of nothing asks whether there is room.
        if len > 0 && self.stream.try_write(Bytes::copy_from_slice(&bytes[..len])).is_err() {
            self.told.tell(Err(ErrorCode::ConnectionReset));
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        source.mark_read(len);
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.stream.shutdown_write();
    }
}

/// Connections on their way to the guest.
struct Accepting<T> {
    listener: Listener,
    options: Options,
    getter: fn(&mut T) -> SocketsView<'_>,
}

impl<T: 'static> StreamProducer<T> for Accepting<T> {
    type Item = Resource<TcpSocket>;
    type Buffer = Option<Self::Item>;

    fn poll_produce<'a>(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let pending = || if finish { Poll::Ready(Ok(StreamResult::Cancelled)) } else { Poll::Pending };
        if destination.remaining(store.as_context_mut()) == Some(0) {
            return match self.listener.poll_acceptable(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(StreamResult::Completed)),
                Poll::Pending => pending(),
            };
        }
        match self.listener.poll_accept(cx) {
            Poll::Ready(Ok(stream)) => {
                let socket = TcpSocket::open(stream, self.options);
                let socket = (self.getter)(store.data_mut()).table.push(socket)?;
                destination.set_buffer(Some(socket));
                Poll::Ready(Ok(StreamResult::Completed))
            }
            // The Pod's network is gone: nobody will come any more.
            Poll::Ready(Err(_)) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending => pending(),
        }
    }
}

impl<T: Send> HostTcpSocketWithStore<T> for Sockets {
    async fn connect(store: &Accessor<T, Self>, this: Resource<TcpSocket>, to: IpSocketAddress) -> SocketResult<()> {
        let to = SocketAddr::from(to);
        let mut connecting = store.with(|mut access| -> SocketResult<_> {
            let view = access.get();
            let socket = view.table.get_mut(&this).map_err(SocketError::trap)?;
            if is_invalid_destination(&to) {
                return Err(ErrorCode::InvalidArgument.into());
            }
            let connecting = match std::mem::replace(&mut socket.state, State::Connecting) {
                State::Unbound => view.net.connect(to),
                State::Bound(bound) => bound.connect(to),
                other => {
                    socket.state = other;
                    return Err(ErrorCode::InvalidState.into());
                }
            };
            Ok(Box::pin(connecting))
        })?;
        let connected = poll_fn(|cx| connecting.as_mut().poll(cx)).await;
        store.with(|mut access| {
            let socket = access.get().table.get_mut(&this).map_err(SocketError::trap)?;
            match connected {
                Ok(stream) => {
                    *socket = TcpSocket::open(stream, socket.options);
                    Ok(())
                }
                Err(error) => {
                    socket.state = State::Closed;
                    Err(error_code(error).into())
                }
            }
        })
    }

    fn listen(
        mut store: Access<'_, T, Self>,
        this: Resource<TcpSocket>,
    ) -> SocketResult<StreamReader<Resource<TcpSocket>>> {
        let getter = store.getter();
        let view = store.get();
        let socket = view.table.get_mut(&this).map_err(SocketError::trap)?;
        let options = socket.options;
        let bound = match std::mem::replace(&mut socket.state, State::Closed) {
            State::Bound(bound) => bound,
            State::Unbound => match view.net.bind(anywhere()) {
                Ok(bound) => bound,
                Err(error) => {
                    socket.state = State::Unbound;
                    return Err(error_code(error).into());
                }
            },
            other => {
                socket.state = other;
                return Err(ErrorCode::InvalidState.into());
            }
        };
        let listener = bound.listen(options.backlog);
        socket.state = State::Listening(listener.local_addr());
        let accepting = Accepting { listener, options, getter };
        StreamReader::new(&mut store, accepting).map_err(SocketError::trap)
    }

    fn send(
        mut store: Access<'_, T, Self>,
        this: Resource<TcpSocket>,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Result<(), ErrorCode>>> {
        let socket = store.get().table.get_mut(&this)?;
        match &mut socket.state {
            State::Open(connection) if !connection.sent => {
                connection.sent = true;
                let stream = connection.stream.clone();
                let (teller, told) = oneshot::channel();
                data.pipe(&mut store, Outgoing { stream, told: Told(Some(teller)) })?;
                FutureReader::new(&mut store, told)
            }
            _ => {
                data.close(&mut store)?;
                FutureReader::new(&mut store, failed(ErrorCode::InvalidState))
            }
        }
    }

    fn receive(
        mut store: Access<'_, T, Self>,
        this: Resource<TcpSocket>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Result<(), ErrorCode>>)> {
        let socket = store.get().table.get_mut(&this)?;
        match &mut socket.state {
            State::Open(connection) if !connection.received => {
                connection.received = true;
                let stream = connection.stream.clone();
                let (teller, told) = oneshot::channel();
                let incoming = Incoming { stream, told: Told(Some(teller)) };
                Ok((StreamReader::new(&mut store, incoming)?, FutureReader::new(&mut store, told)?))
            }
            _ => Ok((
                StreamReader::new(&mut store, std::iter::empty())?,
                FutureReader::new(&mut store, failed(ErrorCode::InvalidState))?,
            )),
        }
    }
}

impl SocketsView<'_> {
    fn tcp(&mut self, this: &Resource<TcpSocket>) -> SocketResult<&mut TcpSocket> {
        self.table.get_mut(this).map_err(SocketError::trap)
    }
}

impl HostTcpSocket for SocketsView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        check_family(family)?;
        self.table.push(TcpSocket::new(State::Unbound, Options::default())).map_err(SocketError::trap)
    }

    fn bind(&mut self, this: Resource<TcpSocket>, address: IpSocketAddress) -> SocketResult<()> {
        let (address, net) = (SocketAddr::from(address), self.net);
        let socket = self.tcp(&this)?;
        match socket.state {
            State::Unbound if address.is_ipv4() => {
                socket.state = State::Bound(net.bind(address).map_err(error_code)?);
                Ok(())
            }
            State::Unbound => Err(ErrorCode::InvalidArgument.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.tcp(&this)?.state {
            State::Bound(bound) => Ok(bound.local_addr().into()),
            State::Open(connection) => Ok(connection.stream.local_addr().into()),
            State::Listening(address) => Ok((*address).into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        match &self.tcp(&this)?.state {
            State::Open(connection) => Ok(connection.stream.peer_addr().into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(matches!(self.table.get(&this)?.state, State::Listening(_)))
    }

    fn get_address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        self.table.get(&this)?;
        Ok(IpAddressFamily::Ipv4)
    }

    fn set_listen_backlog_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        let socket = self.tcp(&this)?;
        if value == 0 {
            return Err(ErrorCode::InvalidArgument.into());
        }
        match socket.state {
            State::Unbound | State::Bound(_) => {
                socket.options.backlog = value.min(BACKLOG_MAX) as usize;
                Ok(())
            }
            State::Listening(_) => Err(ErrorCode::NotSupported.into()),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_keep_alive_enabled(&mut self, this: Resource<TcpSocket>) -> SocketResult<bool> {
        Ok(self.tcp(&this)?.options.keep_alive)
    }

    fn set_keep_alive_enabled(&mut self, this: Resource<TcpSocket>, value: bool) -> SocketResult<()> {
        self.tcp(&this)?.options.keep_alive = value;
        Ok(())
    }

    fn get_keep_alive_idle_time(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.options.keep_alive_idle_ns)
    }

    fn set_keep_alive_idle_time(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.keep_alive_idle_ns, value)
    }

    fn get_keep_alive_interval(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.options.keep_alive_interval_ns)
    }

    fn set_keep_alive_interval(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.keep_alive_interval_ns, value)
    }

    fn get_keep_alive_count(&mut self, this: Resource<TcpSocket>) -> SocketResult<u32> {
        Ok(self.tcp(&this)?.options.keep_alive_count)
    }

    fn set_keep_alive_count(&mut self, this: Resource<TcpSocket>, value: u32) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.keep_alive_count, value)
    }

    fn get_hop_limit(&mut self, this: Resource<TcpSocket>) -> SocketResult<u8> {
        Ok(self.tcp(&this)?.options.tunables.hop_limit)
    }

    fn set_hop_limit(&mut self, this: Resource<TcpSocket>, value: u8) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.tunables.hop_limit, value)
    }

    fn get_receive_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.options.tunables.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.tunables.receive_buffer, value)
    }

    fn get_send_buffer_size(&mut self, this: Resource<TcpSocket>) -> SocketResult<u64> {
        Ok(self.tcp(&this)?.options.tunables.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<TcpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.tcp(&this)?.options.tunables.send_buffer, value)
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
