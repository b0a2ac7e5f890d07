//! `wasi:sockets/types.udp-socket` of 0.3 over the Pod's network.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::task::ready;

use bytes::Bytes;
use dhow_switch::PodNet;
use wasmtime::component::{Accessor, Resource};

use super::bindings::wasi::sockets::types::{
    ErrorCode, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use super::{SocketError, SocketResult, check_family, error_code, set_positive};
use crate::guest::{Sockets, SocketsView};
use crate::socket::{Tunables, is_invalid_destination};

/// A guest's UDP socket.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
#[derive(Default)]
pub struct UdpSocket {
    bound: Option<Arc<dhow_switch::UdpSocket>>,
    /// The only peer that it talks to and hears.
    remote: Option<SocketAddr>,
    tunables: Tunables,
}

impl UdpSocket {
    fn bound(&self) -> SocketResult<&Arc<dhow_switch::UdpSocket>> {
        Ok(self.bound.as_ref().ok_or(ErrorCode::InvalidState)?)
    }

    /// The socket, bound to any port if the guest has not chosen one.
    fn bound_anywhere(&mut self, net: &PodNet) -> SocketResult<Arc<dhow_switch::UdpSocket>> {
        if let Some(bound) = &self.bound {
            return Ok(bound.clone());
        }
        let bound = Arc::new(net.udp_bind((Ipv4Addr::UNSPECIFIED, 0).into()).map_err(error_code)?);
        self.bound = Some(bound.clone());
        Ok(bound)
    }

    /// Where a datagram goes.
    fn destination(&self, named: Option<SocketAddr>) -> SocketResult<SocketAddr> {
        let to = match (self.remote, named) {
            (None, Some(to)) | (Some(to), None) => to,
            (Some(remote), Some(to)) if remote == to => to,
            _ => return Err(ErrorCode::InvalidArgument.into()),
        };
        if is_invalid_destination(&to) { Err(ErrorCode::InvalidArgument.into()) } else { Ok(to) }
    }
}

impl<T: Send> HostUdpSocketWithStore<T> for Sockets {
    async fn send(
        store: &Accessor<T, Self>,
        this: Resource<UdpSocket>,
        data: Vec<u8>,
        to: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        let (socket, to) = store.with(|mut access| -> SocketResult<_> {
            let view = access.get();
            let socket = view.table.get_mut(&this).map_err(SocketError::trap)?;
            let to = socket.destination(to.map(SocketAddr::from))?;
            Ok((socket.bound_anywhere(view.net)?, to))
        })?;
        let data = Bytes::from(data);
        while !socket.try_send_to(data.clone(), to).map_err(error_code)? {
            poll_fn(|cx| socket.poll_writable(cx)).await;
        }
        Ok(())
    }

    async fn receive(store: &Accessor<T, Self>, this: Resource<UdpSocket>) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let (socket, remote) = store.with(|mut access| -> SocketResult<_> {
            let socket = access.get().table.get(&this).map_err(SocketError::trap)?;
            Ok((socket.bound()?.clone(), socket.remote))
        })?;
        let received = poll_fn(|cx| {
            loop {
                ready!(socket.poll_readable(cx));
                match socket.try_recv() {
                    // A connected socket hears its peer only.
                    Some((_, from)) if remote.is_some_and(|remote| remote != from) => {}
                    Some(received) => return std::task::Poll::Ready(received),
                    None => {
                        // Somebody else was faster: asking again registers for the next one.
                        cx.waker().wake_by_ref();
                        return std::task::Poll::Pending;
                    }
                }
            }
        });
        let (data, from) = received.await;
        Ok((data.into(), from.into()))
    }
}

impl SocketsView<'_> {
    fn udp(&mut self, this: &Resource<UdpSocket>) -> SocketResult<&mut UdpSocket> {
        self.table.get_mut(this).map_err(SocketError::trap)
    }
}

impl HostUdpSocket for SocketsView<'_> {
    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        check_family(family)?;
        self.table.push(UdpSocket::default()).map_err(SocketError::trap)
    }

    fn bind(&mut self, this: Resource<UdpSocket>, address: IpSocketAddress) -> SocketResult<()> {
        let (address, net) = (SocketAddr::from(address), self.net);
        let socket = self.udp(&this)?;
        if socket.bound.is_some() {
            return Err(ErrorCode::InvalidState.into());
        }
        if address.is_ipv6() {
            return Err(ErrorCode::InvalidArgument.into());
        }
        socket.bound = Some(Arc::new(net.udp_bind(address).map_err(error_code)?));
        Ok(())
    }

    fn connect(&mut self, this: Resource<UdpSocket>, to: IpSocketAddress) -> SocketResult<()> {
        let (to, net) = (SocketAddr::from(to), self.net);
        if is_invalid_destination(&to) {
            return Err(ErrorCode::InvalidArgument.into());
        }
        let socket = self.udp(&this)?;
        socket.bound_anywhere(net)?;
        socket.remote = Some(to);
        Ok(())
    }

    fn disconnect(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        match self.udp(&this)?.remote.take() {
            Some(_) => Ok(()),
            None => Err(ErrorCode::InvalidState.into()),
        }
    }

    fn get_local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        Ok(self.udp(&this)?.bound()?.local_addr().into())
    }

    fn get_remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let remote = self.udp(&this)?.remote.ok_or(ErrorCode::InvalidState)?;
        Ok(remote.into())
    }

    fn get_address_family(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        self.table.get(&this)?;
        Ok(IpAddressFamily::Ipv4)
    }

    fn get_unicast_hop_limit(&mut self, this: Resource<UdpSocket>) -> SocketResult<u8> {
        Ok(self.udp(&this)?.tunables.hop_limit)
    }

    fn set_unicast_hop_limit(&mut self, this: Resource<UdpSocket>, value: u8) -> SocketResult<()> {
        set_positive(&mut self.udp(&this)?.tunables.hop_limit, value)
    }

    fn get_receive_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.tunables.receive_buffer)
    }

    fn set_receive_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.udp(&this)?.tunables.receive_buffer, value)
    }

    fn get_send_buffer_size(&mut self, this: Resource<UdpSocket>) -> SocketResult<u64> {
        Ok(self.udp(&this)?.tunables.send_buffer)
    }

    fn set_send_buffer_size(&mut self, this: Resource<UdpSocket>, value: u64) -> SocketResult<()> {
        set_positive(&mut self.udp(&this)?.tunables.send_buffer, value)
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
