//! Sums of files, and bytes as text.

use std::io::{Read, Write};

use sha2::{Digest, Sha256, Sha512};

use super::{Cx, Fail, Options, Outcome, each_input, each_line};
use crate::io::Input;

/// How much is read at a time.
const READ_BYTES: usize = 16 * 1024;
/// Characters in a line of `base64`.
const BASE64_COLUMNS: usize = 76;
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// What makes a sum of bytes.
trait Sum {
    fn add(&mut self, bytes: &[u8]);
    fn end(self: Box<Self>) -> Vec<u8>;
}

struct Sha<D>(D);

impl<D: Digest> Sum for Sha<D> {
    fn add(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn end(self: Box<Self>) -> Vec<u8> {
        self.0.finalize().to_vec()
    }
}

/// MD5 (RFC 1321) or SHA-1 (RFC 3174), which are built alike: blocks of 64 bytes change a few words.
struct Older {
    words: [u32; 5],
    block: Vec<u8>,
    length: u64,
    is_md5: bool,
}

impl Older {
    fn new(is_md5: bool) -> Self {
        let words = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
        Self { words, block: Vec::with_capacity(64), length: 0, is_md5 }
    }

    fn md5(&mut self) {
        const TURNS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| self.block[at * 4 + byte]));
        let [mut a, mut b, mut c, mut d, _] = self.words;
        for step in 0..64 {
            let (mixed, at) = match step / 16 {
                0 => ((b & c) | (!b & d), step),
                1 => ((d & b) | (!d & c), (5 * step + 1) % 16),
                2 => (b ^ c ^ d, (3 * step + 5) % 16),
                _ => (c ^ (b | !d), (7 * step) % 16),
            };
            // The constants are the sines of the steps, in radians.
            let sine = (((step + 1) as f64).sin().abs() * 4_294_967_296.0) as u32;
            let sum = a.wrapping_add(mixed).wrapping_add(sine).wrapping_add(word(at));
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(TURNS[step / 16][step % 4]));
        }
        for (word, add) in self.words.iter_mut().zip([a, b, c, d]) {
            *word = word.wrapping_add(add);
        }
    }

    fn sha1(&mut self) {
        let mut w = [0_u32; 80];
        for (at, word) in w[..16].iter_mut().enumerate() {
            *word = u32::from_be_bytes(std::array::from_fn(|byte| self.block[at * 4 + byte]));
        }
        for at in 16..80 {
            w[at] = (w[at - 3] ^ w[at - 8] ^ w[at - 14] ^ w[at - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.words;
        for (step, word) in w.into_iter().enumerate() {
            let (mixed, constant) = match step / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mixed).wrapping_add(e).wrapping_add(constant).wrapping_add(word);
            (e, d, c, b, a) = (d, c, b.rotate_left(30), a, next);
        }
        for (word, add) in self.words.iter_mut().zip([a, b, c, d, e]) {
            *word = word.wrapping_add(add);
        }
    }
}

impl Sum for Older {
    fn add(&mut self, mut bytes: &[u8]) {
        self.length += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(64 - self.block.len()));
            self.block.extend_from_slice(now);
            bytes = later;
            if self.block.len() == 64 {
                if self.is_md5 {
                    self.md5()
                } else {
                    self.sha1()
                }
                self.block.clear();
            }
        }
    }

    fn end(mut self: Box<Self>) -> Vec<u8> {
        let bits = self.length * 8;
        let bits = if self.is_md5 { bits.to_le_bytes() } else { bits.to_be_bytes() };
        let zeros = (119 - self.length as usize % 64) % 64;
        self.add(&[&[0x80][..], &vec![0; zeros], &bits].concat());
        match self.is_md5 {
            true => self.words[..4].iter().flat_map(|word| word.to_le_bytes()).collect(),
            false => self.words.iter().flat_map(|word| word.to_be_bytes()).collect(),
        }
    }
}

fn sum_of(name: &str) -> Box<dyn Sum> {
    match name {
        "md5sum" => Box::new(Older::new(true)),
        "sha1sum" => Box::new(Older::new(false)),
        "sha512sum" => Box::new(Sha(Sha512::new())),
        _ => Box::new(Sha(Sha256::new())),
    }
}

fn sum(name: &str, mut input: Input) -> Result<String, Fail> {
    let (mut sum, mut buffer) = (sum_of(name), vec![0; READ_BYTES]);
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(sum.end().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => sum.add(&buffer[..count]),
        }
    }
}

pub(super) fn md5sum(cx: &mut Cx, args: &[String]) -> Outcome {
    sums(cx, "md5sum", args)
}

pub(super) fn sha1sum(cx: &mut Cx, args: &[String]) -> Outcome {
    sums(cx, "sha1sum", args)
}

pub(super) fn sha256sum(cx: &mut Cx, args: &[String]) -> Outcome {
    sums(cx, "sha256sum", args)
}

pub(super) fn sha512sum(cx: &mut Cx, args: &[String]) -> Outcome {
    sums(cx, "sha512sum", args)
}

fn sums(cx: &mut Cx, name: &str, args: &[String]) -> Outcome {
    let options = Options::read(args, "bcst", &[("check", 'c'), ("status", 's')])?;
    if !options.has('c') {
        return each_input(cx, name, &options.rest, |cx, path, input| {
            let sum = sum(name, input)?;
            cx.line(&format!("{sum}  {path}"))
        });
    }
    let mut wrong = 0;
    let code = each_input(cx, name, &options.rest, |cx, _, list| {
        each_line(&list, |line| {
            let line = String::from_utf8_lossy(line);
            let Some((expected, path)) = line.trim_end().split_once([' ', '\t']) else { return Ok(true) };
            let path = path.trim_start_matches([' ', '*']);
            let found = cx.open(path).and_then(|input| sum(name, input));
            let same = found.as_ref().is_ok_and(|found| found.eq_ignore_ascii_case(expected));
            wrong += i32::from(!same);
            if let Err(fail) = found {
                super::report(cx, name, fail);
            }
            if !options.has('s') {
                cx.line(&format!("{path}: {}", if same { "OK" } else { "FAILED" }))?;
            }
            Ok(true)
        })
    })?;
    Ok(code | i32::from(wrong > 0))
}

pub(super) fn base64(cx: &mut Cx, args: &[String]) -> Outcome {
    let options = Options::read(args, "diw:", &[("decode", 'd'), ("wrap", 'w')])?;
    let columns = options.value('w').map_or(Ok(BASE64_COLUMNS), super::number)?;
    each_input(cx, "base64", &options.rest, |cx, _, mut input| {
        if options.has('d') {
            let mut text = Vec::new();
            input.read_to_end(&mut text)?;
            let bytes = decode(&text).ok_or_else(|| Fail::Say("invalid input".to_owned()))?;
            return Ok(cx.stdout.write_all(&bytes)?);
        }
        let (mut column, mut left, mut buffer) = (0, Vec::new(), vec![0; READ_BYTES]);
        loop {
            let count = input.read(&mut buffer)?;
            left.extend_from_slice(&buffer[..count]);
            let whole = if count == 0 { left.len() } else { left.len() / 3 * 3 };
            let mut out = Vec::new();
            for group in left[..whole].chunks(3) {
                for character in encode(group) {
                    if columns > 0 && column == columns {
                        out.push(b'\n');
                        column = 0;
                    }
                    out.push(character);
                    column += 1;
                }
            }
            left.drain(..whole);
            if count == 0 && columns > 0 && column > 0 {
                out.push(b'\n');
            }
            cx.stdout.write_all(&out)?;
            if count == 0 {
                return Ok(());
            }
        }
    })
}

fn encode(group: &[u8]) -> [u8; 4] {
    let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
    let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
    std::array::from_fn(|at| match at > group.len() {
        true => b'=',
        false => BASE64[(bits >> (18 - 6 * at) & 63) as usize],
    })
}

fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let (mut bits, mut count, mut out) = (0_u32, 0, Vec::new());
    for byte in text.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'=') {
        bits = bits << 6 | u32::try_from(BASE64.iter().position(|known| known == byte)?).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            out.push((bits >> count) as u8);
        }
    }
    Some(out)
}
