//! What a container may be, what it may reach, and what its neighbours notice of it: real guests on a real engine and a
//! real Pod network.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod files;
mod life;
mod neighbours;
mod p3;
mod precompiled;
mod rig;
mod serving;
mod sockets;
mod stores;
mod toolbox;
mod toolchains;
