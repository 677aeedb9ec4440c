//! What do `--chmod` and `--chown` say?

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail, ensure};

use crate::bundle;

/// chmod(1): an octal number, or clauses as `u=rwX,go-w`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chmod {
    Number(u32),
    Clauses(Vec<Clause>),
}

/// One clause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clause {
    /// Whose bits: of `0o700`, `0o070` and `0o007`.
    who: u32,
    operator: char,
    what: Vec<char>,
}

impl Chmod {
    pub fn parse(text: &str) -> Result<Chmod> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            let number = u32::from_str_radix(text, 8).ok().filter(|n| *n <= 0o7777);
            return Ok(Chmod::Number(
                number.with_context(|| format!("--chmod={text}: this is no octal mode up to 7777"))?,
            ));
        }
        let wrong = || format!("--chmod={text}: this is neither an octal mode nor clauses as u=rwX,go-w");
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            let at = clause.find(['+', '-', '=']).with_context(wrong)?;
            let mut who = 0;
            for c in clause[..at].chars() {
                who |= match c {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => bail!(wrong()),
                };
            }
            if who == 0 {
                who = 0o777;
            }
            let mut rest = clause[at..].chars().peekable();
            while let Some(operator) = rest.next() {
                ensure!(matches!(operator, '+' | '-' | '='), wrong());
                let mut what = Vec::new();
                while let Some(c) = rest.next_if(|c| !matches!(c, '+' | '-' | '=')) {
                    ensure!(matches!(c, 'r' | 'w' | 'x' | 'X' | 's' | 't' | 'u' | 'g' | 'o'), wrong());
                    what.push(c);
                }
                clauses.push(Clause { who, operator, what });
            }
        }
        Ok(Chmod::Clauses(clauses))
    }

    /// What a mode becomes.
    pub fn apply(&self, mode: u32, folder: bool) -> u32 {
        let clauses = match self {
            Chmod::Number(number) => return *number,
            Chmod::Clauses(clauses) => clauses,
        };
        let mut mode = mode;
        for Clause { who, operator, what } in clauses {
            let everybody = |bits: u32| bits * 0o111;
            let mut bits = 0;
            for c in what {
                bits |= match c {
                    'r' => everybody(4) & who,
                    'w' => everybody(2) & who,
                    'x' => everybody(1) & who,
                    'X' if folder || mode & 0o111 != 0 => everybody(1) & who,
                    's' => {
                        (if who & 0o700 != 0 { 0o4000 } else { 0 })
                            | (if who & 0o070 != 0 { 0o2000 } else { 0 })
                    }
                    't' => 0o1000,
                    'u' => everybody(mode >> 6 & 7) & who,
                    'g' => everybody(mode >> 3 & 7) & who,
                    'o' => everybody(mode & 7) & who,
                    _ => 0,
                };
            }
            match operator {
                '+' => mode |= bits,
                '-' => mode &= !bits,
                _ => mode = mode & !(who & 0o777) | bits,
            }
        }
        mode
    }
}

/// `--chown`: `user`, `user:group`, by name or number. A number without a group is the group's, too.
///
/// # Errors
/// A name that `root`, which is asked only for names, does not have.
pub fn owner<'a>(text: &str, root: impl FnOnce() -> Result<BorrowedFd<'a>>) -> Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group).filter(|g| !g.is_empty())),
        None => (text, None),
    };
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n != u32::MAX);
    match (number(user), group.map(|g| (g, number(g)))) {
        (Some(uid), None) => Ok((uid, uid)),
        (Some(uid), Some((_, Some(gid)))) => Ok((uid, gid)),
        _ => {
            let found = bundle::user(root()?, text).with_context(|| format!("--chown={text}"))?;
            Ok((number(user).unwrap_or(found.uid), found.gid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_as_chmod_has_them() {
        for (text, mode, folder, expected) in [
            ("755", 0o644, false, 0o755),
            ("4711", 0, false, 0o4711),
            ("u+x", 0o644, false, 0o744),
            ("+x", 0o644, false, 0o755),
            ("a=r", 0o4755, false, 0o4444),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("go-rwx", 0o777, false, 0o700),
            ("u=g,o=", 0o674, false, 0o770),
            ("g=u", 0o740, false, 0o770),
            ("+t,u+s,g+s", 0o755, true, 0o7755),
            ("u-s", 0o4755, false, 0o755),
            ("u+w-x", 0o577, false, 0o677),
        ] {
            let chmod = Chmod::parse(text).unwrap();
            assert_eq!(chmod.apply(mode, folder), expected, "{text} {mode:o}");
        }
        for text in ["", "8", "77777", "x", "u", "z+x", "u+q", "u+x,,"] {
            assert!(Chmod::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn owners_by_number_need_no_file() {
        let none = || -> Result<BorrowedFd<'static>> { bail!("asked") };
        for (text, expected) in [("5", (5, 5)), ("5:6", (5, 6)), ("0:0", (0, 0)), ("5:", (5, 5))] {
            assert_eq!(owner(text, none).unwrap(), expected, "{text}");
        }
        for text in ["ann", "5:users", "4294967295"] {
            assert_eq!(owner(text, none).unwrap_err().to_string(), "asked", "{text}");
        }
    }
}
