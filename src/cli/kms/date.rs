//! Times for people.

/// `2026-01-31 23:59:59 UTC`, by Howard Hinnant's `civil_from_days`.
#[expect(clippy::cast_possible_truncation, reason = "seconds since the epoch, whole ones")]
pub(super) fn date(seconds: f64) -> String {
    let seconds = seconds as i64;
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Dates are those of the Gregorian calendar, leap days included.
    #[test]
    fn dates_are_right() {
        for (seconds, text) in [
            (0.0, "1970-01-01 00:00:00 UTC"),
            (951_782_400.5, "2000-02-29 00:00:00 UTC"),
            (4_102_444_799.0, "2099-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
