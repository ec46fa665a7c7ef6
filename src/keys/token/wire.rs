//! What the daemon and its helper say to each other: one message a packet, typed, every length checked.
//!
//! A packet holds an id, a tag, and fields: numbers little-endian, bytes behind their length (u32). The helper has a
//! stranger's code in its memory, so the daemon takes nothing it says on trust.

use zeroize::Zeroizing;

use crate::crypto::Secret;

/// The longest message.
pub(super) const MAX_MESSAGE: usize = 32 << 10;
/// Keys wrapped by one message.
pub(super) const MAX_ITEMS: usize = 32;
/// The longest text of an error.
const MAX_TEXT: usize = 1024;
/// The longest field: a blob, a context, a path.
const MAX_FIELD: usize = 4096;

/// Which token, and which of its keys. What is `None` was not given and is not compared.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Place {
    pub(super) token: Option<String>,
    pub(super) manufacturer: Option<String>,
    pub(super) model: Option<String>,
    pub(super) serial: Option<String>,
    pub(super) slot_id: Option<u64>,
    /// CKA_LABEL of the key.
    pub(super) object: Option<String>,
    /// CKA_ID of the key.
    pub(super) id: Option<Vec<u8>>,
    /// `secret-key` or `private`.
    pub(super) kind: Option<String>,
}

/// To the helper.
pub(super) enum Request {
    /// Names a key for the requests that follow. Asks the token nothing.
    Open { target: u32, place: Place, pin: Option<Zeroizing<String>> },
    /// Looks at the key; finds out how it wraps where `mechanism` is not given.
    Describe { target: u32, mechanism: Option<u8> },
    /// Wraps each key in its context.
    Wrap { target: u32, mechanism: u8, items: Vec<(Secret<32>, Vec<u8>)> },
    /// Unwraps.
    Unwrap { target: u32, mechanism: u8, blob: Vec<u8>, context: Vec<u8> },
}

/// Why a helper did not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// There is no such key.
    NotFound = 1,
    /// The token refuses: PIN, permission, no mechanism.
    Denied = 2,
    /// There is no token, or it does not answer.
    Unreachable = 3,
    /// The blob does not open.
    Foreign = 4,
    /// The token refuses the PIN, and is not to be asked again.
    Pin = 5,
}

/// Reason and text for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    pub(super) reason: Reason,
    pub(super) text: String,
}

/// To the daemon.
pub(super) enum Answer {
    Opened,
    Described {
        id: Vec<u8>,
        mechanism: u8,
    },
    Wrapped(Vec<Vec<u8>>),
    Unwrapped(Secret<32>),
    /// The helper was started anew and does not know the target.
    NotOpen,
    Failed(Fault),
    /// From the keeper: the helper ended.
    Died(String),
}

/// A message as it goes over the socket; it may hold a key.
pub(super) type Packet = Zeroizing<Vec<u8>>;

struct Writer(Packet);

impl Writer {
    /// `room`: not less than the packet will have. It is never grown, so that no copy of a key stays behind.
    fn new(room: usize, id: u64, tag: u8) -> Self {
        let mut packet = Zeroizing::new(Vec::with_capacity(room));
        packet.extend_from_slice(&id.to_le_bytes());
        packet.push(tag);
        Self(packet)
    }

    fn number(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        let mut this = self.number(u32::try_from(bytes.len()).expect("fields are short"));
        this.0.extend_from_slice(bytes);
        this
    }

    fn maybe(mut self, bytes: Option<&[u8]>) -> Self {
        self.0.push(u8::from(bytes.is_some()));
        match bytes {
            Some(bytes) => self.bytes(bytes),
            None => self,
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn number(&mut self) -> Option<u32> {
        self.take(4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take(8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes)
    }

    fn bytes(&mut self, most: usize) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        if len > most { None } else { self.take(len) }
    }

    fn text(&mut self, most: usize) -> Option<String> {
        self.bytes(most).and_then(|b| std::str::from_utf8(b).ok()).map(str::to_owned)
    }

    fn maybe<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        match self.byte()? {
            0 => Some(None),
            1 => read(self).map(Some),
            _ => None,
        }
    }

    fn key(&mut self) -> Option<Secret<32>> {
        self.bytes(32).and_then(Secret::from_slice)
    }

    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

impl Place {
    /// The token alone.
    pub(super) fn token(&self) -> Self {
        Self { object: None, id: None, kind: None, ..self.clone() }
    }

    /// The key, for messages.
    pub(super) fn key_in_words(&self) -> String {
        match (&self.object, &self.id) {
            (Some(label), None) => format!("labelled {label:?}"),
            (Some(label), Some(id)) => format!("labelled {label:?} with id {}", hex::encode(id)),
            (None, Some(id)) => format!("with id {}", hex::encode(id)),
            (None, None) => "without a name".into(),
        }
    }

    fn encode(&self, writer: Writer) -> Writer {
        let text = |text: &Option<String>| text.as_ref().map(|t| t.as_bytes().to_vec());
        let slot = self.slot_id.map(|slot| slot.to_le_bytes().to_vec());
        let [token, manufacturer] = [text(&self.token), text(&self.manufacturer)];
        let [model, serial] = [text(&self.model), text(&self.serial)];
        let fields =
            [token, manufacturer, model, serial, slot, text(&self.object), self.id.clone(), text(&self.kind)];
        fields.iter().fold(writer, |writer, field| writer.maybe(field.as_deref()))
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Self> {
        let text = |reader: &mut Reader<'_>| reader.maybe(|r| r.text(MAX_FIELD));
        Some(Self {
            token: text(reader)?,
            manufacturer: text(reader)?,
            model: text(reader)?,
            serial: text(reader)?,
            slot_id: reader.maybe(|r| r.bytes(8)?.try_into().ok().map(u64::from_le_bytes))?,
            object: text(reader)?,
            id: reader.maybe(|r| r.bytes(MAX_FIELD).map(<[u8]>::to_vec))?,
            kind: text(reader)?,
        })
    }
}

impl Request {
    /// The packet of a request; `None` where it is too long for one.
    pub(super) fn encode(&self, id: u64) -> Option<Packet> {
        let room = self.len();
        if room > MAX_MESSAGE {
            return None;
        }
        let writer = match self {
            Self::Open { target, place, pin } => place
                .encode(Writer::new(room, id, 1).number(*target))
                .maybe(pin.as_ref().map(|pin| pin.as_bytes())),
            Self::Describe { target, mechanism } => {
                Writer::new(room, id, 2).number(*target).maybe(mechanism.as_ref().map(std::slice::from_ref))
            }
            Self::Wrap { target, mechanism, items } => {
                let count = u32::try_from(items.len()).ok()?;
                let writer = Writer::new(room, id, 3).number(*target).bytes(&[*mechanism]).number(count);
                items.iter().fold(writer, |writer, (key, context)| writer.bytes(key.expose()).bytes(context))
            }
            Self::Unwrap { target, mechanism, blob, context } => {
                Writer::new(room, id, 4).number(*target).bytes(&[*mechanism]).bytes(blob).bytes(context)
            }
        };
        Some(writer.0)
    }

    /// Not less than the bytes of the packet.
    fn len(&self) -> usize {
        let fields = match self {
            Self::Open { place, pin, .. } => {
                let texts = [
                    &place.token,
                    &place.manufacturer,
                    &place.model,
                    &place.serial,
                    &place.object,
                    &place.kind,
                ];
                let texts: usize = texts.iter().map(|text| text.as_ref().map_or(0, String::len)).sum();
                texts + place.id.as_ref().map_or(0, Vec::len) + pin.as_ref().map_or(0, |pin| pin.len())
            }
            Self::Describe { .. } => 0,
            Self::Wrap { items, .. } => items.iter().map(|(_, context)| 32 + 8 + context.len()).sum(),
            Self::Unwrap { blob, context, .. } => blob.len() + context.len(),
        };
        fields + 128
    }

    /// Id and request of a packet; `None` for bytes that are none.
    pub(super) fn decode(packet: &[u8]) -> Option<(u64, Self)> {
        let mut reader = Reader(packet);
        let (id, tag, target) = (reader.long()?, reader.byte()?, reader.number()?);
        let request = match tag {
            1 => {
                let place = Place::decode(&mut reader)?;
                let pin = reader.maybe(|r| r.text(MAX_FIELD).map(Zeroizing::new))?;
                Self::Open { target, place, pin }
            }
            2 => {
                let mechanism = reader.maybe(|r| r.bytes(1).map(|b| b[0]))?;
                Self::Describe { target, mechanism }
            }
            3 => {
                let [mechanism] = *reader.bytes(1)? else { return None };
                let count = usize::try_from(reader.number()?).ok().filter(|count| *count <= MAX_ITEMS)?;
                let item = |_| Some((reader.key()?, reader.bytes(MAX_FIELD)?.to_vec()));
                let items = (0..count).map(item).collect::<Option<Vec<_>>>()?;
                Self::Wrap { target, mechanism, items }
            }
            4 => {
                let [mechanism] = *reader.bytes(1)? else { return None };
                let blob = reader.bytes(MAX_FIELD)?.to_vec();
                Self::Unwrap { target, mechanism, blob, context: reader.bytes(MAX_FIELD)?.to_vec() }
            }
            _ => return None,
        };
        reader.end((id, request))
    }
}

impl Fault {
    pub(super) fn new(reason: Reason, text: impl Into<String>) -> Self {
        let mut text: String = text.into();
        let end = text.floor_char_boundary(MAX_TEXT);
        text.truncate(end);
        Self { reason, text }
    }
}

impl Answer {
    pub(super) fn encode(&self, id: u64) -> Packet {
        let room = self.len();
        let writer = match self {
            Self::Opened => Writer::new(room, id, 1),
            Self::Described { id: key, mechanism } => {
                Writer::new(room, id, 2).bytes(key).bytes(&[*mechanism])
            }
            Self::Wrapped(blobs) => {
                let count = u32::try_from(blobs.len()).expect("at most MAX_ITEMS");
                blobs.iter().fold(Writer::new(room, id, 3).number(count), |writer, blob| writer.bytes(blob))
            }
            Self::Unwrapped(key) => Writer::new(room, id, 4).bytes(key.expose()),
            Self::NotOpen => Writer::new(room, id, 5),
            Self::Failed(fault) => {
                Writer::new(room, id, 6).bytes(&[fault.reason as u8]).bytes(fault.text.as_bytes())
            }
            Self::Died(why) => {
                Writer::new(room, id, 7).bytes(&why.as_bytes()[..why.floor_char_boundary(MAX_TEXT)])
            }
        };
        writer.0
    }

    /// Not less than the bytes of the packet.
    fn len(&self) -> usize {
        let fields = match self {
            Self::Described { id, .. } => id.len(),
            Self::Wrapped(blobs) => blobs.iter().map(|blob| 4 + blob.len()).sum(),
            Self::Failed(fault) => fault.text.len(),
            Self::Died(why) => why.len(),
            Self::Opened | Self::Unwrapped(_) | Self::NotOpen => 0,
        };
        fields + 128
    }

    pub(super) fn decode(packet: &[u8]) -> Option<(u64, Self)> {
        let mut reader = Reader(packet);
        let (id, tag) = (reader.long()?, reader.byte()?);
        let answer = match tag {
            1 => Self::Opened,
            2 => {
                let key = reader.bytes(MAX_FIELD)?.to_vec();
                let [mechanism] = *reader.bytes(1)? else { return None };
                Self::Described { id: key, mechanism }
            }
            3 => {
                let count = usize::try_from(reader.number()?).ok().filter(|count| *count <= MAX_ITEMS)?;
                let blobs = (0..count).map(|_| reader.bytes(MAX_FIELD).map(<[u8]>::to_vec));
                Self::Wrapped(blobs.collect::<Option<Vec<_>>>()?)
            }
            4 => Self::Unwrapped(reader.key()?),
            5 => Self::NotOpen,
            6 => {
                let [reason] = *reader.bytes(1)? else { return None };
                let all =
                    [Reason::NotFound, Reason::Denied, Reason::Unreachable, Reason::Foreign, Reason::Pin];
                let reason = all.into_iter().find(|r| *r as u8 == reason)?;
                Self::Failed(Fault { reason, text: clean(&reader.text(MAX_TEXT)?) })
            }
            7 => Self::Died(clean(&reader.text(MAX_TEXT)?)),
            _ => return None,
        };
        reader.end((id, answer))
    }
}

/// Without what would act on a terminal or make a second log line.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn requests() -> Vec<Request> {
        let place = Place {
            token: Some("t".into()),
            slot_id: Some(7),
            object: Some("label".into()),
            id: Some(vec![1, 2]),
            ..Place::default()
        };
        vec![
            Request::Open { target: 3, place, pin: Some(Zeroizing::new("user:pin".into())) },
            Request::Describe { target: 3, mechanism: None },
            Request::Describe { target: 3, mechanism: Some(1) },
            Request::Wrap { target: 1, mechanism: 2, items: Vec::new() },
            Request::Wrap {
                target: 1,
                mechanism: 2,
                items: (0..MAX_ITEMS).map(|_| (Secret::random(), vec![1; 200])).collect(),
            },
            Request::Unwrap { target: 1, mechanism: 1, blob: vec![5; 70], context: vec![6; 100] },
        ]
    }

    fn answers() -> Vec<Answer> {
        vec![
            Answer::Opened,
            Answer::Described { id: vec![1], mechanism: 1 },
            Answer::Wrapped(vec![vec![1; 70]; MAX_ITEMS]),
            Answer::Unwrapped(Secret::random()),
            Answer::NotOpen,
            Answer::Failed(Fault::new(Reason::Denied, "no")),
            Answer::Died("signal 11".into()),
        ]
    }

    /// Every message comes back; cut anywhere, or with a byte more, it is none.
    #[test]
    fn messages_survive_and_are_exact() {
        for (n, request) in requests().into_iter().enumerate() {
            let packet = request.encode(9).unwrap();
            let (id, back) = Request::decode(&packet).unwrap();
            assert_eq!((id, &back.encode(9).unwrap()), (9, &packet), "request {n}");
            assert!(packet.len() <= request.len(), "request {n} has outgrown its room");
            for end in 0..packet.len() {
                assert!(Request::decode(&packet[..end]).is_none(), "request {n} cut at {end}");
            }
            assert!(Request::decode(&[&packet[..], &[0]].concat()).is_none());
        }
        for (n, answer) in answers().into_iter().enumerate() {
            let packet = answer.encode(9);
            let (id, back) = Answer::decode(&packet).unwrap();
            assert_eq!((id, &back.encode(9)), (9, &packet), "answer {n}");
            assert!(packet.len() <= answer.len(), "answer {n} has outgrown its room");
            for end in 0..packet.len() {
                assert!(Answer::decode(&packet[..end]).is_none(), "answer {n} cut at {end}");
            }
            assert!(Answer::decode(&[&packet[..], &[0]].concat()).is_none());
        }
    }

    /// What would not fit into a packet is not sent; a text of a stranger cannot make a line of its own.
    #[test]
    fn bounds_hold() {
        let long =
            Request::Unwrap { target: 0, mechanism: 1, blob: vec![0; MAX_MESSAGE], context: Vec::new() };
        assert!(long.encode(1).is_none());
        let fault = Fault::new(Reason::Denied, "ä\n".repeat(1000));
        let Some((_, Answer::Failed(back))) = Answer::decode(&Answer::Failed(fault).encode(1)) else {
            panic!("no fault");
        };
        assert!(back.text.len() <= MAX_TEXT && !back.text.contains('\n'));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Request::decode(&bytes), Answer::decode(&bytes));
        }

        #[test]
        fn no_change_of_a_message_makes_a_reader_panic(which in 0usize..6, at in 0usize..200, byte in any::<u8>()) {
            let mut packet = requests()[which].encode(1).unwrap();
            let at = at % packet.len();
            packet[at] = byte;
            let _ = (Request::decode(&packet), Answer::decode(&packet));
        }
    }
}
