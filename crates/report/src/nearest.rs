//! Which word was probably meant?

/// The word of `allowed` that `found` was probably meant to be.
pub fn nearest<'a>(found: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let found = found.to_ascii_lowercase();
    let limit = if found.len() < 3 { 1 } else { (found.len() / 3).clamp(2, 4) };
    allowed
        .into_iter()
        .map(|word| {
            let lower = word.to_ascii_lowercase();
            let common = found.bytes().zip(lower.bytes()).take_while(|(a, b)| a == b).count();
            let abbreviated = common >= 3 && common + 1 >= found.len();
            (if abbreviated { 1 } else { distance(&found, &lower) }, word)
        })
        .filter(|(d, _)| *d <= limit)
        .min_by_key(|(d, _)| *d)
        .map(|(_, word)| word)
}

/// How many single-character edits lie between two words.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = corner + usize::from(ca != *cb);
            corner = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        for (found, expected) in [
            ("nett", Some("network")),
            ("net", Some("network")),
            ("mnt", Some("mount")),
            ("PID", Some("pid")),
            ("usr", Some("user")),
            ("quantum", None),
            ("", None),
        ] {
            assert_eq!(
                nearest(found, ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"]),
                expected,
                "{found}"
            );
        }
    }
}
