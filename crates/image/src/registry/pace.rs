//! Does a transfer come on, or does it drip so slowly that it would never end?

use std::io;
use std::time::Duration;

/// A transfer that brings less than this …
const DRIP: u64 = 60 << 10;
/// … while it was waited for so long, has come to a standstill.
const DRIP_TIME: Duration = Duration::from_secs(60);

/// How much came, and how long it was waited for, since it was last looked at. What the reader itself needs does not count.
#[derive(Debug, Default)]
pub struct Pace {
    waited: Duration,
    came: u64,
}

impl Pace {
    /// So many bytes came after such a wait.
    ///
    /// # Errors
    /// `TimedOut` when the transfer is at a standstill.
    pub fn goes_on(&mut self, bytes: u64, waited: Duration) -> io::Result<()> {
        self.waited += waited;
        self.came += bytes;
        if self.waited <= DRIP_TIME {
            return Ok(());
        }
        let Pace { waited, came } = std::mem::take(self);
        if came < DRIP {
            let text = format!("no more than {came} bytes in {} seconds", waited.as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drips_end_and_what_flows_does_not() {
        let ends = |bytes: u64, each: Duration| {
            let mut pace = Pace::default();
            (1..=100_000).find(|_| pace.goes_on(bytes, each).is_err())
        };
        let millis = Duration::from_millis;
        for (title, bytes, each, end) in [
            ("a byte a second", 1, millis(1000), Some(61)),
            ("a byte each 30 seconds", 1, millis(30_000), Some(3)),
            ("1000 bytes a second", 1000, millis(1000), Some(61)),
            ("1024 bytes a second", 1024, millis(1000), None),
            ("64 KiB after a long wait", 64 << 10, millis(61_000), None),
            ("a byte at a time, without a wait", 1, millis(0), None),
            ("a byte at a time, 1 ms each", 1, millis(1), Some(60_001)),
        ] {
            assert_eq!(ends(bytes, each), end, "{title}");
        }
    }

    #[test]
    fn a_burst_does_not_pay_for_what_follows() {
        let mut pace = Pace::default();
        pace.goes_on(10 << 20, DRIP_TIME * 2).unwrap();
        let error = pace.goes_on(7, DRIP_TIME * 2).unwrap_err();
        assert_eq!(error.to_string(), "no more than 7 bytes in 120 seconds");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
