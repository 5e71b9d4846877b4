//! Baseline entropy coding by the letter of ITU-T T.81, bit by bit: do a scan's data hold the blocks of its image?
//!
//! In: a file. Out: its size, and how many rows of MCUs its data are complete for. It knows no pixels and shares no code
//! with the decoder: it is there to tell data that are missing from data that are only odd, which the oracle does not tell.
//! Reads what the decoder takes, and more.

/// What a scan's data are, up to its image's last block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All blocks are there.
    Whole,
    /// The data of a restart segment end within a block.
    Short,
    /// No code begins like this, a block has too many coefficients, or a segment is missing.
    Wrong,
}

/// One scan and the frame around it.
pub struct Scan {
    /// Width, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
    /// Height of a MCU, pixels.
    pub mcu_height: u32,
    /// Rows of MCUs, from the first on, that are whole.
    pub rows: u32,
    /// What comes after them.
    pub verdict: Verdict,
}

/// A table by length of code: first code, first value and number of values (T.81, F.2.2.3, in other words).
#[derive(Default)]
struct Table {
    counts: [usize; 16],
    values: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Component {
    id: u8,
    factors: [u32; 2],
}

/// Everything before the data.
#[derive(Default)]
struct Headers {
    size: [u32; 2],
    components: Vec<Component>,
    restart: usize,
    /// DC, then AC, by destination.
    tables: [[Table; 4]; 2],
}

/// Reads a file; none if it is not one baseline scan that begins with all headers in order.
pub fn read(bytes: &[u8]) -> Option<Scan> {
    let mut headers = Headers::default();
    let mut rest = bytes.strip_prefix(&[0xff, 0xd8])?;
    loop {
        let &[0xff, marker, high, low] = rest.first_chunk::<4>()? else {
            return None;
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let segment = rest.get(4..2 + length)?;
        rest = &rest[2 + length..];
        match marker {
            0xc0 | 0xc1 => headers.frame(segment)?,
            0xc4 => headers.tables(segment)?,
            0xdd => headers.restart = usize::from(u16::from_be_bytes(*segment.first_chunk()?)),
            0xda => return headers.scan(segment, rest),
            0xdb | 0xe0..=0xef | 0xfe => {}
            _ => return None,
        }
    }
}

impl Headers {
    fn frame(&mut self, segment: &[u8]) -> Option<()> {
        let &[_, h1, h0, w1, w0, _, ref rest @ ..] = segment else {
            return None;
        };
        self.size = [[w1, w0], [h1, h0]].map(|side| u32::from(u16::from_be_bytes(side)));
        let component = |c: &[u8]| Component {
            id: c[0],
            factors: [u32::from(c[1] >> 4), u32::from(c[1] & 15)],
        };
        self.components = rest.chunks_exact(3).map(component).collect();
        let lawful = self.size.iter().all(|&side| side > 0) && self.components.iter().all(|c| !c.factors.contains(&0));
        lawful.then_some(())
    }

    fn tables(&mut self, mut segment: &[u8]) -> Option<()> {
        while let Some((&class, rest)) = segment.split_first() {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let counts = counts.map(usize::from);
            let (values, rest) = rest.split_at_checked(counts.iter().sum())?;
            let table = self.tables.get_mut(usize::from(class >> 4))?;
            *table.get_mut(usize::from(class & 15))? = Table {
                counts,
                values: values.to_vec(),
            };
            segment = rest;
        }
        Some(())
    }

    fn scan(&self, segment: &[u8], data: &[u8]) -> Option<Scan> {
        let (&count, rest) = segment.split_first()?;
        let chosen = rest.get(..2 * usize::from(count))?.chunks_exact(2);
        if usize::from(count) != self.components.len() || count == 0 {
            return None;
        }
        let mut blocks = Vec::new();
        for (component, choice) in self.components.iter().zip(chosen) {
            if choice[0] != component.id {
                return None;
            }
            let dc = self.tables[0].get(usize::from(choice[1] >> 4))?;
            let ac = self.tables[1].get(usize::from(choice[1] & 15))?;
            let [h, v] = component.factors;
            blocks.extend((0..h * v).map(|_| [dc, ac]));
        }
        let most = |n: usize| self.components.iter().map(|c| c.factors[n]).max();
        let mcu = [8 * most(0)?, 8 * most(1)?];
        let mcus = [self.size[0].div_ceil(mcu[0]), self.size[1].div_ceil(mcu[1])];
        let (rows, verdict) = self.walk(&blocks, mcus, &segments(data));
        Some(Scan {
            width: self.size[0],
            height: self.size[1],
            mcu_height: mcu[1],
            rows,
            verdict,
        })
    }

    /// Goes over the MCUs: how many rows are whole, and what is behind them.
    fn walk(&self, blocks: &[[&Table; 2]], [across, down]: [u32; 2], segments: &[Vec<u8>]) -> (u32, Verdict) {
        let mut segments = segments.iter();
        let (mut bits, mut todo) = (Bits::default(), 0);
        for row in 0..down {
            for _ in 0..across {
                if todo == 0 {
                    let Some(next) = segments.next() else {
                        return (row, Verdict::Wrong);
                    };
                    bits = Bits { bytes: next, at: 0 };
                    todo = if self.restart == 0 { usize::MAX } else { self.restart };
                }
                todo -= 1;
                for &[dc, ac] in blocks {
                    if let Err(verdict) = block(&mut bits, dc, ac) {
                        return (row, verdict);
                    }
                }
            }
        }
        (down, Verdict::Whole)
    }
}

/// The data without stuffing, apart at restart markers, up to any other marker.
fn segments(data: &[u8]) -> Vec<Vec<u8>> {
    let mut segments = vec![Vec::new()];
    let mut bytes = data.iter();
    while let Some(&byte) = bytes.next() {
        match (byte, bytes.as_slice().first()) {
            (0xff, Some(0xd0..=0xd7)) => segments.push(Vec::new()),
            (0xff, Some(0)) => segments.last_mut().expect("the first is there").push(byte),
            (0xff, _) => break,
            _ => {
                segments.last_mut().expect("the first is there").push(byte);
                continue;
            }
        }
        bytes.next();
    }
    segments
}

/// One block: a DC difference, then AC coefficients up to the end.
fn block(bits: &mut Bits, dc: &Table, ac: &Table) -> Result<(), Verdict> {
    let size = bits.symbol(dc)?;
    bits.receive(size)?;
    let mut last = 0;
    while last < 63 {
        let symbol = bits.symbol(ac)?;
        let (run, size) = (symbol >> 4, symbol & 15);
        if size == 0 && run < 15 {
            break;
        }
        bits.receive(size)?;
        last += run + 1;
        if last > 63 {
            return Err(Verdict::Wrong);
        }
    }
    Ok(())
}

/// The bits of a segment, one by one.
#[derive(Default)]
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn next(&mut self) -> Result<usize, Verdict> {
        let byte = self.bytes.get(self.at / 8).ok_or(Verdict::Short)?;
        let bit = byte >> (7 - self.at % 8) & 1;
        self.at += 1;
        Ok(bit.into())
    }

    fn receive(&mut self, count: u8) -> Result<(), Verdict> {
        (0..count).try_for_each(|_| self.next().map(drop))
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, Verdict> {
        // The first code of a length, and the number of values before it.
        let (mut first, mut before, mut code) = (0, 0, 0);
        for count in table.counts {
            code = 2 * code + self.next()?;
            if code < first + count {
                return Ok(table.values[before + code - first]);
            }
            (first, before) = (2 * (first + count), before + count);
        }
        Err(Verdict::Wrong)
    }
}
