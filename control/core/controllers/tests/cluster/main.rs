//! The controllers and the scheduler against a world in memory: the real state, the real kinds, an API that does what
//! a server does, agents that run pods, and a seed that decides in which order everything arrives.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod churn;
mod collection;
mod leaders;
mod nodes;
mod rollouts;
mod scheduling;
mod services;
mod sets;
mod storage;
mod world;
