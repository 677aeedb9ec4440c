//! What can a template see, and how does Go print it?

use std::cmp::Ordering;
use std::fmt::Write;

/// A value of a template.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    #[default]
    Nil,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// Keys that nobody knows in advance, as those of labels: a missing one is nothing.
    Map(Vec<(String, Value)>),
    /// What Go has as a structure: a missing field is a mistake.
    Fields(Vec<(String, Value)>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Value {
        Value::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Value {
        Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Value {
        Value::from(value as u64)
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Value {
        value.map_or(Value::Nil, Into::into)
    }
}

impl<T: Into<Value>> From<Vec<T>> for Value {
    fn from(list: Vec<T>) -> Value {
        Value::List(list.into_iter().map(Into::into).collect())
    }
}

impl From<&serde_json::Value> for Value {
    /// The names of Go's fields begin with capitals, which tells structures from maps.
    fn from(json: &serde_json::Value) -> Value {
        match json {
            serde_json::Value::Null => Value::Nil,
            serde_json::Value::Bool(b) => Value::Bool(*b),
            serde_json::Value::Number(n) => match n.as_i64() {
                Some(n) => Value::Int(n),
                None => Value::Float(n.as_f64().unwrap_or_default()),
            },
            serde_json::Value::String(s) => Value::Text(s.clone()),
            serde_json::Value::Array(a) => Value::List(a.iter().map(Value::from).collect()),
            serde_json::Value::Object(o) => {
                let pairs = o.iter().map(|(k, v)| (k.clone(), v.into())).collect();
                let capital = |key: &String| key.starts_with(|c: char| c.is_uppercase());
                if !o.is_empty() && o.keys().all(capital) { Value::Fields(pairs) } else { Value::Map(pairs) }
            }
        }
    }
}

/// A structure of these fields.
#[cfg(test)]
pub fn fields<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Fields(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

impl Value {
    /// What Go calls its type, as far as people meet it in messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Int(_) => "int",
            Value::Float(_) => "float64",
            Value::Text(_) => "string",
            Value::List(_) => "list",
            Value::Map(_) => "map",
            Value::Fields(_) => "struct",
        }
    }

    /// Whether `if` takes it for true: text/template, "Actions".
    pub fn truth(&self) -> bool {
        match self {
            Value::Nil => false,
            Value::Bool(b) => *b,
            Value::Int(n) => *n != 0,
            Value::Float(n) => *n != 0.0,
            Value::Text(s) => !s.is_empty(),
            Value::List(l) => !l.is_empty(),
            Value::Map(m) => !m.is_empty(),
            Value::Fields(_) => true,
        }
    }

    /// As `%v` prints it; what is missing at the top is `<no value>`.
    pub fn print(&self) -> String {
        if *self == Value::Nil { "<no value>".to_owned() } else { self.inner(false) }
    }

    /// As `%v` prints it inside of something else; `%+v` names the fields.
    pub fn inner(&self, named: bool) -> String {
        let joined = |items: Vec<String>| items.join(" ");
        match self {
            Value::Nil => "<nil>".to_owned(),
            Value::Bool(b) => b.to_string(),
            Value::Int(n) => n.to_string(),
            Value::Float(n) => super::printf::general(*n, None),
            Value::Text(s) => s.clone(),
            Value::List(list) => format!("[{}]", joined(list.iter().map(|v| v.inner(named)).collect())),
            Value::Map(map) => {
                let mut pairs: Vec<_> = map.iter().map(|(k, v)| format!("{k}:{}", v.inner(named))).collect();
                pairs.sort();
                format!("map[{}]", joined(pairs))
            }
            Value::Fields(fields) => {
                let pair = |(k, v): &(String, Value)| match named {
                    true => format!("{k}:{}", v.inner(named)),
                    false => v.inner(named),
                };
                format!("{{{}}}", joined(fields.iter().map(pair).collect()))
            }
        }
    }

    /// As encoding/json writes it: on one line, with `<`, `>` and `&` escaped.
    pub fn json(&self) -> String {
        let mut out = String::new();
        self.write_json(&mut out);
        out
    }

    fn write_json(&self, out: &mut String) {
        match self {
            Value::Nil => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => out.push_str(&n.to_string()),
            Value::Float(n) => out.push_str(&serde_json::Value::from(*n).to_string()),
            Value::Text(s) => write_text(out, s),
            Value::List(list) => {
                for (i, item) in list.iter().enumerate() {
                    out.push(if i == 0 { '[' } else { ',' });
                    item.write_json(out);
                }
                out.push_str(if list.is_empty() { "[]" } else { "]" });
            }
            Value::Map(pairs) | Value::Fields(pairs) => {
                for (i, (key, value)) in pairs.iter().enumerate() {
                    out.push(if i == 0 { '{' } else { ',' });
                    write_text(out, key);
                    out.push(':');
                    value.write_json(out);
                }
                out.push_str(if pairs.is_empty() { "{}" } else { "}" });
            }
        }
    }

    /// In which order two values of one type stand; `None` for others.
    pub fn order(&self, other: &Value) -> Option<Ordering> {
        match (self, other) {
            (Value::Int(a), Value::Int(b)) => Some(a.cmp(b)),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b),
            (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if u32::from(c) < 0x20 || matches!(c, '\u{2028}' | '\u{2029}' | '<' | '>' | '&') => {
                write!(out, "\\u{:04x}", u32::from(c)).unwrap_or_default();
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_print_as_go_prints_them() {
        for (value, printed) in [
            (json!(null), "<no value>"),
            (json!([]), "[]"),
            (json!(["a", "b"]), "[a b]"),
            (json!({"b": 1, "a": [true, null]}), "map[a:[true <nil>] b:1]"),
            (json!(1.5), "1.5"),
            (json!(1e21), "1e+21"),
            (json!("x"), "x"),
        ] {
            assert_eq!(Value::from(&value).print(), printed, "{value}");
        }
        let person = fields([("Name", "x".into()), ("Tags", Value::from(vec!["y"]))]);
        assert_eq!(person.print(), "{x [y]}");
        assert_eq!(person.inner(true), "{Name:x Tags:[y]}");
    }

    #[test]
    fn json_keeps_the_order_of_fields_and_escapes_as_go_does() {
        let value = fields([("Z", "<a>&\u{1}\n\"".into()), ("A", Value::List(vec![]))]);
        assert_eq!(value.json(), r#"{"Z":"\u003ca\u003e\u0026\u0001\n\"","A":[]}"#);
        assert_eq!(Value::from(&json!({"a": [{"b": null}], "c": {}})).json(), r#"{"a":[{"b":null}],"c":{}}"#);
    }
}
