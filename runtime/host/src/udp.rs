//! `wasi:sockets/udp` over the Pod's network.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddressFamily, IpSocketAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, SocketResult, subscribe};

use crate::bindings::wasi::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram, OutgoingDatagram,
};
use crate::bindings::wasi::sockets::udp_create_socket;
use crate::guest::SocketsView;
use crate::socket::{Tunables, check_family, error_code, is_invalid_destination, set_positive};

/// Datagrams that one call hands over in either direction.
const DATAGRAMS_MAX: usize = 16;
/// Bytes after which `receive` hands over what it has.
const RECEIVE_BYTES_MAX: usize = 64 * 1024;

/// A guest's UDP socket.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct UdpSocket {
    state: State,
    remote: Option<SocketAddr>,
    tunables: Tunables,
}

enum State {
    Unbound,
    /// `start-bind` was called, `finish-bind` was not.
    Binding(Arc<dhow_switch::UdpSocket>),
    Bound(Arc<dhow_switch::UdpSocket>),
}

/// The receiving side that `stream` gave.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct IncomingDatagrams {
    socket: Arc<dhow_switch::UdpSocket>,
    remote: Option<SocketAddr>,
}

/// The sending side that `stream` gave.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct OutgoingDatagrams {
    socket: Arc<dhow_switch::UdpSocket>,
    remote: Option<SocketAddr>,
    permit: usize,
}

impl UdpSocket {
    fn bound(&self) -> SocketResult<&Arc<dhow_switch::UdpSocket>> {
        match &self.state {
            State::Bound(socket) => Ok(socket),
            _ => Err(ErrorCode::InvalidState.into()),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {
        // Nothing that a socket itself does ever waits; its streams have their own pollables.
    }
}

#[async_trait::async_trait]
impl Pollable for IncomingDatagrams {
    async fn ready(&mut self) {
        poll_fn(|cx| self.socket.poll_readable(cx)).await;
    }
}

#[async_trait::async_trait]
impl Pollable for OutgoingDatagrams {
    async fn ready(&mut self) {
        poll_fn(|cx| self.socket.poll_writable(cx)).await;
    }
}

impl udp_create_socket::Host for SocketsView<'_> {
    fn create_udp_socket(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        check_family(family)?;
        let socket = UdpSocket { state: State::Unbound, remote: None, tunables: Tunables::default() };
        Ok(self.table.push(socket)?)
    }
}

impl Host for SocketsView<'_> {}

impl HostUdpSocket for SocketsView<'_> {
    fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        _network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let address = SocketAddr::from(address);
        let net = self.net;
        let socket = self.table.get_mut(&this)?;
        match socket.state {
            State::Unbound if address.is_ipv4() => {}
            State::Unbound => return Err(ErrorCode::InvalidArgument.into()),
            State::Binding(_) => return Err(ErrorCode::ConcurrencyConflict.into()),
            State::Bound(_) => return Err(ErrorCode::InvalidState.into()),
        }
        socket.state = State::Binding(Arc::new(net.udp_bind(address).map_err(error_code)?));
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        let State::Binding(bound) = &socket.state else {
            return Err(ErrorCode::NotInProgress.into());
        };
        socket.state = State::Bound(bound.clone());
        Ok(())
    }

    fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        remote: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<IncomingDatagrams>, Resource<OutgoingDatagrams>)> {
        let remote = remote.map(SocketAddr::from);
        let open = self.table.iter_children(&this)?.any(|c| c.is::<IncomingDatagrams>() || c.is::<OutgoingDatagrams>());
        if open {
            return Err(SocketError::trap(wasmtime::Error::msg("the former datagram streams are still open")));
        }
        if remote.is_some_and(|to| is_invalid_destination(&to)) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let socket = self.table.get_mut(&this)?;
        let bound = socket.bound()?.clone();
        socket.remote = remote;
        let incoming = IncomingDatagrams { socket: bound.clone(), remote };
        let outgoing = OutgoingDatagrams { socket: bound, remote, permit: 0 };
        Ok((self.table.push_child(incoming, &this)?, self.table.push_child(outgoing, &this)?))
    }

    fn local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.table.get(&this)?.bound()?.local_addr().into())
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let remote = self.table.get(&this)?.remote.ok_or(ErrorCode::InvalidState)?;
        Ok(remote.into())
    }

    fn address_family(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        self.table.get(&this)?;
        Ok(IpAddressFamily::Ipv4)
    }

    fn unicast_hop_limit(&mut self, this: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.table.get(&this)?.tunables.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        set_positive(&mut self.table.get_mut(&this)?.tunables.hop_limit, value)
    }

    fn receive_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.table.get(&this)?.tunables.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.table.get_mut(&this)?.tunables.receive_buffer, value)
    }

    fn send_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.table.get(&this)?.tunables.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.table.get_mut(&this)?.tunables.send_buffer, value)
    }

    fn subscribe(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl HostIncomingDatagramStream for SocketsView<'_> {
    fn receive(&mut self, this: Resource<IncomingDatagrams>, max: u64) -> SocketResult<Vec<IncomingDatagram>> {
        let stream = self.table.get(&this)?;
        let max = usize::try_from(max).unwrap_or(usize::MAX).min(DATAGRAMS_MAX);
        let (mut datagrams, mut bytes) = (Vec::new(), 0);
        while datagrams.len() < max && bytes < RECEIVE_BYTES_MAX {
            let Some((data, from)) = stream.socket.try_recv() else { break };
            // A connected socket hears its peer only.
            if stream.remote.is_some_and(|remote| remote != from) {
                continue;
            }
            bytes += data.len();
            datagrams.push(IncomingDatagram { data: data.into(), remote_address: from.into() });
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, this: Resource<IncomingDatagrams>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<IncomingDatagrams>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl HostOutgoingDatagramStream for SocketsView<'_> {
    fn check_send(&mut self, this: Resource<OutgoingDatagrams>) -> SocketResult<u64> {
        let stream = self.table.get_mut(&this)?;
        stream.permit = match stream.socket.poll_writable(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(()) => DATAGRAMS_MAX,
            Poll::Pending => 0,
        };
        Ok(stream.permit as u64)
    }

    fn send(&mut self, this: Resource<OutgoingDatagrams>, datagrams: Vec<OutgoingDatagram>) -> SocketResult<u64> {
        let stream = self.table.get_mut(&this)?;
        if datagrams.len() > std::mem::take(&mut stream.permit) {
            return Err(SocketError::trap(wasmtime::Error::msg("more datagrams than `check-send` allowed")));
        }
        let mut sent = 0;
        for datagram in datagrams {
            // Once something has gone out, a failure is left for the next call to find.
            match send_one(stream, datagram) {
                Ok(true) => sent += 1,
                Ok(false) => break,
                Err(_) if sent > 0 => break,
                Err(code) => return Err(code.into()),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, this: Resource<OutgoingDatagrams>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<OutgoingDatagrams>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

/// `Ok(false)`: the network takes nothing now.
fn send_one(stream: &OutgoingDatagrams, datagram: OutgoingDatagram) -> Result<bool, ErrorCode> {
    let named = datagram.remote_address.map(SocketAddr::from);
    let to = match (stream.remote, named) {
        (None, Some(to)) | (Some(to), None) => to,
        (Some(remote), Some(to)) if remote == to => to,
        _ => return Err(ErrorCode::InvalidArgument),
    };
    if is_invalid_destination(&to) {
        return Err(ErrorCode::InvalidArgument);
    }
    stream.socket.try_send_to(Bytes::from(datagram.data), to).map_err(error_code)
}
