//! Members of an owner's question, which no model checks. One of another type is refused, never taken for one that is
//! not there: a boundary that is not understood would bind nobody.

use serde_json::{Map, Value};

use super::error::KmsError;

/// Policies that one question names.
const MAX_POLICIES: usize = 32;

/// A member that is a text; null is as none.
pub(super) fn text<'a>(input: &'a Value, member: &str) -> Result<Option<&'a str>, KmsError> {
    match input.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(refused(member, "a text")),
    }
}

/// A text that has to be there.
pub(super) fn need<'a>(input: &'a Value, member: &str) -> Result<&'a str, KmsError> {
    text(input, member)?
        .filter(|text| !text.is_empty())
        .ok_or_else(|| KmsError::Validation(format!("{member} is missing")))
}

/// A member that is a list of policies; null is as none.
pub(super) fn policies(input: &Value, member: &str) -> Result<Option<Vec<String>>, KmsError> {
    let list = || refused(member, "a list of texts");
    let given = match input.get(member) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(list()),
    };
    if given.len() > MAX_POLICIES {
        return Err(KmsError::Validation(format!("{member} has more than {MAX_POLICIES} policies")));
    }
    given
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(list))
        .collect::<Result<_, _>>()
        .map(Some)
}

/// A member that is an object; null is as none.
pub(super) fn object<'a>(input: &'a Value, member: &str) -> Result<Option<&'a Map<String, Value>>, KmsError> {
    match input.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(refused(member, "an object")),
    }
}

fn refused(member: &str, kind: &str) -> KmsError {
    KmsError::Validation(format!("{member} is not {kind}"))
}
