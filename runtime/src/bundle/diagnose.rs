//! Where in a JSON document does its shape go wrong, what was found, and what is allowed?

use anyhow::Error;
use report::{Explain, nearest};
use serde_json::{Map, Value};

use super::shape::{Field, Shape};

/// The first mistake of `value`, in the order of the specification. `path`: where `value` itself stands.
pub fn first_mistake(value: &Value, shape: &Shape, path: &str) -> Option<Error> {
    match (shape, value) {
        (Shape::Foreign, _) | (Shape::Bool, Value::Bool(_)) | (Shape::Text, Value::String(_)) => None,
        (Shape::Number(low, high), Value::Number(n)) => number(n, *low, *high, path),
        (Shape::Word(what, allowed), Value::String(word)) => unknown_word(word, what, allowed, path),
        (Shape::List(of), Value::Array(items)) => {
            items.iter().enumerate().find_map(|(i, item)| first_mistake(item, of, &format!("{path}[{i}]")))
        }
        (Shape::Map(of), Value::Object(entries)) => {
            entries.iter().find_map(|(key, item)| first_mistake(item, of, &format!("{path}[{key:?}]")))
        }
        (Shape::Object(fields), Value::Object(entries)) => {
            fields.iter().find_map(|field| in_field(entries, fields, field, path))
        }
        _ => Some(at(path, format!("found {}, expected {}", found(value), expected(shape)))),
    }
}

/// The paths of properties that the specification does not have, with the one that was probably meant.
/// They are ignored, as the specification asks; `explain` names them.
pub fn unknown_fields(
    value: &Value,
    shape: &Shape,
    path: &str,
    out: &mut Vec<(String, Option<&'static str>)>,
) {
    match (shape, value) {
        (Shape::List(of), Value::Array(items)) => {
            for (i, item) in items.iter().enumerate() {
                unknown_fields(item, of, &format!("{path}[{i}]"), out);
            }
        }
        (Shape::Map(of), Value::Object(entries)) => {
            for (key, item) in entries {
                unknown_fields(item, of, &format!("{path}[{key:?}]"), out);
            }
        }
        (Shape::Object(fields), Value::Object(entries)) => {
            for (key, item) in entries {
                match fields.iter().find(|f| f.name == key) {
                    Some(field) => unknown_fields(item, &field.shape, &join(path, key), out),
                    None => out.push((join(path, key), nearest(key, fields.iter().map(|f| f.name)))),
                }
            }
        }
        _ => {}
    }
}

fn in_field(entries: &Map<String, Value>, fields: &[Field], field: &Field, path: &str) -> Option<Error> {
    let here = join(path, field.name);
    match entries.get(field.name) {
        Some(value) => first_mistake(value, &field.shape, &here),
        None if field.required => Some(missing(entries, fields, field, &here)),
        None => None,
    }
}

fn missing(entries: &Map<String, Value>, fields: &[Field], field: &Field, here: &str) -> Error {
    let error = at(here, format!("required, but missing (expected {})", expected(&field.shape)));
    let strangers = entries.keys().map(String::as_str).filter(|k| !fields.iter().any(|f| f.name == *k));
    match nearest(field.name, strangers) {
        Some(near) => hinted(error, format!("there is {near:?}, which the specification does not have")),
        None => error,
    }
}

fn unknown_word(word: &str, what: &str, allowed: &'static [&'static str], path: &str) -> Option<Error> {
    if allowed.contains(&word) {
        return None;
    }
    let error = at(path, format!("unknown {what} {word:?} (allowed: {})", allowed.join(", ")));
    Some(match nearest(word, allowed.iter().copied()) {
        Some(near) => hinted(error, format!("did you mean {near:?}?")),
        None => error,
    })
}

fn number(n: &serde_json::Number, low: i128, high: i128, path: &str) -> Option<Error> {
    match n.as_i64().map(i128::from).or_else(|| n.as_u64().map(i128::from)) {
        Some(value) if (low..=high).contains(&value) => None,
        None if n.as_f64().is_some_and(|f| f.fract() != 0.0) => {
            Some(at(path, format!("found {n}, expected {}", expected(&Shape::Number(low, high)))))
        }
        _ => Some(at(path, format!("{n} is out of range (allowed: {low} to {high})"))),
    }
}

fn at(path: &str, message: String) -> Error {
    report::at(if path.is_empty() { "the document" } else { path }, message)
}

fn hinted(error: Error, hint: String) -> Error {
    match Err::<(), _>(error).hint(|| hint) {
        Err(error) => error,
        Ok(()) => unreachable!("an error stays one"),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// How a value is called in a message; long text is cut.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) if s.chars().count() > 40 => {
            format!("the text {:?}…", s.chars().take(40).collect::<String>())
        }
        Value::String(s) => format!("the text {s:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn expected(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "true or false".to_owned(),
        Shape::Text => "a text".to_owned(),
        Shape::Number(low, high) => format!("a whole number from {low} to {high}"),
        Shape::Word(what, allowed) => format!("a {what}, one of {}", allowed.join(", ")),
        Shape::List(of) => match of {
            Shape::Text => "a list of texts".to_owned(),
            Shape::Number(..) => "a list of numbers".to_owned(),
            Shape::Word(what, _) => format!("a list of {what}s"),
            _ => "a list of objects".to_owned(),
        },
        Shape::Map(_) | Shape::Object(_) | Shape::Foreign => "an object".to_owned(),
    }
}
