//! Dates as `strftime` writes them. Times are UTC: the library reads no time zone.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Now, by `format`: `%a %A %b %B %d %e %H %I %j %m %M %p %S %y %Y %F %T %%`; other letters stay as they are.
pub fn utc(format: &str) -> String {
    format_seconds(format, SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

fn format_seconds(format: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86400, seconds % 86400);
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = day + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    for length in lengths {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    let month_name = MONTHS.get(month).copied().unwrap_or_default();
    let day_name = DAYS.get((days % 7) as usize).copied().unwrap_or_default();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('a') => out += day_name.get(..3).unwrap_or_default(),
            Some('A') => out += day_name,
            Some('b' | 'h') => out += month_name.get(..3).unwrap_or_default(),
            Some('B') => out += month_name,
            Some('d') => out += &format!("{:02}", day + 1),
            Some('e') => out += &format!("{:2}", day + 1),
            Some('H') => out += &format!("{h:02}"),
            Some('I') => out += &format!("{:02}", (h + 11) % 12 + 1),
            Some('j') => out += &format!("{day_of_year:03}"),
            Some('m') => out += &format!("{:02}", month + 1),
            Some('M') => out += &format!("{m:02}"),
            Some('p') => out += if h < 12 { "AM" } else { "PM" },
            Some('S') => out += &format!("{s:02}"),
            Some('y') => out += &format!("{:02}", year % 100),
            Some('Y') => out += &year.to_string(),
            Some('F') => out += &format!("{year}-{:02}-{:02}", month + 1, day + 1),
            Some('T') => out += &format!("{h:02}:{m:02}:{s:02}"),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(format_seconds("%d %b %Y %A", 0), "01 Jan 1970 Thursday");
        assert_eq!(format_seconds("%F %T %j %p%%", 951_782_399), "2000-02-28 23:59:59 059 PM%");
        assert_eq!(format_seconds("%d %B %Y %a %I", 1_709_164_800), "29 February 2024 Thu 12");
        assert_eq!(format_seconds("%d %b %Y %q", 1_735_689_599), "31 Dec 2024 %q");
    }
}
