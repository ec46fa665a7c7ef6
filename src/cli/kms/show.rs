//! Answers for people, where JSON is not asked for.

use std::error::Error;

use serde_json::{Value, json as object};

use super::backend::Backend;
use super::date::date;
use super::print;

/// AWS's answer as it is.
pub(super) fn json(answer: &Value) -> Result<(), Box<dyn Error>> {
    if is_empty(answer) { Ok(()) } else { print(&(serde_json::to_string_pretty(answer)? + "\n")) }
}

fn is_empty(answer: &Value) -> bool {
    answer.as_object().is_none_or(serde_json::Map::is_empty)
}

/// A few answers in lines, the others as JSON.
pub(super) fn people(action: &str, answer: &Value, backend: &mut Backend) -> Result<(), Box<dyn Error>> {
    match action {
        "CreateKey" => print(&format!("{}\n", text(&answer["KeyMetadata"], "KeyId"))),
        "DescribeKey" => print(&describe(&answer["KeyMetadata"])),
        "ListKeys" => {
            let aliases = backend.call("ListAliases", object!({ "Limit": 1000 }))?;
            print(&lines(&answer["Keys"], |key| {
                let id = text(key, "KeyId");
                let names = items(&aliases["Aliases"]).filter(|a| text(a, "TargetKeyId") == id);
                let names: Vec<&str> = names.map(|a| text(a, "AliasName")).collect();
                format!("{id}  {}\n", names.join(" "))
            }))
        }
        "ListAliases" => print(&lines(&answer["Aliases"], |a| {
            format!("{}  {}\n", text(a, "TargetKeyId"), text(a, "AliasName"))
        })),
        "ListKeyRotations" => print(&lines(&answer["Rotations"], |r| {
            let when = date(r["RotationDate"].as_f64().unwrap_or_default());
            format!("{when}  {}  {}\n", text(r, "RotationType"), text(r, "KeyMaterialId"))
        })),
        "RotateKeyOnDemand" => {
            let id = text(answer, "KeyId").rsplit('/').next().unwrap_or_default().to_owned();
            let input = object!({ "KeyId": id, "Limit": 1000 });
            let rotations = backend.call("ListKeyRotations", input)?;
            let version = items(&rotations["Rotations"]).count() + 1;
            print(&format!("{id}  now at version {version}\n"))
        }
        _ => json(answer),
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn lines(list: &Value, line: impl Fn(&Value) -> String) -> String {
    items(list).map(line).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn describe(key: &Value) -> String {
    [
        ("key id", text(key, "KeyId")),
        ("arn", text(key, "Arn")),
        ("description", text(key, "Description")),
        ("state", text(key, "KeyState")),
        ("spec", text(key, "KeySpec")),
        ("usage", text(key, "KeyUsage")),
        ("origin", text(key, "Origin")),
        ("created", &date(key["CreationDate"].as_f64().unwrap_or_default())),
        ("material", text(key, "CurrentKeyMaterialId")),
    ]
    .iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| format!("{name:<13}{value}\n"))
    .collect()
}
