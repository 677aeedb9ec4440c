//! `--version`: which program is this? In runc's shape, which engines parse.

/// What follows the program's name.
pub const TEXT: &str = match std::str::from_utf8(&JOINED) {
    Ok(text) => text,
    Err(_) => env!("CARGO_PKG_VERSION"),
};

const PARTS: [&str; 6] = [
    "version ",
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    // Set by whoever makes a release.
    match option_env!("BERTH_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
    "\nspec: ",
    crate::bundle::VERSION_MAX,
];

const LENGTH: usize = {
    let (mut length, mut part) = (0, 0);
    while part < PARTS.len() {
        length += PARTS[part].len();
        part += 1;
    }
    length
};

/// Joined by the compiler: no start of the program should pay for it.
const JOINED: [u8; LENGTH] = {
    let mut out = [0; LENGTH];
    let (mut at, mut part) = (0, 0);
    while part < PARTS.len() {
        let bytes = PARTS[part].as_bytes();
        let mut i = 0;
        while i < bytes.len() {
            out[at] = bytes[i];
            (at, i) = (at + 1, i + 1);
        }
        part += 1;
    }
    out
};

#[cfg(test)]
mod tests {
    #[test]
    fn the_shape_is_runcs() {
        let lines: Vec<&str> = super::TEXT.lines().collect();
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(lines[0], format!("version {}", env!("CARGO_PKG_VERSION")));
        assert!(lines[1].starts_with("commit: ") && lines[2] == "spec: 1.3.0", "{lines:?}");
    }
}
