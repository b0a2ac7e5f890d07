//! The host side of `wit/`: what a guest's imports do.
//!
//! A [`Template`] is made once per container from its [`Setup`]; it makes a [`Guest`], the data of one Store, for each
//! instance. [`add_to_linker`] links every interface of WASI 0.2 by name, [`add_p3_to_linker`] those of 0.3 beside them:
//! clocks, random, files (counted and bounded by `filesystem`), environment and stdio are `wasmtime-wasi`'s; sockets, name
//! lookup and outgoing HTTP are ours and go through the Pod's network. Beside WASI there are drafts that guests of other hosts use, one module and cargo
//! feature each (`config`, `logging`, `keyvalue`, `blobstore`), and `dhow:pod`.
//!
//! Invariants:
//! * No guest ever gets a socket of the host: an interface that is not in the list of [`link`] is a missing import,
//!   never a fallback.
//! * Host-side memory of a guest is bounded: streams and tables have limits, linear memory and tables are counted in
//!   the container's [`MemoryAccount`], open files in its [`FileAccount`]. No operation on a file takes for ever.
//! * Nothing here decides when a guest runs; that is the engine's work.

#[cfg(feature = "blobstore")]
mod blobstore;
#[cfg(feature = "config")]
mod config;
mod files;
mod filesystem;
mod guest;
mod http;
#[cfg(feature = "keyvalue")]
mod keyvalue;
mod link;
#[cfg(feature = "logging")]
mod logging;
mod lookup;
mod memory;
mod p3;
mod pod;
mod socket;
#[cfg(any(feature = "keyvalue", feature = "blobstore"))]
mod stores;
mod tcp;
mod tls;
mod udp;

pub use filesystem::{FileAccount, FileUse};
pub use guest::{Accounts, Guest, Setup, SetupError, Template};
pub use link::{Wasi, add_to_linker, hears_of_its_end, is_known_import};
pub use memory::{MemoryAccount, MemoryMeter, OutOfMemory};
pub use p3::add_to_linker as add_p3_to_linker;
pub use pod::{About, StopNotice};

mod bindings {
    //! The socket interfaces, generated anew so that our own resources stand behind them.
    #![allow(missing_docs, unreachable_pub)]

    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "dhow:container/sockets",
        imports: { default: trappable },
        require_store_data_send: true,
        with: {
            "wasi:io": wasmtime_wasi_io::bindings::wasi::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:sockets/network": wasmtime_wasi::p2::bindings::sockets::network,
            "wasi:sockets/tcp.tcp-socket": crate::tcp::TcpSocket,
            "wasi:sockets/udp.udp-socket": crate::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": crate::udp::IncomingDatagrams,
            "wasi:sockets/udp.outgoing-datagram-stream": crate::udp::OutgoingDatagrams,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": crate::lookup::Addresses,
        },
        trappable_error_type: { "wasi:sockets/network.error-code" => wasmtime_wasi::p2::SocketError },
    });
}
