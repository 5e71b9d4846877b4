//! The JPEG decoder against zune-jpeg, the decoder of record, and against the definition of the entropy coding.
//!
//! An input is a file and behind it nine bytes that choose what is asked of the decoders (see [`Question`]). The decoder gives the
//! oracle's pixels, whole or in part, or a fault; where the whole decodes, every part does; it never says that data are
//! there which are not, nor the reverse; neither it nor the codec around it panics; and one decoder serves all inputs, with the
//! answers of a fresh one.

#![no_main]

mod definition;
#[path = "../../../src/data/jpeg/tests/oracle.rs"]
mod oracle;

use definition::{Scan, Verdict};
use libfuzzer_sys::fuzz_target;
use oracle::{Image, cut, oracle};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::PanicHookInfo;
use std::sync::Mutex;
use vicreg_stream::data::codec::{self, DecodeOptions, Policy};
use vicreg_stream::data::jpeg::{self, Fault};
use vicreg_stream::data::{Region, Rgbx8};

/// Most pixels of an image that is decoded as a whole: what a fuzzer finds shows in small ones.
const PIXELS: u64 = 1 << 18;
/// Longest side of a part of a larger one.
const SIDE: u32 = 512;

fuzz_target!(
    init: watch_panics(),
    |input: &[u8]| {
        let Some((file, trailer)) = input.split_last_chunk() else { return };
        STATE.with_borrow_mut(|state| state.check(file, Question(*trailer)));
    }
);

/// What is asked: flags (1: lenient, 2: orientation applied, 4 and 8: the part touches the right and the lower edge), then
/// for both axes start and length of the part, 16 bits each, modulo what fits.
#[derive(Clone, Copy)]
struct Question([u8; 9]);

impl Question {
    fn has(self, flag: u8) -> bool {
        self.0[0] & flag != 0
    }

    /// A part of an image.
    fn region(self, width: u32, height: u32) -> Region {
        let number = |at: usize| u32::from(u16::from_be_bytes([self.0[at], self.0[at + 1]]));
        let axis = |side: u32, at: usize, end: bool| {
            let length = (1 + number(at + 2) % side).min(SIDE);
            let free = side - length;
            (if end { free } else { number(at) % (free + 1) }, length)
        };
        let ((left, width), (top, height)) = (axis(width, 1, self.has(4)), axis(height, 5, self.has(8)));
        Region {
            left,
            top,
            width,
            height,
        }
    }

    fn options(self) -> DecodeOptions {
        DecodeOptions {
            max_pixels: PIXELS,
            policy: if self.has(1) { Policy::Lenient } else { Policy::Strict },
            apply_orientation: self.has(2),
            ..DecodeOptions::default()
        }
    }
}

thread_local! {
    static STATE: RefCell<State> = RefCell::default();
    /// Whether the oracle panicked since this was last cleared.
    static ORACLE_PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// What is kept from input to input, so that what one leaves behind meets the next.
#[derive(Default)]
struct State {
    decoder: jpeg::Decoder,
    out: Vec<u8>,
    codec: codec::Decoder,
    whole: Rgbx8,
    part: Rgbx8,
}

impl State {
    fn check(&mut self, file: &[u8], question: Question) {
        let own = match definition::read(file) {
            Some(scan) => self.check_decoder(file, question, &scan),
            None => {
                let result = self.decode(file, question.region(16, 16));
                assert!(result.is_err(), "decoded without lawful headers");
                None
            }
        };
        if file.starts_with(&[0xff, 0xd8, 0xff]) {
            self.check_codec(file, question, own);
        }
    }

    /// The decoder's answer; a fresh one must give the same.
    fn decode(&mut self, file: &[u8], region: Region) -> Result<(), Fault> {
        let result = self.decoder.decode(file, region, &mut self.out);
        let mut fresh = Vec::new();
        let again = jpeg::Decoder::default().decode(file, region, &mut fresh);
        assert_eq!(result, again, "{region:?}: a fresh decoder says otherwise");
        assert!(
            result.is_err() || self.out == fresh,
            "{region:?}: a fresh decoder differs"
        );
        result
    }

    /// Holds the decoder to definition and oracle; gives the whole image where it decodes.
    fn check_decoder(&mut self, file: &[u8], question: Question, scan: &Scan) -> Option<Image> {
        let (width, height) = (scan.width, scan.height);
        let small = u64::from(width) * u64::from(height) <= PIXELS;
        let whole = small.then(|| self.decode(file, Region::all(width, height)));
        match whole {
            Some(Ok(())) => assert_eq!(scan.verdict, Verdict::Whole, "data were made up"),
            Some(Err(Fault::Truncated)) => assert_eq!(scan.verdict, Verdict::Short, "nothing is missing"),
            _ => {}
        }
        let own = matches!(whole, Some(Ok(()))).then(|| Image {
            width,
            height,
            pixels: self.out.clone(),
        });

        let region = question.region(width, height);
        let part = self.decode(file, region);
        match part {
            Ok(()) => assert!(
                scan.rows >= region.bottom().div_ceil(scan.mcu_height),
                "{region:?}: data were made up"
            ),
            Err(Fault::Truncated) => assert_ne!(scan.verdict, Verdict::Whole, "{region:?}: nothing is missing"),
            Err(Fault::Unusual) => {}
        }
        assert!(part.is_ok() || own.is_none(), "{region:?} fails, the whole does not");
        if part.is_err() || !small {
            return own;
        }
        // Where the damage is below the part, only the lenient oracle goes on to the end.
        let image = oracle(file, own.is_some());
        if let Some(own) = &own {
            let image = image.as_ref().expect("only the oracle fails");
            assert_eq!([own.width, own.height], [image.width, image.height]);
            assert!(own.pixels == image.pixels, "the whole differs");
        }
        if let Some(image) = image {
            assert_eq!([width, height], [image.width, image.height]);
            assert!(image.part(region) == self.out, "{region:?} differs");
        }
        own
    }

    /// Holds the codec to the decoder, and its parts to its wholes.
    fn check_codec(&mut self, file: &[u8], question: Question, own: Option<Image>) {
        let options = question.options();
        ORACLE_PANICKED.set(false);
        let whole = self.codec.decode(file, &options, &mut self.whole);
        let choose = |width, height| question.region(width, height);
        let part = self.codec.decode_part(file, &options, choose, &mut self.part);
        for error in [&whole, &part].into_iter().filter_map(|result| result.as_ref().err()) {
            let panicked = error.code() == "decoder-panic";
            assert!(!panicked || ORACLE_PANICKED.get(), "not the oracle's panic: {error}");
        }
        if let Some(own) = own {
            assert_eq!(whole, Ok(()), "the codec refuses what the decoder decodes");
            assert!(
                options.apply_orientation || self.whole.pixels == own.pixels,
                "the codec differs"
            );
        }
        if whole.is_ok() {
            assert_eq!(part, Ok(()), "the codec refuses a part of what it decodes");
            let (width, height) = (self.whole.width, self.whole.height);
            let region = question.region(width, height);
            assert_eq!([width, height], [self.part.width, self.part.height]);
            assert!(self.part.part.contains(region), "{region:?} is not in the part");
            let expected = cut(&self.whole.pixels, width, self.part.part);
            assert!(self.part.pixels == expected, "{region:?} of the codec differs");
        }
    }
}

/// Lets the oracle's panics through to whoever catches them, and names each place once; any other ends the run.
fn watch_panics() {
    let abort = std::panic::take_hook();
    let seen = Mutex::new(BTreeSet::new());
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        if !place.split(['/', '\\']).any(|part| part.starts_with("zune-")) {
            return abort(info);
        }
        ORACLE_PANICKED.set(true);
        if seen.lock().is_ok_and(|mut seen| seen.insert(place)) {
            eprintln!("the oracle panics: {info}");
        }
    }));
}
