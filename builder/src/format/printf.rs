//! Go's format verbs (package fmt), as far as templates use them.

use std::fmt::Write;

use super::value::Value;

/// No result is wider: a width comes from the user, but what it fills is our memory.
const WIDTH_MOST: usize = 1 << 16;

/// What stands between `%` and the verb.
#[derive(Default)]
struct Flags {
    minus: bool,
    plus: bool,
    sharp: bool,
    zero: bool,
    space: bool,
    width: Option<usize>,
    precision: Option<usize>,
}

/// Go's `Sprintf`, with its own way to tell of mistakes: `%!d(string=x)`.
pub fn sprintf(format: &str, args: &[Value]) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    let mut args = args.iter();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut flags = Flags::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '#' | '0' | ' ')) {
            match flag {
                '-' => flags.minus = true,
                '+' => flags.plus = true,
                '#' => flags.sharp = true,
                '0' => flags.zero = true,
                _ => flags.space = true,
            }
        }
        let mut number = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| -> Option<usize> {
            if chars.next_if_eq(&'*').is_some() {
                return match args.next() {
                    Some(Value::Int(n)) => usize::try_from(n.unsigned_abs()).ok().map(|n| n.min(WIDTH_MOST)),
                    _ => None,
                };
            }
            let mut value = None;
            while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
                chars.next();
                value = Some((value.unwrap_or(0usize) * 10 + digit as usize).min(WIDTH_MOST));
            }
            value
        };
        flags.width = number(&mut chars);
        if chars.next_if_eq(&'.').is_some() {
            flags.precision = Some(number(&mut chars).unwrap_or(0));
        }
        match chars.next() {
            None => out.push_str("%!(NOVERB)"),
            Some('%') => out.push('%'),
            Some(verb) => match args.next() {
                None => write!(out, "%!{verb}(MISSING)").unwrap_or_default(),
                Some(arg) => out.push_str(&one(verb, &flags, arg)),
            },
        }
    }
    let rest: Vec<String> = args.map(|a| format!("{}={}", a.kind(), a.inner(false))).collect();
    if !rest.is_empty() {
        write!(out, "%!(EXTRA {})", rest.join(", ")).unwrap_or_default();
    }
    out
}

fn one(verb: char, flags: &Flags, arg: &Value) -> String {
    let short = |s: &str| match flags.precision {
        Some(most) => s.chars().take(most).collect(),
        None => s.to_owned(),
    };
    let hex = |s: &str| {
        let digits = s.bytes().fold(String::new(), |mut out, b| {
            write!(out, "{b:02x}").unwrap_or_default();
            out
        });
        if verb == 'X' { digits.to_uppercase() } else { digits }
    };
    let text = match (verb, arg) {
        ('v', Value::Text(s)) if flags.sharp => quote(s),
        ('v' | 's', Value::Text(s)) => short(s),
        ('v', Value::Int(n)) => return number(flags, *n < 0, n.unsigned_abs().to_string()),
        ('v', _) => arg.inner(flags.plus),
        ('s', Value::List(_) | Value::Map(_) | Value::Fields(_)) => arg.inner(false),
        ('q', Value::Text(s)) => quote(&short(s)),
        ('q', Value::List(list)) => {
            let items: Vec<_> = list.iter().map(|item| one('q', &Flags::default(), item)).collect();
            format!("[{}]", items.join(" "))
        }
        ('x' | 'X', Value::Text(s)) => hex(s),
        ('t', Value::Bool(b)) => b.to_string(),
        ('d', Value::Int(n)) => return number(flags, *n < 0, n.unsigned_abs().to_string()),
        ('x', Value::Int(n)) => return number(flags, *n < 0, format!("{:x}", n.unsigned_abs())),
        ('X', Value::Int(n)) => return number(flags, *n < 0, format!("{:X}", n.unsigned_abs())),
        ('o', Value::Int(n)) => return number(flags, *n < 0, format!("{:o}", n.unsigned_abs())),
        ('b', Value::Int(n)) => return number(flags, *n < 0, format!("{:b}", n.unsigned_abs())),
        ('c', Value::Int(n)) => {
            u32::try_from(*n).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
        }
        ('f' | 'F', Value::Float(n)) => {
            let digits = format!("{:.*}", flags.precision.unwrap_or(6), n.abs());
            return number(flags, n.is_sign_negative(), digits);
        }
        ('g' | 'G', Value::Float(n)) => {
            return number(flags, n.is_sign_negative(), general(n.abs(), flags.precision));
        }
        ('e' | 'E', Value::Float(n)) => {
            let digits = exponent(n.abs(), flags.precision.unwrap_or(6));
            return number(flags, n.is_sign_negative(), digits);
        }
        ('T', _) => arg.kind().to_owned(),
        _ => format!("%!{verb}({}={})", arg.kind(), arg.inner(false)),
    };
    pad(flags, text)
}

fn number(flags: &Flags, negative: bool, digits: String) -> String {
    let sign = match (negative, flags.plus, flags.space) {
        (true, ..) => "-",
        (_, true, _) => "+",
        (.., true) => " ",
        _ => "",
    };
    let width = flags.width.unwrap_or(0);
    if flags.zero && !flags.minus && flags.precision.is_none() {
        let missing = width.saturating_sub(sign.len() + digits.len());
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    pad(flags, format!("{sign}{digits}"))
}

fn pad(flags: &Flags, text: String) -> String {
    let missing = " ".repeat(flags.width.unwrap_or(0).saturating_sub(text.chars().count()));
    if flags.minus { text + &missing } else { missing + &text }
}

/// `%q`.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() && u32::from(c) < 0x100 => {
                write!(out, "\\x{:02x}", u32::from(c)).unwrap_or_default();
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// `%e`.
fn exponent(n: f64, precision: usize) -> String {
    let text = format!("{n:.precision$e}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let power: i32 = power.parse().unwrap_or(0);
            format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
        }
        None => text,
    }
}

/// `%g`: as few digits as say the same, or as many as wanted; powers of ten where that is shorter.
pub fn general(n: f64, precision: Option<usize>) -> String {
    if n == 0.0 || !n.is_finite() {
        return if n.is_nan() { "NaN".into() } else { n.to_string().replace("inf", "+Inf") };
    }
    let scientific = match precision {
        Some(p) => format!("{n:.*e}", p.max(1) - 1),
        None => format!("{n:e}"),
    };
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = power.parse().unwrap_or(0);
    let trim = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => s.to_owned(),
    };
    let most = precision.map_or(21, |p| p.max(1) as i32);
    if power < -4 || power >= most {
        let sign = if power < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(digits), power.abs());
    }
    match precision {
        Some(p) => trim(&format!("{n:.*}", (p.max(1) as i32 - 1 - power).max(0) as usize)),
        None => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbs_and_flags_as_go_has_them() {
        let text = |s: &str| Value::from(s);
        let list = Value::from(vec!["a b", "c"]);
        for (format, args, printed) in [
            ("%s-%d", vec![text("a"), Value::Int(5)], "a-5"),
            ("%5s|%-5s|", vec![text("ab"), text("cd")], "   ab|cd   |"),
            ("%.2s", vec![text("abc")], "ab"),
            ("%q %v %s", vec![list.clone(), list.clone(), list], "[\"a b\" \"c\"] [a b c] [a b c]"),
            ("%05d|%+d|%x|%X|%o|%b", vec![Value::Int(-42); 6], "-0042|-42|-2a|-2A|-52|-101010"),
            ("%x", vec![text("hi")], "6869"),
            ("%t %v", vec![Value::Bool(true), Value::Nil], "true <nil>"),
            ("%6.2f|%g|%e", vec![Value::Float(2.5); 3], "  2.50|2.5|2.500000e+00"),
            ("%c%%", vec![Value::Int(65)], "A%"),
            ("%d", vec![text("x")], "%!d(string=x)"),
            ("%d %s", vec![Value::Int(1)], "1 %!s(MISSING)"),
            ("", vec![Value::Int(1)], "%!(EXTRA int=1)"),
            ("%", vec![], "%!(NOVERB)"),
            ("%*d", vec![Value::Int(4), Value::Int(1)], "   1"),
            ("%#v %T", vec![text("a\n"), text("a")], "\"a\\n\" string"),
            ("%99999999999999999999d", vec![], "%!d(MISSING)"),
        ] {
            assert_eq!(sprintf(format, &args), printed, "{format}");
        }
    }

    #[test]
    fn numbers_with_so_many_digits() {
        for (n, precision, printed) in [
            (5.2, Some(3), "5.2"),
            (5.0, Some(3), "5"),
            (123.456, Some(3), "123"),
            (1234.0, Some(3), "1.23e+03"),
            (0.00001, None, "1e-05"),
            (0.5, None, "0.5"),
            (100.0, None, "100"),
            (0.0, None, "0"),
        ] {
            assert_eq!(general(n, precision), printed, "{n}");
        }
    }
}
