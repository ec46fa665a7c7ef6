//! Conditions of a statement, compiled: set operator, comparison, `...IfExists`, key, values.

use super::pattern::{ArnPattern, Pattern, Syntax};
use super::value::{Network, date, number};

/// One operator with one key and its values.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) operator: Operator,
    /// In lower case.
    pub(super) key: String,
    pub(super) values: Vec<Operand>,
}

/// A condition operator, as its name says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Operator {
    pub(super) set: Option<SetOperator>,
    pub(super) comparison: Comparison,
    /// `...Not...`: holds where the comparison does not.
    pub(super) negated: bool,
    pub(super) if_exists: bool,
}

/// How a key with several values is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SetOperator {
    /// Every value of the request; holds where it has none.
    ForAllValues,
    /// At least one value of the request.
    ForAnyValue,
}

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Comparison {
    String,
    StringIgnoreCase,
    StringLike,
    Number(Order),
    Date(Order),
    Bool,
    Binary,
    Address,
    Arn,
    Null,
}

/// Which order of two values holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Order {
    /// Whether `found` stands to `wanted` as the operator says.
    pub(super) fn holds(self, found: f64, wanted: f64) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::Less => found < wanted,
            Self::LessOrEqual => found <= wanted,
            Self::Greater => found > wanted,
            Self::GreaterOrEqual => found >= wanted,
        }
    }
}

/// A value of the policy, ready to compare.
#[derive(Clone, Debug)]
pub(super) enum Operand {
    Text(Pattern),
    Arn(ArnPattern),
    /// A number, or seconds since 1970.
    Number(f64),
    Bytes(Vec<u8>),
    Network(Network),
    /// Of `Null`: whether the key has to be absent.
    Absent(bool),
}

impl Operator {
    /// Reads a name such as `ForAllValues:StringNotLikeIfExists`. Case matters not, as in IAM.
    pub(super) fn parse(name: &str) -> Option<Self> {
        let lower = name.to_ascii_lowercase();
        let (set, rest) = match lower.split_once(':') {
            None => (None, lower.as_str()),
            Some(("forallvalues", rest)) => (Some(SetOperator::ForAllValues), rest),
            Some(("foranyvalue", rest)) => (Some(SetOperator::ForAnyValue), rest),
            Some(_) => return None,
        };
        let (base, if_exists) = match rest.strip_suffix("ifexists") {
            Some(base) => (base, true),
            None => (rest, false),
        };
        let (comparison, negated) = comparison(base)?;
        // Null asks whether the key exists; "if it exists" would make it say nothing.
        let sensible = comparison != Comparison::Null || !if_exists;
        sensible.then_some(Self { set, comparison, negated, if_exists })
    }

    /// Compiles a value of the policy.
    pub(super) fn operand(self, text: &str, variables: bool) -> Result<Operand, String> {
        let not_a = |what: &str| format!("\"{text}\" is not {what}");
        match self.comparison {
            Comparison::String | Comparison::StringIgnoreCase => {
                Pattern::new(text, Syntax { wildcards: false, variables }).map(Operand::Text)
            }
            Comparison::StringLike => {
                Pattern::new(text, Syntax { wildcards: true, variables }).map(Operand::Text)
            }
            Comparison::Bool => {
                let known = text.eq_ignore_ascii_case("true")
                    || text.eq_ignore_ascii_case("false")
                    || (variables && text.starts_with("${"));
                if !known {
                    return Err(not_a("a truth value (\"true\" or \"false\")"));
                }
                Pattern::new(text, Syntax { wildcards: false, variables }).map(Operand::Text)
            }
            Comparison::Arn => ArnPattern::new(text, variables).map(Operand::Arn),
            Comparison::Number(_) => number(text).map(Operand::Number).ok_or_else(|| not_a("a number")),
            Comparison::Date(_) => {
                date(text).map(Operand::Number).ok_or_else(|| not_a("a date (ISO 8601, or epoch seconds)"))
            }
            Comparison::Binary => bytes(text).map(Operand::Bytes).ok_or_else(|| not_a("base64")),
            Comparison::Address => {
                let network = Network::parse(text).map(Operand::Network);
                network.ok_or_else(|| not_a("an IP address or a range such as 203.0.113.0/24"))
            }
            Comparison::Null => match text.to_ascii_lowercase().as_str() {
                "true" => Ok(Operand::Absent(true)),
                "false" => Ok(Operand::Absent(false)),
                _ => Err(not_a("a truth value (\"true\" or \"false\")")),
            },
        }
    }
}

/// Bytes of base64 text.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// The operator of a name in lower case, without set operator and suffix, and whether it negates.
fn comparison(base: &str) -> Option<(Comparison, bool)> {
    let ordered = |rest: &str| match rest {
        "equals" => Some((Order::Equal, false)),
        "notequals" => Some((Order::Equal, true)),
        "lessthan" => Some((Order::Less, false)),
        "lessthanequals" => Some((Order::LessOrEqual, false)),
        "greaterthan" => Some((Order::Greater, false)),
        "greaterthanequals" => Some((Order::GreaterOrEqual, false)),
        _ => None,
    };
    if let Some(rest) = base.strip_prefix("numeric") {
        return ordered(rest).map(|(order, not)| (Comparison::Number(order), not));
    }
    if let Some(rest) = base.strip_prefix("date") {
        return ordered(rest).map(|(order, not)| (Comparison::Date(order), not));
    }
    Some(match base {
        "stringequals" => (Comparison::String, false),
        "stringnotequals" => (Comparison::String, true),
        "stringequalsignorecase" => (Comparison::StringIgnoreCase, false),
        "stringnotequalsignorecase" => (Comparison::StringIgnoreCase, true),
        "stringlike" => (Comparison::StringLike, false),
        "stringnotlike" => (Comparison::StringLike, true),
        "bool" => (Comparison::Bool, false),
        "binaryequals" => (Comparison::Binary, false),
        "ipaddress" => (Comparison::Address, false),
        "notipaddress" => (Comparison::Address, true),
        "arnequals" | "arnlike" => (Comparison::Arn, false),
        "arnnotequals" | "arnnotlike" => (Comparison::Arn, true),
        "null" => (Comparison::Null, false),
        _ => return None,
    })
}
