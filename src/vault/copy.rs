//! Copies of lower files, as they lie.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

/// Bytes copied at once.
const STEP: usize = 1 << 20;

/// Copies what is data of the first `len` bytes; holes stay holes. `go_on` is asked before each MiB, with the bytes that are
/// behind it. Gives how far the file reached: less than `len` where it has become shorter.
pub fn copy_data(
    to: &File,
    from: &File,
    len: u64,
    mut go_on: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<u64> {
    to.set_len(len)?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            // A filesystem that does not tell: all of it is data.
            Err(Errno::INVAL) => at,
            other => other?,
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(len).min(len);
        at = start;
        while at < end {
            go_on(at)?;
            let want = STEP.min(usize::try_from(end - at).unwrap_or(STEP));
            let part = buffer.get_mut(..want).unwrap_or_default();
            let got = from.read_at(part, at)?;
            if got == 0 {
                return Ok(at);
            }
            to.write_all_at(part.get(..got).unwrap_or_default(), at)?;
            at += got as u64;
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Data and holes arrive as they are, no byte behind `len` does, and a refusal ends the copy.
    #[test]
    fn holes_stay_holes() {
        let (from, to) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        from.set_len(64 << 20).expect("room");
        from.write_all_at(&[7; 5000], 40 << 20).expect("written");
        from.write_all_at(&[8; 5000], (50 << 20) - 100).expect("written");
        assert_eq!(copy_data(&to, &from, 50 << 20, |_| Ok(())).expect("copied"), 50 << 20);
        let meta = to.metadata().expect("its attributes");
        assert!(meta.len() == 50 << 20 && meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
        let mut bytes = [0; 5001];
        to.read_exact_at(&mut bytes, 40 << 20).expect("read");
        assert!(bytes[..5000] == [7; 5000] && bytes[5000] == 0);
        to.read_exact_at(&mut bytes[..100], (50 << 20) - 100).expect("read");
        assert_eq!(bytes[..100], [8; 100]);
        let no = |_| Err(io::Error::from(io::ErrorKind::TimedOut));
        assert_eq!(copy_data(&to, &from, 64 << 20, no).expect_err("refused").kind(), io::ErrorKind::TimedOut);
    }
}
