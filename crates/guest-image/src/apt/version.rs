//! Order of Debian version numbers. Spec: Debian Policy §5.6.12.

use std::cmp::Ordering;

/// Compares two versions `[epoch:]upstream[-revision]`.
///
/// Total over all strings: a malformed epoch counts as 0 and stays part of the upstream version.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (epoch_a, upstream_a, revision_a) = split(a);
    let (epoch_b, upstream_b, revision_b) = split(b);
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(upstream_a, upstream_b))
        .then_with(|| compare_part(revision_a, revision_b))
}

fn split(version: &str) -> (u64, &str, &str) {
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => match epoch.parse() {
            Ok(epoch) => (epoch, rest),
            Err(_) => (0, version),
        },
        None => (0, version),
    };
    match rest.rsplit_once('-') {
        Some((upstream, revision)) => (epoch, upstream, revision),
        None => (epoch, rest, "0"),
    }
}

/// Alternates between non-digit and digit runs, as the policy describes.
fn compare_part(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let (word_a, rest_a) = take(a, |byte| !byte.is_ascii_digit());
        let (word_b, rest_b) = take(b, |byte| !byte.is_ascii_digit());
        let (digits_a, rest_a) = take(rest_a, |byte| byte.is_ascii_digit());
        let (digits_b, rest_b) = take(rest_b, |byte| byte.is_ascii_digit());
        let order = compare_word(word_a, word_b).then_with(|| compare_digits(digits_a, digits_b));
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
    Ordering::Equal
}

fn take(bytes: &[u8], of: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    let len = bytes.iter().position(|&byte| !of(byte)).unwrap_or(bytes.len());
    bytes.split_at(len)
}

/// `~` sorts before the end, the end before letters, letters before everything else.
fn compare_word(a: &[u8], b: &[u8]) -> Ordering {
    let weight = |word: &[u8], index: usize| match word.get(index) {
        Some(b'~') => -1,
        None => 0,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    };
    (0..a.len().max(b.len()))
        .map(|index| weight(a, index).cmp(&weight(b, index)))
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

/// Compares runs of digits of any length by value.
fn compare_digits(a: &[u8], b: &[u8]) -> Ordering {
    let significant = |digits: &[u8]| digits.iter().position(|&digit| digit != b'0').unwrap_or(digits.len());
    let (a, b) = (&a[significant(a)..], &b[significant(b)..]);
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Whether `version` satisfies `relation` (`<<`, `<=`, `=`, `>=`, `>>`) to `wanted`. Policy §7.1.
pub fn satisfies(version: &str, relation: &str, wanted: &str) -> bool {
    let order = compare(version, wanted);
    match relation {
        "<<" => order.is_lt(),
        "<=" | "<" => order.is_le(),
        "=" => order.is_eq(),
        ">=" | ">" => order.is_ge(),
        ">>" => order.is_gt(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policys_order_holds() {
        let ascending = ["~~", "~~a", "~", "", "a"];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
        }
    }

    #[test]
    fn versions_of_real_packages_are_ordered() {
        for (low, high) in [
            ("1.0~beta1~svn1245", "1.0~beta1"),
            ("1.0~beta1", "1.0"),
            ("6.1.0-9", "6.1.0-56"),
            ("6.1.187-1", "6.1.192-2"),
            ("1.2.3", "1:0.1"),
            ("2.36-9+deb12u9", "2.36-9+deb12u14"),
            ("1.0", "1.0-1"),
            ("1.0-1", "1.0-1.1"),
            ("1.0a", "1.0+"),
            ("009", "10"),
            ("1.99999999999999999999999", "1.100000000000000000000000"),
        ] {
            assert_eq!(compare(low, high), Ordering::Less, "{low} {high}");
            assert_eq!(compare(high, low), Ordering::Greater, "{high} {low}");
        }
        assert_eq!(compare("0:1.0-0", "1.0"), Ordering::Equal);
        assert_eq!(compare("1.010", "1.10"), Ordering::Equal);
    }

    #[test]
    fn relations_are_those_of_the_policy() {
        assert!(satisfies("1.1", ">=", "1.0"));
        assert!(!satisfies("1.0", ">>", "1.0"));
        assert!(satisfies("1.0", "<=", "1.0"));
        assert!(satisfies("1.0~rc1", "<<", "1.0"));
        assert!(!satisfies("1.0", "??", "1.0"));
    }
}
