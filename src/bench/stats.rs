//! Medians and spreads of repeated measurements.

/// The middle value; the mean of the two middle ones for an even count. `None` without values.
pub(super) fn median(runs: &[f64]) -> Option<f64> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(m), 1) => Some(*m),
        (Some(m), _) => Some(f64::midpoint(*m, sorted[middle - 1])),
        (None, _) => None,
    }
}

/// Smallest and largest value.
pub(super) fn range(runs: &[f64]) -> Option<(f64, f64)> {
    let mut sorted = runs.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some((*sorted.first()?, *sorted.last()?))
}

/// A figure with as many digits as mean something.
pub(super) fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One slow repetition does not move the median, and no repetition has none.
    #[test]
    fn medians_are_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[900.0, 1.0, 800.0]), Some(800.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 100.0]), Some(3.0));
        assert_eq!(range(&[2.0, 9.0, 1.0]), Some((1.0, 9.0)));
        assert_eq!(range(&[]), None);
    }

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!([1.234, 12.34, 1234.5].map(figure), ["1.23", "12.3", "1234"]);
    }
}
