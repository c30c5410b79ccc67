//! "Did you mean": the known name that a mistyped one is nearest to.

/// The nearest of `known`, if it is near enough to be meant.
pub(crate) fn nearest<'a>(
    wrong: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let wrong = wrong.to_lowercase().replace('_', "-");
    let bound = (wrong.chars().count() / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|name| name.chars().count() <= 64 && wrong.chars().count() <= 64)
        .map(|name| (distance(&wrong, &name.to_lowercase()), name))
        .min()
        .filter(|(distance, _)| *distance <= bound)
        .map(|(_, name)| name)
}

/// Levenshtein's distance; quadratic, for names.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `a`, `b` or `c`, in back quotes.
pub(crate) fn any_of(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.as_slice() {
        [] => "nothing".into(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} or {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        let known = ["vhost-user", "vlan", "bridge", "dpdk"];
        assert_eq!(nearest("vhost_user", known), Some("vhost-user"));
        assert_eq!(nearest("brigde", known), Some("bridge"));
        assert_eq!(nearest("Vlan", known), Some("vlan"));
        assert_eq!(nearest("queue", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(any_of(&["a", "b", "c"]), "`a`, `b` or `c`");
    }
}
