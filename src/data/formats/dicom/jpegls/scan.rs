//! The coded pixels of a scan.

use super::Coding;
use anyhow::{Result, ensure};

/// Bits of the length of a run (J).
const RUN_BITS: [u32; 32] =
    [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Of gradients, where a context and its mirror image are one; that of a run is not used.
const CONTEXTS: usize = 365;
/// Largest correction of a prediction, either way.
const MOST_BIAS: (i64, i64) = (-128, 127);
/// An error of a prediction beyond this is none of 16 bits.
const MOST_ERROR: i64 = 0xffff;

/// What was seen in one surrounding: sums of errors' sizes and of errors, a correction, how many.
#[derive(Clone, Copy)]
struct Context {
    a: i64,
    b: i64,
    c: i64,
    n: i64,
}

/// Of the pixels that end a run: as above, and how many errors were negative.
#[derive(Clone, Copy)]
struct RunContext {
    a: i64,
    n: i64,
    negative: i64,
}

pub struct Decoder<'a> {
    bits: Bits<'a>,
    coding: Coding,
    /// Bits of an error that is written out, and the longest code.
    qbpp: u32,
    limit: u32,
    contexts: [Context; CONTEXTS],
    runs: [RunContext; 2],
    run_index: usize,
}

impl<'a> Decoder<'a> {
    pub fn new(coding: Coding, scan: &'a [u8]) -> Self {
        let log2 = |n: i64| (n as u64).next_power_of_two().trailing_zeros();
        let (range, bpp) = (coding.range(), log2(coding.maxval + 1).max(2));
        let a = ((range + 32) / 64).max(2);
        Decoder {
            bits: Bits { bytes: scan, held: 0, n: 0, stuffed: false },
            coding,
            qbpp: log2(range),
            limit: 2 * (bpp + bpp.max(8)),
            contexts: [Context { a, b: 0, c: 0, n: 1 }; CONTEXTS],
            runs: [RunContext { a, n: 1, negative: 0 }; 2],
            run_index: 0,
        }
    }

    /// The pixels between the first and the last of `current`.
    pub fn line(&mut self, previous: &[u16], current: &mut [u16]) -> Result<()> {
        let mut x = 1;
        while x + 1 < current.len() {
            let [a, b, c, d] = [current[x - 1], previous[x], previous[x - 1], previous[x + 1]].map(i64::from);
            let q = 81 * self.coding.class(d - b) + 9 * self.coding.class(b - c) + self.coding.class(c - a);
            if q == 0 {
                x = self.run(previous, current, x)?;
            } else {
                current[x] = self.regular(q, a, b, c)?;
                x += 1;
            }
        }
        Ok(())
    }

    fn regular(&mut self, q: i64, a: i64, b: i64, c: i64) -> Result<u16> {
        let Coding { maxval, near, reset, .. } = self.coding;
        let context = &mut self.contexts[q.unsigned_abs() as usize];
        let predicted = match c {
            _ if c >= a.max(b) => a.min(b),
            _ if c <= a.min(b) => a.max(b),
            _ => a + b - c,
        };
        let predicted = (predicted + q.signum() * context.c).clamp(0, maxval);
        let k = golomb(context.n, context.a);
        let mapped = self.bits.code(k, self.limit, self.qbpp)?;
        let error = (mapped >> 1) ^ -(mapped & 1);
        let turned = k == 0 && near == 0 && 2 * context.b <= -context.n;
        let error = if turned { !error } else { error };
        context.a += error.abs();
        context.b += error * (2 * near + 1);
        if context.n == reset {
            context.a >>= 1;
            context.b >>= 1;
            context.n >>= 1;
        }
        context.n += 1;
        if context.b <= -context.n {
            context.b = (context.b + context.n).max(1 - context.n);
            context.c = (context.c - 1).max(MOST_BIAS.0);
        } else if context.b > 0 {
            context.b = (context.b - context.n).min(0);
            context.c = (context.c + 1).min(MOST_BIAS.1);
        }
        Ok(self.coding.value(predicted, q.signum() * error))
    }

    /// From `x` on, with the pixel that ends it: where the next is.
    fn run(&mut self, previous: &[u16], current: &mut [u16], x: usize) -> Result<usize> {
        let (value, last, mut end) = (current[x - 1], current.len() - 1, x);
        while end < last && self.bits.read(1)? == 1 {
            let whole = 1 << RUN_BITS[self.run_index];
            let there = whole.min(last - end);
            end += there;
            if there == whole {
                self.run_index = (self.run_index + 1).min(RUN_BITS.len() - 1);
            }
        }
        if end < last {
            end += self.bits.read(RUN_BITS[self.run_index])? as usize;
            ensure!(end <= last, "damaged: a run beyond the end of the row");
        }
        current[x..end].fill(value);
        if end == last {
            return Ok(end);
        }
        let (a, b) = (i64::from(value), i64::from(previous[end]));
        let same = (a - b).abs() <= self.coding.near;
        let kind = i64::from(same);
        let context = &mut self.runs[usize::from(same)];
        let k = golomb(context.n, context.a + kind * (context.n >> 1));
        let mapped = self.bits.code(k, self.limit - RUN_BITS[self.run_index] - 1, self.qbpp)?;
        let size = (mapped + kind + 1) >> 1;
        let odd = (mapped + kind) & 1 == 1;
        let error = if odd == (k > 0 || 2 * context.negative >= context.n) { -size } else { size };
        context.negative += i64::from(error < 0);
        context.a += (mapped + 1 - kind) >> 1;
        if context.n == self.coding.reset {
            context.a >>= 1;
            context.n >>= 1;
            context.negative >>= 1;
        }
        context.n += 1;
        current[end] = if same { self.coding.value(a, error) } else { self.coding.value(b, error * (b - a).signum()) };
        self.run_index = self.run_index.saturating_sub(1);
        Ok(end + 1)
    }
}

/// Bits of a code after its zeros (k), for `n` errors that are `a` in sum.
fn golomb(n: i64, a: i64) -> u32 {
    let mut k = 0;
    while n << k < a {
        k += 1;
    }
    k
}

/// The bits of a scan, up to a marker or the end.
struct Bits<'a> {
    bytes: &'a [u8],
    /// The next bits, from the highest on, and how many.
    held: u64,
    n: u32,
    /// Whether a byte follows whose highest bit is none of them.
    stuffed: bool,
}

impl Bits<'_> {
    fn fill(&mut self, least: u32) -> Result<()> {
        while self.n <= u64::BITS - 8 {
            let Some((&byte, rest)) = self.bytes.split_first() else { break };
            if byte == 0xff && rest.first().is_none_or(|&next| next >= 0x80) {
                break;
            }
            let width = if self.stuffed { 7 } else { 8 };
            self.held |= u64::from(byte) << (u64::BITS - width - self.n);
            self.n += width;
            (self.bytes, self.stuffed) = (rest, byte == 0xff);
        }
        ensure!(self.n >= least, "cut off or damaged: no more bits");
        Ok(())
    }

    fn skip(&mut self, n: u32) {
        self.held = self.held.checked_shl(n).unwrap_or(0);
        self.n -= n;
    }

    /// A number of `n` bits.
    fn read(&mut self, n: u32) -> Result<i64> {
        if self.n < n {
            self.fill(n)?;
        }
        let number = self.held.checked_shr(u64::BITS - n).unwrap_or(0);
        self.skip(n);
        Ok(number as i64)
    }

    /// Zeros up to a one.
    fn zeros(&mut self, most: u32) -> Result<u32> {
        let mut zeros = 0;
        loop {
            if self.n == 0 {
                self.fill(1)?;
            }
            let more = self.held.leading_zeros().min(self.n);
            zeros += more;
            ensure!(zeros <= most, "damaged: a code of more than {most} zeros");
            let one = more < self.n;
            self.skip(more + u32::from(one));
            if one {
                return Ok(zeros);
            }
        }
    }

    /// An error, mapped to those from 0 on, whose code has at most `limit` bits.
    fn code(&mut self, k: u32, limit: u32, qbpp: u32) -> Result<i64> {
        let most = limit - qbpp - 1;
        let zeros = self.zeros(most)?;
        let mapped = if zeros < most { (i64::from(zeros) << k) + self.read(k)? } else { self.read(qbpp)? + 1 };
        ensure!(mapped <= 2 * MOST_ERROR, "damaged: an error of a prediction beyond 16 bits");
        Ok(mapped)
    }
}
