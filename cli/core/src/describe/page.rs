//! Lines whose cells end in tabs, aligned as Go's `text/tabwriter` aligns them: a column is as wide as its widest cell
//! among neighbouring lines that have it.

/// The blanks between a column's widest cell and the next column.
const PADDING: usize = 2;

/// A description in the making.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    /// Adds a line, two blanks deeper for each level.
    pub(super) fn line(&mut self, level: usize, text: impl AsRef<str>) {
        self.0.extend(std::iter::repeat_n("  ", level));
        self.0.push_str(text.as_ref());
        self.0.push('\n');
    }

    /// The text with its columns aligned.
    pub(super) fn aligned(&self) -> String {
        let lines: Vec<Vec<&str>> = self.0.lines().map(|line| line.split('\t').collect()).collect();
        let mut widths: Vec<Vec<usize>> = lines.iter().map(|cells| vec![0; cells.len() - 1]).collect();
        let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
        for column in 0..columns {
            let mut line = 0;
            while line < lines.len() {
                let block = (line..lines.len()).take_while(|at| column < widths[*at].len()).count();
                let cells = lines[line..line + block].iter().map(|cells| cells[column].chars().count() + PADDING);
                let width = cells.max().unwrap_or(0);
                widths[line..line + block].iter_mut().for_each(|widths| widths[column] = width);
                line += block.max(1);
            }
        }
        let mut out = String::new();
        for (cells, widths) in lines.iter().zip(&widths) {
            for (cell, width) in cells.iter().zip(widths) {
                out.push_str(&format!("{cell:<width$}"));
            }
            out.push_str(cells.last().unwrap_or(&""));
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_neighbours_need() {
        let mut page = Page::default();
        for (level, line) in [
            (0, "Name:\tx"),
            (0, "Long name:\ty"),
            (0, "List:"),
            (1, "A\tBBBB\tC"),
            (1, "AAA\tB"),
            (1, "A\tB\tC"),
            (0, "\tempty first"),
        ] {
            page.line(level, line);
        }
        let expected =
            "Name:       x\nLong name:  y\nList:\n  A    BBBB  C\n  AAA  B\n  A    B  C\n       empty first\n";
        assert_eq!(page.aligned(), expected);
    }
}
