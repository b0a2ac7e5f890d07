//! Commands: one instance, run to its end.

use std::sync::atomic::{AtomicBool, Ordering};

use dhow_host::{Guest, MemoryMeter, Template};
use wasmtime::Store;
use wasmtime_wasi::p2::bindings::CommandPre;

use crate::container::{End, Shared, wished};
use crate::engine::Engine;
use crate::meter::Metered;
use crate::output::{Channel, Input, Sink};

/// Memory above which giving it back to the system is left to a thread that may block: 1 MiB takes 0.04 ms, 100 MiB
/// up to 60 ms.
const DROP_INLINE_BYTES_MAX: u64 = 8 << 20;

pub(crate) async fn run(
    engine: &Engine,
    pre: &CommandPre<Guest>,
    template: &Template,
    input: Input,
    sink: &Sink,
    shared: &Shared,
) -> End {
    let memory = MemoryMeter::new(template.memory().clone());
    let guest = template.guest(memory, input, sink.open(Channel::Stdout), sink.open(Channel::Stderr));
    let mut store = new_store(pre.engine(), guest);
    let mut wishes = shared.wishes();
    let began = AtomicBool::new(false);
    let end = {
        let guest = async {
            let command = pre.instantiate_async(&mut store).await?;
            began.store(true, Ordering::Relaxed);
            shared.set_running();
            command.wasi_cli_run().call_run(&mut store).await
        };
        let guest = Metered::new(guest, shared.cpu().clone(), engine.ticker().clone());
        tokio::select! {
            biased;
            wish = wished(&mut wishes) => End::wished(wish),
            result = guest => match result {
                Ok(Ok(())) => End::completed(),
                Ok(Err(())) => End::exited(1),
                Err(error) => End::failed(&error, began.load(Ordering::Relaxed)),
            },
        }
    };
    discard(store).await;
    end
}

/// A Store that yields at each epoch and counts its memory.
pub(crate) fn new_store(engine: &wasmtime::Engine, guest: Guest) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    store
}

/// Drops a Store without holding up the guests that share this thread.
pub(crate) async fn discard(store: Store<Guest>) {
    if store.data().memory.held() <= DROP_INLINE_BYTES_MAX {
        return;
    }
    if let Err(error) = tokio::task::spawn_blocking(move || drop(store)).await {
        tracing::error!(%error, "dropping an instance failed");
    }
}
