//! Reads a file of the log line by line, in bounded memory.

use std::io::{BufRead, BufReader, Read};

use super::chain::MAX_LINE;

/// A line, or what is left at the end of a file.
pub(super) enum Line {
    /// A whole line, without its line feed.
    Whole(Vec<u8>),
    /// The end of a file without a line feed: a write that a crash cut, or a cut file.
    Torn,
    /// More than [`MAX_LINE`] bytes without a line feed; they were passed over.
    TooLong,
}

/// Lines of a reader.
pub(super) struct Lines<R>(BufReader<R>);

impl<R: Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self(BufReader::with_capacity(128 * 1024, reader))
    }
}

impl<R: Read> Iterator for Lines<R> {
    type Item = std::io::Result<Line>;

    fn next(&mut self) -> Option<std::io::Result<Line>> {
        let mut line = Vec::new();
        let limit = MAX_LINE as u64 + 1;
        match self.0.by_ref().take(limit).read_until(b'\n', &mut line) {
            Err(e) => return Some(Err(e)),
            Ok(0) => return None,
            Ok(_) => {}
        }
        if line.last() == Some(&b'\n') {
            line.pop();
            return Some(Ok(Line::Whole(line)));
        }
        if line.len() <= MAX_LINE {
            return Some(Ok(Line::Torn));
        }
        // The rest of it, a piece at a time.
        loop {
            line.clear();
            match self.0.by_ref().take(limit).read_until(b'\n', &mut line) {
                Err(e) => return Some(Err(e)),
                Ok(0) => return Some(Ok(Line::TooLong)),
                Ok(_) if line.last() == Some(&b'\n') => return Some(Ok(Line::TooLong)),
                Ok(_) => {}
            }
        }
    }
}
