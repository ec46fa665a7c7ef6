//! What travels between a client and the appliance: frames, and the messages in them.
//!
//! A frame is its length (4 bytes, little-endian), then the message. A request begins with its opcode, an answer with
//! its CK_RV (8 bytes). Every length is checked against what is there and against [`MAX_FRAME`] before anything is
//! allocated. Numbers are little-endian, byte strings carry their length in 4 bytes.
//!
//! Initialisation and operation travel in one request ([`Request::Once`]): a single-part encryption or signature
//! costs one round trip.

use cryptoki_sys::CK_RV;
use zeroize::Zeroizing;

use super::quorum::Terms;

/// Version of the protocol; both sides must have the same.
pub(crate) const VERSION: u32 = 1;
/// The longest message: a bounded share of memory for each connection.
pub(crate) const MAX_FRAME: usize = 8 << 20;
/// Bytes of data that a client sends in one message; longer ones go in pieces.
pub(crate) const MAX_DATA: usize = 4 << 20;
/// The most elements of a list: a request for more is malformed.
const MAX_LIST: usize = 65_536;

/// A byte string that is wiped: it may be a key or a PIN.
pub(crate) type Bytes = Zeroizing<Vec<u8>>;

/// A value that can travel.
pub(crate) trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Vec<u8>);
    /// How many bytes that appends: room is made before, so that no growing buffer leaves a key behind.
    fn size(&self) -> usize;
    /// Takes the value off the front; `None` where the bytes are no such value.
    fn take(from: &mut &[u8]) -> Option<Self>;
}

impl Wire for u32 {
    fn size(&self) -> usize {
        4
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_le_bytes(*head))
    }
}

impl Wire for u64 {
    fn size(&self) -> usize {
        8
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_le_bytes(*head))
    }
}

impl Wire for bool {
    fn size(&self) -> usize {
        1
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first()?;
        *from = rest;
        match head {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Wire for Bytes {
    fn size(&self) -> usize {
        4 + self.len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("messages are far below 4 GiB").put(out);
        out.extend_from_slice(self);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let len = usize::try_from(u32::take(from)?).ok()?;
        let (head, rest) = from.split_at_checked(len)?;
        *from = rest;
        Some(Zeroizing::new(head.to_vec()))
    }
}

impl Wire for String {
    fn size(&self) -> usize {
        4 + self.len()
    }

    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("messages are far below 4 GiB").put(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Self::from_utf8(Bytes::take(from)?.to_vec()).ok()
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn size(&self) -> usize {
        4 + self.iter().map(Wire::size).sum::<usize>()
    }

    fn put(&self, out: &mut Vec<u8>) {
        u32::try_from(self.len()).expect("lists are short").put(out);
        self.iter().for_each(|x| x.put(out));
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let len = usize::try_from(u32::take(from)?).ok()?;
        // Each element takes a byte at least: a length beyond that is a lie, and nothing is allocated for it.
        if len > MAX_LIST || len > from.len() {
            return None;
        }
        (0..len).map(|_| T::take(from)).collect()
    }
}

impl<T: Wire> Wire for Option<T> {
    fn size(&self) -> usize {
        1 + self.as_ref().map_or(0, Wire::size)
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(x) = self {
            x.put(out);
        }
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        if bool::take(from)? { T::take(from).map(Some) } else { Some(None) }
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn size(&self) -> usize {
        self.0.size() + self.1.size()
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some((A::take(from)?, B::take(from)?))
    }
}

impl Wire for () {
    fn size(&self) -> usize {
        0
    }

    fn put(&self, _: &mut Vec<u8>) {}

    fn take(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

/// An enum whose variants have a number each, which is never used for another.
macro_rules! wire_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $tag:literal = $variant:ident { $($field:ident: $type:ty),* $(,)? }),* $(,)? }) => {
        $(#[$meta])*
        pub(crate) enum $name {
            $($(#[$vmeta])* $variant { $($field: $type),* },)*
        }

        impl Wire for $name {
            fn size(&self) -> usize {
                match self {
                    $(Self::$variant { $($field),* } => 1 $(+ $field.size())*,)*
                }
            }

            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($tag);
                        $($field.put(out);)*
                    })*
                }
            }

            fn take(from: &mut &[u8]) -> Option<Self> {
                let (tag, rest) = from.split_first()?;
                *from = rest;
                match tag {
                    $($tag => Some(Self::$variant { $($field: <$type>::take(from)?),* }),)*
                    _ => None,
                }
            }
        }
    };
}

pub(crate) use wire_enum;

/// Attributes as CK_ATTRIBUTE has them: type and value. CK_ULONG values are 8 bytes, little-endian.
pub(crate) type Template = Vec<(u64, Bytes)>;

/// A mechanism and its parameters, read out of the caller's memory.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Mech {
    /// CK_MECHANISM_TYPE.
    pub(crate) kind: u64,
    /// What the structure behind `pParameter` held.
    pub(crate) params: Params,
}

impl Wire for Mech {
    fn size(&self) -> usize {
        8 + self.params.size()
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.kind.put(out);
        self.params.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self { kind: u64::take(from)?, params: Params::take(from)? })
    }
}

wire_enum! {
    /// The parameter structures of PKCS#11, by value.
    #[derive(Clone, PartialEq, Eq)]
    Params {
        0 = None {},
        /// An IV, or other bytes without structure.
        1 = Raw { bytes: Bytes },
        /// CK_GCM_PARAMS.
        2 = Gcm { iv: Bytes, aad: Bytes, tag_bits: u64 },
        /// CK_AES_CTR_PARAMS.
        3 = Ctr { bits: u64, block: Bytes },
        /// CK_RSA_PKCS_OAEP_PARAMS.
        4 = Oaep { hash: u64, mgf: u64, label: Bytes },
        /// CK_RSA_PKCS_PSS_PARAMS.
        5 = Pss { hash: u64, mgf: u64, salt: u64 },
        /// CK_ECDH1_DERIVE_PARAMS.
        6 = Ecdh { kdf: u64, shared: Bytes, public: Bytes },
        /// CK_RSA_AES_KEY_WRAP_PARAMS.
        7 = RsaAes { bits: u64, hash: u64, mgf: u64, label: Bytes },
        /// CK_AES_CBC_ENCRYPT_DATA_PARAMS and CK_KEY_DERIVATION_STRING_DATA; the IV is empty for the latter.
        8 = Data { iv: Bytes, data: Bytes },
        /// CK_OBJECT_HANDLE, or a CK_ULONG.
        9 = Number { value: u64 },
        /// CK_SP800_108_KDF_PARAMS, its feedback form with the IV.
        10 = Kdf { prf: u64, data: Vec<(u64, Bytes)>, iv: Bytes, more: Vec<Template> },
        /// CK_EDDSA_PARAMS.
        11 = Eddsa { prehash: bool, context: Bytes },
    }
}

/// What an operation does with a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Op {
    /// C_Encrypt.
    Encrypt,
    /// C_Decrypt.
    Decrypt,
    /// C_Sign.
    Sign,
    /// C_Verify.
    Verify,
    /// C_Digest.
    Digest,
}

impl Op {
    /// All, in the order of their numbers.
    pub(crate) const ALL: [Self; 5] = [Self::Encrypt, Self::Decrypt, Self::Sign, Self::Verify, Self::Digest];
}

impl Wire for Op {
    fn size(&self) -> usize {
        1
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        let (head, rest) = from.split_first()?;
        *from = rest;
        Self::ALL.get(usize::from(*head)).copied()
    }
}

wire_enum! {
    /// A request. Handles: `s` a session, `key` and `object` an object.
    Request {
        /// The first message of a connection. An empty `app` begins an application; a token joins one.
        0 = Hello { version: u32, app: Bytes },
        1 = TokenInfo {},
        2 = InitToken { pin: Bytes, label: String },
        3 = OpenSession { rw: bool },
        4 = CloseSession { s: u64 },
        5 = CloseAll {},
        6 = SessionInfo { s: u64 },
        /// `kind` is CK_USER_TYPE.
        7 = Login { s: u64, kind: u64, pin: Bytes },
        8 = Logout { s: u64 },
        9 = InitPin { s: u64, pin: Bytes },
        10 = SetPin { s: u64, old: Bytes, new: Bytes },
        11 = Create { s: u64, attrs: Template },
        12 = Copy { s: u64, object: u64, attrs: Template },
        13 = Destroy { s: u64, object: u64 },
        14 = GetAttrs { s: u64, object: u64, types: Vec<u64> },
        15 = SetAttrs { s: u64, object: u64, attrs: Template },
        16 = Find { s: u64, attrs: Template },
        17 = Generate { s: u64, mech: Mech, attrs: Template },
        18 = GeneratePair { s: u64, mech: Mech, public: Template, private: Template },
        19 = Wrap { s: u64, mech: Mech, by: u64, key: u64 },
        20 = Unwrap { s: u64, mech: Mech, by: u64, wrapped: Bytes, attrs: Template },
        21 = Derive { s: u64, mech: Mech, key: u64, attrs: Template },
        22 = Random { len: u32 },
        /// Whether the operation may begin; gives the IV where the HSM makes it.
        23 = Check { s: u64, op: Op, mech: Mech, key: u64 },
        /// Initialisation and the whole operation. `aux` is the signature to verify.
        24 = Once { s: u64, op: Op, mech: Mech, key: u64, data: Bytes, aux: Bytes },
        25 = Begin { s: u64, op: Op, mech: Mech, key: u64 },
        26 = Update { s: u64, op: Op, data: Bytes },
        27 = Finish { s: u64, op: Op, aux: Bytes },
        28 = DigestKey { s: u64, key: u64 },
        29 = Cancel { s: u64, op: Op },
        /// A command of the management interface, as JSON.
        30 = Admin { json: Bytes },
        /// Another member of the cluster begins a conversation, and goes on with it (`cluster::protocol`).
        31 = Greet { nonce: Bytes },
        32 = Unit { message: Bytes },
        /// Generate, GeneratePair or Unwrap: the new key is shared, and has quorum values, from its first moment.
        33 = With { terms: Terms, request: Bytes },
    }
}

/// What CK_TOKEN_INFO and CK_SESSION_INFO are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenFacts {
    /// Token label; empty before initialisation.
    pub(crate) label: String,
    /// 16 characters.
    pub(crate) serial: String,
    /// Whether an admin was activated.
    pub(crate) initialized: bool,
    /// Whether the default crypto user exists.
    pub(crate) user_pin: bool,
    /// Whether the default crypto user is locked.
    pub(crate) user_locked: bool,
    /// Whether the default admin is locked.
    pub(crate) so_locked: bool,
    /// Whether weak and old mechanisms are offered.
    pub(crate) legacy: bool,
    /// Shortest password.
    pub(crate) min_pin: u32,
    /// Longest PIN: name, colon and password.
    pub(crate) max_pin: u32,
}

impl Wire for TokenFacts {
    fn size(&self) -> usize {
        self.label.size() + self.serial.size() + 5 + 2 * 4
    }

    fn put(&self, out: &mut Vec<u8>) {
        self.label.put(out);
        self.serial.put(out);
        for flag in [self.initialized, self.user_pin, self.user_locked, self.so_locked, self.legacy] {
            flag.put(out);
        }
        self.min_pin.put(out);
        self.max_pin.put(out);
    }

    fn take(from: &mut &[u8]) -> Option<Self> {
        Some(Self {
            label: String::take(from)?,
            serial: String::take(from)?,
            initialized: bool::take(from)?,
            user_pin: bool::take(from)?,
            user_locked: bool::take(from)?,
            so_locked: bool::take(from)?,
            legacy: bool::take(from)?,
            min_pin: u32::take(from)?,
            max_pin: u32::take(from)?,
        })
    }
}

/// One message that must be all of `bytes`.
pub(crate) fn decode<T: Wire>(mut bytes: &[u8]) -> Option<T> {
    let value = T::take(&mut bytes)?;
    bytes.is_empty().then_some(value)
}

/// A value as bytes.
pub(crate) fn encode(value: &impl Wire) -> Bytes {
    let mut out = Zeroizing::new(Vec::with_capacity(value.size()));
    value.put(&mut out);
    out
}

/// A frame around a request.
pub(crate) fn frame(request: &Request) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(4 + request.size()));
    out.extend_from_slice(&[0; 4]);
    request.put(&mut out);
    close(&mut out);
    out
}

/// A frame around an answer: CK_RV and, where it is CKR_OK, the value. What `out` held was wiped by who sent it.
pub(crate) fn answer<T: Wire>(result: Result<T, CK_RV>, out: &mut Vec<u8>) {
    out.clear();
    out.reserve(12 + result.as_ref().map_or(0, Wire::size));
    out.extend_from_slice(&[0; 4]);
    match result {
        Ok(value) => {
            0u64.put(out);
            value.put(out);
        }
        Err(rv) => rv.put(out),
    }
    close(out);
}

fn close(out: &mut [u8]) {
    let len = u32::try_from(out.len() - 4).expect("messages are far below 4 GiB");
    if let Some(head) = out.first_chunk_mut() {
        *head = len.to_le_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(of: &[u8]) -> Bytes {
        Zeroizing::new(of.to_vec())
    }

    /// Messages come back as they went; a cut or lengthened one is refused, wherever it is cut.
    #[test]
    fn a_cut_message_is_refused() {
        let mech = Mech { kind: 7, params: Params::Gcm { iv: bytes(b"iv"), aad: bytes(b""), tag_bits: 128 } };
        let template = vec![(1, bytes(b"x")), (2, bytes(b""))];
        for request in [
            Request::Once {
                s: 1,
                op: Op::Verify,
                mech: mech.clone(),
                key: 9,
                data: bytes(b"d"),
                aux: bytes(b"a"),
            },
            Request::Unwrap { s: 1, mech, by: 2, wrapped: bytes(b"w"), attrs: template },
        ] {
            let framed = frame(&request);
            assert_eq!(framed.len(), 4 + request.size(), "the room is as long as what comes into it");
            assert_eq!(framed.capacity(), framed.len());
            let body = &framed[4..];
            let back: Request = decode(body).unwrap();
            assert_eq!(frame(&back), framed);
            for len in 0..body.len() {
                assert!(decode::<Request>(&body[..len]).is_none(), "cut to {len}");
            }
            assert!(decode::<Request>(&[body, &[0][..]].concat()).is_none());
        }
    }

    /// A length that promises more than there is allocates nothing.
    #[test]
    fn a_false_length_is_refused() {
        let mut lie = vec![16];
        1u64.put(&mut lie);
        u32::MAX.put(&mut lie);
        assert!(decode::<Request>(&lie).is_none());
    }
}
