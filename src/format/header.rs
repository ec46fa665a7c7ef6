//! The file header: the wrapped data key, in the xattr `user.efs.key` of the lower file.
//!
//! Compact form, exactly 64 bytes (the most that ext4 keeps inside a 256-byte inode under this name):
//! ```text
//!    0  kind (1)             1 byte
//!    1  wrapping key index   1 byte     row of the volume config's table
//!    2  key version          u16 LE     version of the wrapping key
//!    4  file id              12 bytes   also the nonce of the wrap
//!   16  wrapped data key     48 bytes   32 + tag
//! ```
//! Blob form, for providers whose ciphertext is opaque and for several recipients:
//! ```text
//!    0  kind (2)             1 byte
//!    1  recipients           1 byte, 1..=8
//!    2  zero                 2 bytes
//!    4  file id              12 bytes
//!   16  per recipient:
//!       +0  wrapping key index   1 byte
//!       +1  form                 1 byte    0: opaque; 1: as in the compact form
//!       +2  length               u16 LE
//!       +4  blob                 length bytes; form 1: key version (u16 LE) and wrapped data key, 50 bytes
//! ```
//! One header has one spelling: a single recipient of form 1 is written compact, never as a blob.

use super::ids::FileId;

/// Name of the xattr that holds the header.
pub const HEADER_XATTR: &str = "user.efs.key";
/// Name of the xattr that holds a directory's id (16 bytes).
pub const DIR_XATTR: &str = "user.efs.dir";
const KIND_COMPACT: u8 = 1;
const KIND_BLOB: u8 = 2;
const FORM_OPAQUE: u8 = 0;
const FORM_COMPACT: u8 = 1;
/// Key version and wrapped data key.
const FORM_COMPACT_LEN: usize = 50;
/// Bytes of the compact form.
pub const COMPACT_LEN: usize = 64;
/// The longest header that is read: keeps within what filesystems hold in an xattr.
pub const MAX_HEADER: usize = 4096;
/// The most recipients of one file.
pub const MAX_RECIPIENTS: usize = 8;

/// A data key as a provider wrapped it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wrapped {
    /// Wrapped by a provider that takes our nonce (the file id): version of the wrapping key, 32 + 16 bytes.
    Compact {
        /// Version of the wrapping key's material.
        version: u16,
        /// Ciphertext and tag.
        bytes: [u8; 48],
    },
    /// A provider's opaque ciphertext (an AWS CiphertextBlob).
    Blob(Vec<u8>),
}

/// One wrapped copy of the data key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recipient {
    /// Row of the volume config's table of wrapping keys.
    pub key_index: u8,
    /// The copy.
    pub wrapped: Wrapped,
}

/// A decoded file header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FileHeader {
    /// Identity of the file.
    pub file_id: FileId,
    /// Wrapped copies of the data key; any one opens the file. Compact form: exactly one, `Wrapped::Compact`.
    pub recipients: Vec<Recipient>,
}

/// Why bytes are no header.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// The bytes end early.
    #[error("file header: {0} bytes, shorter than its form needs")]
    Short(usize),
    /// Bytes behind the end.
    #[error("file header: {0} bytes more than its form has")]
    Trailing(usize),
    /// A form this build does not know.
    #[error("file header: kind {0} at byte 0, this build reads 1 and 2")]
    Kind(u8),
    /// A byte that must be zero is not.
    #[error("file header: reserved byte {0} is not zero")]
    Reserved(usize),
    /// No recipient, or more than 8.
    #[error("file header: {0} recipients at byte 1, expected 1 to {MAX_RECIPIENTS}")]
    Recipients(usize),
    /// A recipient whose form is unknown or does not fit its length.
    #[error("file header: form {form} at byte {at} is unknown or does not fit the recipient")]
    Form {
        /// As stored.
        form: u8,
        /// Where.
        at: usize,
    },
    /// More bytes than an xattr is trusted to hold.
    #[error("file header: {0} bytes, at most {MAX_HEADER} are stored")]
    Long(usize),
}

impl FileHeader {
    /// The xattr's value. Compact where the header has one compact recipient, else blob form.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        if let [Recipient { key_index, wrapped: Wrapped::Compact { version, bytes } }] = &self.recipients[..]
        {
            let mut out = Vec::with_capacity(COMPACT_LEN);
            out.extend_from_slice(&[KIND_COMPACT, *key_index]);
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(&self.file_id.0);
            out.extend_from_slice(bytes);
            return Ok(out);
        }
        let count = self.recipients.len();
        let stored = u8::try_from(count).map_err(|_| HeaderError::Recipients(count))?;
        if count == 0 || count > MAX_RECIPIENTS {
            return Err(HeaderError::Recipients(count));
        }
        let mut out = vec![KIND_BLOB, stored, 0, 0];
        out.extend_from_slice(&self.file_id.0);
        for recipient in &self.recipients {
            recipient.encode(&mut out)?;
        }
        if out.len() > MAX_HEADER { Err(HeaderError::Long(out.len())) } else { Ok(out) }
    }

    /// Decodes an xattr's value.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        if bytes.len() > MAX_HEADER {
            return Err(HeaderError::Long(bytes.len()));
        }
        let mut reader = Reader { bytes, at: 0 };
        match reader.take::<1>()? {
            [KIND_COMPACT] => Self::decode_compact(reader),
            [KIND_BLOB] => Self::decode_blob(reader),
            [other] => Err(HeaderError::Kind(other)),
        }
    }

    fn decode_compact(mut reader: Reader<'_>) -> Result<Self, HeaderError> {
        let [key_index] = reader.take()?;
        let version = u16::from_le_bytes(reader.take()?);
        let file_id = FileId(reader.take()?);
        let wrapped = Wrapped::Compact { version, bytes: reader.take()? };
        reader.end()?;
        Ok(Self { file_id, recipients: vec![Recipient { key_index, wrapped }] })
    }

    fn decode_blob(mut reader: Reader<'_>) -> Result<Self, HeaderError> {
        let [count] = reader.take()?;
        let count = usize::from(count);
        if count == 0 || count > MAX_RECIPIENTS {
            return Err(HeaderError::Recipients(count));
        }
        match reader.take()? {
            [0, 0] => {}
            [0, _] => return Err(HeaderError::Reserved(3)),
            _ => return Err(HeaderError::Reserved(2)),
        }
        let file_id = FileId(reader.take()?);
        let recipients =
            (0..count).map(|_| Recipient::decode(&mut reader, count)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { file_id, recipients })
    }
}

impl Recipient {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), HeaderError> {
        let (form, blob) = match &self.wrapped {
            Wrapped::Blob(blob) => (FORM_OPAQUE, blob.clone()),
            Wrapped::Compact { version, bytes } => {
                (FORM_COMPACT, [&version.to_le_bytes()[..], bytes].concat())
            }
        };
        let len = u16::try_from(blob.len()).map_err(|_| HeaderError::Long(blob.len()))?;
        out.extend_from_slice(&[self.key_index, form]);
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&blob);
        Ok(())
    }

    /// Reads one of `count` recipients.
    fn decode(reader: &mut Reader<'_>, count: usize) -> Result<Self, HeaderError> {
        let [key_index, form] = reader.take()?;
        let at = reader.at - 1;
        let len = usize::from(u16::from_le_bytes(reader.take()?));
        let wrapped = match form {
            FORM_OPAQUE => Wrapped::Blob(reader.slice(len)?.to_vec()),
            FORM_COMPACT if len == FORM_COMPACT_LEN && count > 1 => {
                Wrapped::Compact { version: u16::from_le_bytes(reader.take()?), bytes: reader.take()? }
            }
            _ => return Err(HeaderError::Form { form, at }),
        };
        Ok(Self { key_index, wrapped })
    }
}

/// Takes bytes from the front and remembers where it stands.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn slice(&mut self, len: usize) -> Result<&'a [u8], HeaderError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let part = rest.get(..len).ok_or(HeaderError::Short(self.bytes.len()))?;
        self.at += len;
        Ok(part)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        self.slice(N)?.try_into().map_err(|_| HeaderError::Short(self.bytes.len()))
    }

    fn end(&self) -> Result<(), HeaderError> {
        match self.bytes.len().saturating_sub(self.at) {
            0 => Ok(()),
            rest => Err(HeaderError::Trailing(rest)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn compact(key_index: u8) -> Recipient {
        Recipient { key_index, wrapped: Wrapped::Compact { version: 0x0203, bytes: [9; 48] } }
    }

    fn blob(key_index: u8, len: usize) -> Recipient {
        Recipient { key_index, wrapped: Wrapped::Blob(vec![8; len]) }
    }

    fn header(recipients: Vec<Recipient>) -> FileHeader {
        FileHeader { file_id: FileId(*b"twelve bytes"), recipients }
    }

    #[test]
    fn the_compact_form_is_64_bytes_where_the_format_says() {
        let bytes = header(vec![compact(5)]).encode().unwrap();
        assert_eq!(bytes.len(), COMPACT_LEN);
        assert_eq!(bytes[..4], [1, 5, 3, 2]);
        assert_eq!((&bytes[4..16], &bytes[16..]), (&b"twelve bytes"[..], &[9; 48][..]));
    }

    #[test]
    fn the_blob_form_carries_recipients_of_both_kinds() {
        let header = header(vec![blob(1, 3), compact(2)]);
        let bytes = header.encode().unwrap();
        assert_eq!(bytes[..4], [2, 2, 0, 0]);
        assert_eq!(bytes[16..23], [1, 0, 3, 0, 8, 8, 8]);
        assert_eq!(bytes[23..29], [2, 1, 50, 0, 3, 2]);
        assert_eq!(FileHeader::decode(&bytes), Ok(header));
    }

    #[test]
    fn each_wrong_byte_is_named() {
        let small = header(vec![compact(5)]).encode().unwrap();
        let large = header(vec![blob(1, 3), compact(2)]).encode().unwrap();
        let with = |bytes: &[u8], at: usize, value| {
            let mut bytes = bytes.to_vec();
            bytes[at] = value;
            FileHeader::decode(&bytes).unwrap_err()
        };
        assert_eq!(with(&small, 0, 3), HeaderError::Kind(3));
        assert_eq!(FileHeader::decode(&[]), Err(HeaderError::Short(0)));
        assert_eq!(FileHeader::decode(&small[..63]), Err(HeaderError::Short(63)));
        assert_eq!(FileHeader::decode(&[&small[..], &[0]].concat()), Err(HeaderError::Trailing(1)));
        assert_eq!(with(&large, 1, 0), HeaderError::Recipients(0));
        assert_eq!(with(&large, 1, 9), HeaderError::Recipients(9));
        assert_eq!(with(&large, 1, 3), HeaderError::Short(large.len()));
        assert_eq!(with(&large, 1, 1), HeaderError::Trailing(54));
        assert_eq!(with(&large, 2, 1), HeaderError::Reserved(2));
        assert_eq!(with(&large, 3, 1), HeaderError::Reserved(3));
        assert_eq!(with(&large, 17, 2), HeaderError::Form { form: 2, at: 17 });
        assert_eq!(with(&large, 25, 49), HeaderError::Form { form: 1, at: 24 });
        assert_eq!(with(&large, 26, 255), HeaderError::Form { form: 1, at: 24 });
        assert_eq!(FileHeader::decode(&[2; MAX_HEADER + 1]), Err(HeaderError::Long(MAX_HEADER + 1)));
    }

    /// One header has one spelling, so that two readers never disagree about a file's header.
    #[test]
    fn a_single_compact_recipient_is_refused_as_a_blob() {
        let mut bytes = header(vec![compact(2), blob(1, 0)]).encode().unwrap();
        bytes.truncate(bytes.len() - 4);
        bytes[1] = 1;
        assert_eq!(FileHeader::decode(&bytes), Err(HeaderError::Form { form: 1, at: 17 }));
    }

    #[test]
    fn what_no_xattr_holds_is_not_encoded() {
        assert_eq!(header(vec![]).encode(), Err(HeaderError::Recipients(0)));
        assert_eq!(header(vec![blob(1, 1); 9]).encode(), Err(HeaderError::Recipients(9)));
        assert_eq!(header(vec![blob(1, 1 << 20)]).encode(), Err(HeaderError::Long(1 << 20)));
        assert_eq!(header(vec![blob(1, MAX_HEADER - 19)]).encode(), Err(HeaderError::Long(MAX_HEADER + 1)));
        assert_eq!(header(vec![blob(1, MAX_HEADER - 20)]).encode().map(|b| b.len()), Ok(MAX_HEADER));
    }

    fn any_recipient() -> impl Strategy<Value = Recipient> {
        let wrapped = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Wrapped::Blob),
            (any::<u16>(), any::<[u8; 24]>(), any::<[u8; 24]>()).prop_map(|(version, a, b)| {
                Wrapped::Compact { version, bytes: [a, b].concat().try_into().unwrap() }
            }),
        ];
        (any::<u8>(), wrapped).prop_map(|(key_index, wrapped)| Recipient { key_index, wrapped })
    }

    proptest! {
        #[test]
        fn headers_survive_encoding(recipients in proptest::collection::vec(any_recipient(), 1..=8)) {
            let header = header(recipients);
            prop_assert_eq!(FileHeader::decode(&header.encode().unwrap()), Ok(header));
        }

        #[test]
        fn whatever_decodes_is_encoded_to_the_same_bytes(
            mut bytes in proptest::collection::vec(0..4u8, 0..90),
            kind in 1..=2u8,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(header) = FileHeader::decode(&bytes) {
                prop_assert_eq!(header.encode(), Ok(bytes));
            }
        }
    }
}
