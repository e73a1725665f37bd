//! Why a command failed in a sandbox: files that it names and that only exist outside.
//!
//! Must not know: how the sandbox is made.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Scene;

/// At most so many are named.
const MOST: usize = 5;
/// Of what a command said, so much of the end is looked at.
const TAIL: usize = 1 << 16;

/// Files of the project that messages name, that exist outside and are neither input nor output; below the working
/// directory where they are.
pub(super) fn wanted(said: &[u8], scene: &Scene<'_>) -> Vec<PathBuf> {
    let (root, cwd) = (&scene.place.root, &scene.place.cwd);
    let said = &said[said.len().saturating_sub(TAIL)..];
    let inputs: HashSet<&Path> = scene.inputs.iter().copied().collect();
    let mut found = BTreeSet::new();
    for word in said.split(|b| b.is_ascii_whitespace() || b"'\"`:;,()<>[]=".contains(b)) {
        let word = word.strip_suffix(b".").unwrap_or(word);
        if word.is_empty() || word.len() > 4096 {
            continue;
        }
        let path = cwd.join(OsStr::from_bytes(word));
        let climbs = path.components().any(|c| c == std::path::Component::ParentDir);
        if climbs || !path.starts_with(root) || path == *cwd || cwd.starts_with(&path) {
            continue;
        }
        let ours = scene.outputs.iter().chain(scene.given).any(|o| path.starts_with(cwd.join(o)));
        let inside = inputs.contains(path.as_path()) || scene.inputs.iter().any(|i| i.starts_with(&path));
        if !ours && !inside && path.symlink_metadata().is_ok() {
            found.insert(path.strip_prefix(cwd).map(Path::to_owned).unwrap_or(path));
            if found.len() == MOST {
                break;
            }
        }
    }
    found.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::spec::Place;

    #[test]
    fn what_messages_name_and_only_exists_outside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let cwd = root.join("sub");
        std::fs::create_dir_all(root.join("sub/inc")).unwrap();
        std::fs::create_dir_all(root.join("sub/out")).unwrap();
        for file in ["sub/main.c", "sub/h.h", "sub/inc/i.h", "sub/out/o", "other", "sub/un said"] {
            std::fs::write(root.join(file), "").unwrap();
        }
        let place = Place { root: root.to_owned(), cwd: cwd.clone() };
        let (main, out) = (cwd.join("main.c"), [PathBuf::from("out")]);
        let scene = Scene {
            place: &place,
            outputs: &out,
            inputs: &[&main],
            given: &[],
            variables: &[],
            net: false,
            hidden: &[],
            programs: &[],
        };
        let said = format!(
            "main.c:1:10: fatal error: h.h: No such file\ncannot open 'inc/i.h'.\nout/o missing, nothing missing\n\
             cat: {}: No such file or directory\n../other /etc/passwd . {}",
            root.join("other").display(),
            cwd.display(),
        );
        let names: Vec<_> = ["h.h", "inc/i.h"].map(PathBuf::from).into();
        let found = wanted(said.as_bytes(), &scene);
        assert_eq!(found, [vec![root.join("other")], names].concat());
    }
}
