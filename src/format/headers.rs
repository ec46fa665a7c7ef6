//! The file `.envelopefs/headers`: what the vault's entries have in xattrs, for the day when a copy lost them.
//!
//! Text, one line an entry, tab between its parts:
//! ```text
//! EFSHEADERS 1
//! LENGTH  PATH  NAME=VALUE  NAME=VALUE ...
//! end COUNT
//! ```
//! `LENGTH` is that of the lower file (`-` for a directory), `PATH` the lower path from the vault's top (`.` for the
//! top itself), `VALUE` base64url. Every path is one that this program makes, so none needs an escape. All of it stands
//! in the vault anyway, wrapped or encrypted: the file is no more secret than the vault.

use super::names::{LowerName, b64, parse, unb64};

/// File name below the vault's own directory.
pub const FILE: &str = "headers";
/// First line.
const MAGIC: &str = "EFSHEADERS 1";
/// The longest line that is read: a path of 4,096 bytes, and all the xattrs that ext4 or XFS keep of an inode.
pub const MAX_LINE: usize = 1 << 20;

/// What one entry of the vault has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Length of the lower file; `None` for what is no regular file.
    pub len: Option<u64>,
    /// Lower path from the vault's top; `.` is the top.
    pub path: String,
    /// Names and values of its xattrs.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// A line of the file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// The first one.
    Magic,
    /// An entry.
    Kept(Kept),
    /// The last one: how many entries stand before it.
    End(u64),
}

/// Whether an xattr is kept: those of this program, and ACLs.
pub fn keeps(name: &str) -> bool {
    let ours = name.strip_prefix("user.efs.").is_some_and(|rest| {
        !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    });
    ours || matches!(name, "system.posix_acl_access" | "system.posix_acl_default")
}

/// Whether a path is `.`, or made of names that this program gives.
pub fn is_plain(path: &str) -> bool {
    path == "."
        || path
            .split('/')
            .all(|part| matches!(parse(part.as_bytes()), LowerName::Short(_) | LowerName::Long(_)))
}

impl Line {
    /// The line with its end. An entry's path is plain, and its xattrs are [`keeps`]'s.
    pub fn encode(&self) -> String {
        match self {
            Self::Magic => format!("{MAGIC}\n"),
            Self::End(count) => format!("end {count}\n"),
            Self::Kept(kept) => {
                let len = kept.len.map_or_else(|| "-".to_owned(), |len| len.to_string());
                let mut out = format!("{len}\t{}", kept.path);
                for (name, value) in &kept.xattrs {
                    out += &format!("\t{name}={}", b64(value));
                }
                out + "\n"
            }
        }
    }

    /// Decodes a line without its end; the reason where it is none.
    pub fn decode(line: &str) -> Result<Self, String> {
        if line == MAGIC {
            return Ok(Self::Magic);
        }
        if let Some(count) = line.strip_prefix("end ") {
            return count.parse().map(Self::End).map_err(|_| "the count at its end is no number".into());
        }
        let mut parts = line.split('\t');
        let (Some(len), Some(path)) = (parts.next(), parts.next()) else {
            return Err("a line has no tab".into());
        };
        let len = match len {
            "-" => None,
            digits => Some(digits.parse().map_err(|_| format!("{digits:?} is no length"))?),
        };
        if !is_plain(path) {
            return Err(format!("{path:?} is no lower path of a vault"));
        }
        let mut xattrs = Vec::new();
        for part in parts {
            let (name, value) = part.split_once('=').ok_or("an xattr has no `=`")?;
            if !keeps(name) {
                return Err(format!("xattr {name:?} is none that is kept"));
            }
            let value =
                unb64(value.as_bytes()).ok_or_else(|| format!("{name}: its value is no base64url"))?;
            xattrs.push((name.to_owned(), value));
        }
        Ok(Self::Kept(Kept { len, path: path.to_owned(), xattrs }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> String {
        b64(&[7; 24])
    }

    #[test]
    fn lines_survive_encoding() {
        let xattrs = vec![
            ("user.efs.key".to_owned(), vec![1; 64]),
            ("user.efs.x.AbC-_9".to_owned(), vec![]),
            ("system.posix_acl_access".to_owned(), vec![0, 255]),
        ];
        for path in [".".to_owned(), name(), format!("{0}/{0}", name())] {
            for len in [None, Some(0), Some(u64::MAX)] {
                let line = Line::Kept(Kept { len, path: path.clone(), xattrs: xattrs.clone() });
                let text = line.encode();
                assert_eq!(Line::decode(text.strip_suffix('\n').unwrap()), Ok(line));
            }
        }
        for line in [Line::Magic, Line::End(7)] {
            assert_eq!(Line::decode(line.encode().trim_end()), Ok(line));
        }
    }

    /// A line that leads out of the vault, or that sets what is not ours, is refused.
    #[test]
    fn foreign_paths_and_xattrs_are_refused() {
        let good = name();
        for line in [
            format!("1\t../{good}\tuser.efs.key=AA"),
            format!("1\t/{good}\tuser.efs.key=AA"),
            format!("1\t{good}/../x\tuser.efs.key=AA"),
            "1\t.envelopefs/vault.toml\tuser.efs.key=AA".into(),
            format!("1\t{good}\ttrusted.overlay.opaque=AA"),
            format!("1\t{good}\tsecurity.capability=AA"),
            format!("1\t{good}\tuser.efs.=AA"),
            format!("1\t{good}\tuser.efs.key=A"),
            format!("x\t{good}\tuser.efs.key=AA"),
            good.clone(),
            "end x".into(),
            String::new(),
        ] {
            assert!(Line::decode(&line).is_err(), "{line:?}");
        }
        assert!(Line::decode(&format!("1\t{good}\tuser.efs.key=AA")).is_ok());
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "\\PC*") {
            let _ = Line::decode(&line);
        }
    }
}
