//! `wasi:logging`: lines with a level and a context, to where the container's errors go.

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker};
use wasmtime_wasi::p2::StreamError;

use crate::guest::Guest;

/// The names under which guests look for it; some toolchains drop the version of the draft.
pub(crate) const INTERFACES: &[&str] = &["wasi:logging/logging", "wasi:logging/logging@0.1.0-draft"];

/// How bad it is.
#[derive(Clone, ComponentType, Copy, Debug, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "guests make them")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
    #[component(name = "critical")]
    Critical,
}

/// Links it under both names.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    for interface in INTERFACES {
        let mut l = linker.instance(interface)?;
        l.func_wrap_async(
            "log",
            |mut store: StoreContextMut<'_, Guest>, (level, context, message): (Level, String, String)| {
                Box::new(async move { write(store.data_mut(), &line(level, &context, &message)).await })
            },
        )?;
    }
    Ok(())
}

/// One message is one line: whoever reads the log must not take a part of it for another's.
fn line(level: Level, context: &str, message: &str) -> String {
    let level = format!("{level:?}").to_uppercase();
    let colon = if context.is_empty() { "" } else { ": " };
    let flat = |text: &str| text.trim_end().replace('\n', "\\n");
    format!("{level:<5} {}{colon}{}\n", flat(context), flat(message))
}

/// Waits, as the guest's own writing does, while the log takes nothing.
async fn write(guest: &mut Guest, line: &str) -> wasmtime::Result<()> {
    let mut rest = bytes::Bytes::copy_from_slice(line.as_bytes());
    while !rest.is_empty() {
        let permit = guest.log.write_ready().await;
        let result = permit.and_then(|permit| guest.log.write(rest.split_to(permit.min(rest.len()))));
        match result {
            Ok(()) => {}
            // Nobody reads it any more.
            Err(StreamError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_with_its_level_and_context() {
        assert_eq!(line(Level::Info, "http", "served"), "INFO  http: served\n");
        assert_eq!(line(Level::Critical, "", "two\nlines\n"), "CRITICAL two\\nlines\n");
    }
}
