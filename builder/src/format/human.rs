//! Sizes and ages, as docker prints them for people (docker/go-units).

/// `5.2MB`: decimal units, three or four digits.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // What is rounded up to a thousand belongs to the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes}B");
    }
    format!("{}{}", significant(value, 3), UNITS[unit])
}

/// Go's `%.3g`, without an exponent.
fn significant(value: f64, digits: usize) -> String {
    let before = if value >= 1.0 { value.log10().floor() as usize + 1 } else { 1 };
    let text = format!("{value:.*}", digits.saturating_sub(before));
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// `2 weeks`: how long so many seconds are.
pub fn duration(seconds: u64) -> String {
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        _ => match hours {
            0 | 1 => "About an hour".to_owned(),
            2..48 => format!("{hours} hours"),
            48..336 => format!("{} days", hours / 24),
            336..1440 => format!("{} weeks", hours / 24 / 7),
            1440..17_520 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", hours / 24 / 365),
        },
    }
}

/// `64MB`, `1g`, `512`: bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "t" | "tb" => 1_000_000_000_000,
        "ki" | "kib" => 1 << 10,
        "mi" | "mib" => 1 << 20,
        "gi" | "gib" => 1 << 30,
        "ti" | "tib" => 1 << 40,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Some((number * factor as f64) as u64)
}

/// The same where units are those of memory, as in `--memory 64m`: powers of 1024, whatever their name.
pub fn parse_memory(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let letter = unit.trim().get(..1).filter(|l| !l.eq_ignore_ascii_case("b"));
    match letter {
        Some(letter) => {
            // What is no unit is none here, either.
            parse_size(text)?;
            let number = &text[..text.len() - unit.len()];
            parse_size(&format!("{number}{letter}ib"))
        }
        None => parse_size(text),
    }
}

/// `24h`, `1h30m`, `7d`: seconds, as Go's durations with days beside.
pub fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        let after = &rest[end..];
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        total += number
            * match &after[..unit_end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86_400.0,
                "w" => 604_800.0,
                _ => return None,
            };
        rest = &after[unit_end..];
    }
    (!text.is_empty()).then_some(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_docker_prints_them() {
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1000, "1kB"),
            (7_833_000, "7.83MB"),
            (77_800_000, "77.8MB"),
            (187_600_000, "188MB"),
            (999_400, "999kB"),
            (999_600, "1MB"),
            (1_234_567_890, "1.23GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (600, "10 minutes"),
            (3000, "50 minutes"),
            (3600, "About an hour"),
            (5399, "About an hour"),
            (7200, "2 hours"),
            (47 * 3600, "47 hours"),
            (3 * 86_400, "3 days"),
            (20 * 86_400, "2 weeks"),
            (70 * 86_400, "2 months"),
            (800 * 86_400, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn as_people_write_them() {
        for (text, bytes) in [
            ("512", Some(512)),
            ("1.5k", Some(1500)),
            ("2GiB", Some(2 << 30)),
            ("x", None),
            ("1x", None),
            ("", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
        for (text, bytes) in [
            ("64m", Some(64 << 20)),
            ("1.5GB", Some(3 << 29)),
            ("2KiB", Some(2048)),
            ("512", Some(512)),
            ("512b", Some(512)),
            ("64x", None),
            ("m", None),
            ("64 é", None),
        ] {
            assert_eq!(parse_memory(text), bytes, "{text}");
        }
        for (text, seconds) in [
            ("24h", Some(86_400)),
            ("1h30m", Some(5400)),
            ("7d", Some(604_800)),
            ("5", None),
            ("", None),
            ("h", None),
        ] {
            assert_eq!(parse_duration(text), seconds, "{text}");
        }
    }
}
