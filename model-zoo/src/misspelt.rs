//! What somebody may have meant by a name that does not exist.

/// A likeness below this is chance.
const NEAR: f64 = 0.7;

/// The names nearest to `wrong`, best first, at most three; none where nothing is near.
pub fn nearest<T: AsRef<str>>(wrong: &str, names: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut near: Vec<(f64, T)> = names
        .into_iter()
        .map(|name| (likeness(wrong, name.as_ref()), name))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().take(3).map(|(_, name)| name).collect()
}

/// The first measure likes a common beginning; the second does justice to short names with two letters swapped.
fn likeness(wrong: &str, name: &str) -> f64 {
    let swapped = strsim::normalized_damerau_levenshtein(wrong, name) + 0.1;
    strsim::jaro_winkler(wrong, name).max(swapped)
}

/// The end of a message about a name that does not exist: ``, did you mean `a` or `b`?``, or nothing where nothing is near.
pub fn did_you_mean(nearest: &[impl AsRef<str>]) -> String {
    let quoted = nearest.iter().map(|name| format!("`{}`", name.as_ref()));
    match quoted.collect::<Vec<_>>().as_slice() {
        [] => String::new(),
        [only] => format!(", did you mean {only}?"),
        [first @ .., last] => format!(", did you mean {} or {last}?", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelt_names_find_their_own_first() {
        let names = ["uniform", "magnitude", "l1norm", "l2norm", "erk"];
        for (wrong, right) in [
            ("unifrom", "uniform"),
            ("magnitud", "magnitude"),
            ("l2-norm", "l2norm"),
            ("ekr", "erk"),
        ] {
            assert_eq!(nearest(wrong, names)[0], right, "{wrong}");
        }
        assert_eq!(nearest("zebra", names), [""; 0]);
    }

    #[test]
    fn a_question_names_what_is_near() {
        assert_eq!(did_you_mean(&[""; 0]), "");
        assert_eq!(did_you_mean(&["a"]), ", did you mean `a`?");
        assert_eq!(
            did_you_mean(&["a", "b", "c"]),
            ", did you mean `a`, `b` or `c`?"
        );
    }
}
