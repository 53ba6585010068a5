//! Counts in messages.

use std::fmt::Display;

/// A count with what is counted, as English has it: `1 host`, `2 hosts`, `0 entries`. The noun is given in the singular.
pub fn counted<N: Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    if count == N::from(1) {
        return format!("{count} {noun}");
    }
    let before_y = noun.chars().rev().nth(1);
    let plural = match noun.strip_suffix('y') {
        Some(stem) if before_y.is_some_and(|c| !"aeiou".contains(c)) => format!("{stem}ies"),
        _ if ["s", "x", "ch", "sh"].iter().any(|end| noun.ends_with(end)) => format!("{noun}es"),
        _ => format!("{noun}s"),
    };
    format!("{count} {plural}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn only_one_is_one() {
        for (count, noun, text) in [
            (0, "host", "0 hosts"),
            (1, "host", "1 host"),
            (2, "host", "2 hosts"),
            (1, "entry", "1 entry"),
            (3, "entry", "3 entries"),
            (3, "day", "3 days"),
            (3, "address", "3 addresses"),
            (21, "index", "21 indexes"),
        ] {
            assert_eq!(counted(count, noun), text);
        }
        assert_eq!(counted(1_u64, "byte"), "1 byte");
        assert_eq!(counted(11_usize, "byte"), "11 bytes");
    }
}
