//! The list of everything a guest may import.

use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView};
use wasmtime_wasi::p2::bindings as wasi;
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView};
use wasmtime_wasi_io::bindings::wasi::io;

use crate::bindings::wasi::sockets as ours;
use crate::files::Directories;
use crate::filesystem::Filesystem;
use crate::guest::{Guest, Sockets};
use crate::{p3, pod};

/// Which WASI a program is made for. That of 0.3 includes that of 0.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wasi {
    /// 0.2, and preview 1 once adapted.
    P2,
    /// 0.3: functions may wait without holding up others of their instance.
    P3,
}

/// The interfaces that [`add_to_linker`] links, without their version.
const INTERFACES: [&str; 29] = [
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
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:http/outgoing-handler",
    "wasi:http/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
    "wasi:sockets/instance-network",
    "wasi:sockets/ip-name-lookup",
    "wasi:sockets/network",
    "wasi:sockets/tcp",
    "wasi:sockets/tcp-create-socket",
    "wasi:sockets/udp",
    "wasi:sockets/udp-create-socket",
];

/// Which WASI has to be linked for an import or export such as `wasi:cli/exit@0.2.3`; `None` if its version is of no
/// WASI that the host knows.
fn wasi_of(version: &str) -> Option<Wasi> {
    // A draft of a version is compatible with nothing but itself.
    let (line, patch) = version.rsplit_once('.')?;
    patch.parse::<u32>().ok()?;
    match line {
        "0.2" => Some(Wasi::P2),
        "0.3" => Some(Wasi::P3),
        _ => None,
    }
}

impl Wasi {
    /// Which WASI the interface with this name belongs to; an interface of another family says nothing.
    pub fn of(interface: &str) -> Option<Self> {
        let (_, version) = interface.strip_prefix("wasi:")?.split_once('@')?;
        wasi_of(version)
    }
}

/// Whether the host has something behind an import such as `wasi:cli/exit@0.2.3`. Versions of one minor line are
/// compatible, as the linker itself sees it.
pub fn is_known_import(name: &str) -> bool {
    if drafts().any(|draft| draft == name) {
        return true;
    }
    let (interface, version) = name.split_once('@').unwrap_or((name, "0.2.0"));
    match wasi_of(version) {
        Some(Wasi::P2) => INTERFACES.contains(&interface),
        Some(Wasi::P3) => p3::INTERFACES.contains(&interface),
        None => {
            pod::INTERFACES.contains(&interface) && version.rsplit_once('.').is_some_and(|(line, _)| line == pod::LINE)
        }
    }
}

/// Interfaces of drafts, which are compatible with nothing but themselves.
fn drafts() -> impl Iterator<Item = &'static str> {
    let all: Vec<&[&'static str]> = vec![
        #[cfg(feature = "config")]
        crate::config::INTERFACES,
        #[cfg(feature = "logging")]
        crate::logging::INTERFACES,
        #[cfg(feature = "keyvalue")]
        crate::keyvalue::INTERFACES,
        #[cfg(feature = "blobstore")]
        crate::blobstore::INTERFACES,
    ];
    all.into_iter().flatten().copied()
}

/// Whether a program that imports these interfaces wants to be told of its end, and not just ended.
pub fn hears_of_its_end<'a>(mut imports: impl Iterator<Item = &'a str>) -> bool {
    imports.any(|name| name.starts_with(pod::LIFECYCLE))
}

struct Io;

impl HasData for Io {
    type Data<'a> = &'a mut ResourceTable;
}

/// Links every interface that a container of WASI 0.2 may import. The list is spelled out, so that an interface nobody thought of
/// is a missing import and not a door to the host.
pub fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let l = linker;
    io::error::add_to_linker::<Guest, Io>(l, |g| g.ctx().table)?;
    io::poll::add_to_linker::<Guest, Io>(l, |g| g.ctx().table)?;
    io::streams::add_to_linker::<Guest, Io>(l, |g| g.ctx().table)?;
    wasi::clocks::wall_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
    wasi::clocks::monotonic_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
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
    // These two hold no socket: the network handle is a token, and the error codes are plain values.
    wasi::sockets::instance_network::add_to_linker::<Guest, WasiSockets>(l, Guest::sockets)?;
    wasi::sockets::network::add_to_linker::<Guest, WasiSockets>(
        l,
        &wasi::sockets::network::LinkOptions::default(),
        Guest::sockets,
    )?;
    ours::tcp_create_socket::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    ours::tcp::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    ours::udp_create_socket::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    ours::udp::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    ours::ip_name_lookup::add_to_linker::<Guest, Sockets>(l, Guest::pod_sockets)?;
    #[cfg(feature = "config")]
    crate::config::add_to_linker(l)?;
    #[cfg(feature = "logging")]
    crate::logging::add_to_linker(l)?;
    #[cfg(feature = "keyvalue")]
    crate::keyvalue::add_to_linker(l)?;
    #[cfg(feature = "blobstore")]
    crate::blobstore::add_to_linker(l)?;
    pod::add_to_linker(l)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(l)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_are_known_by_name_and_minor_version() {
        for name in [
            "wasi:cli/exit@0.2.0",
            "wasi:cli/exit@0.2.99",
            "wasi:http/types@0.2.12",
            "wasi:sockets/tcp@0.2.3",
            "wasi:cli/exit@0.3.0",
            "dhow:pod/lifecycle@0.1.7",
            "wasi:logging/logging",
            "wasi:keyvalue/store@0.2.0-draft2",
            "wasi:http/client@0.3.2",
        ] {
            assert!(is_known_import(name), "{name}");
        }
        for name in [
            "wasi:cli/exit@0.4.0",
            "wasi:http/client@0.2.0",
            "wasi:nn/graph@0.2.0",
            "env",
            "wasi:cli/exit@0.2.0-rc-2023",
            "acme:x/y@1.0.0",
        ] {
            assert!(!is_known_import(name), "{name}");
        }
        let of = |name| Wasi::of(name);
        assert_eq!(of("wasi:cli/run@0.2.3"), Some(Wasi::P2));
        assert_eq!(of("wasi:http/handler@0.3.0"), Some(Wasi::P3));
        assert_eq!([of("wasi:keyvalue/store@0.2.0-draft"), of("acme:x/y@0.3.0"), of("wasi:cli/run")], [None; 3]);
    }
}
