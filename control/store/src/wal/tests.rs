use super::*;
use bytes::Bytes;
use dhow_types::Rng;
use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;

/// A segment size at which a few records already rotate.
const SMALL: u64 = 4 << 10;

fn entry(index: u64, len: usize) -> Entry {
    let (kind, tag) = match index % 3 {
        0 => (EntryKind::Members, Bytes::from_static(b"tag of somebody")),
        1 => (EntryKind::Normal, Bytes::from_static(b"t")),
        _ => (EntryKind::Normal, Bytes::new()),
    };
    Entry { index, term: 1, kind, tag, data: Bytes::from(format!("{index}:{}", "x".repeat(len))) }
}

fn append(wal: &mut Wal, entries: &[Entry], hard_state: HardState) -> io::Result<()> {
    wal.write(Batch { entries: vec![entries], hard_state: Some(hard_state), checkpoint: None })
}

fn vote(commit: u64) -> HardState {
    HardState { term: 1, vote: 1, commit }
}

fn open(dir: &Path) -> Result<(Wal, Contents), OpenError> {
    Wal::open(dir, 1, SMALL, 0)
}

/// A log of one segment with `count` frames; gives the path of the segment and where each frame ends.
fn written(dir: &Path, count: u64, len: usize) -> (PathBuf, Vec<usize>) {
    let (mut wal, _) = open(dir).unwrap();
    let mut ends = Vec::new();
    for index in 1..=count {
        append(&mut wal, &[entry(index, len)], vote(index)).unwrap();
        ends.push(wal.current.at as usize);
    }
    assert!(wal.closed.is_empty(), "one segment is enough for the test");
    (wal.current.path.clone(), ends)
}

fn indexes(contents: &Contents) -> Vec<u64> {
    contents.entries.iter().map(|entry| entry.index).collect()
}

#[test]
fn what_is_written_is_read_back_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = 1;
    for round in 0..5 {
        let (mut wal, contents) = open(dir.path()).unwrap();
        assert_eq!(indexes(&contents), (1..next).collect::<Vec<_>>(), "round {round}");
        assert!(contents.complete);
        assert_eq!(contents.hard_state.commit, next - 1);
        for _ in 0..20 {
            append(&mut wal, &[entry(next, 300), entry(next + 1, 5)], vote(next + 1)).unwrap();
            next += 2;
        }
    }
    assert!(segments(dir.path()).unwrap().len() > 5);
    let (_, contents) = Wal::open(dir.path(), 1, SMALL, 150).unwrap();
    assert_eq!(indexes(&contents), (151..next).collect::<Vec<_>>());
    assert_eq!((contents.first, contents.last), (Some(1), next - 1));
    assert!(
        contents.entries.iter().all(|found| *found == entry(found.index, if found.index % 2 == 1 { 300 } else { 5 }))
    );
}

#[test]
fn a_record_larger_than_a_segment_gets_a_segment_of_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    append(&mut wal, &[entry(1, 10)], vote(0)).unwrap();
    append(&mut wal, &[entry(2, 50_000)], vote(0)).unwrap();
    append(&mut wal, &[entry(3, 10)], vote(0)).unwrap();
    drop(wal);
    assert_eq!(indexes(&open(dir.path()).unwrap().1), [1, 2, 3]);
}

#[test]
fn a_torn_last_record_is_wiped_wherever_it_breaks_off() {
    for (cut_file, len) in [(false, 20), (true, 20), (false, 700)] {
        let dir = tempfile::tempdir().unwrap();
        let (path, ends) = written(dir.path(), 3, len);
        let whole = fs::read(&path).unwrap();
        for at in (ends[1]..ends[2]).step_by(if len > 100 { 17 } else { 1 }) {
            let mut torn = whole.clone();
            torn[at..].fill(0);
            torn.truncate(if cut_file { at } else { whole.len() });
            fs::write(&path, &torn).unwrap();
            let (mut wal, contents) = open(dir.path()).unwrap_or_else(|error| panic!("cut at {at}: {error}"));
            // Only the closing byte is missing at the last cut; the record itself is whole.
            let kept = if at + 1 == ends[2] { 3 } else { 2 };
            assert_eq!(contents.entries.len(), kept, "cut at {at}");
            append(&mut wal, &[entry(kept as u64 + 1, 3)], vote(0)).unwrap();
            drop(wal);
            let again = open(dir.path()).unwrap().1;
            assert_eq!(indexes(&again), (1..=kept as u64 + 1).collect::<Vec<_>>());
            for (_, extra) in segments(dir.path()).unwrap().split_off(1) {
                fs::remove_file(extra).unwrap();
            }
        }
    }
}

#[test]
fn sectors_that_were_not_written_make_a_torn_record() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = written(dir.path(), 2, 1_500);
    let whole = fs::read(&path).unwrap();
    for sector in ends[0] / SECTOR..=(ends[1] - 1) / SECTOR {
        let (from, to) = ((sector * SECTOR).max(ends[0]), (sector + 1) * SECTOR);
        let mut torn = whole.clone();
        torn[from..to].fill(0);
        fs::write(&path, &torn).unwrap();
        let (_, contents) = open(dir.path()).unwrap_or_else(|error| panic!("sector {sector}: {error}"));
        assert_eq!(indexes(&contents), [1], "sector {sector}");
    }
}

#[test]
fn a_flipped_byte_is_damage_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = written(dir.path(), 4, 40);
    let whole = fs::read(&path).unwrap();
    let closing: Vec<usize> = ends.iter().map(|end| end - 1).collect();
    for at in 0..ends[3] {
        let mut bad = whole.clone();
        bad[at] ^= 1 << (at % 8);
        fs::write(&path, &bad).unwrap();
        match open(dir.path()) {
            Err(OpenError::Damaged { .. }) => {}
            // Nothing depends on the closing byte of a record that checks.
            Ok((_, contents)) if closing.contains(&at) => assert_eq!(contents.entries.len(), 4),
            other => panic!("byte {at}: {:?}", other.map(|(_, contents)| contents)),
        }
    }
    // Behind the end there is nothing to damage.
    let mut bad = whole.clone();
    bad[ends[3] + 1_000] = 1;
    fs::write(&path, &bad).unwrap();
    assert_eq!(open(dir.path()).unwrap().1.entries.len(), 4);
}

#[test]
fn a_lost_sector_in_the_middle_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = written(dir.path(), 4, 600);
    let whole = fs::read(&path).unwrap();
    for sector in 1..ends[2] / SECTOR {
        let mut bad = whole.clone();
        bad[sector * SECTOR..(sector + 1) * SECTOR].fill(0);
        fs::write(&path, &bad).unwrap();
        assert!(matches!(open(dir.path()), Err(OpenError::Damaged { .. })), "sector {sector}");
    }
}

#[test]
fn segments_that_do_not_belong_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    for index in 1..=60 {
        append(&mut wal, &[entry(index, 200)], vote(index)).unwrap();
    }
    drop(wal);
    let found = segments(dir.path()).unwrap();
    assert!(found.len() > 3);
    let refused = |dir: &Path, part: &str| match Wal::open(dir, 1, SMALL, 0) {
        Err(error) => assert!(error.to_string().contains(part), "{error}"),
        Ok(_) => panic!("opened, instead of: {part}"),
    };
    // One is missing.
    let aside = dir.path().join("aside");
    fs::rename(&found[1].1, &aside).unwrap();
    refused(dir.path(), "missing");
    fs::rename(&aside, &found[1].1).unwrap();
    // One is another's copy.
    let kept = fs::read(&found[1].1).unwrap();
    fs::copy(&found[0].1, &found[1].1).unwrap();
    refused(dir.path(), "segment 1 by its header");
    // One ends early.
    let mut short = kept.clone();
    short[2_000..].fill(0);
    fs::write(&found[1].1, &short).unwrap();
    refused(dir.path(), "another segment follows");
    fs::write(&found[1].1, &kept).unwrap();
    assert!(matches!(Wal::open(dir.path(), 2, SMALL, 0), Err(OpenError::OtherMember { found: 1, wanted: 2, .. })));
    assert_eq!(open(dir.path()).unwrap().1.entries.len(), 60);
}

fn at(index: u64) -> Checkpoint {
    let members = Members { voters: vec![1, index], ..Members::default() };
    Checkpoint { applied: Position { index, term: 1 }, revision: index, hash: 77, members }
}

#[test]
fn checkpoints_drop_what_they_cover_and_survive_it() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    for index in 1..=100 {
        append(&mut wal, &[entry(index, 200)], vote(index)).unwrap();
    }
    let before = segments(dir.path()).unwrap().len();
    let note = |wal: &mut Wal, index| wal.write(Batch { checkpoint: Some(at(index)), ..Batch::default() });
    note(&mut wal, 50).unwrap();
    settle(&mut wal);
    let after = segments(dir.path()).unwrap().len();
    assert!(after < before);
    for index in 101..=140 {
        append(&mut wal, &[entry(index, 200)], vote(index)).unwrap();
    }
    note(&mut wal, 140).unwrap();
    drop(wal);
    assert_eq!(segments(dir.path()).unwrap().len(), 1 + SEGMENTS_KEPT);
    let (_, contents) = open(dir.path()).unwrap();
    assert_eq!(contents.checkpoint, Some(at(140)));
    assert_eq!((contents.hard_state, contents.last, contents.complete), (vote(140), 140, false));
    assert!(contents.first.unwrap() > 50);
}

/// Waits until nothing is left to do for the thread that looks after the spares.
fn settle(wal: &mut Wal) {
    while wal.tend().unwrap() {
        std::thread::yield_now();
    }
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// The files, by what stays with them when they are renamed.
fn inodes(dir: &Path) -> BTreeSet<u64> {
    files_in(dir).into_iter().map(|path| fs::metadata(path).unwrap().ino()).collect()
}

#[test]
fn a_busy_log_goes_round_in_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    let mut files = Vec::new();
    let mut index = 0;
    for round in 0..20 {
        for number in [2 * round + 2, 2 * round + 3] {
            while wal.current.number < number {
                index += 1;
                append(&mut wal, &[entry(index, 200)], vote(index)).unwrap();
                settle(&mut wal);
            }
        }
        wal.write(Batch { checkpoint: Some(at(index)), ..Batch::default() }).unwrap();
        settle(&mut wal);
        files.push(inodes(dir.path()));
        if round % 5 == 4 {
            // What a file held before it went round is no part of the log.
            let copy = tempfile::tempdir().unwrap();
            for path in files_in(dir.path()) {
                fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
            }
            let (_, contents) = open(copy.path()).unwrap();
            assert_eq!((contents.last, contents.checkpoint), (index, Some(at(index))));
            assert!(contents.entries.iter().all(|found| *found == entry(found.index, 200)));
        }
    }
    assert!(files[5..].iter().all(|these| *these == files[4]), "no file is new once it goes round: {files:?}");
    // Few are needed again: few are kept.
    for _ in 0..3 {
        wal.write(Batch { checkpoint: Some(at(index)), ..Batch::default() }).unwrap();
        settle(&mut wal);
    }
    assert_eq!(files_in(dir.path()).len(), SEGMENTS_KEPT + 2);
    drop(wal);
    assert_eq!(files_in(dir.path()).len(), SEGMENTS_KEPT + 1);
}

#[test]
fn a_later_leaders_entries_replace_those_before_them() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    append(&mut wal, &[entry(1, 1), entry(2, 1), entry(3, 1)], vote(0)).unwrap();
    let newer = Entry { term: 2, ..entry(2, 9) };
    append(&mut wal, std::slice::from_ref(&newer), HardState { term: 2, vote: 0, commit: 1 }).unwrap();
    drop(wal);
    let (_, contents) = open(dir.path()).unwrap();
    assert_eq!(contents.entries, [entry(1, 1), newer]);
    assert_eq!(contents.last, 2);
}

#[test]
fn random_bytes_in_the_place_of_a_segment_are_refused_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (path, ends) = written(dir.path(), 3, 100);
    let whole = fs::read(&path).unwrap();
    let mut rng = Rng::new(5);
    for _ in 0..300 {
        let mut bad = whole.clone();
        let from = rng.below(ends[2] as u64) as usize;
        let to = from + rng.below(200) as usize;
        bad[from..to].iter_mut().for_each(|byte| *byte = rng.next_u64() as u8);
        fs::write(&path, &bad).unwrap();
        // What is before the change is read, or nothing.
        if let Ok((_, contents)) = open(dir.path()) {
            let intact = ends.iter().filter(|end| **end <= from).count();
            assert!(contents.entries.len() >= intact);
        }
    }
}

#[test]
fn a_disk_without_room_for_a_segment_refuses_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    // A directory in the place of the next file stands for a disk that gives no more room.
    let blocks = [dir.path().join("next.tmp"), dir.path().join("spare.tmp")];
    blocks.iter().for_each(|block| fs::create_dir(block).unwrap());
    let mut index = 0;
    while wal.reserve(1_000).is_ok() {
        index += 1;
        append(&mut wal, &[entry(index, 400)], vote(index)).unwrap();
    }
    assert!(wal.reserve(1_000).is_err(), "the answer stays the same");
    blocks.iter().for_each(|block| fs::remove_dir(block).unwrap());
    wal.reserve(1_000).unwrap();
    append(&mut wal, &[entry(index + 1, 400)], vote(index)).unwrap();
    drop(wal);
    assert_eq!(indexes(&open(dir.path()).unwrap().1), (1..=index + 1).collect::<Vec<_>>());
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    append(&mut wal, &[entry(1, 10)], vote(1)).unwrap();
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let real = std::mem::replace(&mut wal.current.file, full);
    assert!(append(&mut wal, &[entry(2, 10)], vote(2)).is_err());
    wal.current.file = real;
    assert!(append(&mut wal, &[entry(2, 10)], vote(2)).is_err());
    assert!(wal.reserve(1).is_err());
    drop(wal);
    assert_eq!(indexes(&open(dir.path()).unwrap().1), [1]);
}

#[test]
fn a_reset_log_goes_on_behind_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    wal.write(Batch { checkpoint: Some(at(0)), ..Batch::default() }).unwrap();
    for index in 1..=40 {
        append(&mut wal, &[entry(index, 300)], vote(index)).unwrap();
    }
    assert_eq!(Wal::open(dir.path(), 1, SMALL, 0).unwrap().1.origin, Some(at(0)));
    let hard_state = HardState { term: 7, vote: 0, commit: 500 };
    wal.reset(hard_state, at(500)).unwrap();
    settle(&mut wal);
    assert!(segments(dir.path()).unwrap().len() <= 1 + SEGMENTS_KEPT, "nobody needs what was before");
    drop(wal);
    let (mut wal, contents) = open(dir.path()).unwrap();
    assert_eq!((indexes(&contents), contents.last, contents.first), (vec![], 500, None));
    assert_eq!((contents.hard_state, contents.reset), (hard_state, Some(Position { index: 500, term: 1 })));
    assert_eq!((contents.checkpoint, contents.origin, contents.complete), (Some(at(500)), None, false));
    append(&mut wal, &[entry(501, 3)], hard_state).unwrap();
    drop(wal);
    let (_, contents) = open(dir.path()).unwrap();
    assert_eq!((indexes(&contents), contents.first, contents.last), (vec![501], Some(501), 501));
}

#[test]
fn a_log_of_the_former_format_is_read_and_continued() {
    let dir = tempfile::tempdir().unwrap();
    let (mut wal, _) = open(dir.path()).unwrap();
    // As format 1 wrote it: a header that says so, entries without kind and tag, a checkpoint without members.
    wal.frame.resize(FRAME_HEADER, 0);
    put_record(&mut wal.frame, HARD_STATE, &[3, 1, 1], &[]);
    put_record(&mut wal.frame, CHECKPOINT_1, &[1, 3, 1, 99], &[]);
    put_record(&mut wal.frame, ENTRY_1, &[1, 3], &[b"one"]);
    put_record(&mut wal.frame, ENTRY_1, &[2, 3], &[b""]);
    wal.finish_frame();
    wal.current.file.write_all_at(&wal.frame, wal.current.at).unwrap();
    let path = wal.current.path.clone();
    drop(wal);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 1;
    let crc = crc32c::crc32c(&bytes[..SEGMENT_HEADER - 4]);
    bytes[SEGMENT_HEADER - 4..SEGMENT_HEADER].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, bytes).unwrap();

    let old = |index, data: &'static [u8]| {
        let (kind, tag, data) = (EntryKind::Normal, Bytes::new(), Bytes::from_static(data));
        Entry { index, term: 3, kind, tag, data }
    };
    for round in 0..2 {
        let (mut wal, contents) = open(dir.path()).unwrap();
        assert_eq!(contents.entries[..2], [old(1, b"one"), old(2, b"")]);
        assert_eq!(contents.hard_state.term, 3);
        assert_eq!(contents.checkpoint.unwrap().members, Members::founded_by(1));
        append(&mut wal, &[entry(3 + round, 5)], HardState { term: 3, vote: 1, commit: 2 }).unwrap();
        assert_eq!(wal.current.number, 2, "new records go into a segment of the new format");
    }
}
