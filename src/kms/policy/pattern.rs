//! Texts of a policy that stand for more than themselves: `*`, `?`, `${variable}`, `${variable, 'default'}`.
//!
//! What a variable is replaced by is plain text: a `*` that a caller puts into a tag or a name matches a `*` only
//! (IAM User Guide, reference_policies_variables).

use super::conditions::Conditions;

/// One step of a compiled pattern.
#[derive(Clone, PartialEq, Debug)]
enum Token {
    /// This character.
    Char(char),
    /// Any characters, also none.
    Star,
    /// One character.
    One,
    /// The value of a condition key (lower case), or the text that stands for it where the request has none.
    Variable(String, Option<String>),
}

/// What is special in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Syntax {
    /// `*` and `?` are wildcards.
    pub(super) wildcards: bool,
    /// `${...}` is a variable.
    pub(super) variables: bool,
}

/// A compiled text.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
    /// The text itself, where nothing in it is special.
    literal: Option<String>,
    has_variables: bool,
}

impl Pattern {
    /// Compiles a text. The error is what a person needs to mend it.
    pub(super) fn new(text: &str, syntax: Syntax) -> Result<Self, String> {
        let tokens = tokens(text, syntax)?;
        let has_variables = tokens.iter().any(|t| matches!(t, Token::Variable(..)));
        let plain = tokens.iter().all(|t| matches!(t, Token::Char(_)));
        let literal = plain.then(|| tokens.iter().filter_map(Token::char).collect());
        Ok(Self { tokens, literal, has_variables })
    }

    /// Whether `text` is what the pattern says. A variable that the request has no value for matches nothing.
    pub(super) fn matches(&self, text: &str, context: &Conditions) -> bool {
        match &self.literal {
            Some(literal) => literal == text,
            None => self.resolved(context).is_some_and(|t| glob(&t, text)),
        }
    }

    /// As [`Pattern::matches`], for characters of either case.
    pub(super) fn matches_any_case(&self, text: &str, context: &Conditions) -> bool {
        match &self.literal {
            Some(literal) if literal.is_ascii() && text.is_ascii() => literal.eq_ignore_ascii_case(text),
            Some(literal) => literal.to_lowercase() == text.to_lowercase(),
            None => {
                let fold = |t: Token| match t {
                    Token::Char(c) => c.to_lowercase().map(Token::Char).collect(),
                    other => vec![other],
                };
                self.resolved(context).is_some_and(|t| {
                    let folded: Vec<Token> = t.iter().cloned().flat_map(fold).collect();
                    glob(&folded, &text.to_lowercase())
                })
            }
        }
    }

    /// The tokens with the values of variables in their places.
    fn resolved(&self, context: &Conditions) -> Option<std::borrow::Cow<'_, [Token]>> {
        if !self.has_variables {
            return Some((&self.tokens).into());
        }
        let mut out = Vec::with_capacity(self.tokens.len() + 32);
        for token in &self.tokens {
            match token {
                Token::Variable(key, default) => {
                    let value = context.single(key).or(default.as_deref())?;
                    out.extend(value.chars().map(Token::Char));
                }
                other => out.push(other.clone()),
            }
        }
        Some(out.into())
    }
}

/// A compiled ARN: each of the six parts is matched by itself, so that no `*` reaches beyond a colon, save in the
/// last part.
#[derive(Clone, Debug)]
pub(super) struct ArnPattern {
    /// A single `*`.
    everything: bool,
    parts: Vec<Pattern>,
}

impl ArnPattern {
    /// Compiles an ARN of a `Resource`: parts that are missing at its end are `*`.
    pub(super) fn resource(text: &str, variables: bool) -> Result<Self, String> {
        let mut pattern = Self::new(text, variables)?;
        let any = Pattern::new("*", Syntax { wildcards: true, variables: false })?;
        if text != "*" && !text.starts_with("arn:") {
            return Err(format!("\"{text}\" is neither an ARN nor \"*\""));
        }
        pattern.parts.resize(6, any);
        Ok(pattern)
    }

    /// Compiles an ARN of a condition.
    pub(super) fn new(text: &str, variables: bool) -> Result<Self, String> {
        let syntax = Syntax { wildcards: true, variables };
        let whole = Pattern::new(text, syntax)?;
        let mut parts: Vec<Vec<Token>> = vec![Vec::new()];
        for token in whole.tokens {
            if token == Token::Char(':') && parts.len() < 6 {
                parts.push(Vec::new());
            } else if let Some(part) = parts.last_mut() {
                part.push(token);
            }
        }
        let parts = parts.into_iter().map(|tokens| Pattern {
            literal: tokens.iter().map(Token::char).collect(),
            has_variables: tokens.iter().any(|t| matches!(t, Token::Variable(..))),
            tokens,
        });
        Ok(Self { everything: text == "*", parts: parts.collect() })
    }

    /// Whether `arn` is what the pattern says.
    pub(super) fn matches(&self, arn: &str, context: &Conditions) -> bool {
        if self.everything {
            return true;
        }
        let mut found = arn.splitn(6, ':');
        self.parts.iter().all(|part| found.next().is_some_and(|text| part.matches(text, context)))
            && self.parts.len() == 6
    }

    /// Whether it has to look into the request.
    pub(super) fn has_variables(&self) -> bool {
        self.parts.iter().any(|p| p.has_variables)
    }
}

impl Token {
    fn char(&self) -> Option<char> {
        match self {
            Self::Char(c) => Some(*c),
            Self::Star | Self::One | Self::Variable(..) => None,
        }
    }
}

fn tokens(text: &str, syntax: Syntax) -> Result<Vec<Token>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if syntax.variables
            && let Some(behind) = rest.strip_prefix("${")
        {
            let Some((inside, after)) = behind.split_once('}') else {
                return Err(format!("\"{text}\": a variable has no closing brace"));
            };
            out.push(variable(inside).ok_or_else(|| format!("\"{text}\": ${{{inside}}} is no variable"))?);
            rest = after;
            continue;
        }
        out.push(match c {
            '*' if syntax.wildcards => Token::Star,
            '?' if syntax.wildcards => Token::One,
            other => Token::Char(other),
        });
        rest = &rest[c.len_utf8()..];
    }
    out.dedup_by(|a, b| *a == Token::Star && *b == Token::Star);
    Ok(out)
}

/// The inside of `${...}`.
fn variable(inside: &str) -> Option<Token> {
    if let "*" | "?" | "$" = inside {
        return inside.chars().next().map(Token::Char);
    }
    let (key, default) = match inside.split_once(',') {
        None => (inside, None),
        Some((key, rest)) => {
            let quoted = rest.trim().strip_prefix('\'')?.strip_suffix('\'')?;
            (key, Some(quoted.to_owned()))
        }
    };
    let key = key.trim();
    let named = key.contains(':') && !key.contains(char::is_whitespace);
    named.then(|| Token::Variable(key.to_lowercase(), default))
}

/// Whether `text` is what the tokens say. At most `tokens x text` steps: only the last star is gone back to.
fn glob(tokens: &[Token], text: &str) -> bool {
    let mut at = 0;
    let mut rest = text.chars();
    let mut star: Option<(usize, std::str::Chars<'_>)> = None;
    loop {
        let before = rest.clone();
        let fits = match (tokens.get(at), rest.next()) {
            (None, None) => return true,
            (Some(Token::Star), _) => {
                star = Some((at + 1, before.clone()));
                rest = before;
                at += 1;
                continue;
            }
            (Some(Token::One), Some(_)) => true,
            (Some(Token::Char(want)), Some(found)) => *want == found,
            _ => false,
        };
        if fits {
            at += 1;
            continue;
        }
        // The last star takes one character more.
        let Some((behind, mut from)) = star.take() else { return false };
        if from.next().is_none() {
            return false;
        }
        at = behind;
        rest = from.clone();
        star = Some((behind, from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(pattern: &str, text: &str) -> bool {
        let syntax = Syntax { wildcards: true, variables: true };
        Pattern::new(pattern, syntax).unwrap().matches(text, &Conditions::default())
    }

    /// Wildcards match what they say, at both ends, several at once, and not a character more.
    #[test]
    fn wildcards_match_what_they_say() {
        for (pattern, text) in [
            ("*", ""),
            ("a*", "a"),
            ("*a", "ba"),
            ("a*c*e", "abcde"),
            ("a?c", "abc"),
            ("**", "x"),
            ("?*", "x"),
            ("*ab", "aab"),
            ("*.example.com", "a.b.example.com"),
            ("${*}", "*"),
            ("${?}x${$}", "?x$"),
            ("ü?", "üß"),
        ] {
            assert!(like(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", ""),
            ("a*", "ba"),
            ("a?", "a"),
            ("?", ""),
            ("a*c", "abcd"),
            ("${*}", "x"),
            ("A", "a"),
        ] {
            assert!(!like(pattern, text), "{pattern} {text}");
        }
    }

    /// A pattern of many stars ends in time that grows with its length, not in exponential time.
    #[test]
    fn many_stars_end() {
        assert!(!like(
            &"*a".repeat(200),
            &"a".repeat(5000).replace("aaaa", "aaab")[..4001].replace('a', "b")
        ));
    }

    /// In an ARN no star reaches beyond a colon, save in the last part; a variable's value is no wildcard.
    #[test]
    fn stars_of_arns_stay_in_their_part() {
        let none = Conditions::default();
        let arn = |p: &str| ArnPattern::resource(p, true).unwrap();
        let key = "arn:aws:kms:eu-central-1:111122223333:key/ab:c";
        assert!(arn("arn:aws:kms:*:111122223333:key/*").matches(key, &none));
        assert!(arn("arn:aws:kms").matches(key, &none) && arn("*").matches(key, &none));
        assert!(!arn("arn:aws:*:key/ab:c").matches(key, &none));
        let mut context = Conditions::default();
        context.set("aws:username", "*");
        assert!(!arn("arn:aws:kms:*:*:key/${aws:username}").matches(key, &context));
        assert!(ArnPattern::resource("key/x", true).is_err());
        assert!(Pattern::new("${aws:x", Syntax { wildcards: true, variables: true }).is_err());
    }
}
