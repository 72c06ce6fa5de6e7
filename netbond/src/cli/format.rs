//! Times, spans and large numbers for people.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::{Timestamp, tz::TimeZone};

/// A span in its two largest units.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

/// A number in three digits and the SI's prefix.
pub(crate) fn count(number: u64) -> String {
    let mut rest = number as f64;
    for prefix in ["", "k", "M", "G", "T", "P"] {
        // What would be rounded up to four digits belongs to the next prefix.
        let digits = match rest {
            _ if prefix.is_empty() => 0,
            ..9.995 => 2,
            ..99.95 => 1,
            _ => 0,
        };
        if rest < 999.5 {
            return format!("{rest:.digits$}{prefix}");
        }
        rest /= 1000.0;
    }
    format!("{rest:.0}E")
}

/// In place of what is not known.
pub(crate) const DASH: &str = "-";

/// A number with so many digits behind the point.
pub(crate) fn number(number: Option<f64>, digits: usize) -> String {
    number.map_or_else(|| DASH.to_owned(), |number| format!("{number:.digits$}"))
}

/// A share, 0 to 1, in percent.
pub(crate) fn percent(share: Option<f64>) -> String {
    number(share.map(|share| share * 100.0), 1)
}

/// How long ago a time was, seconds since 1970.
pub(super) fn since(seconds: f64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs_f64(seconds.max(0.0));
    span(SystemTime::now().duration_since(at).unwrap_or_default())
}

/// A time of day in this host's zone, with milliseconds; the date first where it is not today.
pub(super) fn clock(at: SystemTime) -> String {
    let zone = TimeZone::system();
    let Ok(at) = Timestamp::try_from(at) else {
        return "?".to_owned();
    };
    let at = at.to_zoned(zone.clone());
    let today = Timestamp::now().to_zoned(zone).date();
    let format = if at.date() == today {
        "%H:%M:%S%.3f"
    } else {
        "%F %H:%M:%S%.3f"
    };
    at.strftime(format).to_string()
}

/// A time for programs: RFC 3339, UTC, microseconds.
pub(super) fn rfc3339(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "?".to_owned(), |at| format!("{at:.6}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_largest_units() {
        for (seconds, text) in [
            (0, "0s"),
            (61, "1m01s"),
            (3_660, "1h01m"),
            (90_000, "1d01h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn three_digits_of_large_numbers() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1.00k"),
            (9_995, "10.0k"),
            (99_949, "99.9k"),
            (99_950, "100k"),
            (999_499, "999k"),
            (999_500, "1.00M"),
            (1_324_075_134, "1.32G"),
            (u64::MAX, "18E"),
        ] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn times_for_programs() {
        let at = UNIX_EPOCH + Duration::from_micros(1_500_000);
        assert_eq!(rfc3339(at), "1970-01-01T00:00:01.500000Z");
    }
}
