//! `$((…))`: whole numbers, with C's operators.

/// Reads a variable, or sets it first.
pub(super) type Vars<'a> = dyn FnMut(&str, Option<i64>) -> String + 'a;

/// The value of an expression.
pub(super) fn evaluate(text: &str, vars: &mut Vars<'_>) -> Result<i64, String> {
    let mut reader = Reader { text: text.as_bytes(), at: 0, depth: 0, vars };
    let value = reader.assignment()?;
    reader.blanks();
    if reader.at < reader.text.len() { Err(format!("arithmetic: cannot read `{text}`")) } else { Ok(value) }
}

const DEPTH_MAX: usize = 50;

/// The operators of two numbers, the weakest first.
const LEVELS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

struct Reader<'a, 'v> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    vars: &'a mut Vars<'v>,
}

impl Reader<'_, '_> {
    fn blanks(&mut self) {
        while self.text.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    fn take(&mut self, op: &str) -> bool {
        self.blanks();
        let found = self.text[self.at..].starts_with(op.as_bytes());
        if found {
            self.at += op.len();
        }
        found
    }

    fn name(&mut self) -> Option<String> {
        self.blanks();
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).unwrap_or(rest.len());
        let first = rest.first().filter(|b| !b.is_ascii_digit())?;
        (end > 0 && !first.is_ascii_digit()).then(|| {
            self.at += end;
            String::from_utf8_lossy(&rest[..end]).into_owned()
        })
    }

    fn assignment(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("arithmetic: nested too deeply".to_owned());
        }
        let begin = self.at;
        if let Some(name) = self.name() {
            self.blanks();
            for op in ["=", "+=", "-=", "*=", "/=", "%="] {
                let is_equality = op == "=" && self.text[self.at..].starts_with(b"==");
                if is_equality || !self.take(op) {
                    continue;
                }
                let right = self.assignment()?;
                let value = match op {
                    "=" => right,
                    op => {
                        let left = self.variable(&name)?;
                        binary(&op[..1], left, right)?
                    }
                };
                (self.vars)(&name, Some(value));
                self.depth -= 1;
                return Ok(value);
            }
            self.at = begin;
        }
        let condition = self.level(0)?;
        let value = if self.take("?") {
            let yes = self.assignment()?;
            if !self.take(":") {
                return Err("arithmetic: `?` without `:`".to_owned());
            }
            let no = self.assignment()?;
            if condition != 0 { yes } else { no }
        } else {
            condition
        };
        self.depth -= 1;
        Ok(value)
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(ops) = LEVELS.get(level) else { return self.unary() };
        let mut left = self.level(level + 1)?;
        loop {
            self.blanks();
            let rest = &self.text[self.at..];
            let is = |op: &&&str| {
                // `|` is not the begin of `||`, nor `<` that of `<<`.
                let twice = op.len() == 1 && "|&<>".contains(**op) && rest.get(1) == op.as_bytes().first();
                rest.starts_with(op.as_bytes()) && !twice
            };
            let Some(op) = ops.iter().find(is) else { return Ok(left) };
            self.at += op.len();
            let right = self.level(level + 1)?;
            left = binary(op, left, right)?;
        }
    }

    fn unary(&mut self) -> Result<i64, String> {
        for op in ["-", "+", "!", "~"] {
            if self.take(op) {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("arithmetic: nested too deeply".to_owned());
                }
                let value = self.unary()?;
                self.depth -= 1;
                return Ok(match op {
                    "-" => value.wrapping_neg(),
                    "!" => i64::from(value == 0),
                    "~" => !value,
                    _ => value,
                });
            }
        }
        if self.take("(") {
            let value = self.assignment()?;
            return if self.take(")") { Ok(value) } else { Err("arithmetic: `)` is missing".to_owned()) };
        }
        if let Some(name) = self.name() {
            return self.variable(&name);
        }
        let rest = &self.text[self.at..];
        let end = rest.iter().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let digits = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end;
        number(&digits)
    }

    fn variable(&mut self, name: &str) -> Result<i64, String> {
        let value = (self.vars)(name, None);
        if value.trim().is_empty() { Ok(0) } else { number(value.trim()) }
    }
}

fn number(text: &str) -> Result<i64, String> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let parsed = match (digits.strip_prefix("0x"), digits.strip_prefix('0')) {
        (Some(hex), _) => i64::from_str_radix(hex, 16),
        (_, Some(octal)) if !octal.is_empty() => i64::from_str_radix(octal, 8),
        _ => digits.parse(),
    };
    parsed.map(|value| sign * value).map_err(|_| format!("arithmetic: `{text}` is no number"))
}

fn binary(op: &str, left: i64, right: i64) -> Result<i64, String> {
    if matches!(op, "/" | "%") && right == 0 {
        return Err("arithmetic: divide by zero".to_owned());
    }
    let shift = u32::try_from(right & 63).unwrap_or(0);
    Ok(match op {
        "||" => i64::from(left != 0 || right != 0),
        "&&" => i64::from(left != 0 && right != 0),
        "|" => left | right,
        "^" => left ^ right,
        "&" => left & right,
        "==" => i64::from(left == right),
        "!=" => i64::from(left != right),
        "<=" => i64::from(left <= right),
        ">=" => i64::from(left >= right),
        "<" => i64::from(left < right),
        ">" => i64::from(left > right),
        "<<" => left.wrapping_shl(shift),
        ">>" => left.wrapping_shr(shift),
        "+" => left.wrapping_add(right),
        "-" => left.wrapping_sub(right),
        "*" => left.wrapping_mul(right),
        "/" => left.wrapping_div(right),
        _ => left.wrapping_rem(right),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_have_values() {
        for (text, expected) in [
            ("1+2*3", Ok(7)),
            ("(1 + 2) * 3", Ok(9)),
            ("-7 % 3", Ok(-1)),
            ("x*2", Ok(10)),
            ("x == 5 && 3 < 2", Ok(0)),
            ("x > 3 ? 1 : 2", Ok(1)),
            ("1 << 4 | 1", Ok(17)),
            ("0x1f", Ok(31)),
            ("y = x + 1", Ok(6)),
            ("!0", Ok(1)),
            ("nothing", Ok(0)),
        ] {
            let found = evaluate(text, &mut |name, value| match (name, value) {
                (_, Some(value)) => value.to_string(),
                ("x", None) => "5".to_owned(),
                _ => String::new(),
            });
            assert_eq!(found, expected, "{text}");
        }
        for text in ["1/0", "1 +", "(1", "2 2", "1 ? 2"] {
            assert!(evaluate(text, &mut |_, _| String::new()).is_err(), "{text}");
        }
        assert!(evaluate(&"(".repeat(1000), &mut |_, _| String::new()).is_err());
    }
}
