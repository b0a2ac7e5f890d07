//! Which images go when the disk fills: as a kubelet decides, those that nothing uses, the longest unused first, until
//! enough is free.

use dhow_types::Time;

/// How full the disk is that the images lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub capacity: u64,
    /// What is free of it.
    pub available: u64,
}

/// When images go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Images go when so much of the disk is used…
    pub high_percent: u8,
    /// …until only so much is.
    pub low_percent: u8,
    /// Who was used less than this ago stays: what was just pulled is about to be started.
    pub min_age_ms: u64,
}

/// One image on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its digest.
    pub digest: String,
    /// What it takes, with the code that was made of it.
    pub bytes: u64,
    /// When it was last used.
    pub used: Time,
    /// Whether a pod of this node has it.
    pub in_use: bool,
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaim {
    /// Bytes that should become free; none while the disk is not too full.
    pub wanted: u64,
    /// Bytes that will.
    pub freed: u64,
    /// The images that go, in this order.
    pub remove: Vec<StoredImage>,
}

impl Disk {
    /// How much of it is used, in hundredths, rounded up as a kubelet does.
    pub fn used_percent(&self) -> u64 {
        let free = u128::from(self.available.min(self.capacity)) * 100;
        100 - (free / u128::from(self.capacity.max(1))) as u64
    }
}

/// Decides what goes.
pub fn reclaim(now: Time, disk: Disk, policy: Policy, mut images: Vec<StoredImage>) -> Reclaim {
    // A disk that does not say its size is not judged.
    if disk.capacity == 0 || disk.used_percent() < u64::from(policy.high_percent) {
        return Reclaim::default();
    }
    let wished_free = (u128::from(disk.capacity) * u128::from(100 - policy.low_percent.min(100)) / 100) as u64;
    let mut plan = Reclaim { wanted: wished_free.saturating_sub(disk.available), ..Reclaim::default() };
    images.retain(|image| !image.in_use && now.ms_since(image.used) >= policy.min_age_ms);
    images.sort_by(|a, b| (a.used, &a.digest).cmp(&(b.used, &b.digest)));
    for image in images {
        if plan.freed >= plan.wanted {
            break;
        }
        plan.freed += image.bytes;
        plan.remove.push(image);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { high_percent: 85, low_percent: 80, min_age_ms: 120_000 };

    fn image(digest: &str, bytes: u64, age_s: i64, in_use: bool) -> StoredImage {
        StoredImage { digest: digest.to_owned(), bytes, used: Time::from_secs(10_000 - age_s), in_use }
    }

    #[test]
    fn the_longest_unused_go_until_enough_is_free() {
        // Of 1,000 bytes, 80 % are to be used at most.
        let three = [image("new", 40, 200, false), image("old", 30, 900, false), image("middle", 60, 500, false)];
        for (available, images, wanted, removed) in [
            (160, &three[..], 0, &[][..]),
            (159, &three, 41, &["old", "middle"]),
            (170, &three, 0, &[]),
            (150, &three, 50, &["old", "middle"]),
            (180, &three, 0, &[]),
            (100, &three, 100, &["old", "middle", "new"]),
            (0, &three, 200, &["old", "middle", "new"]),
            (120, &[image("used", 500, 900, true), image("other", 10, 300, false)], 80, &["other"]),
            (120, &[image("young", 500, 119, false), image("grown", 10, 120, false)], 80, &["grown"]),
            (120, &[image("future", 500, -60, false)], 80, &[]),
            (120, &[image("b", 80, 300, false), image("a", 80, 300, false)], 80, &["a"]),
            (120, &[], 80, &[]),
        ] {
            let disk = Disk { capacity: 1000, available };
            let plan = reclaim(Time::from_secs(10_000), disk, POLICY, images.to_vec());
            let names: Vec<_> = plan.remove.iter().map(|image| image.digest.as_str()).collect();
            assert_eq!((plan.wanted, names.as_slice()), (wanted, removed), "{available} free");
            assert_eq!(plan.freed, plan.remove.iter().map(|image| image.bytes).sum::<u64>());
        }
    }

    #[test]
    fn odd_disks_are_no_reason_to_remove_anything() {
        for (capacity, available, percent) in [(0, 0, 100), (10, 20, 0), (u64::MAX, u64::MAX, 0), (3, 1, 67)] {
            let disk = Disk { capacity, available };
            assert_eq!(disk.used_percent(), percent);
            let plan = reclaim(Time::from_secs(10_000), disk, POLICY, vec![image("x", 1, 900, false)]);
            assert_eq!(plan, Reclaim::default());
        }
    }
}
