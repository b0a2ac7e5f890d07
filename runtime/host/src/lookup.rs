//! `wasi:sockets/ip-name-lookup`: names are answered by the Pod's network.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use dhow_switch::{NetError, Resolving};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError, subscribe};

use crate::bindings::wasi::sockets::ip_name_lookup::{Host, HostResolveAddressStream};
use crate::guest::SocketsView;

/// The longest name that DNS allows.
pub(crate) const NAME_BYTES_MAX: usize = 253;

/// The answer to one question, being awaited or being read.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub enum Addresses {
    /// The network has not answered yet.
    Asked(Pin<Box<Resolving>>),
    /// What is left to read.
    Answered(std::vec::IntoIter<IpAddr>),
    /// There is no answer.
    Failed(ErrorCode),
}

impl Addresses {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Asked(answer) = self {
            *self = match std::task::ready!(answer.as_mut().poll(cx)) {
                Ok(addresses) => Self::Answered(addresses.into_iter()),
                Err(error) => Self::Failed(lookup_error(error)),
            };
        }
        Poll::Ready(())
    }
}

fn lookup_error(error: NetError) -> ErrorCode {
    match error {
        NetError::NameNotFound => ErrorCode::NameUnresolvable,
        NetError::Denied => ErrorCode::AccessDenied,
        _ => ErrorCode::TemporaryResolverFailure,
    }
}

#[async_trait::async_trait]
impl Pollable for Addresses {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_answer(cx)).await;
    }
}

impl Host for SocketsView<'_> {
    fn resolve_addresses(
        &mut self,
        _network: Resource<Network>,
        name: String,
    ) -> Result<Resource<Addresses>, SocketError> {
        let literal = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let addresses = match literal {
            Ok(address) => Addresses::Answered(vec![address].into_iter()),
            Err(_) if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.is_ascii() => {
                return Err(ErrorCode::InvalidArgument.into());
            }
            Err(_) => Addresses::Asked(Box::pin(self.net.resolve(&name))),
        };
        Ok(self.table.push(addresses)?)
    }
}

impl HostResolveAddressStream for SocketsView<'_> {
    fn resolve_next_address(&mut self, this: Resource<Addresses>) -> Result<Option<IpAddress>, SocketError> {
        let addresses = self.table.get_mut(&this)?;
        if addresses.poll_answer(&mut Context::from_waker(Waker::noop())).is_pending() {
            return Err(ErrorCode::WouldBlock.into());
        }
        match addresses {
            Addresses::Asked(_) => Err(ErrorCode::WouldBlock.into()),
            Addresses::Answered(rest) => Ok(rest.next().map(IpAddress::from)),
            Addresses::Failed(code) => Err((*code).into()),
        }
    }

    fn subscribe(&mut self, this: Resource<Addresses>) -> wasmtime::Result<Resource<DynPollable>> {
        subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Addresses>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}
