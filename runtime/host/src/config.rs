//! `wasi:config`: what the Pod configures its container with, which is its environment. So values come from where the
//! Pod takes variables from: written down, ConfigMaps, Secrets, its own fields.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Linker, Lower};

use crate::guest::Guest;

/// Every name under which guests look for it: that of the release candidate, Spin's, and the two of wasmCloud's draft. All
/// are of one shape.
pub(crate) const INTERFACES: &[&str] = &[
    "wasi:config/runtime@0.2.0-draft",
    "wasi:config/store@0.2.0-draft",
    "wasi:config/store@0.2.0-draft-2024-09-27",
    "wasi:config/store@0.2.0-rc.1",
];

/// A failure that the guest sees; the environment has none.
#[derive(ComponentType, Lower)]
#[component(variant)]
#[expect(dead_code, reason = "the interface has it")]
enum Error {
    #[component(name = "upstream")]
    Upstream(String),
    #[component(name = "io")]
    Io(String),
}

/// Links it under all its names.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for interface in INTERFACES {
        let mut l = linker.instance(interface)?;
        l.func_wrap("get", |store: StoreContextMut<'_, Guest>, (key,): (String,)| {
            let value = store.data().env.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone());
            Ok((Ok::<_, Error>(value),))
        })?;
        l.func_wrap("get-all", |store: StoreContextMut<'_, Guest>, (): ()| {
            Ok((Ok::<_, Error>(store.data().env.to_vec()),))
        })?;
    }
    Ok(())
}
