//! Keeps the images' disk from filling, and tells the API which images the node has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dhow_agent::EventKind;
use dhow_agent::images::{Disk, Policy, StoredImage, reclaim};
use dhow_image::{Kept, Store};
use dhow_tasks::Stop;
use dhow_types::{Chain, Time};
use serde_json::{Value, json};

use crate::clock::now;
use crate::events::tell_of_node;
use crate::runner::Shared;

/// As a kubelet: each five minutes.
const EVERY: Duration = Duration::from_secs(300);
/// As a kubelet: what was used less than two minutes ago stays.
const MIN_AGE_MS: u64 = 120_000;
/// As a kubelet: so many images are told of, the largest first.
const TOLD_MAX: usize = 50;

/// Looks at the disk again and again, until told to stop.
pub(crate) async fn run(shared: Arc<Shared>, stop: Stop) {
    while stop.or(tokio::time::sleep(EVERY)).await.is_some() {
        if stop.or(collect(&shared)).await.is_none() {
            return;
        }
    }
}

/// Removes images if the disk is too full.
async fn collect(shared: &Shared) {
    let store = shared.images.store();
    let in_use = shared.sandboxes.images();
    in_use.iter().for_each(|digest| store.touch(digest));
    let (listing, engine) = (store.clone(), shared.engine.clone());
    let found = tokio::task::spawn_blocking(move || {
        let disk = disk_of(listing.dir());
        Ok::<_, std::io::Error>((disk, listing.list()?, engine.compiled()?))
    });
    let (disk, kept, compiled) = match found.await.unwrap_or_else(|err| Err(std::io::Error::other(err))) {
        Ok((Some(disk), kept, compiled)) => (disk, kept, compiled),
        Ok((None, ..)) => return,
        Err(err) => return tracing::warn!(%err, "the images cannot be listed"),
    };
    let thresholds = shared.images.thresholds();
    let policy =
        Policy { high_percent: thresholds.high_percent, low_percent: thresholds.low_percent, min_age_ms: MIN_AGE_MS };
    let images = stored(&kept, &compiled, &in_use);
    let plan = reclaim(now(), disk, policy, images);
    let mut freed = 0;
    for image in &plan.remove {
        // Asked for meanwhile, it stays.
        let used = UNIX_EPOCH + Duration::from_millis(u64::try_from(image.used.as_ms()).unwrap_or(0) + 1);
        match store.remove(&image.digest, used).await {
            Ok(false) => continue,
            Ok(true) => {
                shared.engine.forget(&image.digest).await;
                freed += image.bytes;
                tracing::info!(digest = image.digest, bytes = image.bytes, "removed an image that nothing uses");
            }
            Err(err) => tracing::warn!(err = %Chain(&err), "an image could not be removed"),
        }
    }
    if freed < plan.wanted {
        let (percent, wanted) = (disk.used_percent(), plan.wanted);
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
             {freed} bytes eligible to free; the disk is used to {percent}%."
        );
        tell_of_node(&shared.client, &shared.node, EventKind::Warning, "FreeDiskSpaceFailed", &message).await;
    }
}

/// Programs and the code that was made of them, as one thing each. Code whose program is gone is one, too.
fn stored(
    kept: &[Kept],
    compiled: &BTreeMap<String, (u64, SystemTime)>,
    in_use: &BTreeSet<String>,
) -> Vec<StoredImage> {
    let known: BTreeSet<_> = kept.iter().map(|image| image.digest.as_str()).collect();
    let whole = kept.iter().map(|image| {
        let code = compiled.get(&image.digest).map_or(0, |(bytes, _)| *bytes);
        (image.digest.clone(), image.size + code, image.used)
    });
    let orphans = compiled.iter().filter(|(digest, _)| !known.contains(digest.as_str()));
    let orphans = orphans.map(|(digest, (bytes, used))| (digest.clone(), *bytes, *used));
    whole
        .chain(orphans)
        .map(|(digest, bytes, used)| {
            let in_use = in_use.contains(&digest);
            StoredImage { digest, bytes, used: time(used), in_use }
        })
        .collect()
}

fn time(at: SystemTime) -> Time {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// How full the disk under a directory is.
fn disk_of(dir: &Path) -> Option<Disk> {
    let bytes = crate::host::file_system(dir)?.bytes;
    Some(Disk { capacity: bytes.capacity, available: bytes.available })
}

/// `status.images` of the node.
pub(crate) fn node_images(store: &Store) -> Value {
    let mut kept = store.list().unwrap_or_else(|err| {
        tracing::warn!(%err, "the images cannot be listed");
        Vec::new()
    });
    // Files of the node have no name that anybody could pull.
    kept.retain(|image| !image.names.is_empty());
    kept.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
    kept.truncate(TOLD_MAX);
    let told = kept.into_iter().map(|image| {
        // As a kubelet: by digest first.
        let (mut names, tags): (Vec<_>, Vec<_>) = image.names.into_iter().partition(|name| name.contains('@'));
        names.extend(tags);
        json!({"names": names, "sizeBytes": image.size})
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_counts_with_its_program_and_alone_when_that_is_gone() {
        let at = |s: u64| UNIX_EPOCH + Duration::from_secs(s);
        let kept = ["a", "b"].map(|digest| Kept { digest: digest.to_owned(), names: vec![], size: 10, used: at(5) });
        let compiled = BTreeMap::from([("a".to_owned(), (7, at(9))), ("c".to_owned(), (3, at(9)))]);
        let images = stored(&kept, &compiled, &BTreeSet::from(["b".to_owned()]));
        let seen: Vec<_> = images.iter().map(|i| (i.digest.as_str(), i.bytes, i.used.as_ms(), i.in_use)).collect();
        assert_eq!(seen, [("a", 17, 5000, false), ("b", 10, 5000, true), ("c", 3, 9000, false)]);
    }

    #[test]
    fn a_disk_has_a_size() {
        let disk = disk_of(Path::new("/")).unwrap();
        assert!(disk.capacity > 0 && disk.available <= disk.capacity);
        assert_eq!(disk_of(Path::new("/none/such")), None);
    }
}
