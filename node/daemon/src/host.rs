//! What the host says of itself: processor time, memory, the file system of the data directory, and this process.

use std::path::Path;

use dhow_agent::eviction::Stock;

/// A file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FileSystem {
    /// Bytes in all, and bytes that are left to who is not root.
    pub(crate) bytes: Stock,
    /// Files that there may be, and that there may yet be.
    pub(crate) inodes: Stock,
}

/// The file system that a directory lies on.
pub(crate) fn file_system(dir: &Path) -> Option<FileSystem> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(dir.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends with a NUL and `stat` has room for what the call writes.
    let done = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if done != 0 {
        return None;
    }
    // SAFETY: the call said that it filled `stat`.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast, reason = "the fields have other widths on other systems")]
    let (block, blocks, free) = (stat.f_frsize as u64, stat.f_blocks as u64, stat.f_bavail as u64);
    #[allow(clippy::unnecessary_cast, reason = "the fields have other widths on other systems")]
    let (files, files_free) = (stat.f_files as u64, stat.f_favail as u64);
    let bytes = Stock { capacity: blocks.saturating_mul(block), available: free.saturating_mul(block) };
    Some(FileSystem { bytes, inodes: Stock { capacity: files, available: files_free } })
}

/// The host's memory, and how much of it programs could still have.
pub(crate) fn memory() -> Option<Stock> {
    memory_of(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn memory_of(meminfo: &str) -> Option<Stock> {
    Some(Stock { capacity: kib_line(meminfo, "MemTotal:")?, available: kib_line(meminfo, "MemAvailable:")? })
}

/// The bytes of a line such as `MemTotal:  24 kB`.
pub(crate) fn kib_line(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
}

/// Nanoseconds that the host's processors have worked since it was started.
pub(crate) fn cpu_ns() -> Option<u64> {
    cpu_of(&std::fs::read_to_string("/proc/stat").ok()?, clock_ticks())
}

fn cpu_of(stat: &str, ticks_per_s: u64) -> Option<u64> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    // user, nice, system, idle, iowait, irq, softirq, steal; what guests of a hypervisor had is in user already.
    let ticks: Vec<u64> = line.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let worked = |at: usize| ticks.get(at).copied().unwrap_or(0);
    let total = worked(0) + worked(1) + worked(2) + worked(5) + worked(6);
    (ticks.len() >= 4).then(|| (u128::from(total) * 1_000_000_000 / u128::from(ticks_per_s.max(1))) as u64)
}

fn clock_ticks() -> u64 {
    // SAFETY: takes and gives an integer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
}

/// When the host was started, in seconds since 1970.
pub(crate) fn boot_time_s() -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// This process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    pub(crate) cpu_s: f64,
    pub(crate) resident_bytes: u64,
    pub(crate) open_files: u64,
}

/// What this process uses.
pub(crate) fn process() -> Process {
    let resident_bytes = std::fs::read_to_string("/proc/self/status").ok().and_then(|text| kib_line(&text, "VmRSS:"));
    let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place to write one `timespec` to.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) } != 0;
    let cpu_s = if failed { 0.0 } else { time.tv_sec as f64 + time.tv_nsec as f64 / 1e9 };
    Process { cpu_s, resident_bytes: resident_bytes.unwrap_or(0), open_files }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_words_are_understood() {
        let meminfo = "MemTotal:       24 kB\nMemFree: 1 kB\nMemAvailable:   12 kB\n";
        assert_eq!(memory_of(meminfo), Some(Stock { capacity: 24 << 10, available: 12 << 10 }));
        assert_eq!(memory_of("nonsense"), None);
        let stat = "cpu  10 20 30 1000 5 1 2 99 7 0\ncpu0 1 2 3 4\nbtime 17\n";
        assert_eq!(cpu_of(stat, 100), Some(630_000_000));
        assert_eq!(cpu_of("cpu ?", 100), None);
    }

    #[test]
    fn there_is_a_host() {
        let found = file_system(Path::new("/")).unwrap();
        assert!(found.bytes.capacity >= found.bytes.available);
        assert_eq!(file_system(Path::new("/does/not/exist")), None);
        let process = process();
        assert!(process.resident_bytes > 0 && process.open_files > 0 && process.cpu_s > 0.0);
    }
}
