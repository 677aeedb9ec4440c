//! JSON texts. Everything is parsed as text that has been looked at once: serde_json looks at each string of a slice of bytes
//! for itself, which takes a tenth of the time of a config, and the parser for slices would be a second copy of every type's code.

use serde::de::{DeserializeOwned, Error as _};

/// Parse a document.
///
/// # Errors
/// It is not UTF-8, or as `serde_json::from_str`.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str(text),
        Err(e) => {
            let before = &bytes[..e.valid_up_to()];
            let line = before.iter().filter(|b| **b == b'\n').count() + 1;
            let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
            Err(serde_json::Error::custom(format!("invalid UTF-8 at line {line} column {column}")))
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_not_utf8_is_told_with_its_place() {
        assert_eq!(super::parse::<[u8; 2]>(b"[1, 2]").expect("good"), [1, 2]);
        let e = super::parse::<serde_json::Value>(b"{\n \"a\": \"\xff\"}").expect_err("bad");
        assert_eq!((e.to_string(), e.line(), e.column()), ("invalid UTF-8 at line 2 column 8".into(), 2, 8));
    }
}
