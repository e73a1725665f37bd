//! A part of a tree: everything, or only some paths and what is below them.
//!
//! Must not know: whether the tree is on disk or in a manifest.

/// Which children of a directory are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Only {
    /// All, with all that is below.
    All,
    /// What these paths (relative to the directory, never empty) lead to.
    Paths(Vec<Vec<u8>>),
}

impl Only {
    /// What is meant of the child `name`; `None` when it is not.
    pub fn child(&self, name: &[u8]) -> Option<Only> {
        let Only::Paths(paths) = self else { return Some(Only::All) };
        let mut below = Vec::new();
        for path in paths {
            let mut parts = path.splitn(2, |&b| b == b'/');
            if parts.next() != Some(name) {
                continue;
            }
            match parts.next() {
                Some(rest) => below.push(rest.to_vec()),
                None => return Some(Only::All),
            }
        }
        (!below.is_empty()).then_some(Only::Paths(below))
    }

    /// The whole tree below is meant.
    pub fn is_all(&self) -> bool {
        *self == Only::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_down() {
        let only = Only::Paths(["a/b", "a/c/d", "e", "e/f"].map(|p| p.as_bytes().to_vec()).into());
        assert_eq!(only.child(b"x"), None);
        assert_eq!(only.child(b"e"), Some(Only::All));
        let a = only.child(b"a").unwrap();
        assert!(!a.is_all() && a.child(b"b").unwrap().is_all());
        assert_eq!(a.child(b"c"), Some(Only::Paths(vec![b"d".to_vec()])));
        assert_eq!(Only::All.child(b"q"), Some(Only::All));
    }
}
