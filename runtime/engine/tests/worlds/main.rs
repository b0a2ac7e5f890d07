//! What a container may be, and what it may reach: real guests on a real engine and a real Pod network.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod p3;
mod rig;
mod serving;
mod sockets;
mod stores;
mod toolchains;
