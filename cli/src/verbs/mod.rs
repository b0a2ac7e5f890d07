//! One file a verb. Each has its `Args` and a `run`.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod backup;
pub(crate) mod certificate;
pub(crate) mod compile_worker;
pub(crate) mod coredump;
pub(crate) mod cp;
pub(crate) mod delete;
pub(crate) mod describe;
pub(crate) mod exec;
pub(crate) mod get;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod member;
pub(crate) mod push;
pub(crate) mod restore;
pub(crate) mod rollout;
pub(crate) mod run;
pub(crate) mod scale;
pub(crate) mod server;
pub(crate) mod status;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
