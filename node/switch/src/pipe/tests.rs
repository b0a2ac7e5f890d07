use super::*;
use crate::stream::{Ends, Stream};
use dhow_types::Rng;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Wake;

/// Counts its calls.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn rings(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn pair() -> (Stream, Stream) {
    let at = |port| ([10, 0, 0, 1], port).into();
    Stream::pair(Ends { from: at(1), called: at(2), to: at(3) })
}

/// What one direction must do, said in the simplest way.
#[derive(Default)]
struct Model {
    queue: VecDeque<u8>,
    finished: bool,
    reset: bool,
}

/// Random steps on a pipe and on its model give the same bytes, ends and wake-ups, seed by seed.
#[test]
fn a_pipe_does_what_its_model_does() {
    for seed in 0..40 {
        run(seed);
    }
}

fn run(seed: u64) {
    let mut rng = Rng::new(seed);
    let (writer, reader) = pair();
    let mut model = Model::default();
    let (read_bell, write_bell) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
    let (read_waker, write_waker) = (Waker::from(read_bell.clone()), Waker::from(write_bell.clone()));
    let (mut next, mut writer_waits) = (0u8, false);
    for step in 0..400 {
        let context = format!("seed {seed}, step {step}");
        let readable = !model.queue.is_empty() || model.finished || model.reset;
        let rings = read_bell.rings();
        let waits = reader.poll_readable(&mut Context::from_waker(&read_waker)).is_pending();
        assert_eq!(waits, !readable, "{context}: readable");
        match rng.below(100) {
            0..55 => {
                let room = writer.writable_bytes();
                let broken = model.finished || model.reset;
                assert_eq!(room, if broken { PIPE_BYTES_MAX } else { PIPE_BYTES_MAX - model.queue.len() }, "{context}");
                let most = match rng.below(3) {
                    0 => 8,
                    1 => 3000,
                    _ => 40_000,
                };
                let len = (rng.below(most) as usize).min(room);
                let bytes: Vec<u8> = (0..len).map(|i| next.wrapping_add(i as u8)).collect();
                let result = writer.try_write(bytes.clone().into());
                assert_eq!(result.is_err(), broken, "{context}: write");
                if !broken {
                    next = next.wrapping_add(len as u8);
                    model.queue.extend(&bytes);
                    assert_eq!(read_bell.rings() > rings, waits && len > 0, "{context}: the reader is woken");
                }
            }
            55..97 => {
                let max = 1 + rng.below(30_000) as usize;
                let full = writer.poll_writable(&mut Context::from_waker(&write_waker)).is_pending();
                assert_eq!(full, model.queue.len() == PIPE_BYTES_MAX && !model.finished && !model.reset, "{context}");
                writer_waits |= full;
                let rings = write_bell.rings();
                match reader.try_read(max) {
                    Ok(Some(bytes)) => {
                        assert!(!bytes.is_empty() && bytes.len() <= max, "{context}");
                        let expected: Vec<u8> = model.queue.drain(..bytes.len()).collect();
                        assert!(*bytes == expected[..], "{context}: bytes in order");
                    }
                    Ok(None) => assert!(!readable, "{context}: nothing to read"),
                    Err(ReadError::Eof) => {
                        assert!(model.finished && model.queue.is_empty() && !model.reset, "{context}: end");
                    }
                    Err(ReadError::Reset) => assert!(model.reset, "{context}: reset"),
                }
                let room = PIPE_BYTES_MAX - model.queue.len() >= PIPE_WAKE_FREE_MIN;
                let rung = write_bell.rings() > rings;
                assert_eq!(rung, writer_waits && room, "{context}: the writer is woken");
                writer_waits &= !rung;
            }
            97..99 if step > 300 => {
                writer.shutdown_write();
                (model.finished, writer_waits) = (true, false);
                assert_eq!(read_bell.rings() > rings, waits, "{context}: the reader hears of the end");
            }
            99 if step > 300 => {
                if rng.chance(1, 2) {
                    writer.reset()
                } else {
                    reader.reset()
                }
                (model, writer_waits) = (Model { reset: true, ..Model::default() }, false);
            }
            _ => {}
        }
    }
}

#[test]
fn one_direction_ends_while_the_other_goes_on() {
    let (a, b) = pair();
    a.try_write(Bytes::from_static(b"last words")).unwrap();
    a.shutdown_write();
    assert_eq!(a.try_write(Bytes::from_static(b"too late")), Err(Reset));
    assert_eq!(b.try_read(100), Ok(Some(Bytes::from_static(b"last words"))));
    assert_eq!(b.try_read(100), Err(ReadError::Eof));
    b.try_write(Bytes::from_static(b"answer")).unwrap();
    assert_eq!(a.try_read(3), Ok(Some(Bytes::from_static(b"ans"))));
    assert_eq!(a.try_read(100), Ok(Some(Bytes::from_static(b"wer"))));
    assert_eq!(a.try_read(100), Ok(None));
}

#[test]
fn dropping_an_end_is_an_end_or_a_reset() {
    let (a, b) = pair();
    a.try_write(Bytes::from_static(b"bye")).unwrap();
    drop(a);
    assert_eq!(b.try_read(100), Ok(Some(Bytes::from_static(b"bye"))));
    assert_eq!(b.try_read(100), Err(ReadError::Eof));
    assert_eq!(b.try_write(Bytes::from_static(b"hello?")), Err(Reset));

    let (a, b) = pair();
    a.try_write(Bytes::from_static(b"unread")).unwrap();
    b.try_write(Bytes::from_static(b"an answer all the same")).unwrap();
    drop(b);
    assert_eq!(a.try_read(100), Ok(Some(Bytes::from_static(b"an answer all the same"))));
    assert_eq!(a.try_read(100), Err(ReadError::Reset));
    assert_eq!(a.try_write(Bytes::from_static(b"more")), Err(Reset));
}

#[test]
fn a_reader_that_wants_no_more_does_not_hold_the_writer_up() {
    let (a, b) = pair();
    a.try_write(vec![0; PIPE_BYTES_MAX].into()).unwrap();
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    assert!(a.poll_writable(&mut Context::from_waker(&waker)).is_pending());
    b.shutdown_read();
    assert_eq!(bell.rings(), 1);
    assert_eq!(b.try_read(100), Err(ReadError::Eof));
    for _ in 0..10 {
        a.try_write(vec![0; PIPE_BYTES_MAX].into()).unwrap();
    }
    assert_eq!(a.writable_bytes(), PIPE_BYTES_MAX);
}

#[test]
fn single_bytes_share_segments() {
    let (a, b) = pair();
    for i in 0..PIPE_BYTES_MAX {
        a.try_write(Bytes::copy_from_slice(&[i as u8])).unwrap();
    }
    assert_eq!(a.writable_bytes(), 0);
    let mut reads = 0;
    while let Ok(Some(_)) = b.try_read(usize::MAX) {
        reads += 1;
    }
    assert!(reads <= 2 + PIPE_BYTES_MAX / SEGMENT_BYTES, "{reads} segments");
}
