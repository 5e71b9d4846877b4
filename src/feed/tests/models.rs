//! loom models: the shipped slots, windows, board and sleepers under every schedule of two or three threads.
//!
//! In: `--cfg vicreg_loom`, see `tools/sanitize`. Out: a panic with the first schedule that breaks an invariant: a record
//! or window touched by two threads without an order between them, a wake-up that is lost (loom: "deadlock"), a batch
//! out of order. The loops here are `Workshop::work`, `Reader::read_all` and `Feed::next` without images.
//!
//! What loom proves, and what not:
//! - Bytes of a slot are behind a raw pointer, unseen by loom. `Record` is in loom's cell, and one `Place` gives access
//!   to both between the same two atomics, so a race on pixels is one on the record, and loom reports that. `pixels` of
//!   a taken or flying slot looks at the records too, so that a late reader of bytes alone is seen.
//! - Acquire, Release, Relaxed and read-modify-writes: as in C++11, but a load never sees a store that is later in the
//!   schedule (load buffering). Nothing here rests on forbidding that.
//! - `fence(SeqCst)`: loom joins what each fencing thread knows, in the order of the schedule. For store, fence, load on
//!   both sides, which is all that `Sleeper` claims, this is C++20's rule. It is stronger otherwise: C++ fences alone
//!   order nothing else. An ordering that a fence would mend in the model and not on a machine is found in the schedules
//!   in which the other side comes late, finds everything ready and does not reach its fence. (SeqCst *accesses* would
//!   be treated as AcqRel; there are none.)
//! - `Arc`, the gauges and the queue of leaves are not in the models or give no order there, so the models have less
//!   order than the machine.

use super::FeedError;
use super::batch::{Batch, InFlight};
use super::board::{Board, Stopped};
use super::cursor::{Cursor, SlotTicket, WindowTicket};
use super::ring::Ring;
use super::share::Share;
use super::slot::{HeapMemory, Pin, Place, Shape, SlotMemory, WindowTable, WindowWriter};
use super::sync::{AtomicBool, Ordering, Sleeper, thread};
use std::sync::Arc;

/// Runs `model` under all schedules with at most so many preemptions (`LOOM_MAX_PREEMPTIONS` overrules).
fn check(preemptions: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 10_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(model);
}

/// A ring for `samples` in batches of `batch`, and its board.
fn ring(samples: u32, batch: u32, slots: usize, workers: usize) -> Arc<Ring> {
    let shape = Shape {
        views: 1,
        samples: batch as usize,
        view_bytes: 1,
    };
    let memory = (0..slots)
        .map(|_| HeapMemory.allocate(batch as usize).unwrap())
        .collect();
    let board = Arc::new(Board::new(workers));
    Arc::new(Ring::new(Share::of_samples(samples, batch), shape, memory, board))
}

/// `Workshop::place`.
fn place(ring: &Ring, worker: usize, position: u64, ticket: SlotTicket) -> Result<Place<'_>, Stopped> {
    let mut ticket = Some(ticket);
    ring.board.worker_wait(worker, || {
        let place = ring.place(position, ticket.take()?);
        place.map_err(|back| ticket = Some(back)).ok()
    })
}

/// `Workshop::window`.
fn pin<'a, T>(
    table: &'a WindowTable<T>,
    board: &Board,
    worker: usize,
    ticket: WindowTicket,
    hint: &mut u64,
) -> Result<Pin<'a, T>, Stopped> {
    let mut ticket = Some(ticket);
    board.worker_wait(worker, || {
        let pin = table.pin(ticket.take()?, hint);
        pin.map_err(|back| ticket = Some(back)).ok()
    })
}

/// `Workshop::work` on slots alone; `bad` is the position at which it fails.
fn work(ring: &Ring, worker: usize, bad: Option<u64>) -> Result<(), Stopped> {
    while let Some((position, _, ticket)) = ring.cursor.claim() {
        let mut place = place(ring, worker, position, ticket)?;
        if bad == Some(position) {
            return Ok(());
        }
        place.view(0).fill(position as u8);
        place.record().label = position as i64;
        place.finish();
    }
    Ok(())
}

/// `Feed::next`, with what a batch must hold.
fn next(ring: &Arc<Ring>, local: u64, batch: u64) -> Result<Batch, FeedError> {
    let taken = ring.board.consumer.wait(|| match ring.take(local) {
        Some(taken) => Some(Ok(taken)),
        None => ring.board.failure(local).map(Err),
    })?;
    assert!(ring.take(local).is_none(), "a slot is taken once");
    let got = Batch::gather(ring, taken, local, local, 0);
    let expected = (local * batch..).take(got.len());
    assert!(got.labels().iter().map(|&label| label as u64).eq(expected.clone()));
    assert!(got.pixels().iter().map(|&byte| u64::from(byte)).eq(expected));
    Ok(got)
}

fn spawn_workers(ring: &Arc<Ring>, workers: usize, bad: Option<u64>) -> Vec<thread::JoinHandle<()>> {
    let spawn = |worker| {
        let ring = ring.clone();
        thread::spawn(move || drop(work(&ring, worker, bad)))
    };
    (0..workers).map(spawn).collect()
}

fn join(threads: Vec<thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Store buffering, the whole of `Sleeper`'s claim: no preemption bound.
#[test]
fn a_wake_up_is_not_lost() {
    loom::model(|| {
        let shared = Arc::new((Sleeper::default(), AtomicBool::new(false)));
        let other = shared.clone();
        let waker = thread::spawn(move || {
            other.1.store(true, Ordering::Relaxed);
            other.0.wake();
        });
        shared.0.wait(|| shared.1.load(Ordering::Relaxed).then_some(()));
        waker.join().unwrap();
    });
}

/// Two threads make two conditions true; the sleeper wakes for the first in vain and goes back to bed.
#[test]
fn a_wake_up_in_vain_does_not_swallow_the_next() {
    check(3, || {
        let shared = Arc::new((Sleeper::default(), [AtomicBool::new(false), AtomicBool::new(false)]));
        let waker = |which: usize| {
            let shared = shared.clone();
            thread::spawn(move || {
                shared.1[which].store(true, Ordering::Relaxed);
                Sleeper::wake_all([&shared.0]);
            })
        };
        let threads = vec![waker(0), waker(1)];
        shared
            .0
            .wait(|| shared.1.iter().all(|flag| flag.load(Ordering::Relaxed)).then_some(()));
        join(threads);
    });
}

/// Two workers share a batch of one slot, which is then used again, for a short batch.
#[test]
fn a_batch_of_two_writers_is_whole() {
    check(2, || {
        let ring = ring(3, 2, 1, 2);
        let threads = spawn_workers(&ring, 2, None);
        for local in 0..2 {
            drop(next(&ring, local, 2).unwrap());
        }
        join(threads);
    });
}

/// Two workers run ahead in two slots; three batches.
#[test]
fn slots_come_in_order_and_come_back() {
    check(2, || {
        let ring = ring(3, 1, 2, 2);
        let threads = spawn_workers(&ring, 2, None);
        for local in 0..3 {
            drop(next(&ring, local, 1).unwrap());
        }
        join(threads);
    });
}

/// The consumer holds one batch while it waits for the next; a third thread gives them back, later ones first.
#[test]
fn another_thread_gives_batches_back() {
    check(2, || {
        let ring = ring(4, 1, 2, 1);
        let worker = spawn_workers(&ring, 1, None);
        let (first, second) = (next(&ring, 0, 1).unwrap(), next(&ring, 1, 1).unwrap());
        let giver = thread::spawn(move || {
            drop(second);
            drop(first);
        });
        for local in 2..4 {
            drop(next(&ring, local, 1).unwrap());
        }
        join(worker);
        giver.join().unwrap();
    });
}

/// A device that copies late: reads the bytes some time after it got them, then drops them.
fn device(bytes: InFlight, expected: u64) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        thread::yield_now();
        assert_eq!(bytes.as_ref(), [expected as u8]);
    })
}

/// Batch 0 flies; the consumer goes on to batch 1 while a worker waits to fill the same slot again with batch 2.
#[test]
fn bytes_in_flight_stay_until_the_device_drops_them() {
    check(2, || {
        let ring = ring(4, 1, 2, 1);
        let worker = spawn_workers(&ring, 1, None);
        let device = device(next(&ring, 0, 1).unwrap().fly(), 0);
        for local in 1..4 {
            drop(next(&ring, local, 1).unwrap());
        }
        join(worker);
        join(vec![device]);
    });
}

/// Every slot is in flight: the workers and the consumer sleep until the device is done, with later bytes first.
#[test]
fn a_ring_all_in_flight_comes_back() {
    check(2, || {
        let ring = ring(3, 1, 2, 1);
        let worker = spawn_workers(&ring, 1, None);
        let first = next(&ring, 0, 1).unwrap().fly();
        let second = next(&ring, 1, 1).unwrap().fly();
        let threads = vec![device(second, 1), device(first, 0)];
        drop(next(&ring, 2, 1).unwrap());
        join(worker);
        join(threads);
    });
}

/// A worker that waits for room goes home when the consumer stops, whatever is in flight, and what is stays readable.
#[test]
fn a_stop_leaves_bytes_in_flight_alone() {
    check(2, || {
        let ring = ring(9, 1, 2, 1);
        let worker = spawn_workers(&ring, 1, None);
        let device = device(next(&ring, 0, 1).unwrap().fly(), 0);
        ring.board.stop();
        join(worker);
        join(vec![device]);
    });
}

/// Workers that wait for room go home when the consumer stops, whatever it holds; what it holds stays readable.
#[test]
fn stop_reaches_every_sleeper() {
    check(2, || {
        let ring = ring(9, 1, 2, 2);
        let threads = spawn_workers(&ring, 2, None);
        let kept = next(&ring, 0, 1).unwrap();
        ring.board.stop();
        join(threads);
        assert_eq!((kept.labels(), kept.pixels()), (&[0][..], &[0][..]));
    });
}

/// A place dropped unfinished, as by a panic, is an error at its batch; earlier batches come, nobody is left behind.
#[test]
fn a_place_dropped_unfinished_is_an_error_at_its_batch() {
    check(2, || {
        let ring = ring(6, 2, 2, 2);
        let threads = spawn_workers(&ring, 2, Some(2));
        drop(next(&ring, 0, 2).unwrap());
        assert!(matches!(next(&ring, 1, 2), Err(FeedError::Abandoned)));
        ring.board.stop();
        join(threads);
    });
}

type Rows = std::ops::Range<u64>;

/// `Reader::read_all`: windows that end at `ends`; each waits for its place, or, as one above the budget, until nothing
/// is held.
fn read(writer: &mut WindowWriter<Rows>, board: &Board, ends: &[u64], large: bool) -> Result<(), Stopped> {
    let mut first = 0;
    for &end in ends {
        board.reader_wait(|| {
            writer.retire().for_each(drop);
            (writer.has_place() && (!large || writer.is_idle())).then_some(())
        })?;
        writer.publish(first..end, end);
        board.wake_workers();
        first = end;
    }
    Ok(())
}

/// `Workshop::work` on windows alone.
fn use_windows(cursor: &Cursor, table: &WindowTable<Rows>, board: &Board, worker: usize) -> Result<(), Stopped> {
    let mut hint = 0;
    while let Some((position, ticket, _)) = cursor.claim() {
        let window = pin(table, board, worker, ticket, &mut hint)?;
        assert!(window.contains(&position));
        if window.release() {
            board.reader.wake();
        }
    }
    Ok(())
}

/// Windows in the main thread, their users in others: `total` positions, of which the windows may hold fewer.
fn windows(workers: usize, total: u64, ends: &'static [u64], large: bool) {
    let cursor = Arc::new(Cursor::new(total));
    let board = Arc::new(Board::new(workers));
    let (table, mut writer) = WindowTable::new(&cursor);
    let spawn = |worker| {
        let (cursor, table, board) = (cursor.clone(), table.clone(), board.clone());
        thread::spawn(move || drop(use_windows(&cursor, &table, &board, worker)))
    };
    let threads = (0..workers).map(spawn).collect();
    read(&mut writer, &board, ends, large).unwrap();
    if ends.last() != Some(&total) {
        board.stop();
    }
    join(threads);
    writer.retire().for_each(drop);
    assert!(ends.last() != Some(&total) || writer.is_idle());
}

/// The first place is used twice: the fourth window goes where the first was read.
#[test]
fn a_window_stays_while_it_is_pinned() {
    check(2, || windows(1, 4, &[1, 2, 3, 4], false));
    check(1, || windows(2, 4, &[1, 2, 3, 4], false));
}

/// Each window waits for the last pin of the one before it.
#[test]
fn a_large_window_waits_for_the_last_pin() {
    check(2, || windows(2, 3, &[2, 3], true));
}

/// Workers that wait for a window that never comes go home.
#[test]
fn stop_reaches_those_who_wait_for_a_window() {
    check(2, || windows(2, 3, &[1], false));
}

/// A reader that waits for room goes home.
#[test]
fn stop_reaches_the_reader() {
    check(2, || {
        let cursor = Cursor::new(9);
        let board = Arc::new(Board::new(1));
        let (table, mut writer) = WindowTable::new(&cursor);
        let reader = {
            let board = board.clone();
            thread::spawn(move || assert!(read(&mut writer, &board, &[1, 2, 3, 4], false).is_err()))
        };
        let (_, ticket, _) = cursor.claim().unwrap();
        let window = pin(&table, &board, 0, ticket, &mut 0).unwrap();
        board.stop();
        reader.join().unwrap();
        assert_eq!(*window, 0..1);
    });
}

/// Reader, worker and consumer together: windows that wait for each other, slots that are used twice.
#[test]
fn images_go_all_the_way() {
    check(1, || {
        let ring = ring(3, 1, 2, 1);
        let (table, mut writer) = WindowTable::new(&ring.cursor);
        let reader = {
            let ring = ring.clone();
            thread::spawn(move || read(&mut writer, &ring.board, &[2, 3], true).unwrap())
        };
        let worker = {
            let ring = ring.clone();
            thread::spawn(move || {
                let mut hint = 0;
                while let Some((position, window, slot)) = ring.cursor.claim() {
                    let window = pin(&table, &ring.board, 0, window, &mut hint).unwrap();
                    let mut place = place(&ring, 0, position, slot).unwrap();
                    place.view(0).fill(position as u8);
                    place.record().label = position as i64;
                    place.finish();
                    assert!(window.contains(&position));
                    if window.release() {
                        ring.board.reader.wake();
                    }
                }
            })
        };
        for local in 0..3 {
            drop(next(&ring, local, 1).unwrap());
        }
        join(vec![reader, worker]);
    });
}
