//! What a disk may hold after the power went at some point of a recording.

use crate::disk::{Event, Image, PAGE};
use crate::random::Random;

/// What a disk writes as one even when it tears a page.
const SECTOR: usize = 512;

/// What becomes of the writes behind the last flush.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// All are kept: the power went, the order held.
    Kept,
    /// None is.
    Dropped,
    /// Each page of each write for itself: kept with a chance in percent, or torn.
    Each(u64),
}

/// Builds images for cut points that only grow.
pub(crate) struct Cuts<'a> {
    events: &'a [Event],
    /// What the flushes before `flushed` made durable.
    durable: Image,
    flushed: usize,
    /// Whether pages of the lower filesystem's own may be torn.
    tear: Tear,
}

/// What may be torn at 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tear {
    /// Every page.
    All,
    /// All but XFS's own metadata: it relies on whole sectors, and they have 4 KiB here.
    NotXfs,
}

impl<'a> Cuts<'a> {
    /// Cuts of `events`, which began on `start`.
    pub(crate) fn new(start: Image, events: &'a [Event], tear: Tear) -> Self {
        Self { events, durable: start, flushed: 0, tear }
    }

    /// An image for a cut behind the first `at` events.
    pub(crate) fn image(&mut self, at: usize, random: &mut Random) -> Image {
        let flushed = self.events[..at].iter().rposition(|e| matches!(e, Event::Flush)).map_or(0, |i| i + 1);
        for event in self.events.get(self.flushed..flushed).unwrap_or_default() {
            if let Event::Write(offset, bytes) = event {
                self.durable.write(*offset, bytes);
            }
        }
        self.flushed = self.flushed.max(flushed);
        let mut image = self.durable.clone();
        let fate = match random.below(8) {
            0 => Fate::Kept,
            1 => Fate::Dropped,
            2 | 3 => Fate::Each(85),
            4 | 5 => Fate::Each(50),
            _ => Fate::Each(15),
        };
        for event in &self.events[flushed..at] {
            if let Event::Write(offset, bytes) = event {
                suffer(&mut image, *offset, bytes, fate, self.tear, random);
            }
        }
        image
    }
}

fn suffer(image: &mut Image, offset: u64, bytes: &[u8], fate: Fate, tear: Tear, random: &mut Random) {
    let mut at = offset;
    let mut rest = bytes;
    while !rest.is_empty() {
        let in_page = usize::try_from(at % PAGE as u64).unwrap();
        let (page, behind) = rest.split_at(rest.len().min(PAGE - in_page));
        match fate {
            Fate::Kept => image.write(at, page),
            Fate::Dropped => {}
            Fate::Each(_) if may_tear(page, tear) && random.one_in(8) => {
                for (i, sector) in page.chunks(SECTOR).enumerate() {
                    if random.one_in(2) {
                        image.write(at + (i * SECTOR) as u64, sector);
                    }
                }
            }
            Fate::Each(percent) => {
                if random.below(100) < percent {
                    image.write(at, page);
                }
            }
        }
        at += page.len() as u64;
        rest = behind;
    }
}

/// Magic numbers of XFS's metadata, at the start of a page or behind the sibling pointers of a directory's.
fn may_tear(page: &[u8], tear: Tear) -> bool {
    let magic: &[&[u8]] = &[
        b"XFSB", b"XAGF", b"XAGI", b"XAFL", b"AB3", b"IAB3", b"FIB3", b"BMA3", b"R3FC", b"RMB3", b"IN",
        b"XD", b"XSLM",
    ];
    let leaf: &[&[u8]] = &[b"\x3d\xf1", b"\x3d\xff", b"\x3b\xee", b"\x3e\xbe"];
    tear == Tear::All
        || !(magic.iter().any(|m| page.starts_with(m))
            || leaf.iter().any(|m| page.get(8..).is_some_and(|p| p.starts_with(m))))
}

/// `count` cut points of a recording, ascending: anywhere, but half of them where most is at stake, right before a
/// flush.
pub(crate) fn points(events: &[Event], count: usize, random: &mut Random) -> Vec<usize> {
    let before_flush: Vec<usize> = (1..events.len())
        .filter(|i| matches!(events[*i], Event::Flush) && matches!(events[*i - 1], Event::Write(..)))
        .collect();
    let mut points: Vec<usize> = (0..count)
        .map(|i| match before_flush.is_empty() || i % 2 == 0 {
            true => 1 + random.index(events.len()),
            false => before_flush[random.index(before_flush.len())],
        })
        .collect();
    points.sort_unstable();
    points
}
