//! Commands: one instance, run to its end.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dhow_host::{Guest, MemoryMeter, StopNotice, Template};
use tokio::sync::watch;
use tokio::time::sleep_until;
use wasmtime::{Store, UpdateDeadline};

use crate::container::{End, Shared, Wish, wished};
use crate::engine::Engine;
use crate::meter::{Metered, note_cut};
use crate::output::{Channel, Input, Sink};
use crate::program::{Command, CommandPre};
use crate::trap;

/// Memory above which giving it back to the system is left to a thread that may block: 1 MiB takes 0.04 ms, 100 MiB
/// up to 60 ms.
const DROP_INLINE_BYTES_MAX: u64 = 8 << 20;

pub(crate) async fn run(
    engine: &Engine,
    Command { pre, hears_of_its_end }: &Command,
    template: &Template,
    input: Input,
    sink: &Sink,
    shared: &Arc<Shared>,
) -> End {
    let memory = MemoryMeter::new(template.memory().clone());
    let guest = template.guest(memory, input, sink.open(Channel::Stdout), sink.open(Channel::Stderr));
    let mut store = new_store(pre.engine(), guest);
    let mut wishes = shared.wishes();
    let began = Arc::new(AtomicBool::new(false));
    // It owns all that it works with: it may be polled by the threads of the slow lane.
    let guest = {
        let (pre, shared, began) = (pre.clone(), shared.clone(), began.clone());
        async move {
            let result = async {
                let set_running = || {
                    began.store(true, Ordering::Relaxed);
                    shared.set_running();
                };
                call(&pre, &mut store, set_running).await
            }
            .await;
            (result, store)
        }
    };
    let mut guest = Metered::new(guest, shared.cpu().clone(), engine.ticker().clone(), engine.lane().clone());
    tokio::select! {
        biased;
        wish = its_end(&mut wishes, hears_of_its_end.then(|| template.stop_notice())) => {
            discard(guest, template.memory().held()).await;
            End::wished(wish)
        }
        (result, store) = &mut guest => {
            let held = store.data().memory.held();
            match (&result, shared.core_dump()) {
                (Err(error), Some(path)) if held <= trap::CORE_BYTES_MAX && trap::is_trap(error) => {
                    return trapped(store, result, path, sink, began.load(Ordering::Relaxed)).await;
                }
                _ => discard(store, held).await,
            }
            match result {
                Ok(Ok(())) => End::completed(),
                Ok(Err(())) => End::exited(1),
                Err(error) => End::failed(&error, began.load(Ordering::Relaxed)),
            }
        }
    }
}

/// The end of a program that is to be looked at afterwards.
async fn trapped(
    store: Store<Guest>,
    result: wasmtime::Result<Result<(), ()>>,
    path: &Path,
    sink: &Sink,
    began: bool,
) -> End {
    let path = path.to_owned();
    // Hundreds of MiB may have to be written.
    let written = tokio::task::spawn_blocking(move || {
        let end = match &result {
            Err(error) => End::failed(error, began),
            Ok(_) => End::completed(),
        };
        let written = result.err().map_or(Ok(()), |error| trap::write_core(store, &error, &path));
        (end, written.map_err(|error| error.to_string()))
    });
    let (end, written) = written.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    match written {
        Ok(()) => sink.note("wrote a core dump"),
        Err(why) => sink.note(&format!("a core dump could not be written: {why}")),
    }
    end
}

/// Waits until the program is to be ended: when it is killed, or asked to stop; if it wants to hear of that, when its
/// grace is over.
async fn its_end(wishes: &mut watch::Receiver<Wish>, hears: Option<&Arc<StopNotice>>) -> Wish {
    let Some(notice) = hears else { return wished(wishes).await };
    let mut wish = wished(wishes).await;
    while let Wish::Stop(deadline) = wish {
        notice.give(deadline);
        tokio::select! {
            () = sleep_until(deadline) => return Wish::Kill,
            Ok(()) = wishes.changed() => wish = *wishes.borrow_and_update(),
        }
    }
    wish
}

/// Makes the instance, says so, and runs it.
async fn call(
    pre: &CommandPre,
    store: &mut Store<Guest>,
    set_running: impl FnOnce(),
) -> wasmtime::Result<Result<(), ()>> {
    match pre {
        CommandPre::P2(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            set_running();
            command.wasi_cli_run().call_run(store).await
        }
        CommandPre::P3(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            set_running();
            store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await?
        }
    }
}

/// A Store that yields at each epoch and counts its memory.
pub(crate) fn new_store(engine: &wasmtime::Engine, guest: Guest) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|_| {
        note_cut();
        Ok(UpdateDeadline::Yield(1))
    });
    store
}

/// Drops a Store, or what owns one, without holding up the guests that share this thread.
pub(crate) async fn discard<T: Send + 'static>(owner: T, held_bytes: u64) {
    if held_bytes <= DROP_INLINE_BYTES_MAX {
        return;
    }
    if let Err(error) = tokio::task::spawn_blocking(move || drop(owner)).await {
        tracing::error!(%error, "dropping an instance failed");
    }
}
