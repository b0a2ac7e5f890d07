//! One look-up for many who ask at once.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// What is kept of a look-up: when it began and what it found.
type Slot<V> = Arc<tokio::sync::Mutex<Option<(Instant, V)>>>;

/// Look-ups by key. Who asks gets an answer that is not older than the question: one that began after it was asked.
/// So a thousand pods that start together cause a few look-ups, and none of them sees stale data.
pub(crate) struct Flights<K, V> {
    slots: Mutex<BTreeMap<K, Slot<V>>>,
}

impl<K: Ord + Clone, V: Clone> Flights<K, V> {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::new(BTreeMap::new()) }
    }

    /// The answer to `look_up`, possibly one that another caller's look-up brought.
    pub(crate) async fn get<F: Future<Output = V>>(&self, key: &K, look_up: impl FnOnce() -> F) -> V {
        let asked = Instant::now();
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key.clone()).or_default().clone();
        // Held across the look-up on purpose: whoever waits for the lock is served by it, or by the next one.
        let mut kept = slot.lock().await;
        if let Some((began, value)) = &*kept
            && *began >= asked
        {
            return value.clone();
        }
        let began = Instant::now();
        let value = look_up().await;
        *kept = Some((began, value.clone()));
        drop(kept);
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        // The map's and ours: nobody else waits, so that nothing is kept for ever.
        if Arc::strong_count(&slot) <= 2 {
            slots.remove(key);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test(start_paused = true)]
    async fn many_who_ask_at_once_cause_two_look_ups_and_none_is_stale() {
        let flights = Arc::new(Flights::<&str, u32>::new());
        let count = Arc::new(AtomicU32::new(0));
        let ask = |delay_ms: u64| {
            let (flights, count) = (flights.clone(), count.clone());
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(delay_ms)).await;
                flights
                    .get(&"k", || async {
                        let n = count.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        n
                    })
                    .await
            })
        };
        let first = ask(0);
        let others: Vec<_> = (0..50).map(|n| ask(10 + n % 7)).collect();
        assert_eq!(first.await.unwrap(), 0);
        for other in others {
            assert_eq!(other.await.unwrap(), 1, "asked after the first look-up had begun");
        }
        assert_eq!(ask(0).await.unwrap(), 2);
        assert!(flights.slots.lock().unwrap().is_empty());
    }
}
