//! What must hold of whatever bytes come from outside, for the fuzz targets (`tests/fuzz`).
//!
//! Each room says of its own parsers, in its `fuzz.rs`, more than that they do not panic: what parses comes out the same
//! when it is written and parsed again, look-ups agree, and nothing lies out of bounds. Only there for fuzzing and for
//! the unit test here, which goes through the corpus.

/// A parser and what must hold of it; panics when that does not.
pub type Target = fn(&[u8]);

/// All of them, by the names of their programs and of their directories in the corpus.
pub const TARGETS: [(&str, Target); 9] = [
    ("manifest", crate::model::fuzz::manifest),
    ("metadata", crate::model::fuzz::metadata),
    ("key", crate::model::fuzz::key),
    ("pack", crate::store::fuzz::pack),
    ("table", crate::store::fuzz::table),
    ("tree", crate::tier::fuzz::tree),
    ("protocol", crate::control::fuzz::protocol),
    ("configuration", crate::daemon::fuzz::configuration),
    ("request", crate::fuse::fuzz::request),
];

/// Calls the target of this name.
///
/// # Panics
/// When there is none, or when what it says does not hold.
pub fn check(name: &str, data: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(n, _)| *n == name).expect("a target of this name");
    target(data);
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    /// What fuzzing has found once stays right.
    #[test]
    fn the_corpus_holds() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, target) in super::TARGETS {
            let files = std::fs::read_dir(corpus.join(name)).unwrap();
            let mut seen = 0;
            for file in files {
                let path = file.unwrap().path();
                println!("{}", path.display());
                target(&std::fs::read(&path).unwrap());
                seen += 1;
            }
            assert!(seen > 0, "{name} has no corpus");
        }
    }
}
