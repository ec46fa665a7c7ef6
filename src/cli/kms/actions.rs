//! AWS's actions as commands, in the words of `aws kms`: made from AWS's model, one option for each member.
//!
//! `create-key --key-spec RSA_2048`, `encrypt --key-id alias/a --plaintext fileb://secret`. A key may also stand
//! without its option, as the last word.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Map, Value, json};

use crate::kms::{Member, actions, members};

/// What the actions do, by the first word of their names.
const ABOUT: &[(&str, &str)] = &[
    ("CancelKeyDeletion", "Take back a scheduled deletion; the key is disabled then"),
    ("ConnectCustomKeyStore", "Connect a custom key store to its HSM cluster"),
    ("CreateAlias", "Make an alias for a key"),
    ("CreateCustomKeyStore", "Make a custom key store on an HSM cluster"),
    ("CreateGrant", "Let a principal use a key for some operations"),
    ("CreateKey", "Make a key"),
    ("Decapsulate", "Get the shared secret of an ML-KEM ciphertext"),
    ("Decrypt", "Open a ciphertext"),
    ("DeleteAlias", "Remove an alias"),
    ("DeleteCustomKeyStore", "Remove a custom key store that has no keys"),
    ("DeleteImportedKeyMaterial", "Forget imported material"),
    ("DeriveSharedSecret", "Agree on a secret by ECDH"),
    ("DescribeCustomKeyStores", "Show the custom key stores"),
    ("DescribeKey", "Show a key"),
    ("DisableKey", "Stop all use of a key: no file that it wrapped opens until it is enabled again"),
    ("DisableKeyRotation", "Stop automatic rotation"),
    ("DisconnectCustomKeyStore", "Disconnect a custom key store; its keys are unavailable then"),
    ("EnableKey", "Let a key be used again"),
    ("EnableKeyRotation", "Rotate a key by itself, every 90 to 2560 days"),
    ("Encapsulate", "Make a shared secret and its ML-KEM ciphertext"),
    ("Encrypt", "Seal up to 4096 bytes"),
    ("GenerateDataKey", "Make a data key, plain and sealed"),
    ("GenerateDataKeyPair", "Make a key pair; the private key plain and sealed"),
    ("GenerateDataKeyPairWithoutPlaintext", "Make a key pair; the private key sealed"),
    ("GenerateDataKeyWithoutPlaintext", "Make a data key, sealed"),
    ("GenerateMac", "Make an HMAC"),
    ("GenerateRandom", "Make random bytes"),
    ("GetKeyLastUsage", "Show when a key was used last, and for what"),
    ("GetKeyPolicy", "Show the policy of a key"),
    ("GetKeyRotationStatus", "Show whether a key rotates by itself, and when next"),
    ("GetParametersForImport", "Get a wrapping key and a token for imported material"),
    ("GetPublicKey", "Show the public key of an asymmetric key"),
    ("ImportKeyMaterial", "Import material"),
    ("ListAliases", "List the aliases"),
    ("ListGrants", "List the grants of a key"),
    ("ListKeyPolicies", "List the names of the policies of a key"),
    ("ListKeyRotations", "List the rotations of a key"),
    ("ListKeys", "List the keys"),
    ("ListResourceTags", "List the tags of a key"),
    ("ListRetirableGrants", "List the grants that a principal may retire"),
    ("PutKeyPolicy", "Give a key a policy"),
    ("ReEncrypt", "Seal a ciphertext under another key, version or context"),
    ("ReplicateKey", "Make a replica of a multi-region key"),
    ("RetireGrant", "Give up a grant"),
    ("RevokeGrant", "Take back a grant"),
    ("RotateKeyOnDemand", "Give a key new material, now. What it wrapped before still unwraps"),
    ("ScheduleKeyDeletion", "Delete a key after 7 to 30 days"),
    ("Sign", "Sign a message or its digest"),
    ("TagResource", "Give a key tags"),
    ("UntagResource", "Take tags off a key"),
    ("UpdateAlias", "Let an alias stand for another key"),
    ("UpdateCustomKeyStore", "Change a custom key store"),
    ("UpdateKeyDescription", "Change the description of a key"),
    ("UpdatePrimaryRegion", "Make a replica the primary"),
    ("Verify", "Verify a signature"),
    ("VerifyMac", "Verify an HMAC"),
];

/// An action as it was asked for.
#[derive(Debug)]
pub(in crate::cli) struct Asked {
    pub(super) action: &'static str,
    pub(super) input: Value,
    /// An alias that `create-key` gives to its key.
    pub(super) alias: Option<String>,
    pub(super) json: bool,
    /// The member that names a key and stood without its option: an alias is looked up there.
    pub(super) position: Option<&'static str>,
}

/// `describe-key` of `DescribeKey`.
pub(super) fn kebab(name: &str) -> String {
    let mut out = String::new();
    for (at, c) in name.char_indices() {
        if c.is_ascii_uppercase() && at > 0 {
            out.push('-');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Every action's and member's word, made once: clap keeps names for the life of the program.
static WORDS: LazyLock<BTreeMap<&'static str, &'static str>> = LazyLock::new(|| {
    let names = actions().chain(actions().flat_map(members).map(|m| m.name));
    names.map(|name| (name, &*kebab(name).leak())).collect()
});

fn word(name: &'static str) -> &'static str {
    WORDS.get(name).copied().unwrap_or(name)
}

/// The action of a command's name.
pub(super) fn action_of(command: &str) -> Option<&'static str> {
    match command {
        "rotate-key" => Some("RotateKeyOnDemand"),
        _ => actions().find(|a| word(a) == command),
    }
}

/// Adds a command for each action.
pub(super) fn add_to(mut command: Command) -> Command {
    for action in actions() {
        command = command.subcommand(command_of(action));
    }
    command
}

fn command_of(action: &'static str) -> Command {
    let about = ABOUT.iter().find(|(name, _)| *name == action).map_or("", |(_, text)| text);
    let mut command = Command::new(word(action)).about(about);
    if action == "RotateKeyOnDemand" {
        command = command.visible_alias("rotate-key");
    }
    for member in members(action) {
        command = command.arg(option_of(member));
    }
    if action == "CreateKey" {
        command =
            command.arg(Arg::new("alias").long("alias").value_name("alias/NAME").help("An alias for it"));
    }
    for (at, (member, name)) in positions(action).into_iter().enumerate() {
        let help = match member {
            "AliasName" => "The alias",
            _ => "Key id, key ARN, alias/NAME or alias ARN",
        };
        let arg = Arg::new(place_of(member)).index(at + 1).value_name(name).help(help);
        command = command.arg(arg.conflicts_with(member));
    }
    command
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print AWS KMS's answer as JSON"))
}

/// Members that may stand without their option, in order.
fn positions(action: &str) -> Vec<(&'static str, &'static str)> {
    match action {
        "CreateAlias" | "UpdateAlias" => vec![("AliasName", "alias/NAME"), ("TargetKeyId", "KEY")],
        "DeleteAlias" => vec![("AliasName", "alias/NAME")],
        _ if members(action).iter().any(|m| m.name == "KeyId" && m.required) => vec![("KeyId", "KEY")],
        _ => Vec::new(),
    }
}

/// Id of the argument that stands for a member without its option.
fn place_of(member: &str) -> &'static str {
    match member {
        "AliasName" => "alias name",
        "TargetKeyId" => "target key",
        _ => "key",
    }
}

fn option_of(member: Member) -> Arg {
    let arg = Arg::new(member.name).long(word(member.name));
    match member.kind {
        "boolean" => arg.action(ArgAction::SetTrue).help("Yes"),
        "blob" => arg.value_name("BASE64").help("Bytes: base64, or fileb://FILE, or - for base64 on stdin"),
        "integer" => arg.value_name("N").help("A number"),
        "timestamp" => arg.value_name("SECONDS").help("Seconds since 1970"),
        "map" => arg.value_name("KEY=VALUE,...").help("Pairs, as k=v,k=v or as JSON"),
        "list" => {
            arg.value_name("ITEM").num_args(1..).action(ArgAction::Append).help("Items, or one JSON list")
        }
        "structure" => arg.value_name("JSON").help("A structure as JSON, or file://FILE"),
        _ => arg.value_name("TEXT").help("Text, or file://FILE"),
    }
}

/// Reads the input of an action from its command line.
pub(super) fn asked(action: &'static str, matches: &ArgMatches) -> Result<Asked, String> {
    let mut input = Map::new();
    for member in members(action) {
        if let Some(value) = value_of(member, matches)? {
            input.insert(member.name.into(), value);
        }
    }
    let mut position = None;
    for (member, _) in positions(action) {
        if let Some(text) = matches.get_one::<String>(place_of(member)) {
            input.insert(member.into(), json!(text));
            position = (member != "AliasName").then_some(member).or(position);
        }
    }
    let alias = match action {
        "CreateKey" => matches.get_one::<String>("alias").cloned(),
        _ => None,
    };
    Ok(Asked { action, input: Value::Object(input), alias, json: matches.get_flag("json"), position })
}

fn value_of(member: Member, matches: &ArgMatches) -> Result<Option<Value>, String> {
    if member.kind == "boolean" {
        return Ok(matches.get_flag(member.name).then_some(Value::Bool(true)));
    }
    if member.kind == "list" {
        let items = matches.get_many::<String>(member.name).map(Iterator::collect::<Vec<_>>);
        return items.map(|items| list(member.name, &items)).transpose();
    }
    let Some(text) = matches.get_one::<String>(member.name) else { return Ok(None) };
    let bad = |why: &str| format!("--{}: {why}", kebab(member.name));
    Ok(Some(match member.kind {
        "integer" => json!(text.parse::<i64>().map_err(|_| bad("not a number"))?),
        "timestamp" => json!(text.parse::<f64>().map_err(|_| bad("not seconds since 1970"))?),
        "blob" => blob(text).map_err(|e| bad(&e))?,
        "map" if !text.trim_start().starts_with('{') => pairs(text).map_err(|e| bad(&e))?,
        "map" | "structure" => {
            let text = file(text).map_err(|e| bad(&e))?;
            serde_json::from_str(&text).map_err(|e| bad(&format!("not JSON: {e}")))?
        }
        _ => json!(file(text).map_err(|e| bad(&e))?),
    }))
}

fn read(path: &str) -> Result<Vec<u8>, String> {
    std::fs::read(Path::new(path)).map_err(|e| format!("{path}: {e}"))
}

fn file(text: &str) -> Result<String, String> {
    match text.strip_prefix("file://") {
        None => Ok(text.to_owned()),
        Some(path) => String::from_utf8(read(path)?).map_err(|_| format!("{path}: not UTF-8 text")),
    }
}

fn blob(text: &str) -> Result<Value, String> {
    if let Some(path) = text.strip_prefix("fileb://") {
        return Ok(json!(BASE64_STANDARD.encode(read(path)?)));
    }
    let text = match text {
        "-" => std::io::read_to_string(std::io::stdin()).map_err(|e| e.to_string())?,
        text => file(text)?,
    };
    let text: String = text.split_whitespace().collect();
    BASE64_STANDARD
        .decode(&text)
        .map_err(|_| "not base64; give a file of raw bytes as fileb://FILE".to_owned())?;
    Ok(json!(text))
}

fn pairs(text: &str) -> Result<Value, String> {
    let pair = |p: &str| {
        let (k, v) = p.split_once('=').ok_or_else(|| format!("{p}: not KEY=VALUE"))?;
        Ok((k.to_owned(), json!(v)))
    };
    text.split(',').map(pair).collect::<Result<Map<_, _>, String>>().map(Value::Object)
}

/// Items of a list: words, one JSON list, or tags as `TagKey=k,TagValue=v`.
fn list(name: &str, items: &[&String]) -> Result<Value, String> {
    if let [one] = items
        && one.trim_start().starts_with('[')
    {
        return serde_json::from_str(one).map_err(|e| format!("--{}: not JSON: {e}", kebab(name)));
    }
    items
        .iter()
        .map(
            |item| {
                if name == "Tags" { pairs(item).map_err(|e| format!("--tags: {e}")) } else { Ok(json!(item)) }
            },
        )
        .collect::<Result<Vec<_>, _>>()
        .map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_for(line: &[&str]) -> Result<Asked, String> {
        let matches = add_to(Command::new("kms")).try_get_matches_from(line).map_err(|e| e.to_string())?;
        let (name, matches) = matches.subcommand().ok_or("no command")?;
        asked(action_of(name).ok_or("unknown")?, matches)
    }

    /// Words of `aws kms` become AWS's request, in all the forms that its command line takes.
    #[test]
    fn words_of_aws_become_its_request() {
        let asked = asked_for(&[
            "kms",
            "encrypt",
            "--key-id",
            "alias/a",
            "--plaintext",
            "aGk=",
            "--encryption-context",
            "a=b,c=d",
        ]);
        let expected =
            json!({ "KeyId": "alias/a", "Plaintext": "aGk=", "EncryptionContext": { "a": "b", "c": "d" } });
        assert_eq!(asked.unwrap().input, expected);
        let asked = asked_for(&["kms", "tag-resource", "k", "--tags", "TagKey=x,TagValue=y"]).unwrap();
        assert_eq!(asked.input, json!({ "KeyId": "k", "Tags": [{ "TagKey": "x", "TagValue": "y" }] }));
        let asked =
            asked_for(&["kms", "create-grant", "k", "--operations", "Encrypt", "Decrypt", "--dry-run"])
                .unwrap();
        assert_eq!(
            asked.input,
            json!({ "KeyId": "k", "Operations": ["Encrypt", "Decrypt"], "DryRun": true })
        );
        assert!(asked_for(&["kms", "encrypt", "k", "--plaintext", "no base64!"]).is_err());
        assert!(asked_for(&["kms", "encrypt", "k", "--encryption-context", "ab"]).is_err());
    }

    /// Every action has a command and a line that says what it does.
    #[test]
    fn every_action_has_a_command() {
        assert_eq!(ABOUT.len(), 56);
        for (action, about) in ABOUT {
            assert_eq!(action_of(&kebab(action)), Some(*action));
            assert!(!about.is_empty());
        }
        assert_eq!(kebab("ReEncrypt"), "re-encrypt");
        add_to(Command::new("kms")).debug_assert();
    }
}
