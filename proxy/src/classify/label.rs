//! Labels: a total order of names, the lowest first. Every source can raise a label, none can lower it.

use std::sync::Arc;

/// A label of the lattice that it came from. Comparable only with labels of the same lattice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(u8);

impl Label {
    /// The least label that is at or above both.
    #[must_use]
    pub fn join(self, other: Self) -> Self {
        self.max(other)
    }
}

/// The lattice.
#[derive(Debug, Clone)]
pub struct Labels(Arc<[String]>);

impl Labels {
    /// A lattice of `names`, the lowest first.
    ///
    /// # Errors
    /// Says what is wrong: fewer than two names, more than 16, an empty or repeated one, one that fits no header.
    pub fn new(names: Vec<String>) -> Result<Self, &'static str> {
        let plain = |name: &String| {
            (1..=32).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if !(2..=16).contains(&names.len()) {
            return Err("expected 2 to 16 labels, the lowest first");
        }
        if !names.iter().all(plain) {
            return Err("a label has 1 to 32 of the characters a-z 0-9 -");
        }
        let mut sorted: Vec<_> = names.iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.len() != names.len() {
            return Err("the same label stands twice");
        }
        Ok(Self(names.into()))
    }

    /// All names, the lowest first.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// The label called `name`.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<Label> {
        let index = self.0.iter().position(|known| known == name)?;
        u8::try_from(index).ok().map(Label)
    }

    /// The name of `label`.
    #[must_use]
    pub fn name(&self, label: Label) -> &str {
        self.0.get(usize::from(label.0)).map_or("unknown", String::as_str)
    }

    /// What a prompt has when nobody said anything.
    #[must_use]
    pub fn lowest(&self) -> Label {
        Label(0)
    }

    /// What never leaves.
    #[must_use]
    pub fn highest(&self) -> Label {
        Label(u8::try_from(self.0.len().saturating_sub(1)).unwrap_or(u8::MAX))
    }

    /// One below the highest.
    #[must_use]
    pub fn second_highest(&self) -> Label {
        Label(self.highest().0.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_order_agree() {
        let labels = Labels::new(["a", "b", "c"].map(str::to_owned).to_vec()).unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| labels.by_name(name).unwrap());
        assert!(a < b && b < c && labels.lowest() == a && labels.second_highest() == b && labels.highest() == c);
        assert_eq!((labels.name(b), labels.by_name("B")), ("b", None));
        for wrong in [vec!["a"], vec!["a", "a"], vec!["a", "B"], vec!["a", ""], vec!["x"; 17]] {
            assert!(Labels::new(wrong.into_iter().map(str::to_owned).collect()).is_err());
        }
    }

    proptest! {
        #[test]
        fn join_is_a_join(a in 0u8..16, b in 0u8..16, c in 0u8..16) {
            let (a, b, c) = (Label(a), Label(b), Label(c));
            prop_assert!(a.join(b) >= a && a.join(b) >= b);
            prop_assert_eq!(a.join(b), b.join(a));
            prop_assert_eq!(a.join(b).join(c), a.join(b.join(c)));
            prop_assert_eq!(a.join(a), a);
        }
    }
}
