//! What a terminal's driver does between a client whose own terminal is raw and a program that reads lines: it echoes,
//! lets the line be edited until it is done, and knows a few keys. It moves by backspaces alone, a column a character, so
//! that what it echoes does not depend on the kind or the size of the terminal.

use std::collections::VecDeque;
use std::mem;

/// The longest line, as Linux has it. What is typed beyond it is not taken.
const LINE_BYTES_MAX: usize = 4095;
/// Lines that can be had again by the arrow keys; the oldest go first. With the longest line that is 400 KiB a session.
const HISTORY_MAX: usize = 100;
/// The longest sequence that a key sends; what is longer is none, and ends there.
const SEQUENCE_BYTES_MAX: usize = 16;

/// Who acts on `^C` and `^D`. No signal reaches a WebAssembly program, so that most cannot: the session does it for them.
/// The toolbox reads them as bytes, as from a raw terminal, and ends what runs in its foreground. It has a shell, so that
/// its lines can be had again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// The session.
    Session,
    /// The program.
    Program,
}

/// A key with a meaning for the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// `^C`, or `^\` where that is the program's: the program is to end.
    Interrupt,
    /// `^D` on an empty line: the input is at its end.
    End,
}

/// What came of something that was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Typed {
    /// For the client to see.
    pub(crate) echo: Vec<u8>,
    /// For the program to read.
    pub(crate) lines: Vec<u8>,
    /// The key that ended it; what was typed after it is lost.
    pub(crate) key: Option<Key>,
}

/// The line that is being typed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Line {
    text: Vec<u8>,
    /// Where the cursor is: before this byte, which begins a character.
    at: usize,
    /// The first bytes of something that takes several: a character, or a key.
    begun: Vec<u8>,
    history: VecDeque<Vec<u8>>,
    /// Which line of the history is shown, counted from the latest; 0 is the new one.
    back: usize,
    /// The new line, while another one is shown.
    new: Vec<u8>,
}

/// What a key does to the line.
#[derive(Clone, Copy)]
enum Edit {
    Left,
    Right,
    WordLeft,
    WordRight,
    Home,
    End,
    /// Removes the character before the cursor.
    RubOut,
    /// Removes the character at the cursor.
    Delete,
    /// Removes the word before the cursor.
    RubOutWord,
    /// Removes everything before the cursor, or after it.
    RubOutAll,
    DeleteRest,
    Older,
    Newer,
}

impl Line {
    /// Takes what was typed.
    pub(crate) fn take(&mut self, bytes: &[u8], keys: Keys) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            if byte < b' ' && byte != 0x1b {
                // Whatever was begun has come to nothing.
                self.begun.clear();
            } else if !self.begun.is_empty() || byte == 0x1b || byte >= 0x80 {
                self.go_on(byte, keys, &mut typed.echo);
                continue;
            }
            match byte {
                b'\r' | b'\n' => {
                    self.remember(keys);
                    typed.lines.append(&mut self.text);
                    typed.lines.push(b'\n');
                    self.clear();
                    typed.echo.extend(b"\r\n");
                }
                0x03 if keys == Keys::Program => {
                    self.clear();
                    typed.echo.extend(b"^C\r\n");
                    typed.lines.push(byte);
                }
                0x04 if keys == Keys::Program && self.text.is_empty() => typed.lines.push(byte),
                // ^\: for a program that does not look at ^C.
                0x03 | 0x1c => {
                    self.clear();
                    typed.echo.extend(if byte == 0x03 { b"^C\r\n" } else { b"^\\\r\n" });
                    typed.key = Some(Key::Interrupt);
                    break;
                }
                // ^D: what was typed goes without a line's end; nothing typed is the input's end.
                0x04 if self.text.is_empty() => {
                    typed.key = Some(Key::End);
                    break;
                }
                0x04 => {
                    typed.lines.append(&mut self.text);
                    self.clear();
                }
                b'\t' | b' '..=b'~' => self.insert(&[byte], &mut typed.echo),
                other => {
                    if let Some(edit) = control(other) {
                        self.edit(edit, keys, &mut typed.echo);
                    }
                }
            }
        }
        typed
    }

    /// A new line begins.
    fn clear(&mut self) {
        (self.at, self.back) = (0, 0);
        self.text.clear();
        self.begun.clear();
        self.new.clear();
    }

    fn remember(&mut self, keys: Keys) {
        let blank = self.text.iter().all(u8::is_ascii_whitespace);
        if keys == Keys::Session || blank || self.history.back() == Some(&self.text) {
            return;
        }
        if self.history.len() == HISTORY_MAX {
            self.history.pop_front();
        }
        self.history.push_back(self.text.clone());
    }

    /// One more byte of a character or a key that takes several.
    fn go_on(&mut self, byte: u8, keys: Keys, echo: &mut Vec<u8>) {
        let first = self.begun.first().copied().unwrap_or(byte);
        let is_key = first == 0x1b;
        // A new beginning: the former one has come to nothing.
        if byte == 0x1b || (!is_key && byte & 0xc0 != 0x80) {
            self.begun.clear();
            if byte < 0x80 && byte != 0x1b {
                return self.insert(&[byte], echo);
            }
        }
        self.begun.push(byte);
        let whole = match (&self.begun[..], is_key || byte == 0x1b) {
            ([0x1b] | [0x1b, b'[' | b'O'], _) => false,
            ([0x1b, b'[', .., last], _) => (0x40..0x7f).contains(last),
            ([0x1b, ..], _) => true,
            (character, _) => character.len() == length(character[0]),
        };
        if whole {
            let begun = mem::take(&mut self.begun);
            match begun[0] {
                0x1b => {
                    if let Some(edit) = sequence(&begun[1..]) {
                        self.edit(edit, keys, echo);
                    }
                }
                _ => self.insert(&begun, echo),
            }
        } else if self.begun.len() >= SEQUENCE_BYTES_MAX {
            self.begun.clear();
        }
    }

    fn insert(&mut self, character: &[u8], echo: &mut Vec<u8>) {
        if self.text.len() + character.len() > LINE_BYTES_MAX {
            return;
        }
        self.text.splice(self.at..self.at, character.iter().copied());
        echo.extend(&self.text[self.at..]);
        self.at += character.len();
        back(columns(&self.text[self.at..]), echo);
    }

    fn edit(&mut self, edit: Edit, keys: Keys, echo: &mut Vec<u8>) {
        let (at, end) = (self.at, self.text.len());
        match edit {
            Edit::Left => self.go(self.before(at), echo),
            Edit::Right => self.go(self.after(at), echo),
            Edit::WordLeft => self.go(self.word_before(at), echo),
            Edit::WordRight => self.go(self.word_after(at), echo),
            Edit::Home => self.go(0, echo),
            Edit::End => self.go(end, echo),
            Edit::RubOut => self.remove(self.before(at), at, echo),
            Edit::Delete => self.remove(at, self.after(at), echo),
            Edit::RubOutWord => self.remove(self.word_before(at), at, echo),
            Edit::RubOutAll => self.remove(0, at, echo),
            Edit::DeleteRest => self.remove(at, end, echo),
            Edit::Older if keys == Keys::Program => self.show(self.back + 1, echo),
            Edit::Newer if keys == Keys::Program && self.back > 0 => self.show(self.back - 1, echo),
            Edit::Older | Edit::Newer => {}
        }
    }

    fn before(&self, at: usize) -> usize {
        (0..at).rev().find(|&at| begins(self.text[at])).unwrap_or(0)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1..self.text.len()).find(|&at| begins(self.text[at])).unwrap_or(self.text.len())
    }

    fn word_before(&self, at: usize) -> usize {
        let end = self.text[..at].iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
        self.text[..end].iter().rposition(|byte| *byte == b' ').map_or(0, |last| last + 1)
    }

    fn word_after(&self, at: usize) -> usize {
        let end = self.text.len();
        let word = (at..end).find(|&at| self.text[at] != b' ').unwrap_or(end);
        (word..end).find(|&at| self.text[at] == b' ').unwrap_or(end)
    }

    /// Moves the cursor.
    fn go(&mut self, to: usize, echo: &mut Vec<u8>) {
        if to < self.at {
            back(columns(&self.text[to..self.at]), echo);
        } else {
            echo.extend(&self.text[self.at..to]);
        }
        self.at = to;
    }

    /// Removes a part of the line that the cursor is at one of the ends of.
    fn remove(&mut self, from: usize, to: usize, echo: &mut Vec<u8>) {
        self.go(from, echo);
        let removed: Vec<u8> = self.text.drain(from..to).collect();
        let gone = columns(&removed);
        echo.extend(&self.text[from..]);
        echo.extend(std::iter::repeat_n(b' ', gone));
        back(gone + columns(&self.text[from..]), echo);
    }

    /// Shows a line of the history.
    fn show(&mut self, back: usize, echo: &mut Vec<u8>) {
        let text = match back.checked_sub(1) {
            None => mem::take(&mut self.new),
            Some(nth) => match self.history.iter().rev().nth(nth) {
                Some(line) => line.clone(),
                None => return,
            },
        };
        self.go(self.text.len(), echo);
        let before = mem::replace(&mut self.text, text);
        if self.back == 0 {
            self.new.clone_from(&before);
        }
        self.back = back;
        let (old, new) = (columns(&before), columns(&self.text));
        self::back(old, echo);
        echo.extend(&self.text);
        echo.extend(std::iter::repeat_n(b' ', old.saturating_sub(new)));
        self::back(old.saturating_sub(new), echo);
        self.at = self.text.len();
    }
}

/// What a control character does to the line, as in most shells.
fn control(byte: u8) -> Option<Edit> {
    Some(match byte {
        0x01 => Edit::Home,
        0x02 => Edit::Left,
        0x05 => Edit::End,
        0x06 => Edit::Right,
        // Backspace, either way.
        0x7f | 0x08 => Edit::RubOut,
        0x0b => Edit::DeleteRest,
        0x0e => Edit::Newer,
        0x10 => Edit::Older,
        0x15 => Edit::RubOutAll,
        0x17 => Edit::RubOutWord,
        // Other keys have no meaning here.
        _ => return None,
    })
}

/// What a key does that sends several bytes, as xterm and its like send them after the escape.
fn sequence(bytes: &[u8]) -> Option<Edit> {
    Some(match bytes {
        b"[A" | b"OA" => Edit::Older,
        b"[B" | b"OB" => Edit::Newer,
        b"[C" | b"OC" => Edit::Right,
        b"[D" | b"OD" => Edit::Left,
        b"[H" | b"OH" | b"[1~" | b"[7~" => Edit::Home,
        b"[F" | b"OF" | b"[4~" | b"[8~" => Edit::End,
        b"[3~" => Edit::Delete,
        b"[1;5C" | b"[1;3C" | b"f" => Edit::WordRight,
        b"[1;5D" | b"[1;3D" | b"b" => Edit::WordLeft,
        b"\x7f" | b"\x08" => Edit::RubOutWord,
        // Other keys have no meaning here.
        _ => return None,
    })
}

/// Whether this byte begins a character of UTF-8.
fn begins(byte: u8) -> bool {
    byte & 0xc0 != 0x80
}

/// How many bytes a character has that begins with this one. What is no UTF-8 is taken byte by byte.
fn length(first: u8) -> usize {
    match first {
        0xc0..0xe0 => 2,
        0xe0..0xf0 => 3,
        0xf0..0xf8 => 4,
        _ => 1,
    }
}

fn columns(text: &[u8]) -> usize {
    text.iter().filter(|byte| begins(**byte)).count()
}

fn back(columns: usize, echo: &mut Vec<u8>) {
    echo.extend(std::iter::repeat_n(0x08, columns));
}

/// What a program writes, as a raw terminal needs it: a new line begins at the left.
pub(crate) fn to_screen(bytes: &[u8]) -> Vec<u8> {
    let mut screen = Vec::with_capacity(bytes.len() + bytes.len() / 16);
    for &byte in bytes {
        if byte == b'\n' {
            screen.push(b'\r');
        }
        screen.push(byte);
    }
    screen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_edited_before_it_is_sent() {
        for (typed, echo, lines, key) in [
            ("ls\r", "ls\r\n", "ls\n", None),
            ("lx\x7fs\n", "lx\x08 \x08s\r\n", "ls\n", None),
            ("é\x08a\r", "é\x08 \x08a\r\n", "a\n", None),
            ("\x7f\r", "\r\n", "\n", None),
            ("abc\x15d\r", "abc\x08\x08\x08   \x08\x08\x08d\r\n", "d\n", None),
            ("a bc \x17d\r", "a bc \x08\x08\x08   \x08\x08\x08d\r\n", "a d\n", None),
            ("ab\x04", "ab", "ab", None),
            ("\x04x", "", "", Some(Key::End)),
            ("ab\x03cd\r", "ab^C\r\n", "", Some(Key::Interrupt)),
            ("\x01\r", "\r\n", "\n", None),
            // What keys send is no text, whether it means something or not.
            ("\x1b[A\x1b[5~\x1bOPa\x1b[15;2~b\x1bx\r", "ab\r\n", "ab\n", None),
            ("a\x1b[1\rb\r", "a\r\nb\r\n", "a\nb\n", None),
            // The cursor moves, and what is after it with it.
            ("ac\x1b[Db\r", "ac\x08bc\x08\r\n", "abc\n", None),
            ("bc\x01a\x05d\r", "bc\x08\x08abc\x08\x08bcd\r\n", "abcd\n", None),
            ("aéc\x1b[D\x1b[D\x1b[3~\r", "aéc\x08\x08c \x08\x08\r\n", "ac\n", None),
            ("abc\x02\x02\x0b\r", "abc\x08\x08  \x08\x08\r\n", "a\n", None),
            ("a b\x1b[1;5D\x1b[1;5D\x1b[1;5Cx\r", "a b\x08\x08\x08ax b\x08\x08\r\n", "ax b\n", None),
            ("ab\x1b[D\x1b[D\x1b[D\x1b[C\x1b[C\x1b[C\r", "ab\x08\x08ab\r\n", "ab\n", None),
        ] {
            let found = Line::default().take(typed.as_bytes(), Keys::Session);
            let expected = Typed { echo: echo.into(), lines: lines.into(), key };
            assert_eq!(found, expected, "{typed:?}");
        }
    }

    #[test]
    fn a_program_that_reads_keys_gets_them_in_order() {
        for (typed, echo, lines, key) in [
            ("ab\x03c\r", "ab^C\r\nc\r\n", "\x03c\n", None),
            ("\x04a\r", "a\r\n", "\x04a\n", None),
            ("ab\x04", "ab", "ab", None),
            ("a\x1cb", "a^\\\r\n", "", Some(Key::Interrupt)),
        ] {
            let found = Line::default().take(typed.as_bytes(), Keys::Program);
            let expected = Typed { echo: echo.into(), lines: lines.into(), key };
            assert_eq!(found, expected, "{typed:?}");
        }
    }

    #[test]
    fn lines_can_be_had_again() {
        let (up, down) = ("\x1b[A", "\x1b[B");
        for (typed, lines) in [
            (format!("one\rtwo\r{up}\r"), "one\ntwo\ntwo\n"),
            (format!("one\rtwo\r{up}{up}{up}!\r{up}\r"), "one\ntwo\none!\none!\n"),
            // What was begun is there again after all the others.
            (format!("one\rtw{up}{down}o\r"), "one\ntwo\n"),
            (format!("one\r\r  \rone\r{up}{up}\r{down}x\r"), "one\n\n  \none\none\nx\n"),
            // What is broken off is not kept.
            (format!("one\rtwo\x03{up}\r"), "one\n\x03one\n"),
        ] {
            let found = Line::default().take(typed.as_bytes(), Keys::Program);
            assert_eq!(String::from_utf8_lossy(&found.lines), lines, "{typed:?}");
        }
        let mut line = Line::default();
        line.take(b"longer\rx", Keys::Program);
        assert_eq!(line.take(up.as_bytes(), Keys::Program).echo, b"\x08longer");
        assert_eq!(
            line.take(down.as_bytes(), Keys::Program).echo,
            b"\x08\x08\x08\x08\x08\x08x     \x08\x08\x08\x08\x08"
        );
        // Nobody's but a shell's.
        assert_eq!(Line::default().take(format!("one\r{up}\r").as_bytes(), Keys::Session).lines, b"one\n\n");
        for number in 0..2 * HISTORY_MAX {
            line.take(format!("{number}\r").as_bytes(), Keys::Program);
        }
        assert_eq!(line.history.len(), HISTORY_MAX);
    }

    #[test]
    fn what_takes_several_bytes_may_come_in_pieces_and_nonsense_ends() {
        let mut line = Line::default();
        for piece in ["ab\x1b".as_bytes(), b"[", b"D", &[0xc3], &[0xa9], &[0xe2, 0x82], b"x\r"] {
            let typed = line.take(piece, Keys::Session);
            let expected = if piece == b"x\r" { "aéxb\n" } else { "" };
            assert_eq!(String::from_utf8_lossy(&typed.lines), expected, "{piece:?}");
        }
        let mut nonsense = b"\x1b[".to_vec();
        nonsense.extend([b'1'; 100]);
        line.take(&nonsense, Keys::Session);
        assert!(line.begun.len() < SEQUENCE_BYTES_MAX);
        // Any bytes at all leave a cursor within the line.
        let mut seed = 1_u32;
        for _ in 0..20_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte =
                [0x1b, b'[', b'A', b'B', b'C', b'D', b'~', b'3', b'a', b' ', 0xc3, 0xa9, 0x7f, 0x17, b'\r', 0x80];
            line.take(&[byte[(seed >> 28) as usize]], Keys::Program);
            assert!(line.at <= line.text.len() && line.text.get(line.at).is_none_or(|byte| begins(*byte)));
        }
    }

    #[test]
    fn a_line_grows_over_several_pieces_and_not_for_ever() {
        let mut line = Line::default();
        assert_eq!(line.take(b"l", Keys::Session).lines, b"");
        assert_eq!(line.take(b"s\r", Keys::Session).lines, b"ls\n");
        line.take(&[b'x'; 10_000], Keys::Session);
        assert_eq!(line.take(b"\r", Keys::Session).lines.len(), LINE_BYTES_MAX + 1);
    }

    #[test]
    fn new_lines_begin_at_the_left() {
        assert_eq!(to_screen(b"a\nb\n"), b"a\r\nb\r\n");
    }
}
