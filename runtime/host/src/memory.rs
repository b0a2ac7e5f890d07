//! How much memory a container's guests hold, and the line they may not cross.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use wasmtime::ResourceLimiter;

/// Bytes that one table element takes in this host.
const TABLE_ELEMENT_BYTES: u64 = size_of::<usize>() as u64;

/// Core instances that one Store may have. A component is a handful of them, a composed one some dozens; each costs the
/// host memory that is not the guest's own. Beyond it the program cannot be started.
const INSTANCES_MAX: usize = 256;
/// Linear memories that one Store may have. Each reserves 4 GiB of the 128 TiB of addresses that the node has, and takes
/// two of its mappings.
const MEMORIES_MAX: usize = 32;
/// Tables that one Store may have, each with host memory of its own.
const TABLES_MAX: usize = 256;

/// A guest wanted more memory than its container may have. It traps with this, as a process meets the OOM killer: a
/// refusal that the guest could catch would leave many programs running in a state that nobody has tested.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("memory limit of {limit} bytes reached: {held} bytes held, {wanted} more wanted")]
pub struct OutOfMemory {
    /// The container's limit.
    pub limit: u64,
    /// What all its instances held.
    pub held: u64,
    /// What was asked for in addition.
    pub wanted: u64,
}

/// The memory of all instances of one container together.
#[derive(Debug, Default)]
pub struct MemoryAccount {
    limit: Option<u64>,
    held: AtomicU64,
    /// What of it is held by instances for which nobody waits: commands, which may run for long.
    lasting: AtomicU64,
    freed: Notify,
}

impl MemoryAccount {
    /// An empty account with this limit.
    pub fn new(limit: Option<u64>) -> Arc<Self> {
        Arc::new(Self { limit, ..Self::default() })
    }

    /// The most that may be held.
    pub fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// Bytes that are held or set aside now.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// A meter for one more instance that is expected to need `bytes`: waits until that much is free, or nothing is
    /// held any more but by commands (then waiting cannot help), and sets it aside.
    pub async fn meter(self: &Arc<Self>, bytes: u64) -> MemoryMeter {
        let set_aside = self.set_aside(bytes).await;
        MemoryMeter { account: self.clone(), held: 0, set_aside, last: 0, lasting: false }
    }

    async fn set_aside(&self, bytes: u64) -> u64 {
        if self.limit.is_none() || bytes == 0 {
            return 0;
        }
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if self.take(bytes).is_ok() {
                return bytes;
            }
            if self.held() <= self.lasting.load(Ordering::Relaxed) {
                return 0;
            }
            freed.await;
        }
    }

    fn take(&self, bytes: u64) -> Result<(), OutOfMemory> {
        let before = self.held.fetch_add(bytes, Ordering::Relaxed);
        match self.limit {
            Some(limit) if before.saturating_add(bytes) > limit => {
                self.held.fetch_sub(bytes, Ordering::Relaxed);
                Err(OutOfMemory { limit, held: before, wanted: bytes })
            }
            _ => Ok(()),
        }
    }

    fn give_back(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.freed.notify_waiters();
    }
}

/// One Store's share of its container's account; given back when it is dropped.
#[derive(Debug)]
pub struct MemoryMeter {
    account: Arc<MemoryAccount>,
    held: u64,
    /// Taken from the account and not used yet.
    set_aside: u64,
    /// The last growth that was allowed, to be undone if the host cannot deliver it.
    last: u64,
    /// Whether it is a command's.
    lasting: bool,
}

impl MemoryMeter {
    /// A command's meter, which holds nothing yet.
    pub fn new(account: Arc<MemoryAccount>) -> Self {
        Self { account, held: 0, set_aside: 0, last: 0, lasting: true }
    }

    /// Bytes that this Store holds.
    pub fn held(&self) -> u64 {
        self.held
    }

    fn grow(&mut self, bytes: u64) -> wasmtime::Result<bool> {
        let from_aside = bytes.min(self.set_aside);
        self.account.take(bytes - from_aside)?;
        self.set_aside -= from_aside;
        self.held += bytes;
        self.last = bytes;
        if self.lasting {
            self.account.lasting.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn undo(&mut self) {
        let bytes = std::mem::take(&mut self.last);
        self.held -= bytes;
        self.give_back(bytes);
    }

    fn give_back(&self, bytes: u64) {
        if self.lasting {
            self.account.lasting.fetch_sub(bytes, Ordering::Relaxed);
        }
        self.account.give_back(bytes);
    }
}

impl ResourceLimiter for MemoryMeter {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        // Beyond the memory's own maximum the growth fails anyway; that is the guest's affair, not our limit's.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current) as u64)
    }

    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(%error, "memory growth failed");
        self.undo();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        self.grow(desired.saturating_sub(current) as u64 * TABLE_ELEMENT_BYTES)
    }

    fn table_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        tracing::debug!(%error, "table growth failed");
        self.undo();
        Ok(())
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }
}

impl Drop for MemoryMeter {
    fn drop(&mut self) {
        // A command has nothing set aside.
        self.give_back(self.held + self.set_aside);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_counted_over_all_instances_and_given_back() {
        let account = MemoryAccount::new(Some(100));
        let (mut one, mut two) = (MemoryMeter::new(account.clone()), MemoryMeter::new(account.clone()));
        assert!(one.memory_growing(0, 60, None).unwrap());
        let refused = two.memory_growing(0, 60, None).unwrap_err();
        let refused = refused.downcast_ref::<OutOfMemory>().unwrap();
        assert_eq!((refused.limit, refused.held, refused.wanted), (100, 60, 60));
        drop(one);
        assert_eq!(account.held(), 0);
        assert!(two.memory_growing(0, 60, None).unwrap());
        assert!(two.memory_growing(60, 90, None).unwrap());
        two.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert_eq!((two.held(), account.held()), (60, 60));
        assert!(!two.memory_growing(60, 90, Some(80)).unwrap());
        drop(two);
        assert_eq!(account.held(), 0);
    }

    #[tokio::test]
    async fn what_is_set_aside_is_used_first_and_waited_for() {
        let account = MemoryAccount::new(Some(100));
        let mut one = account.meter(60).await;
        assert_eq!((account.held(), one.held()), (60, 0));
        assert!(one.memory_growing(0, 80, None).unwrap());
        assert_eq!(account.held(), 80);
        let second = account.meter(60);
        let (second, ()) = tokio::join!(second, async move {
            tokio::task::yield_now().await;
            drop(one);
        });
        assert_eq!(account.held(), 60);
        drop(second);
        // What a command holds may never be free: nobody waits for that alone.
        let mut command = MemoryMeter::new(account.clone());
        assert!(command.memory_growing(0, 50, None).unwrap());
        assert_eq!(account.meter(60).await.set_aside, 0);
        drop(command);
        // More than there ever will be: it is tried, and fails when it is really wanted.
        let mut third = account.meter(200).await;
        assert!(third.memory_growing(0, 200, None).is_err());
    }
}
