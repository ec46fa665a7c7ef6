//! Values of conditions that are more than text: numbers, dates, addresses.

use std::net::IpAddr;

/// A range of addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads `203.0.113.0/24`, `2001:db8::/32` or a single address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = match text.split_once('/') {
            None => (text, None),
            Some((address, bits)) => (address, Some(bits.parse().ok()?)),
        };
        let address: IpAddr = address.parse().ok()?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(all);
        (bits <= all).then_some(Self { address, bits })
    }

    /// Whether an address lies in the range.
    pub(super) fn contains(&self, other: IpAddr) -> bool {
        match (self.address, other.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same_bits(a.to_bits().into(), b.to_bits().into(), 32 - self.bits)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same_bits(a.to_bits(), b.to_bits(), 128 - self.bits),
            _ => false,
        }
    }
}

/// Whether two numbers differ in their lowest `free` bits only.
fn same_bits(a: u128, b: u128, free: u8) -> bool {
    (a ^ b).checked_shr(free.into()).unwrap_or(0) == 0
}

/// A number: an integer or a decimal fraction.
pub(super) fn number(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

/// Seconds since 1970 of a W3C date (ISO 8601) or of epoch seconds.
pub(super) fn date(text: &str) -> Option<f64> {
    let text = text.trim();
    if text.len() != 4 && !text.contains('T') && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return number(text);
    }
    let whole = match text.len() {
        4 => format!("{text}-01-01T00:00:00Z"),
        7 => format!("{text}-01T00:00:00Z"),
        10 => format!("{text}T00:00:00Z"),
        _ => text.to_owned(),
    };
    let instant: jiff::Timestamp = whole.parse().ok()?;
    #[expect(clippy::cast_precision_loss, reason = "dates of this age keep their microseconds in a f64")]
    Some(instant.as_microsecond() as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges hold their first and last address and no other family; whole addresses hold themselves.
    #[test]
    fn ranges_hold_their_ends() {
        let within = |net: &str, ip: &str| Network::parse(net).unwrap().contains(ip.parse().unwrap());
        assert!(within("203.0.113.0/24", "203.0.113.255") && !within("203.0.113.0/24", "203.0.114.0"));
        assert!(within("0.0.0.0/0", "8.8.8.8") && within("::/0", "::1") && !within("::/0", "8.8.8.8"));
        assert!(within("10.0.0.1", "10.0.0.1") && !within("10.0.0.1", "10.0.0.2"));
        assert!(within("2001:db8::/32", "2001:db8:ffff::1") && within("10.0.0.0/8", "::ffff:10.1.1.1"));
        assert!(Network::parse("10.0.0.0/33").is_none() && Network::parse("x").is_none());
    }

    /// The date formats of the IAM User Guide name the same instant.
    #[test]
    fn dates_of_all_formats_are_read() {
        let noon = date("2019-07-16T12:00:00Z").unwrap();
        for text in
            ["2019-07-16T14:00:00+02:00", "1563278400", "2019-07-16T12:00:00.000Z", "2019-07-16T12:00Z"]
        {
            assert_eq!(date(text), Some(noon), "{text}");
        }
        assert_eq!(date("2019"), date("2019-01-01"));
        assert_eq!(date("2019-07"), date("2019-07-01T00:00:00Z"));
        assert!(date("yesterday").is_none() && date("").is_none() && date("2019-13-01").is_none());
    }
}
