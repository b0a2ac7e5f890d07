//! What a terminal's driver does between a client whose own terminal is raw and a program that reads lines: it echoes,
//! lets the line be edited until it is done, and knows a few keys.

/// The longest line, as Linux has it. What is typed beyond it is not taken.
const LINE_BYTES_MAX: usize = 4095;

/// Who acts on `^C` and `^D`. No signal reaches a WebAssembly program, so that most cannot: the session does it for them.
/// The toolbox reads them as bytes, as from a raw terminal, and ends what runs in its foreground.
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
pub(crate) struct Line(Vec<u8>);

impl Line {
    /// Takes what was typed.
    pub(crate) fn take(&mut self, bytes: &[u8], keys: Keys) -> Typed {
        let mut typed = Typed::default();
        for &byte in bytes {
            match byte {
                b'\r' | b'\n' => {
                    self.0.push(b'\n');
                    typed.lines.append(&mut self.0);
                    typed.echo.extend(b"\r\n");
                }
                // Backspace, either way.
                0x7f | 0x08 => self.rub_out(&mut typed.echo),
                // ^U: the whole line.
                0x15 => {
                    while !self.0.is_empty() {
                        self.rub_out(&mut typed.echo);
                    }
                }
                0x03 if keys == Keys::Program => {
                    self.0.clear();
                    typed.echo.extend(b"^C\r\n");
                    typed.lines.push(byte);
                }
                0x04 if keys == Keys::Program && self.0.is_empty() => typed.lines.push(byte),
                // ^\: for a program that does not look at ^C.
                0x1c => {
                    self.0.clear();
                    typed.echo.extend(b"^\\\r\n");
                    typed.key = Some(Key::Interrupt);
                    break;
                }
                0x03 => {
                    self.0.clear();
                    typed.echo.extend(b"^C\r\n");
                    typed.key = Some(Key::Interrupt);
                    break;
                }
                // ^D: what was typed goes without a line's end; nothing typed is the input's end.
                0x04 if self.0.is_empty() => {
                    typed.key = Some(Key::End);
                    break;
                }
                0x04 => typed.lines.append(&mut self.0),
                b'\t' | 0x20.. if self.0.len() < LINE_BYTES_MAX => {
                    self.0.push(byte);
                    typed.echo.push(byte);
                }
                // Other keys have no meaning here.
                _ => {}
            }
        }
        typed
    }

    /// Removes the last character, all of its bytes.
    fn rub_out(&mut self, echo: &mut Vec<u8>) {
        while let Some(byte) = self.0.pop() {
            if byte & 0xc0 != 0x80 {
                echo.extend(b"\x08 \x08");
                return;
            }
        }
    }
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
            ("abc\x15d\r", "abc\x08 \x08\x08 \x08\x08 \x08d\r\n", "d\n", None),
            ("ab\x04", "ab", "ab", None),
            ("\x04x", "", "", Some(Key::End)),
            ("ab\x03cd\r", "ab^C\r\n", "", Some(Key::Interrupt)),
            ("\x1b\x01\r", "\r\n", "\n", None),
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
