//! What comes of a template and a value?

use anyhow::Result;

use super::printf::{quote, sprintf};
use super::template::{At, Command, Node, Operand, Pipeline, Template, wrong};
use super::value::Value;

/// Bytes that a template may print of one value: it may multiply what it prints.
const OUTPUT_MOST: usize = 64 << 20;

impl Template {
    /// Print `data` with it.
    pub fn render(&self, data: &serde_json::Value) -> Result<String> {
        self.run(&data.into(), false)
    }

    /// The header of a column for each thing that it prints: `names` has that of each field, which functions leave alone.
    pub fn header(&self, names: &serde_json::Value) -> Result<String> {
        self.run(&names.into(), true)
    }

    fn run(&self, data: &Value, header: bool) -> Result<String> {
        let mut run = Run { variables: vec![(String::new(), data.clone())], out: String::new(), header };
        run.nodes(&self.nodes, data)?;
        Ok(run.out)
    }
}

struct Run {
    /// The innermost last; the one without a name is `$`.
    variables: Vec<(String, Value)>,
    out: String,
    header: bool,
}

/// How a row of nodes ended.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

impl Run {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<Flow> {
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Result<Flow> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.out.push_str(&value.print());
                if self.out.len() > OUTPUT_MOST {
                    return Err(wrong(pipeline.at, format!("it prints more than {OUTPUT_MOST} bytes")));
                }
            }
            Node::Set(pipeline) => {
                let value = self.pipeline(pipeline, dot)?;
                self.set(pipeline, &pipeline.variables, vec![value])?;
            }
            Node::If { pipeline, with, then, otherwise } => {
                let scope = self.variables.len();
                let value = self.pipeline(pipeline, dot)?;
                let truth = value.truth();
                self.set(pipeline, &pipeline.variables, vec![value.clone()])?;
                let flow = match (truth, with) {
                    (true, true) => self.nodes(then, &value),
                    (true, false) => self.nodes(then, dot),
                    (false, _) => self.nodes(otherwise, dot),
                };
                self.variables.truncate(scope);
                return flow;
            }
            Node::Range { pipeline, each, otherwise } => return self.range(pipeline, each, otherwise, dot),
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    fn range(&mut self, pipeline: &Pipeline, each: &[Node], otherwise: &[Node], dot: &Value) -> Result<Flow> {
        let scope = self.variables.len();
        let value = self.pipeline(pipeline, dot)?;
        let items: Vec<(Value, Value)> = match value {
            Value::Nil => Vec::new(),
            Value::List(list) => list.into_iter().enumerate().map(|(i, v)| (i.into(), v)).collect(),
            Value::Map(mut map) => {
                map.sort_by(|(a, _), (b, _)| a.cmp(b));
                map.into_iter().map(|(k, v)| (k.into(), v)).collect()
            }
            Value::Int(n) if (0..=1_000_000).contains(&n) => {
                (0..n).map(|i| (Value::Int(i), Value::Int(i))).collect()
            }
            // The header of a list is one word.
            Value::Text(_) if self.header => vec![(Value::Int(0), value)],
            other => return Err(wrong(pipeline.at, format!("range cannot go over a {}", other.kind()))),
        };
        if items.is_empty() {
            let flow = self.nodes(otherwise, dot);
            self.variables.truncate(scope);
            return flow;
        }
        for (key, item) in items {
            let values = match pipeline.variables.len() {
                2 => vec![key, item.clone()],
                _ => vec![item.clone()],
            };
            self.set(pipeline, &pipeline.variables, values)?;
            let flow = self.nodes(each, &item)?;
            self.variables.truncate(scope);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn set(&mut self, pipeline: &Pipeline, names: &[String], values: Vec<Value>) -> Result<()> {
        for (name, value) in names.iter().zip(values) {
            if pipeline.declares {
                self.variables.push((name.clone(), value));
                continue;
            }
            match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
                Some((_, old)) => *old = value,
                None => return Err(wrong(pipeline.at, format!("undefined variable ${name}"))),
            }
        }
        Ok(())
    }

    fn pipeline(&mut self, pipeline: &Pipeline, dot: &Value) -> Result<Value> {
        let mut last = None;
        for command in &pipeline.commands {
            last = Some(self.command(command, dot, last)?);
        }
        Ok(last.unwrap_or_default())
    }

    fn command(&mut self, command: &Command, dot: &Value, piped: Option<Value>) -> Result<Value> {
        let (first, rest) = match command.operands.split_first() {
            Some(operands) => operands,
            None => return Err(wrong(command.at, "a value is missing")),
        };
        let Operand::Function(name) = first else {
            if piped.is_some() {
                return Err(wrong(command.at, "what stands behind | must be a function"));
            }
            return self.operand(first, dot, command.at);
        };
        // These look at an argument only if those before it leave the question open.
        if matches!(name.as_str(), "and" | "or") {
            let mut value = None;
            for operand in rest {
                let next = self.operand(operand, dot, command.at)?;
                let decided = next.truth() == (name == "or");
                value = Some(next);
                if decided {
                    return Ok(value.unwrap_or_default());
                }
            }
            return piped.or(value).ok_or_else(|| wrong(command.at, format!("{name}: no arguments")));
        }
        let mut args = Vec::new();
        for operand in rest {
            args.push(self.operand(operand, dot, command.at)?);
        }
        args.extend(piped);
        if self.header
            && matches!(
                name.as_str(),
                "json" | "split" | "join" | "title" | "lower" | "upper" | "truncate" | "pad"
            )
        {
            return Ok(args.into_iter().next().unwrap_or_default());
        }
        call(name, args).map_err(|what| wrong(command.at, what))
    }

    fn operand(&mut self, operand: &Operand, dot: &Value, at: At) -> Result<Value> {
        match operand {
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Dot(path) => self.fields(dot.clone(), path, at),
            Operand::Variable(name, path) => {
                let value = self.variables.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.clone());
                let value = value.ok_or_else(|| wrong(at, format!("undefined variable ${name}")))?;
                self.fields(value, path, at)
            }
            Operand::Function(name) => call(name, Vec::new()).map_err(|what| wrong(at, what)),
            Operand::Parenthesis(pipeline, path) => {
                let value = self.pipeline(pipeline, dot)?;
                self.fields(value, path, at)
            }
        }
    }

    fn fields(&self, mut value: Value, path: &[String], at: At) -> Result<Value> {
        for name in path {
            value = match value {
                Value::Map(map) => {
                    map.into_iter().find(|(n, _)| n == name).map(|(_, v)| v).unwrap_or_default()
                }
                Value::Fields(fields) => {
                    let known: Vec<_> = fields.iter().map(|(n, _)| format!(".{n}")).collect();
                    match fields.into_iter().find(|(n, _)| n == name) {
                        Some((_, value)) => value,
                        None => {
                            let known = known.join(" ");
                            return Err(wrong(at, format!("no field .{name}; there are {known}")));
                        }
                    }
                }
                Value::Nil => return Err(wrong(at, format!("nothing is there to have a field .{name}"))),
                // The header of something with fields is one word.
                other if self.header => other,
                other => return Err(wrong(at, format!("a {} has no field .{name}", other.kind()))),
            };
        }
        Ok(value)
    }
}

const FUNCTIONS: &str = "and or not eq ne lt le gt ge len index slice print printf println json join split \
                         upper lower title truncate pad html urlquery js";

fn call(name: &str, args: Vec<Value>) -> Result<Value, String> {
    let count = args.len();
    let wants = |text: &str| format!("{name}: wants {text}, got {count} arguments");
    Ok(match (name, args.as_slice()) {
        ("not", [value]) => Value::Bool(!value.truth()),
        ("not", _) => return Err(wants("one argument")),
        ("eq", [first, others @ ..]) if !others.is_empty() => {
            for other in others {
                if equal(first, other).map_err(|e| format!("eq: {e}"))? {
                    return Ok(Value::Bool(true));
                }
            }
            Value::Bool(false)
        }
        ("eq", _) => return Err(wants("two or more")),
        ("ne", [a, b]) => Value::Bool(!equal(a, b).map_err(|e| format!("ne: {e}"))?),
        ("lt" | "le" | "gt" | "ge", [a, b]) => {
            let Some(order) = a.order(b) else {
                return Err(format!("{name}: a {} and a {} have no order", a.kind(), b.kind()));
            };
            Value::Bool(match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            })
        }
        ("ne" | "lt" | "le" | "gt" | "ge", _) => return Err(wants("two")),
        ("len", [value]) => match value {
            Value::Text(s) => s.len().into(),
            Value::List(l) => l.len().into(),
            Value::Map(m) => m.len().into(),
            Value::Nil => return Err("len: nothing has no length".to_owned()),
            other => return Err(format!("len: a {} has no length", other.kind())),
        },
        ("len", _) => return Err(wants("one")),
        ("index", [value, keys @ ..]) => index(value.clone(), keys)?,
        ("index", _) => return Err(wants("one or more")),
        ("slice", [value, bounds @ ..]) if bounds.len() <= 2 => slice(value, bounds)?,
        ("slice", _) => return Err(wants("a text or a list, and up to two bounds")),
        ("print", args) => print(args).into(),
        ("println", args) => {
            let words: Vec<_> = args.iter().map(|a| a.inner(false)).collect();
            (words.join(" ") + "\n").into()
        }
        ("printf", [Value::Text(format), args @ ..]) => sprintf(format, args).into(),
        ("printf", _) => return Err("printf: the format is missing".to_owned()),
        ("json", [value]) => value.json().into(),
        ("json", _) => return Err(wants("one")),
        ("join", [Value::List(list), Value::Text(between)]) => {
            let words: Vec<_> = list.iter().map(|v| v.inner(false)).collect();
            words.join(between).into()
        }
        ("join", [Value::Nil, Value::Text(_)]) => "".into(),
        ("join", _) => return Err("join: wants a list and the text between, as in join .Tags \", \"".into()),
        ("split", [Value::Text(text), Value::Text(at)]) => {
            if at.is_empty() {
                Value::from(text.chars().map(String::from).collect::<Vec<_>>())
            } else {
                Value::from(text.split(at.as_str()).collect::<Vec<_>>())
            }
        }
        ("split", _) => return Err("split: wants two texts, as in split .ID \":\"".into()),
        ("upper", [Value::Text(text)]) => text.to_uppercase().into(),
        ("lower", [Value::Text(text)]) => text.to_lowercase().into(),
        ("title", [Value::Text(text)]) => title(text).into(),
        ("upper" | "lower" | "title" | "html" | "js" | "urlquery", []) => return Err(wants("a text")),
        ("truncate", [Value::Text(text), Value::Int(most)]) => {
            text.chars().take(usize::try_from(*most).unwrap_or(0)).collect::<String>().into()
        }
        ("truncate", _) => return Err("truncate: wants a text and a number".into()),
        ("pad", [Value::Text(text), Value::Int(before), Value::Int(after)]) => {
            let spaces = |n: &i64| " ".repeat(usize::try_from(*n).unwrap_or(0).min(1 << 12));
            let padded = format!("{}{text}{}", spaces(before), spaces(after));
            if text.is_empty() { "".into() } else { padded.into() }
        }
        ("pad", _) => return Err("pad: wants a text and two numbers".into()),
        ("html", args) => escape(&print(args), |c| match c {
            '<' => Some("&lt;".into()),
            '>' => Some("&gt;".into()),
            '&' => Some("&amp;".into()),
            '"' => Some("&#34;".into()),
            '\'' => Some("&#39;".into()),
            _ => None,
        }),
        ("js", args) => escape(&print(args), |c| match c {
            '\\' | '\'' | '"' => Some(format!("\\{c}")),
            '<' | '>' | '&' | '=' => Some(format!("\\u{:04X}", u32::from(c))),
            c if c.is_control() => Some(format!("\\u{:04X}", u32::from(c))),
            _ => None,
        }),
        ("urlquery", args) => {
            let mut out = String::new();
            for b in print(args).bytes() {
                match b {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                        out.push(char::from(b));
                    }
                    b' ' => out.push('+'),
                    b => out.push_str(&format!("%{b:02X}")),
                }
            }
            out.into()
        }
        ("upper" | "lower" | "title", [other, ..]) => {
            return Err(format!("{name}: wants a text, not a {}", other.kind()));
        }
        _ => return Err(format!("no function {}; there are {FUNCTIONS}", quote(name))),
    })
}

/// `fmt.Sprint`: a space between two arguments when neither is text.
fn print(args: &[Value]) -> String {
    let mut out = String::new();
    for (i, arg) in args.iter().enumerate() {
        let text = |v: &Value| matches!(v, Value::Text(_));
        if i > 0 && !text(arg) && !text(&args[i - 1]) {
            out.push(' ');
        }
        out.push_str(&arg.inner(false));
    }
    out
}

fn escape(text: &str, how: impl Fn(char) -> Option<String>) -> Value {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match how(c) {
            Some(escaped) => out.push_str(&escaped),
            None => out.push(c),
        }
    }
    out.into()
}

fn title(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match (start, c.is_alphabetic()) {
            (true, true) => out.extend(c.to_uppercase()),
            _ => out.push(c),
        }
        start = !(c.is_alphanumeric() || c == '_' || c == '\'');
    }
    out
}

fn equal(a: &Value, b: &Value) -> Result<bool, String> {
    match (a, b) {
        (Value::List(_) | Value::Map(_) | Value::Fields(_), _)
        | (_, Value::List(_) | Value::Map(_) | Value::Fields(_)) => {
            Err(format!("a {} and a {} cannot be compared", a.kind(), b.kind()))
        }
        (Value::Nil, _) | (_, Value::Nil) => Ok(a == b),
        _ if a.kind() == b.kind() => Ok(a == b),
        _ => Err(format!("a {} and a {} cannot be compared", a.kind(), b.kind())),
    }
}

fn index(mut value: Value, keys: &[Value]) -> Result<Value, String> {
    for key in keys {
        value = match (value, key) {
            (Value::Map(pairs) | Value::Fields(pairs), Value::Text(key)) => {
                pairs.into_iter().find(|(n, _)| n == key).map(|(_, v)| v).unwrap_or_default()
            }
            (Value::List(mut list), Value::Int(at)) => match usize::try_from(*at) {
                Ok(i) if i < list.len() => list.swap_remove(i),
                _ => return Err(format!("index: {at} is out of range: there are {}", list.len())),
            },
            (Value::Text(text), Value::Int(at)) => {
                match usize::try_from(*at).ok().and_then(|i| text.as_bytes().get(i)) {
                    Some(b) => Value::Int(i64::from(*b)),
                    None => return Err(format!("index: {at} is out of range: there are {}", text.len())),
                }
            }
            (Value::Nil, _) => return Err("index: of nothing".to_owned()),
            (value, key) => {
                return Err(format!("index: a {} cannot be indexed with a {}", value.kind(), key.kind()));
            }
        };
    }
    Ok(value)
}

fn slice(value: &Value, bounds: &[Value]) -> Result<Value, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(list) => list.len(),
        other => return Err(format!("slice: of a {}", other.kind())),
    };
    let bound = |at: usize, default: usize| match bounds.get(at) {
        None => Ok(default),
        Some(Value::Int(n)) => match usize::try_from(*n) {
            Ok(n) if n <= length => Ok(n),
            _ => Err(format!("slice: {n} is out of range: there are {length}")),
        },
        Some(other) => Err(format!("slice: a bound is a number, not a {}", other.kind())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to {
        return Err(format!("slice: {from} is behind {to}"));
    }
    Ok(match value {
        Value::Text(text) => String::from_utf8_lossy(&text.as_bytes()[from..to]).into_owned().into(),
        Value::List(list) => Value::List(list[from..to].to_vec()),
        _ => Value::Nil,
    })
}

#[cfg(test)]
mod tests;
