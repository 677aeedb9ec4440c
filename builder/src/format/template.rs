//! What does `--format` mean? Go's text/template, as far as docker's users write it: fields, pipelines, `range`, `if`, `with`,
//! variables, and docker's own functions (`json`, `join`, `table` …).

use std::fmt::Write;

use anyhow::{Result, bail, ensure};
use report::{Kind, error};
use serde_json::Value;

/// Nested blocks that are read.
const DEEP: usize = 64;
/// Bytes that a template may print.
const OUT_MOST: usize = 64 << 20;

/// A template that was read.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Text(String),
    Print(Pipe),
    Let(String, Pipe),
    /// A condition and what follows if it holds; the last may have none.
    If(Vec<(Option<Pipe>, Vec<Node>)>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range(Vec<String>, Pipe, Vec<Node>, Vec<Node>),
}

#[derive(Clone, Debug)]
struct Pipe {
    commands: Vec<Vec<Term>>,
    /// Where it stands, for errors.
    at: usize,
}

#[derive(Clone, Debug)]
enum Term {
    Literal(Value),
    /// `.A.B`, or the dot itself.
    Field(Vec<String>),
    /// `$x.A`, or `$` itself.
    Variable(String, Vec<String>),
    Function(String),
    /// `(…)`, with fields behind.
    Group(Pipe, Vec<String>),
}

impl Template {
    /// Read a template; `\t` and `\n` are what they are to docker.
    pub fn parse(text: &str) -> Result<Template> {
        let text = text.replace("\\t", "\t").replace("\\n", "\n");
        let mut parser = Parser { text: &text, pieces: pieces(&text)?, next: 0 };
        let (nodes, end) = parser.block(0)?;
        if let Some((word, at)) = end {
            return Err(wrong(&text, at, &format!("{word} without its beginning")));
        }
        Ok(Template { nodes, text })
    }

    /// Print `data` with it.
    pub fn render(&self, data: &Value) -> Result<String> {
        let mut run = Run { text: &self.text, root: data.clone(), variables: Vec::new(), out: String::new() };
        run.nodes(&self.nodes, data)?;
        Ok(run.out)
    }
}

fn wrong(text: &str, at: usize, what: &str) -> anyhow::Error {
    let before = &text[..at.min(text.len())];
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    error(Kind::BadInput, format!("--format: column {column}: {what}"))
}

/// Text, or an action with the place where it begins.
enum Piece {
    Text(String),
    Action(String, usize),
}

fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let (mut rest, mut offset) = (text, 0);
    let mut trim = false;
    loop {
        let Some(open) = rest.find("{{") else {
            pieces.push(Piece::Text(if trim { rest.trim_start() } else { rest }.to_owned()));
            return Ok(pieces);
        };
        let before = &rest[..open];
        let inner = &rest[open + 2..];
        // A quoted string may hold what ends an action.
        let Some(close) = end_of_action(inner) else {
            return Err(wrong(text, offset + open, "{{ without }}"));
        };
        let mut action = &inner[..close];
        let left = action.starts_with("- ") || action == "-";
        let before = if trim { before.trim_start() } else { before };
        pieces.push(Piece::Text(if left { before.trim_end() } else { before }.to_owned()));
        action = action.strip_prefix('-').filter(|_| left).unwrap_or(action);
        trim = action.ends_with(" -");
        action = action.strip_suffix('-').filter(|_| trim).unwrap_or(action);
        let at = offset + open + 2;
        if !action.trim().starts_with("/*") {
            pieces.push(Piece::Action(action.trim().to_owned(), at));
        }
        offset += open + 2 + close + 2;
        rest = &inner[close + 2..];
    }
}

fn end_of_action(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some('"' | '\'') if escaped => escaped = false,
            Some('"' | '\'') if c == '\\' => escaped = true,
            Some(q) if c == q => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`' | '\'') => quote = Some(c),
            None if text[at..].starts_with("}}") => return Some(at),
            None => {}
        }
    }
    None
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Literal(Value),
    Field(String),
    Variable(String),
    Word(String),
    Sign(&'static str),
}

/// The tokens of an action, and whether white space stands before each.
fn tokens(text: &str, action: &str, at: usize) -> Result<Vec<(Token, bool)>> {
    let mut tokens = Vec::new();
    let mut rest = action;
    let word = |c: char| c.is_alphanumeric() || c == '_';
    loop {
        let trimmed = rest.trim_start();
        let space = trimmed.len() != rest.len();
        rest = trimmed;
        let here = at + action.len() - rest.len();
        let Some(first) = rest.chars().next() else { return Ok(tokens) };
        let after = &rest[first.len_utf8()..];
        let (token, left) = match first {
            '(' | ')' | '|' | ',' => {
                let sign =
                    ["(", ")", "|", ","].into_iter().find(|s| s.starts_with(first)).unwrap_or_default();
                (Token::Sign(sign), after)
            }
            ':' if after.starts_with('=') => (Token::Sign(":="), &after[1..]),
            '=' => (Token::Sign("="), after),
            '.' => {
                let end = after.find(|c| !word(c)).unwrap_or(after.len());
                (Token::Field(after[..end].to_owned()), &after[end..])
            }
            '$' => {
                let end = after.find(|c| !word(c)).unwrap_or(after.len());
                (Token::Variable(after[..end].to_owned()), &after[end..])
            }
            '"' | '`' | '\'' => {
                let (value, left) =
                    quoted(first, after).ok_or_else(|| wrong(text, here, "a string without its end"))?;
                (Token::Literal(value), left)
            }
            c if c.is_ascii_digit() || (c == '-' && after.starts_with(|c: char| c.is_ascii_digit())) => {
                let end =
                    after.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(after.len());
                let number = &rest[..1 + end];
                let value = match (number.parse::<i64>(), number.parse::<f64>()) {
                    (Ok(n), _) => Value::from(n),
                    (_, Ok(f)) => Value::from(f),
                    _ => return Err(wrong(text, here, &format!("{number:?} is no number"))),
                };
                (Token::Literal(value), &after[end..])
            }
            c if word(c) => {
                let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
                let token = match &rest[..end] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    other => Token::Word(other.to_owned()),
                };
                (token, &rest[end..])
            }
            other => return Err(wrong(text, here, &format!("unexpected {other:?}"))),
        };
        tokens.push((token, space));
        rest = left;
    }
}

fn quoted(quote: char, text: &str) -> Option<(Value, &str)> {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                let left = &text[at + 1..];
                // A rune is a number in Go.
                let value = match (quote, out.chars().next()) {
                    ('\'', Some(rune)) => Value::from(u32::from(rune)),
                    _ => Value::from(out),
                };
                return Some((value, left));
            }
            '\\' if quote != '`' => match chars.next()?.1 {
                'n' => out.push('\n'),
                't' => out.push('\t'),
                'r' => out.push('\r'),
                other => out.push(other),
            },
            c => out.push(c),
        }
    }
    None
}

struct Parser<'a> {
    text: &'a str,
    pieces: Vec<Piece>,
    next: usize,
}

/// What ended a block: `end`, `else` and so on, and where.
type End = Option<(String, usize)>;

impl Parser<'_> {
    fn block(&mut self, depth: usize) -> Result<(Vec<Node>, End)> {
        let mut nodes = Vec::new();
        while self.next < self.pieces.len() {
            let (action, at) = match &self.pieces[self.next] {
                Piece::Text(text) => {
                    nodes.push(Node::Text(text.clone()));
                    self.next += 1;
                    continue;
                }
                Piece::Action(action, at) => (action.clone(), *at),
            };
            self.next += 1;
            ensure!(depth < DEEP, "--format: blocks in blocks in blocks");
            let (word, rest) = match action.find(|c: char| !c.is_alphabetic()) {
                Some(end) => (&action[..end], action[end..].trim()),
                None => (action.as_str(), ""),
            };
            let at_rest = at + action.len() - rest.len();
            match word {
                "end" | "else" => return Ok((nodes, Some((action, at)))),
                "if" => nodes.push(self.condition(rest, at_rest, depth)?),
                "with" => {
                    let pipe = self.pipe(rest, at_rest)?;
                    let (body, other) = self.body(depth, at)?;
                    nodes.push(Node::With(pipe, body, other));
                }
                "range" => {
                    let (names, pipe) = self.assignment(rest, at_rest)?;
                    let (body, other) = self.body(depth, at)?;
                    nodes.push(Node::Range(names, pipe, body, other));
                }
                "define" | "template" | "block" | "break" | "continue" => {
                    return Err(wrong(self.text, at, &format!("{word} is not supported")));
                }
                _ => {
                    let (names, pipe) = self.assignment(&action, at)?;
                    nodes.push(match names.into_iter().next() {
                        Some(name) => Node::Let(name, pipe),
                        None => Node::Print(pipe),
                    });
                }
            }
        }
        Ok((nodes, None))
    }

    fn condition(&mut self, rest: &str, at: usize, depth: usize) -> Result<Node> {
        let mut arms = Vec::new();
        let mut condition = Some(self.pipe(rest, at)?);
        loop {
            let (body, end) = self.block(depth + 1)?;
            let last = condition.is_none();
            arms.push((condition, body));
            let Some((word, at_end)) = end else { return Err(wrong(self.text, at, "if without end")) };
            match word.strip_prefix("else").map(str::trim) {
                None => return Ok(Node::If(arms)),
                Some(_) if last => return Err(wrong(self.text, at_end, "else after else")),
                Some("") => condition = None,
                Some(more) => match more.strip_prefix("if ") {
                    Some(pipe) => condition = Some(self.pipe(pipe.trim(), at_end)?),
                    None => return Err(wrong(self.text, at_end, &format!("{word}?"))),
                },
            }
        }
    }

    /// Up to `end`, with what stands behind `else`.
    fn body(&mut self, depth: usize, at: usize) -> Result<(Vec<Node>, Vec<Node>)> {
        let (body, end) = self.block(depth + 1)?;
        match end {
            None => Err(wrong(self.text, at, "a block without end")),
            Some((word, _)) if word == "end" => Ok((body, Vec::new())),
            Some(_) => match self.block(depth + 1)? {
                (other, Some((word, _))) if word == "end" => Ok((body, other)),
                _ => Err(wrong(self.text, at, "a block without end")),
            },
        }
    }

    /// `$a, $b := pipeline`, or a pipeline alone.
    fn assignment(&self, action: &str, at: usize) -> Result<(Vec<String>, Pipe)> {
        let all = tokens(self.text, action, at)?;
        let sign = all.iter().position(|(t, _)| matches!(t, Token::Sign(":=" | "=")));
        let Some(sign) = sign else { return Ok((Vec::new(), self.of_tokens(&all, at)?)) };
        let mut names = Vec::new();
        for (token, _) in &all[..sign] {
            match token {
                Token::Variable(name) => names.push(name.clone()),
                Token::Sign(",") => {}
                _ => return Err(wrong(self.text, at, "only variables can be assigned to")),
            }
        }
        Ok((names, self.of_tokens(&all[sign + 1..], at)?))
    }

    fn pipe(&self, action: &str, at: usize) -> Result<Pipe> {
        self.of_tokens(&tokens(self.text, action, at)?, at)
    }

    fn of_tokens(&self, all: &[(Token, bool)], at: usize) -> Result<Pipe> {
        let mut next = 0;
        let pipe = self.commands(all, &mut next, at, 0)?;
        if next < all.len() {
            return Err(wrong(self.text, at, "a ) without its ("));
        }
        Ok(pipe)
    }

    fn commands(&self, all: &[(Token, bool)], next: &mut usize, at: usize, depth: usize) -> Result<Pipe> {
        ensure!(depth < DEEP, "--format: parentheses in parentheses in parentheses");
        let mut commands = vec![Vec::new()];
        while *next < all.len() {
            let (token, space) = &all[*next];
            *next += 1;
            let current = commands.last_mut();
            let Some(current) = current else { bail!("--format: no command") };
            match token {
                Token::Sign("|") => commands.push(Vec::new()),
                Token::Sign(")") => {
                    *next -= 1;
                    break;
                }
                Token::Sign("(") => {
                    let inner = self.commands(all, next, at, depth + 1)?;
                    if !matches!(all.get(*next), Some((Token::Sign(")"), _))) {
                        return Err(wrong(self.text, at, "a ( without its )"));
                    }
                    *next += 1;
                    current.push(Term::Group(inner, Vec::new()));
                }
                Token::Sign(sign) => return Err(wrong(self.text, at, &format!("unexpected {sign}"))),
                Token::Literal(value) => current.push(Term::Literal(value.clone())),
                Token::Word(name) => current.push(Term::Function(name.clone())),
                Token::Variable(name) => current.push(Term::Variable(name.clone(), Vec::new())),
                // What follows something without a space is its field.
                Token::Field(name) => match current.last_mut() {
                    Some(Term::Field(path) | Term::Variable(_, path) | Term::Group(_, path)) if !space => {
                        path.push(name.clone());
                    }
                    _ if name.is_empty() => current.push(Term::Field(Vec::new())),
                    _ => current.push(Term::Field(vec![name.clone()])),
                },
            }
        }
        if commands.iter().any(Vec::is_empty) {
            return Err(wrong(self.text, at, "an empty action"));
        }
        Ok(Pipe { commands, at })
    }
}

struct Run<'a> {
    text: &'a str,
    root: Value,
    variables: Vec<(String, Value)>,
    out: String,
}

/// text/template, "truth".
fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(b) => *b,
        Value::Number(n) => n.as_f64() != Some(0.0),
        Value::String(s) => !s.is_empty(),
        Value::Array(a) => !a.is_empty(),
        Value::Object(o) => !o.is_empty(),
    }
}

/// As Go's fmt prints it.
pub fn show(value: &Value) -> String {
    match value {
        Value::Null => "<no value>".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.clone(),
        Value::Array(a) => format!("[{}]", a.iter().map(inner).collect::<Vec<_>>().join(" ")),
        Value::Object(o) => {
            let mut all: Vec<_> = o.iter().map(|(k, v)| format!("{k}:{}", inner(v))).collect();
            all.sort();
            format!("map[{}]", all.join(" "))
        }
    }
}

fn inner(value: &Value) -> String {
    if value.is_null() { "<nil>".to_owned() } else { show(value) }
}

impl Run<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Result<()> {
        let scope = self.variables.len();
        for node in nodes {
            match node {
                Node::Text(text) => self.out.push_str(text),
                Node::Print(pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    self.out.push_str(&show(&value));
                }
                Node::Let(name, pipe) => {
                    let value = self.pipe(pipe, dot)?;
                    self.set(name, value);
                }
                Node::If(arms) => {
                    for (condition, body) in arms {
                        let holds = match condition {
                            Some(pipe) => truth(&self.pipe(pipe, dot)?),
                            None => true,
                        };
                        if holds {
                            self.nodes(body, dot)?;
                            break;
                        }
                    }
                }
                Node::With(pipe, body, other) => {
                    let value = self.pipe(pipe, dot)?;
                    if truth(&value) { self.nodes(body, &value)? } else { self.nodes(other, dot)? }
                }
                Node::Range(names, pipe, body, other) => self.range(names, pipe, body, other, dot)?,
            }
            ensure!(self.out.len() <= OUT_MOST, "--format: it prints more than {OUT_MOST} bytes");
        }
        self.variables.truncate(scope);
        Ok(())
    }

    fn set(&mut self, name: &str, value: Value) {
        match self.variables.iter_mut().rev().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    fn range(
        &mut self,
        names: &[String],
        pipe: &Pipe,
        body: &[Node],
        other: &[Node],
        dot: &Value,
    ) -> Result<()> {
        let value = self.pipe(pipe, dot)?;
        let all: Vec<(Value, Value)> = match value {
            Value::Array(a) => a.into_iter().enumerate().map(|(i, v)| (Value::from(i), v)).collect(),
            Value::Object(o) => {
                let mut all: Vec<_> = o.into_iter().map(|(k, v)| (Value::from(k), v)).collect();
                all.sort_by(|a, b| a.0.as_str().cmp(&b.0.as_str()));
                all
            }
            Value::Null => Vec::new(),
            other => {
                return Err(wrong(
                    self.text,
                    pipe.at,
                    &format!("range over {}, which is no list", show(&other)),
                ));
            }
        };
        if all.is_empty() {
            return self.nodes(other, dot);
        }
        let scope = self.variables.len();
        for (key, item) in all {
            match names {
                [] => {}
                [value] => self.variables.push((value.clone(), item.clone())),
                [index, value, ..] => {
                    self.variables.extend([(index.clone(), key), (value.clone(), item.clone())]);
                }
            }
            self.nodes(body, &item)?;
            self.variables.truncate(scope);
        }
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Result<Value> {
        let mut last = None;
        for command in &pipe.commands {
            last = Some(self.command(command, dot, last, pipe.at)?);
        }
        Ok(last.unwrap_or_default())
    }

    fn command(&mut self, terms: &[Term], dot: &Value, piped: Option<Value>, at: usize) -> Result<Value> {
        let Some((first, rest)) = terms.split_first() else { return Ok(Value::Null) };
        if let Term::Function(name) = first {
            let mut arguments = Vec::new();
            for (i, term) in rest.iter().enumerate() {
                // These look at no more than they need.
                let done = match (name.as_str(), arguments.last()) {
                    ("and", Some(last)) => !truth(last),
                    ("or", Some(last)) => truth(last),
                    _ => false,
                };
                if done && i > 0 {
                    break;
                }
                arguments.push(self.term(term, dot, at)?);
            }
            arguments.extend(piped);
            return call(name, &arguments).map_err(|e| wrong(self.text, at, &report::line(&e)));
        }
        if !rest.is_empty() || piped.is_some() {
            return Err(wrong(self.text, at, "what is no function takes no arguments"));
        }
        self.term(first, dot, at)
    }

    fn term(&mut self, term: &Term, dot: &Value, at: usize) -> Result<Value> {
        match term {
            Term::Literal(value) => Ok(value.clone()),
            Term::Field(path) => self.field(dot, path, at),
            Term::Variable(name, path) if name.is_empty() => self.field(&self.root, path, at),
            Term::Variable(name, path) => {
                let found = self.variables.iter().rev().find(|(n, _)| n == name);
                let Some((_, value)) = found else {
                    return Err(wrong(self.text, at, &format!("no variable ${name}")));
                };
                self.field(value, path, at)
            }
            Term::Function(_) => self.command(std::slice::from_ref(term), dot, None, at),
            Term::Group(pipe, path) => {
                let value = self.pipe(pipe, dot)?;
                self.field(&value, path, at)
            }
        }
    }

    fn field(&self, value: &Value, path: &[String], at: usize) -> Result<Value> {
        let mut value = value;
        for name in path {
            value = match value {
                Value::Object(o) => match o.get(name) {
                    Some(value) => value,
                    // What is made by Go's structures has names in capitals; what else there is is a map, where a key may be missing.
                    None if name.starts_with(|c: char| c.is_uppercase())
                        && o.keys().any(|k| k.starts_with(|c: char| c.is_uppercase())) =>
                    {
                        let known: Vec<_> = o.keys().map(String::as_str).collect();
                        return Err(wrong(
                            self.text,
                            at,
                            &format!("no field {name}; there are: {}", known.join(", ")),
                        ));
                    }
                    None => &Value::Null,
                },
                Value::Null => &Value::Null,
                other => return Err(wrong(self.text, at, &format!("{} has no field {name}", show(other)))),
            };
        }
        Ok(value.clone())
    }
}

fn call(name: &str, arguments: &[Value]) -> Result<Value> {
    let text = |i: usize| arguments.get(i).map(show).unwrap_or_default();
    let count = |range: std::ops::RangeInclusive<usize>| {
        ensure!(range.contains(&arguments.len()), "{name}: {} arguments", arguments.len());
        Ok(())
    };
    let number = |i: usize| {
        arguments
            .get(i)
            .and_then(Value::as_i64)
            .ok_or_else(|| anyhow::anyhow!("{name}: {} is no number", text(i)))
    };
    Ok(match name {
        "json" => {
            count(1..=1)?;
            serde_json::to_string(&arguments[0])?.into()
        }
        "len" => {
            count(1..=1)?;
            match &arguments[0] {
                Value::String(s) => s.len().into(),
                Value::Array(a) => a.len().into(),
                Value::Object(o) => o.len().into(),
                Value::Null => 0.into(),
                other => bail!("len of {}", show(other)),
            }
        }
        "index" => {
            count(1..=9)?;
            let mut value = &arguments[0];
            for key in &arguments[1..] {
                value = match (value, key) {
                    (Value::Array(a), key) => {
                        let i = key.as_u64().and_then(|i| usize::try_from(i).ok());
                        match i.and_then(|i| a.get(i)) {
                            Some(value) => value,
                            None => bail!("index {} of a list of {}", show(key), a.len()),
                        }
                    }
                    (Value::Object(o), key) => o.get(&show(key)).unwrap_or(&Value::Null),
                    (Value::Null, _) => &Value::Null,
                    (other, _) => bail!("index of {}", show(other)),
                };
            }
            value.clone()
        }
        "slice" => {
            count(1..=3)?;
            let bound = |i: usize, default: usize| match arguments.get(i) {
                Some(_) => number(i).and_then(|n| Ok(usize::try_from(n)?)),
                None => Ok(default),
            };
            match &arguments[0] {
                Value::String(s) => {
                    let (from, to) = (bound(1, 0)?, bound(2, s.len())?);
                    s.get(from..to)
                        .map(Value::from)
                        .ok_or_else(|| anyhow::anyhow!("slice {from} to {to} of {} bytes", s.len()))?
                }
                Value::Array(a) => {
                    let (from, to) = (bound(1, 0)?, bound(2, a.len())?);
                    a.get(from..to)
                        .map(|s| s.to_vec().into())
                        .ok_or_else(|| anyhow::anyhow!("slice {from} to {to} of {}", a.len()))?
                }
                other => bail!("slice of {}", show(other)),
            }
        }
        "join" => {
            count(2..=2)?;
            match &arguments[0] {
                Value::Array(a) => a.iter().map(show).collect::<Vec<_>>().join(&text(1)).into(),
                Value::Null => "".into(),
                other => bail!("join of {}, which is no list", show(other)),
            }
        }
        "split" => {
            count(2..=2)?;
            text(0).split(&text(1)).collect::<Vec<_>>().into()
        }
        "lower" => text(0).to_lowercase().into(),
        "upper" => text(0).to_uppercase().into(),
        "title" => {
            let title = |w: &str| {
                let mut chars = w.chars();
                chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
            };
            text(0).split(' ').map(title).collect::<Vec<_>>().join(" ").into()
        }
        "truncate" => {
            count(2..=2)?;
            text(0).chars().take(usize::try_from(number(1)?).unwrap_or(0)).collect::<String>().into()
        }
        "pad" => {
            count(3..=3)?;
            let space = |i| Ok::<_, anyhow::Error>(" ".repeat(usize::try_from(number(i)?)?.min(1000)));
            format!("{}{}{}", space(1)?, text(0), space(2)?).into()
        }
        "print" => arguments.iter().map(show).collect::<String>().into(),
        "println" => (arguments.iter().map(show).collect::<Vec<_>>().join(" ") + "\n").into(),
        "printf" => {
            count(1..=64)?;
            printf(&text(0), &arguments[1..]).into()
        }
        "not" => {
            count(1..=1)?;
            (!truth(&arguments[0])).into()
        }
        "and" => arguments.iter().find(|a| !truth(a)).or(arguments.last()).cloned().unwrap_or_default(),
        "or" => arguments.iter().find(|a| truth(a)).or(arguments.last()).cloned().unwrap_or_default(),
        "eq" => {
            count(2..=64)?;
            arguments[1..].iter().any(|a| same(&arguments[0], a)).into()
        }
        "ne" => {
            count(2..=2)?;
            (!same(&arguments[0], &arguments[1])).into()
        }
        "lt" | "le" | "gt" | "ge" => {
            count(2..=2)?;
            let order = match (&arguments[0], &arguments[1]) {
                (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
                (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
                (a, b) => bail!("{name} of {} and {}", show(a), show(b)),
            };
            let Some(order) = order else { return Ok(false.into()) };
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        _ => bail!(
            "no function {name}; there are: and eq ge gt index join json le len lower lt ne not or pad print printf println slice split title truncate upper"
        ),
    })
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (a, b) => a == b,
    }
}

/// fmt.Sprintf, with the verbs that templates use.
fn printf(format: &str, arguments: &[Value]) -> String {
    let mut out = String::new();
    let mut arguments = arguments.iter();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = String::new();
        while let Some(f) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | '#' | ' ')) {
            flags.push(f);
        }
        let digits = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| {
            let mut n = String::new();
            while let Some(d) = chars.next_if(char::is_ascii_digit) {
                n.push(d);
            }
            n.parse::<usize>().ok().map(|n| n.min(1000))
        };
        let width = digits(&mut chars);
        let precision = chars.next_if_eq(&'.').map(|_| digits(&mut chars).unwrap_or(0));
        let Some(verb) = chars.next() else {
            out.push_str("%!(NOVERB)");
            break;
        };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = arguments.next() else {
            // Writing to a string cannot fail.
            write!(out, "%!{verb}(MISSING)").unwrap_or_default();
            continue;
        };
        let text = match (verb, value) {
            ('v' | 's', Value::String(s)) => s.chars().take(precision.unwrap_or(usize::MAX)).collect(),
            ('v' | 's' | 'd' | 't', value) => show(value),
            ('q', value) => format!("{:?}", show(value)),
            ('x', Value::Number(n)) => n.as_i64().map(|n| format!("{n:x}")).unwrap_or_default(),
            ('f', Value::Number(n)) => {
                format!("{:.*}", precision.unwrap_or(6), n.as_f64().unwrap_or_default())
            }
            (verb, value) => format!("%!{verb}({})", show(value)),
        };
        let fill = width.unwrap_or(0).saturating_sub(text.chars().count());
        if flags.contains('-') {
            out.push_str(&text);
            out.extend(std::iter::repeat_n(' ', fill));
        } else {
            let zero = flags.contains('0') && value.is_number();
            out.extend(std::iter::repeat_n(if zero { '0' } else { ' ' }, fill));
            out.push_str(&text);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn data() -> Value {
        json!({"Repository": "alpine", "Tag": "3", "Size": 12, "Nil": null, "Labels": {"b": "2", "a": "1"}, "List": ["x", "y"],
            "Config": {"Env": ["A=1"], "Cmd": null}, "Empty": []})
    }

    fn render(template: &str) -> String {
        match Template::parse(template).and_then(|t| t.render(&data())) {
            Ok(text) => text,
            Err(e) => format!("error: {}", report::line(&e)),
        }
    }

    #[test]
    fn what_docker_users_write() {
        for (template, expected) in [
            ("{{.Repository}}:{{.Tag}}", "alpine:3"),
            (r"{{.Repository}}\t{{ .Size }}\n", "alpine\t12\n"),
            ("{{json .Config}}", r#"{"Cmd":null,"Env":["A=1"]}"#),
            ("{{.Config.Env}} {{.Labels}} {{.Nil}}", "[A=1] map[a:1 b:2] <no value>"),
            ("{{range .List}}<{{.}}>{{end}}", "<x><y>"),
            ("{{range $i, $e := .List}}{{$i}}={{$e}},{{end}}", "0=x,1=y,"),
            ("{{range $k, $v := .Labels}}{{$k}}{{$v}} {{end}}", "a1 b2 "),
            ("{{range .Empty}}x{{else}}none{{end}}", "none"),
            ("{{if .Empty}}a{{else if eq .Tag \"3\"}}b{{else}}c{{end}}", "b"),
            ("{{with .Labels}}{{.a}}{{end}}{{with .Nil}}x{{else}}-{{end}}", "1-"),
            ("{{.Size | printf \"%05d|%-4s|%4v\" 7 .Tag}}", "00007|3   |  12"),
            ("{{index .List 1}} {{index .Labels \"a\"}} {{len .List}}", "y 1 2"),
            (
                "{{join .List \", \"}} {{upper .Tag}}{{title \"a b\"}} {{truncate .Repository 3}}",
                "x, y 3A B alp",
            ),
            ("{{(index .List 0)}} {{(split \"a:b\" \":\")}}", "x [a b]"),
            ("{{- /* nothing */ -}} a {{- .Tag -}} b", "a3b"),
            ("{{$x := .Tag}}{{$x}}{{$.Size}}", "312"),
            ("{{if and .Tag (not .Nil) (gt .Size 10)}}yes{{end}}", "yes"),
            ("{{or .Nil .Tag}} {{ne 1 2}} {{le 1.5 2}} {{slice .Repository 1 3}}", "3 true true lp"),
            ("{{\"}}\"}}{{`\\n`}}", "}}\n"),
            ("{{.Labels.missing}}", "<no value>"),
            ("{{println .Tag 1}}{{pad .Tag 1 2}}|", "3 1\n 3  |"),
            ("plain", "plain"),
            ("{{json .}}", &data().to_string()),
        ] {
            assert_eq!(render(template), expected, "{template}");
        }
    }

    #[test]
    fn mistakes_have_a_place() {
        for (template, reason) in [
            ("{{.Repo}}", "column 3: no field Repo; there are: Config, Empty"),
            ("ab{{.Tag", "column 3: {{ without }}"),
            ("{{end}}", "end without its beginning"),
            ("{{if .Tag}}", "if without end"),
            ("{{range .Tag}}{{end}}", "range over 3"),
            ("{{nope .Tag}}", "no function nope; there are: and eq"),
            ("{{.Tag.X}}", "3 has no field X"),
            ("{{$y}}", "no variable $y"),
            ("{{}}", "an empty action"),
            ("{{.Tag |}}", "an empty action"),
            ("{{(.Tag}}", "a ( without its )"),
            ("{{.Tag)}}", "a ) without its ("),
            ("{{index .List 5}}", "index 5 of a list of 2"),
            ("{{\"x}}", "{{ without }}"),
            ("{{.Tag .Size}}", "takes no arguments"),
            ("{{template \"x\"}}", "not supported"),
            ("{{5 = .Tag}}", "only variables"),
            ("{{~}}", "unexpected '~'"),
        ] {
            let text = render(template);
            assert!(
                text.starts_with("error: --format: column ") && text.contains(reason),
                "{template}: {text}"
            );
        }
    }

    proptest! {
        #[test]
        fn fuzz_any_template_ends(template in "(\\{\\{|\\}\\}|range|if|else|end|with|[.$|()\"a:=, -]|.Tag|.List|len|index|\\PC)*") {
            let text = render(&template);
            prop_assert!(text.len() < 1 << 20);
        }
    }
}
