//! A worker: claims the next position, draws its views, decodes what they need of the sample and writes them into their place.
//!
//! In: the cursor's tickets, windows. Out: finished places.
//! Invariant: the bytes of a place are a function of (plan, data set, epoch, position), so any worker may do any
//! position. Views are drawn as soon as an image's size is known. A substitute draws from the position's own stream of
//! Philox, from its start: what a failed attempt drew is thrown away, so its views are those that the position would have
//! given to any image.

use super::board::{Board, Stopped};
use super::cursor::{SlotTicket, WindowTicket};
use super::error::{FeedError, panic_message};
use super::gauges::{Doing, Gauge, Gauges};
use super::laps::Part;
use super::order::Entry;
use super::quarantine::Reject;
use super::reader::Window;
use super::ring::Ring;
use super::share::{self, Share};
use super::slot::{Pin, Place, WindowTable};
use super::sync::Ordering;
use super::view::{Drawn, Scratch, View};
use crate::data::rng::{Domain, Philox};
use crate::data::{Dataset, DecodeOptions, Decoder, Region, Rgbx8};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What workers share.
pub(crate) struct Workshop {
    pub dataset: Arc<Dataset>,
    pub share: Share,
    pub ring: Arc<Ring>,
    pub windows: Arc<WindowTable<Window>>,
    pub board: Arc<Board>,
    pub gauges: Arc<Gauges>,
    pub views: Vec<View>,
    pub decode: DecodeOptions,
    pub seed: u64,
}

/// One worker thread's own things.
#[derive(Default)]
struct Bench {
    decoder: Decoder,
    image: Rgbx8,
    /// The image's views, in their order.
    drawn: Vec<Drawn>,
    scratch: Scratch,
}

impl Workshop {
    /// Body of worker thread `index`.
    pub fn run(&self, index: usize) {
        let gauge = &*self.gauges.workers[index];
        // `work` reports a panic of a sample itself; what is caught here is a panic around it, which spoils everything.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| self.work(index, gauge))) {
            self.board.fail(0, panicked(&*payload));
        }
        self.gauges.turn(gauge, Doing::Done);
    }

    fn work(&self, index: usize, gauge: &Gauge) -> Result<(), Stopped> {
        let mut bench = Bench::default();
        let mut hint = 0;
        while let Some((position, window, slot)) = self.ring.cursor.claim() {
            // Also here, since a worker that finds window and slot ready does not wait: a drop shall not fill the ring.
            if self.board.stopped() {
                return Err(Stopped);
            }
            let window = self.window(index, gauge, window, &mut hint)?;
            let mut place = self.place(index, gauge, position, slot)?;
            self.gauges.turn(gauge, Doing::Busy);
            let at = self.share.place(position);
            bench.scratch.laps.begin(self.gauges.profile.load(Ordering::Relaxed));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                self.fill(&mut bench, gauge, &window, at, &mut place)
            }));
            if let Err(error) = outcome.unwrap_or_else(|payload| Err(panicked(&*payload))) {
                // Say why before the place is dropped: the consumer shall read this and not that it was abandoned.
                self.board.fail(place.batch(), error);
                return Ok(());
            }
            self.gauges.images.fetch_add(1, Ordering::Relaxed);
            if let Some(laps) = bench.scratch.laps.take() {
                gauge.add(&laps);
            }
            place.finish();
            if window.release() {
                self.board.reader.wake();
            }
        }
        Ok(())
    }

    /// The position's window, as soon as it is read.
    fn window(
        &self,
        index: usize,
        gauge: &Gauge,
        ticket: WindowTicket,
        hint: &mut u64,
    ) -> Result<Pin<'_, Window>, Stopped> {
        let mut ticket = match self.windows.pin(ticket, hint) {
            Ok(pin) => return Ok(pin),
            Err(ticket) => Some(ticket),
        };
        self.gauges.turn(gauge, Doing::WaitingForInput);
        self.board.worker_wait(index, || {
            let pin = self.windows.pin(ticket.take()?, hint);
            pin.map_err(|back| ticket = Some(back)).ok()
        })
    }

    /// The position's place, as soon as its slot is free.
    fn place(&self, index: usize, gauge: &Gauge, position: u64, ticket: SlotTicket) -> Result<Place<'_>, Stopped> {
        let mut ticket = match self.ring.place(position, ticket) {
            Ok(place) => return Ok(place),
            Err(ticket) => Some(ticket),
        };
        self.gauges.turn(gauge, Doing::WaitingForRoom);
        self.board.worker_wait(index, || {
            let place = self.ring.place(position, ticket.take()?);
            place.map_err(|back| ticket = Some(back)).ok()
        })
    }

    /// Fills a place with the position's sample, or the first good one after it in the window's cycle.
    fn fill(
        &self,
        bench: &mut Bench,
        gauge: &Gauge,
        window: &Window,
        at: share::Place,
        place: &mut Place,
    ) -> Result<(), FeedError> {
        let index = at.position - window.plan.first;
        let mut attempt = 0;
        while let Some(entry) = window.plan.entry(index, attempt) {
            gauge.at(entry.key);
            match self.decode(bench, window, &entry, at) {
                Ok(()) => {
                    #[cfg(all(test, not(vicreg_loom)))]
                    super::tests::chaos::rendering(at);
                    self.render(bench, place);
                    self.label(window, &entry, true, place);
                    return Ok(());
                }
                Err(reject) => {
                    self.gauges.rejects.fetch_add(1, Ordering::Relaxed);
                    place.record().rejects.push(reject);
                }
            }
            attempt += 1;
        }
        match window.plan.entry(index, 0) {
            Some(entry) if window.plan.is_sequential() => {
                for view in 0..self.views.len() {
                    place.view(view).fill(0);
                }
                self.label(window, &entry, false, place);
                Ok(())
            }
            _ => Err(self.all_bad(window, at, place)),
        }
    }

    /// The same error for whichever position of the window met it first.
    fn all_bad(&self, window: &Window, at: share::Place, place: &mut Place) -> FeedError {
        let rejects = std::mem::take(&mut place.record().rejects);
        match rejects.into_iter().min_by_key(|reject| reject.key) {
            None => FeedError::Abandoned,
            Some(first) => FeedError::AllBad {
                epoch: at.epoch,
                position: window.plan.first,
                samples: window.plan.rows,
                first: Box::new(first),
            },
        }
    }

    fn render(&self, bench: &mut Bench, place: &mut Place) {
        for (number, (view, drawn)) in self.views.iter().zip(&bench.drawn).enumerate() {
            view.render(&bench.image, drawn, &mut bench.scratch, place.view(number));
        }
    }

    /// Draws all views of a `width` x `height` image; returns what they need of it.
    fn draw(&self, at: share::Place, width: u32, height: u32, drawn: &mut Vec<Drawn>) -> Region {
        drawn.clear();
        drawn.extend(self.views.iter().enumerate().map(|(number, view)| {
            let mut rng = Philox::new(self.seed, Domain::View, at.epoch, at.position, number as u8);
            view.draw(width, height, &mut rng)
        }));
        let regions = drawn.iter().map(Drawn::region);
        regions.reduce(Region::union).expect("a plan has views")
    }

    fn label(&self, window: &Window, entry: &Entry, present: bool, place: &mut Place) {
        let record = place.record();
        record.key = entry.key;
        record.label = window.groups[entry.group].label(entry.key.row).unwrap_or(-1);
        record.present = present;
    }

    /// Decodes into the bench's image what the position's views need of the entry. The codec answers a decoder's panic with
    /// an error, as it does any bad byte.
    fn decode(&self, bench: &mut Bench, window: &Window, entry: &Entry, at: share::Place) -> Result<(), Reject> {
        let Some(bytes) = window.groups[entry.group].image(entry.key.row) else {
            return Err(self.reject(window, entry, "null", "the row has no image".into()));
        };
        let drawn = &mut bench.drawn;
        let choose = |width, height| self.draw(at, width, height, drawn);
        let decoded = bench.decoder.decode_part(bytes, &self.decode, choose, &mut bench.image);
        bench.scratch.laps.lap(Part::Decode);
        decoded.map_err(|error| self.reject(window, entry, error.code(), chain(&error)))
    }

    fn reject(&self, window: &Window, entry: &Entry, code: &'static str, reason: String) -> Reject {
        Reject {
            key: entry.key,
            shard: self.dataset.shards()[entry.key.shard.0 as usize].name.clone(),
            path: window.groups[entry.group].path(entry.key.row).map(str::to_owned),
            reason,
            code,
        }
    }
}

fn panicked(payload: &(dyn std::any::Any + Send)) -> FeedError {
    FeedError::Panicked {
        thread: std::thread::current().name().unwrap_or("worker").into(),
        message: panic_message(payload),
    }
}

/// An error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(Some(error), |error| error.source());
    sources.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
