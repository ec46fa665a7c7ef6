//! What was wanted and whether it was reached: the rows by which a run is judged.

use super::stats::figure;
use super::table::Table;

/// How a row ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The figure is what was wanted, or better.
    Reached,
    /// It is not.
    Missed,
    /// Something that the figure needs was not measured.
    Unknown,
}

/// One row: a ratio or an amount beside the bound that it shall keep.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct Verdict {
    /// What was measured.
    pub what: String,
    /// What it is compared with, by name: the fastest of several, or nothing for an absolute bound.
    pub against: Option<String>,
    /// The figure.
    pub figure: Option<f64>,
    /// The bound.
    pub wanted: f64,
    /// Whether the bound is an upper one.
    pub at_most: bool,
    /// Whether the figure keeps the bound.
    pub outcome: Outcome,
}

impl Verdict {
    /// A figure that shall be `wanted` or more.
    pub(super) fn at_least(
        what: impl Into<String>,
        against: Option<String>,
        figure: Option<f64>,
        wanted: f64,
    ) -> Self {
        let outcome = judge(figure.map(|f| f >= wanted));
        Self { what: what.into(), against, figure, wanted, at_most: false, outcome }
    }

    /// A figure that shall stay below `wanted`.
    pub(super) fn below(what: impl Into<String>, figure: Option<f64>, wanted: f64) -> Self {
        let outcome = judge(figure.map(|f| f < wanted));
        Self { what: what.into(), against: None, figure, wanted, at_most: true, outcome }
    }
}

fn judge(kept: Option<bool>) -> Outcome {
    match kept {
        Some(true) => Outcome::Reached,
        Some(false) => Outcome::Missed,
        None => Outcome::Unknown,
    }
}

impl Outcome {
    /// For a table.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Missed => "missed",
            Self::Unknown => "not measured",
        }
    }
}

/// All rows, for people.
pub(super) fn table(verdicts: &[Verdict]) -> Table {
    let mut table = Table::new(&["must reach", "against", "figure", "wanted", "outcome"], 2);
    for v in verdicts {
        let bound = if v.at_most { "< " } else { ">= " };
        table.row([
            v.what.clone(),
            v.against.clone().unwrap_or_else(|| "-".to_owned()),
            v.figure.map_or("-".to_owned(), figure),
            format!("{bound}{}", figure(v.wanted)),
            v.outcome.word().to_owned(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bound itself counts as reached for a ratio, and as missed for memory; no figure is no success.
    #[test]
    fn bounds_are_kept_or_not() {
        let ratio = |f| Verdict::at_least("x", None, f, 2.0).outcome;
        assert_eq!(ratio(Some(2.0)), Outcome::Reached);
        assert_eq!(ratio(Some(1.99)), Outcome::Missed);
        assert_eq!(ratio(None), Outcome::Unknown);
        assert_eq!(Verdict::below("m", Some(150.0), 150.0).outcome, Outcome::Missed);
        let text = table(&[Verdict::at_least("x", Some("securefs".into()), Some(2.5), 2.0)]).to_string();
        assert!(text.contains("securefs") && text.contains("reached"), "{text}");
    }
}
