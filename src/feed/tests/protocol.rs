//! Slots, tickets, pins and parking under many threads, without images: what a sanitizer or a model looks at.

use super::cursor::Cursor;
use super::share::Share;
use super::slot::{Shape, WindowTable};
use super::*;
use std::sync::atomic::AtomicUsize;

fn ring(samples: u32, batch: u32, slots: usize, workers: usize) -> Arc<Ring> {
    let shape = Shape {
        views: 2,
        samples: batch as usize,
        view_bytes: 5,
    };
    let memory = (0..slots)
        .map(|_| HeapMemory.allocate(2 * batch as usize * 5).unwrap())
        .collect();
    Arc::new(Ring::new(
        Share::of_samples(samples, batch),
        shape,
        memory,
        Arc::new(Board::new(workers)),
    ))
}

/// Workers write a pattern of the position; the consumer must find it, whole and in order.
#[test]
fn every_byte_is_written_once_and_before_it_is_read() {
    let (samples, batch, workers) = (if cfg!(miri) { 101 } else { 4_001 }, 4, 3);
    let ring = ring(samples, batch, 2, workers);
    let threads: Vec<_> = (0..workers)
        .map(|index| {
            let ring = ring.clone();
            thread::spawn(move || {
                while let Some((position, _, ticket)) = ring.cursor.claim() {
                    let mut ticket = Some(ticket);
                    let mut place = ring
                        .board
                        .worker_wait(index, || {
                            ring.place(position, ticket.take()?)
                                .map_err(|back| ticket = Some(back))
                                .ok()
                        })
                        .unwrap();
                    place.view(0).fill(position as u8);
                    place.view(1).fill(!position as u8);
                    place.record().label = position as i64;
                    place.finish();
                }
            })
        })
        .collect();
    for local in 0..u64::from(samples.div_ceil(batch)) {
        let mut taken = ring.board.consumer.wait(|| ring.take(local));
        assert!(ring.take(local).is_none(), "a slot is taken once");
        let (first, len) = (local * u64::from(batch), taken.len());
        for (i, position) in (first..first + len as u64).enumerate() {
            assert_eq!(taken.pixels()[i * 5..][..5], [position as u8; 5]);
            assert_eq!(taken.pixels()[(len + i) * 5..][..5], [!position as u8; 5]);
        }
        assert!(
            taken
                .records()
                .map(|record| record.label as u64)
                .eq(first..first + len as u64)
        );
        ring.give_back(local, taken);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_place_dropped_unfinished_poisons_the_ring() {
    let ring = ring(8, 4, 2, 1);
    let (position, _, ticket) = ring.cursor.claim().unwrap();
    drop(ring.place(position, ticket).unwrap());
    assert!(ring.take(0).is_none());
    assert!(matches!(ring.board.failure(0), Some(FeedError::Abandoned)));
}

#[test]
#[should_panic(expected = "a ticket of another feed")]
fn a_ticket_is_good_for_one_feed() {
    let (here, there) = (ring(8, 4, 2, 1), ring(8, 4, 2, 1));
    let (position, _, ticket) = here.cursor.claim().unwrap();
    let _ = there.place(position, ticket);
}

/// Windows of uneven length go by under workers of uneven speed; a pinned one stays, each is dropped once.
#[test]
fn a_pinned_window_stays() {
    struct Counted(std::ops::Range<u64>, Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }
    let (total, workers) = (if cfg!(miri) { 150 } else { 6_000 }, 3);
    let cursor = Arc::new(Cursor::new(total));
    let board = Arc::new(Board::new(workers));
    let dropped = Arc::new(AtomicUsize::new(0));
    let (table, mut writer) = WindowTable::<Counted>::new(&cursor);
    let threads: Vec<_> = (0..workers)
        .map(|index| {
            let (cursor, table, board) = (cursor.clone(), table.clone(), board.clone());
            thread::spawn(move || {
                let mut hint = 0;
                while let Some((position, ticket, _)) = cursor.claim() {
                    let mut ticket = Some(ticket);
                    let pin = board
                        .worker_wait(index, || {
                            table
                                .pin(ticket.take()?, &mut hint)
                                .map_err(|back| ticket = Some(back))
                                .ok()
                        })
                        .unwrap();
                    if position % 97 == index as u64 {
                        thread::yield_now();
                    }
                    assert!(pin.0.contains(&position));
                    if pin.release() {
                        board.reader.wake();
                    }
                }
            })
        })
        .collect();
    let (mut first, mut windows) = (0, 0);
    while first < total {
        let end = (first + 1 + windows * 7 % 13).min(total);
        board
            .reader_wait(|| {
                writer.retire().for_each(drop);
                writer.has_place().then_some(())
            })
            .unwrap();
        writer.publish(Counted(first..end, dropped.clone()), end);
        board.wake_workers();
        (first, windows) = (end, windows + 1);
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    writer.retire().for_each(drop);
    assert!(writer.is_idle());
    assert_eq!(dropped.load(Ordering::Relaxed) as u64, windows);
}
