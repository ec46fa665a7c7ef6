//! A Markdown table whose columns line up: reads well on a terminal, and can be pasted into a document.

use std::fmt;

/// Text in rows and columns.
#[derive(Clone, Debug, Default)]
pub(super) struct Table {
    /// Columns from this one on hold figures and stand to the right.
    figures_from: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings.
    pub(super) fn new<S: AsRef<str>>(head: &[S], figures_from: usize) -> Self {
        Self { figures_from, rows: vec![head.iter().map(|h| h.as_ref().to_owned()).collect()] }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Headings first.
    pub(super) fn rows(&self) -> &[Vec<String>] {
        &self.rows
    }

    /// Whether a column stands to the right.
    pub(super) fn is_figure(&self, column: usize) -> bool {
        column >= self.figures_from
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|c| self.rows.iter().filter_map(|r| r.get(c)).map(|t| t.chars().count()).max().unwrap_or(0))
            .map(|width| width.max(3))
            .collect();
        for (at, row) in self.rows.iter().enumerate() {
            for (column, width) in widths.iter().enumerate() {
                let text = row.get(column).map_or("", String::as_str);
                if self.is_figure(column) {
                    write!(f, "| {text:>width$} ")?;
                } else {
                    write!(f, "| {text:<width$} ")?;
                }
            }
            writeln!(f, "|")?;
            if at == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width + 1);
                    let (left, right) = if self.is_figure(column) { ("", ":") } else { ("-", "") };
                    write!(f, "|{left}{dashes}{right}")?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["job", "MB/s"], 1);
        table.row(["write".to_owned(), "9".to_owned()]);
        assert_eq!(table.to_string(), "| job   | MB/s |\n|-------|-----:|\n| write |    9 |\n");
    }
}
