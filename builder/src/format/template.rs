//! What does a template say? The language of Go's text/template, but for what needs more than one template (`define`,
//! `template`, `block`).
//!
//! ```text
//! template = { text | "{{" action "}}" }          "{{- " and " -}}" take the white space beside them away
//! action   = pipeline | "$x := " pipeline | "$x = " pipeline | "/*" comment "*/"
//!          | ("if" | "with" | "range") pipeline … { "else" [ "if" | "with" ] … } "end" | "break" | "continue"
//! pipeline = command { "|" command }              a command's value is the last argument of the next
//! command  = operand { operand }                  with more than one, the first is a function
//! operand  = literal | "." | { ".Field" } | "$x" { ".Field" } | function | "(" pipeline ")" { ".Field" }
//! ```

use std::fmt;
use std::iter::Peekable;
use std::vec::IntoIter;

use report::{Kind, error};

use super::value::Value;

/// How deep blocks and parentheses may lie in each other.
const DEPTH_MOST: usize = 64;

/// A template that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Template {
    pub(super) nodes: Vec<Node>,
}

/// Where something stands, for messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    pub line: usize,
    /// In characters, from 1 on.
    pub column: usize,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 | 1 => write!(f, "column {}", self.column),
            line => write!(f, "line {line}, column {}", self.column),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Text(String),
    Print(Pipeline),
    /// `$x := …`, `$x = …`: nothing is printed.
    Set(Pipeline),
    If {
        pipeline: Pipeline,
        /// `with`: the dot becomes the value.
        with: bool,
        then: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Range {
        pipeline: Pipeline,
        each: Vec<Node>,
        otherwise: Vec<Node>,
    },
    Break,
    Continue,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pipeline {
    pub at: At,
    /// The variables that it sets; two in a `range`.
    pub variables: Vec<String>,
    /// `:=`, rather than `=`.
    pub declares: bool,
    pub commands: Vec<Command>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Command {
    pub at: At,
    pub operands: Vec<Operand>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operand {
    Literal(Value),
    Dot(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Parenthesis(Pipeline, Vec<String>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Text(String),
    Open,
    Close,
    /// `.Field`; `.` alone has no name.
    Field(String),
    Variable(String),
    Word(String),
    Literal(Value),
    Pipe,
    Declare,
    Assign,
    Comma,
    /// `(`
    Left,
    /// `)`; whether a field follows at once.
    Right,
    /// White space, which tells `.a.b` from `.a .b`.
    Space,
}

impl Token {
    fn show(&self) -> String {
        match self {
            Token::Text(_) => "text".into(),
            Token::Open => "\"{{\"".into(),
            Token::Close => "\"}}\"".into(),
            Token::Field(name) => format!("\".{name}\""),
            Token::Variable(name) => format!("\"${name}\""),
            Token::Word(word) => format!("{word:?}"),
            Token::Literal(value) => format!("{:?}", value.inner(false)),
            Token::Pipe => "\"|\"".into(),
            Token::Declare => "\":=\"".into(),
            Token::Assign => "\"=\"".into(),
            Token::Comma => "\",\"".into(),
            Token::Left => "\"(\"".into(),
            Token::Right => "\")\"".into(),
            Token::Space => "a space".into(),
        }
    }
}

/// The error of a template at a place.
pub(super) fn wrong(at: At, what: impl fmt::Display) -> anyhow::Error {
    error(Kind::BadInput, format!("--format: {at}: {what}"))
}

impl Template {
    /// Read a template; outside of quotes `\t` and `\n` are what they are to docker.
    pub fn parse(text: &str) -> anyhow::Result<Template> {
        let mut parser =
            Parser { tokens: tokens(text)?.into_iter().peekable(), at: At::default(), depth: 0, loops: 0 };
        let (nodes, end) = parser.nodes()?;
        match end {
            Stop::Eof => Ok(Template { nodes }),
            _ => Err(wrong(parser.at, "end or else without if, with or range")),
        }
    }
}

// Tokens

struct Lexer<'a> {
    rest: &'a str,
    at: At,
}

impl Lexer<'_> {
    fn advance(&mut self, bytes: usize) {
        let (gone, rest) = self.rest.split_at(bytes);
        for c in gone.chars() {
            if c == '\n' {
                self.at = At { line: self.at.line + 1, column: 1 };
            } else {
                self.at.column += 1;
            }
        }
        self.rest = rest;
    }
}

fn tokens(text: &str) -> anyhow::Result<Vec<(Token, At)>> {
    let mut lexer = Lexer { rest: text, at: At { line: 1, column: 1 } };
    let mut out = Vec::new();
    // Whether "-}}" came before.
    let mut trim = false;
    loop {
        let start = lexer.at;
        let open = lexer.rest.find("{{");
        let mut plain = &lexer.rest[..open.unwrap_or(lexer.rest.len())];
        let length = plain.len();
        if trim {
            plain = plain.trim_start();
        }
        // A minus that belongs to a number has no space behind it.
        let behind = |at: usize| lexer.rest[at + 2..].strip_prefix('-');
        let trims = |rest: &str| rest.starts_with([' ', '\t', '\n', '\r']);
        let trims_left = open.and_then(behind).is_some_and(trims);
        if trims_left {
            plain = plain.trim_end();
        }
        if !plain.is_empty() {
            out.push((Token::Text(plain.replace("\\t", "\t").replace("\\n", "\n")), start));
        }
        lexer.advance(length);
        if open.is_none() {
            return Ok(out);
        }
        let start = lexer.at;
        lexer.advance(if trims_left { 3 } else { 2 });
        let inner = lexer.rest.trim_start_matches([' ', '\t', '\n', '\r']);
        if inner.starts_with("/*") {
            let Some(end) = lexer.rest.find("*/") else { return Err(wrong(start, "a comment has no end")) };
            lexer.advance(end + 2);
            let rest = lexer.rest.trim_start_matches([' ', '\t', '\n', '\r']);
            trim = rest.starts_with("-}}");
            let skipped = lexer.rest.len() - rest.len();
            if !trim && !rest.starts_with("}}") {
                return Err(wrong(lexer.at, "a comment ends before its action does"));
            }
            lexer.advance(skipped + if trim { 3 } else { 2 });
            continue;
        }
        out.push((Token::Open, start));
        trim = action(&mut lexer, &mut out, start)?;
    }
}

/// The tokens of an action; whether what follows it is trimmed.
fn action(lexer: &mut Lexer<'_>, out: &mut Vec<(Token, At)>, start: At) -> anyhow::Result<bool> {
    loop {
        let at = lexer.at;
        let rest = lexer.rest;
        let Some(first) = rest.chars().next() else { return Err(wrong(start, "{{ without }}")) };
        let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
        if blanks > 0 {
            lexer.advance(blanks);
            if lexer.rest.starts_with("-}}") {
                out.push((Token::Close, lexer.at));
                lexer.advance(3);
                return Ok(true);
            }
            out.push((Token::Space, at));
            continue;
        }
        if rest.starts_with("}}") {
            out.push((Token::Close, at));
            lexer.advance(2);
            return Ok(false);
        }
        let word = |text: &str| text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
        let (token, length) = match first {
            '|' => (Token::Pipe, 1),
            '(' => (Token::Left, 1),
            ')' => (Token::Right, 1),
            ',' => (Token::Comma, 1),
            '=' => (Token::Assign, 1),
            ':' if rest.starts_with(":=") => (Token::Declare, 2),
            '"' | '`' | '\'' => quoted(rest, at)?,
            '$' => {
                let length = word(&rest[1..]);
                (Token::Variable(rest[1..=length].to_owned()), 1 + length)
            }
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let length = word(&rest[1..]);
                (Token::Field(rest[1..=length].to_owned()), 1 + length)
            }
            '0'..='9' | '+' | '-' | '.' => number(rest, at)?,
            c if c.is_alphabetic() || c == '_' => {
                let length = word(rest);
                let token = match &rest[..length] {
                    "true" => Token::Literal(Value::Bool(true)),
                    "false" => Token::Literal(Value::Bool(false)),
                    "nil" => Token::Literal(Value::Nil),
                    word => Token::Word(word.to_owned()),
                };
                (token, length)
            }
            c => return Err(wrong(at, format!("unexpected {c:?}"))),
        };
        lexer.advance(length);
        out.push((token, at));
    }
}

fn number(rest: &str, at: At) -> anyhow::Result<(Token, usize)> {
    let sign = usize::from(rest.starts_with(['+', '-']));
    let digits = &rest[sign..];
    let length = digits.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '.'));
    // The sign of an exponent: 1e-5.
    let mut length = length.unwrap_or(digits.len());
    if digits[..length].ends_with(['e', 'E'])
        && !digits.starts_with("0x")
        && digits[length..].starts_with(['+', '-'])
    {
        let more = &digits[length + 1..];
        length += 1 + more.find(|c: char| !c.is_ascii_digit()).unwrap_or(more.len());
    }
    let text = &rest[..sign + length];
    let plain = text.replace('_', "").to_ascii_lowercase();
    let (negative, unsigned) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.trim_start_matches('+')),
    };
    let integer = match unsigned.get(..2) {
        Some("0x") => i64::from_str_radix(&unsigned[2..], 16),
        Some("0o") => i64::from_str_radix(&unsigned[2..], 8),
        Some("0b") => i64::from_str_radix(&unsigned[2..], 2),
        _ => unsigned.parse::<i64>(),
    };
    let signed = |n: i64| if negative { -n } else { n };
    let value = match (integer, unsigned.parse::<f64>()) {
        (Ok(n), _) => Value::Int(signed(n)),
        (_, Ok(n)) if n.is_finite() && unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            Value::Float(if negative { -n } else { n })
        }
        _ => return Err(wrong(at, format!("{text:?} is no number"))),
    };
    Ok((Token::Literal(value), text.len()))
}

fn quoted(rest: &str, at: At) -> anyhow::Result<(Token, usize)> {
    let quote = rest.chars().next().unwrap_or('"');
    let open = || wrong(at, "a quoted text has no end");
    if quote == '`' {
        let length = rest[1..].find('`').ok_or_else(open)?;
        return Ok((Token::Literal(rest[1..=length].into()), length + 2));
    }
    let mut text = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '\n' => break,
            c if c == quote => {
                if quote == '"' {
                    return Ok((Token::Literal(text.into()), i + 1));
                }
                let mut one = text.chars();
                return match (one.next(), one.next()) {
                    (Some(c), None) => Ok((Token::Literal(Value::Int(i64::from(u32::from(c)))), i + 1)),
                    _ => Err(wrong(at, "one character stands between ''; \"\" is for text")),
                };
            }
            '\\' => {
                let (_, escape) = chars.next().ok_or_else(open)?;
                let mut code = |digits: usize, radix: u32, first: Option<char>| {
                    let mut digits: String =
                        first.into_iter().chain(chars.by_ref().take(digits).map(|(_, c)| c)).collect();
                    digits.retain(|c| c.is_digit(radix));
                    u32::from_str_radix(&digits, radix).ok().and_then(char::from_u32)
                };
                let c = match escape {
                    'n' => Some('\n'),
                    't' => Some('\t'),
                    'r' => Some('\r'),
                    'a' => Some('\x07'),
                    'b' => Some('\x08'),
                    'f' => Some('\x0c'),
                    'v' => Some('\x0b'),
                    '\\' | '"' | '\'' => Some(escape),
                    'x' => code(2, 16, None),
                    'u' => code(4, 16, None),
                    'U' => code(8, 16, None),
                    '0'..='7' => code(2, 8, Some(escape)),
                    _ => None,
                };
                text.push(c.ok_or_else(|| wrong(at, format!("unknown escape \\{escape}")))?);
            }
            c => text.push(c),
        }
    }
    Err(open())
}

// Nodes

struct Parser {
    tokens: Peekable<IntoIter<(Token, At)>>,
    /// Of the token that came last.
    at: At,
    depth: usize,
    loops: usize,
}

/// What ended a row of nodes.
enum Stop {
    Eof,
    End,
    /// `else`, and what stands behind it: `if` or `with`.
    Else(Option<(&'static str, At)>),
}

impl Parser {
    fn next(&mut self) -> anyhow::Result<Token> {
        match self.tokens.next() {
            Some((token, at)) => {
                self.at = at;
                Ok(token)
            }
            None => Err(wrong(self.at, "the template ends too early")),
        }
    }

    fn skip_space(&mut self) {
        while self.tokens.next_if(|(t, _)| *t == Token::Space).is_some() {}
    }

    fn peek(&mut self) -> Option<&Token> {
        self.tokens.peek().map(|(t, _)| t)
    }

    fn close(&mut self) -> anyhow::Result<()> {
        self.skip_space();
        match self.next()? {
            Token::Close => Ok(()),
            other => Err(wrong(self.at, format!("unexpected {}, expected \"}}}}\"", other.show()))),
        }
    }

    fn deeper<T>(&mut self, parse: impl FnOnce(&mut Parser) -> anyhow::Result<T>) -> anyhow::Result<T> {
        self.depth += 1;
        if self.depth > DEPTH_MOST {
            return Err(wrong(self.at, format!("nested deeper than {DEPTH_MOST}")));
        }
        let done = parse(self);
        self.depth -= 1;
        done
    }

    fn nodes(&mut self) -> anyhow::Result<(Vec<Node>, Stop)> {
        let mut nodes = Vec::new();
        loop {
            match self.tokens.next() {
                None => return Ok((nodes, Stop::Eof)),
                Some((Token::Text(text), _)) => nodes.push(Node::Text(text)),
                Some((_, at)) => {
                    self.at = at;
                    self.skip_space();
                    match self.action()? {
                        Ok(node) => nodes.push(node),
                        Err(end) => return Ok((nodes, end)),
                    }
                }
            }
        }
    }

    fn action(&mut self) -> anyhow::Result<Result<Node, Stop>> {
        let word = match self.peek() {
            Some(Token::Word(word)) => word.clone(),
            _ => String::new(),
        };
        let node = match word.as_str() {
            "if" | "with" => {
                self.next()?;
                self.deeper(|p| p.branch(word == "with"))?
            }
            "range" => {
                self.next()?;
                self.deeper(Parser::range)?
            }
            "break" | "continue" => {
                self.next()?;
                if self.loops == 0 {
                    return Err(wrong(self.at, format!("{word} outside of range")));
                }
                self.close()?;
                if word == "break" { Node::Break } else { Node::Continue }
            }
            "end" => {
                self.next()?;
                self.close()?;
                return Ok(Err(Stop::End));
            }
            "else" => {
                self.next()?;
                self.skip_space();
                let chained = match self.peek() {
                    Some(Token::Word(w)) if w == "if" => Some("if"),
                    Some(Token::Word(w)) if w == "with" => Some("with"),
                    _ => None,
                };
                let Some(word) = chained else {
                    self.close()?;
                    return Ok(Err(Stop::Else(None)));
                };
                self.next()?;
                return Ok(Err(Stop::Else(Some((word, self.at)))));
            }
            "define" | "template" | "block" => {
                return Err(wrong(self.at, format!("{word} is not known here: there is one template only")));
            }
            _ => {
                let pipeline = self.pipeline(false)?;
                self.close()?;
                if pipeline.variables.is_empty() { Node::Print(pipeline) } else { Node::Set(pipeline) }
            }
        };
        Ok(Ok(node))
    }

    fn branch(&mut self, with: bool) -> anyhow::Result<Node> {
        let start = self.at;
        let pipeline = self.pipeline(false)?;
        self.close()?;
        let (then, end) = self.nodes()?;
        let otherwise = match end {
            Stop::End => Vec::new(),
            Stop::Eof => return Err(wrong(start, "it has no end")),
            // It shares our end.
            Stop::Else(Some((word, _))) => vec![self.deeper(|p| p.branch(word == "with"))?],
            Stop::Else(None) => self.until_end(start)?,
        };
        Ok(Node::If { pipeline, with, then, otherwise })
    }

    fn range(&mut self) -> anyhow::Result<Node> {
        let start = self.at;
        let pipeline = self.pipeline(true)?;
        self.close()?;
        self.loops += 1;
        let (each, end) = self.nodes()?;
        self.loops -= 1;
        let otherwise = match end {
            Stop::End => Vec::new(),
            Stop::Eof => return Err(wrong(start, "range has no end")),
            Stop::Else(Some((word, at))) => {
                return Err(wrong(at, format!("else {word} does not belong to range")));
            }
            Stop::Else(None) => self.until_end(start)?,
        };
        Ok(Node::Range { pipeline, each, otherwise })
    }

    fn until_end(&mut self, start: At) -> anyhow::Result<Vec<Node>> {
        match self.nodes()? {
            (nodes, Stop::End) => Ok(nodes),
            (_, Stop::Eof) => Err(wrong(start, "it has no end")),
            (_, Stop::Else(_)) => Err(wrong(self.at, "a second else")),
        }
    }

    fn pipeline(&mut self, range: bool) -> anyhow::Result<Pipeline> {
        self.skip_space();
        let at = self.tokens.peek().map_or(self.at, |(_, at)| *at);
        let mut pipeline = Pipeline { at, variables: Vec::new(), declares: false, commands: Vec::new() };
        // Variables come first, if a sign behind them says that they are set.
        if let Some(names) = self.assigned(range) {
            (pipeline.variables, pipeline.declares) = names;
        }
        loop {
            self.skip_space();
            let command = self.command()?;
            if let (Some(Operand::Literal(_)), true) =
                (command.operands.first(), !pipeline.commands.is_empty())
            {
                return Err(wrong(command.at, "what stands behind | must be a function"));
            }
            pipeline.commands.push(command);
            self.skip_space();
            if self.tokens.next_if(|(t, _)| *t == Token::Pipe).is_none() {
                return Ok(pipeline);
            }
        }
    }

    /// `$x :=`, `$x =`, and in a range `$i, $x :=`.
    fn assigned(&mut self, range: bool) -> Option<(Vec<String>, bool)> {
        let mut ahead = self.tokens.clone();
        let mut names = Vec::new();
        loop {
            while ahead.next_if(|(t, _)| *t == Token::Space).is_some() {}
            match ahead.next()? {
                (Token::Variable(name), _) if !name.is_empty() => names.push(name),
                _ => return None,
            }
            while ahead.next_if(|(t, _)| *t == Token::Space).is_some() {}
            match ahead.next()?.0 {
                Token::Comma if range && names.len() == 1 => {}
                sign @ (Token::Declare | Token::Assign) => {
                    self.tokens = ahead;
                    return Some((names, sign == Token::Declare));
                }
                _ => return None,
            }
        }
    }

    fn command(&mut self) -> anyhow::Result<Command> {
        let at = self.tokens.peek().map_or(self.at, |(_, at)| *at);
        let mut operands = Vec::new();
        loop {
            self.skip_space();
            match self.peek() {
                None | Some(Token::Close | Token::Pipe | Token::Right) => break,
                _ => operands.push(self.operand()?),
            }
            // Two operands have a space between them.
            match self.peek() {
                None | Some(Token::Space | Token::Close | Token::Pipe | Token::Right) => {}
                Some(other) => {
                    let other = other.show();
                    return Err(wrong(self.at, format!("unexpected {other}; a space is missing")));
                }
            }
        }
        match operands.as_slice() {
            [] => Err(wrong(at, "a value is missing")),
            [Operand::Function(_), ..] | [_] => Ok(Command { at, operands }),
            _ => Err(wrong(at, "only a function takes arguments")),
        }
    }

    fn operand(&mut self) -> anyhow::Result<Operand> {
        match self.next()? {
            Token::Literal(value) => Ok(Operand::Literal(value)),
            Token::Word(name) => Ok(Operand::Function(name)),
            Token::Variable(name) => Ok(Operand::Variable(name, self.fields())),
            Token::Field(name) if name.is_empty() => Ok(Operand::Dot(Vec::new())),
            Token::Field(name) => {
                let mut path = vec![name];
                path.extend(self.fields());
                Ok(Operand::Dot(path))
            }
            Token::Left => {
                let inner = self.deeper(|p| p.pipeline(false))?;
                self.skip_space();
                match self.next()? {
                    Token::Right => Ok(Operand::Parenthesis(inner, self.fields())),
                    other => Err(wrong(self.at, format!("unexpected {}, expected \")\"", other.show()))),
                }
            }
            other => Err(wrong(self.at, format!("unexpected {}", other.show()))),
        }
    }

    /// `.A.B`, without a space before it.
    fn fields(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while let Some((Token::Field(name), _)) =
            self.tokens.next_if(|(t, _)| matches!(t, Token::Field(name) if !name.is_empty()))
        {
            path.push(name);
        }
        path
    }
}
