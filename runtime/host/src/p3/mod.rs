//! WASI 0.3: what is not `wasmtime-wasi`'s. Sockets, name lookup and HTTP go through the Pod's network here too.

mod filesystem;
mod tcp;
mod udp;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use dhow_switch::NetError;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p3::bindings as wasi;
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::{TrappableError, WasiView};

use crate::files::{Directories, Preopens};
use crate::filesystem::Filesystem;
use crate::guest::{Guest, Sockets, SocketsView};
use crate::lookup::NAME_BYTES_MAX;
use bindings::wasi::sockets::ip_name_lookup::{self, ErrorCode as LookupError};
use bindings::wasi::sockets::types::{self, ErrorCode, IpAddress, IpSocketAddress};
use bindings::wasi::sockets::types::{Ipv4SocketAddress, Ipv6SocketAddress};

mod bindings {
    //! The socket interfaces, generated anew so that our own resources stand behind them.
    #![allow(missing_docs, unreachable_pub)]

    wasmtime::component::bindgen!({
        path: "../../wit/0.3",
        world: "dhow:container/sockets",
        imports: {
            "wasi:sockets/types.[method]tcp-socket.listen": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.send": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.receive": store | trappable,
            default: trappable,
        },
        require_store_data_send: true,
        with: {
            "wasi:clocks": wasmtime_wasi::p3::bindings::clocks,
            "wasi:sockets/types.tcp-socket": crate::p3::tcp::TcpSocket,
            "wasi:sockets/types.udp-socket": crate::p3::udp::UdpSocket,
        },
        trappable_error_type: { "wasi:sockets/types.error-code" => crate::p3::SocketError },
    });
}

/// A failure that the guest sees, or a trap.
pub(crate) type SocketError = TrappableError<ErrorCode>;
pub(crate) type SocketResult<T> = Result<T, SocketError>;

/// The interfaces that [`add_to_linker`] links, without their version.
pub(crate) const INTERFACES: [&str; 23] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:cli/types",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/system-clock",
    "wasi:clocks/types",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/client",
    "wasi:http/types",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/types",
];

/// Links every interface of WASI 0.3 that a container may import, spelled out as those of 0.2 are.
pub fn add_to_linker(l: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasi::clocks::monotonic_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
    wasi::clocks::system_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
    wasi::filesystem::types::add_to_linker::<Guest, Filesystem>(l, Guest::guarded_files)?;
    wasi::filesystem::preopens::add_to_linker::<Guest, Directories>(l, Guest::preopens)?;
    wasi::random::random::add_to_linker::<Guest, WasiRandom>(l, |g| g.ctx().ctx.random())?;
    wasi::random::insecure::add_to_linker::<Guest, WasiRandom>(l, |g| g.ctx().ctx.random())?;
    wasi::random::insecure_seed::add_to_linker::<Guest, WasiRandom>(l, |g| g.ctx().ctx.random())?;
    wasi::cli::exit::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::environment::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::stdin::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::stdout::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::stderr::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::terminal_input::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::terminal_output::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::terminal_stdin::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::terminal_stdout::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    wasi::cli::terminal_stderr::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    types::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    ip_name_lookup::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    wasmtime_wasi_http::p3::add_to_linker(l)
}

impl wasi::filesystem::preopens::Host for Preopens<'_> {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.directories()
    }
}

impl types::Host for SocketsView<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl ip_name_lookup::Host for SocketsView<'_> {}

impl<T: Send> ip_name_lookup::HostWithStore<T> for Sockets {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, LookupError>> {
        if let Ok(address) = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Ok(Ok(vec![address.into()]));
        }
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.is_ascii() {
            return Ok(Err(LookupError::InvalidArgument));
        }
        let resolving = store.with(|mut access| access.get().net.resolve(&name));
        Ok(match resolving.await {
            Ok(addresses) => Ok(addresses.into_iter().map(IpAddress::from).collect()),
            Err(NetError::NameNotFound) => Err(LookupError::NameUnresolvable),
            Err(NetError::Denied) => Err(LookupError::AccessDenied),
            Err(_) => Err(LookupError::TemporaryResolverFailure),
        })
    }
}

/// The Pod network is IPv4; a program that tries both families goes on with the other one.
fn check_family(family: types::IpAddressFamily) -> SocketResult<()> {
    match family {
        types::IpAddressFamily::Ipv4 => Ok(()),
        types::IpAddressFamily::Ipv6 => Err(ErrorCode::NotSupported.into()),
    }
}

/// Sets a value that must not be zero.
fn set_positive<T: PartialEq + Default>(slot: &mut T, value: T) -> SocketResult<()> {
    if value == T::default() {
        return Err(ErrorCode::InvalidArgument.into());
    }
    *slot = value;
    Ok(())
}

/// The error code that a guest sees for a failure of the Pod's network.
fn error_code(error: NetError) -> ErrorCode {
    match error {
        NetError::Refused => ErrorCode::ConnectionRefused,
        NetError::AddrInUse => ErrorCode::AddressInUse,
        NetError::AddrNotAvailable => ErrorCode::AddressNotBindable,
        NetError::HostUnreachable => ErrorCode::RemoteUnreachable,
        NetError::TimedOut => ErrorCode::Timeout,
        NetError::Reset => ErrorCode::ConnectionReset,
        NetError::Denied => ErrorCode::AccessDenied,
        NetError::InvalidState => ErrorCode::InvalidState,
        NetError::MessageTooLarge => ErrorCode::DatagramTooLarge,
        other => ErrorCode::Other(Some(other.to_string())),
    }
}

impl From<IpAddr> for IpAddress {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ip) => Self::Ipv4(ip.octets().into()),
            IpAddr::V6(ip) => Self::Ipv6(ip.segments().into()),
        }
    }
}

impl From<SocketAddr> for IpSocketAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(to) => Self::Ipv4(Ipv4SocketAddress { port: to.port(), address: to.ip().octets().into() }),
            SocketAddr::V6(to) => Self::Ipv6(Ipv6SocketAddress {
                port: to.port(),
                flow_info: to.flowinfo(),
                address: to.ip().segments().into(),
                scope_id: to.scope_id(),
            }),
        }
    }
}

impl From<IpSocketAddress> for SocketAddr {
    fn from(address: IpSocketAddress) -> Self {
        match address {
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address: (a, b, c, d) }) => {
                Self::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
            }
            IpSocketAddress::Ipv6(Ipv6SocketAddress { port, flow_info, address, scope_id }) => {
                Self::V6(SocketAddrV6::new(Ipv6Addr::from(<[u16; 8]>::from(address)), port, flow_info, scope_id))
            }
        }
    }
}
