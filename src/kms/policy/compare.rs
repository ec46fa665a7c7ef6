//! Whether a condition holds for a request (IAM User Guide, reference_policies_elements_condition_operators and
//! reference_policies_condition-single-vs-multi-valued-context-keys).
//!
//! A key that the request has no value for: comparisons do not hold, their negations do, `...IfExists` and
//! `ForAllValues` do, `ForAnyValue` does not.

use super::condition::{Comparison, Condition, Operand, SetOperator, bytes};
use super::conditions::Conditions;
use super::value::{date, number};

impl Condition {
    /// Whether it holds.
    pub(super) fn holds(&self, context: &Conditions) -> bool {
        let found = context.values(&self.key);
        let operator = self.operator;
        if operator.comparison == Comparison::Null {
            return self.values.iter().any(|v| matches!(v, Operand::Absent(a) if *a == found.is_empty()));
        }
        // Set operators take empty texts for nothing at all.
        let nothing = operator.set.is_some() && found.iter().all(String::is_empty);
        if found.is_empty() || nothing {
            return match operator.set {
                _ if operator.if_exists => true,
                Some(SetOperator::ForAllValues) => true,
                Some(SetOperator::ForAnyValue) => false,
                None => operator.negated,
            };
        }
        // For one value of the request: any value of the policy, or, negated, none of them.
        let good = |value: &String| self.fits(value, context) != operator.negated;
        match operator.set {
            Some(SetOperator::ForAllValues) => found.iter().all(good),
            Some(SetOperator::ForAnyValue) => found.iter().any(good),
            // Without a set operator a request with several values has to be no way around a negation.
            None if operator.negated => found.iter().all(good),
            None => found.iter().any(good),
        }
    }

    /// Whether a value of the request is one of those of the policy.
    fn fits(&self, found: &str, context: &Conditions) -> bool {
        let comparison = self.operator.comparison;
        self.values.iter().any(|wanted| match (wanted, comparison) {
            (Operand::Text(p), Comparison::StringIgnoreCase | Comparison::Bool) => {
                p.matches_any_case(found, context)
            }
            (Operand::Text(p), _) => p.matches(found, context),
            (Operand::Arn(p), _) => p.matches(found, context),
            (Operand::Number(n), Comparison::Number(order)) => {
                number(found).is_some_and(|f| order.holds(f, *n))
            }
            (Operand::Number(n), Comparison::Date(order)) => date(found).is_some_and(|f| order.holds(f, *n)),
            (Operand::Bytes(b), _) => bytes(found).is_some_and(|f| f == *b),
            (Operand::Network(net), _) => found.parse().is_ok_and(|ip| net.contains(ip)),
            (Operand::Number(_) | Operand::Absent(_), _) => false,
        })
    }
}
