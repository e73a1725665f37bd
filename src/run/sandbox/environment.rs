//! Which variables a command in a sandbox has.
//!
//! Purpose: what a caller happens to have set decides nothing. Declared variables, which are part of the key, are as the caller has them;
//! where a machine keeps what it has (programs, the home directory) is told, too, and is no part of a key; the rest
//! has one value everywhere, or none. Must not know: how the sandbox is made.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

/// Of this machine and user, and what runs inside of runs have to know.
const PASSED: [&str; 8] =
    ["PATH", "HOME", "USER", "LOGNAME", "CARGO_HOME", "RUSTUP_HOME", "OUTFS_STORE", "OUTFS_SESSION"];
/// How the network is reached and whom it believes, for whom it is there.
const NETWORK: [&str; 19] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NIX_SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];
/// A shell sets these itself, and the last has no business in what is committed.
const NEVER_NAMED: [&str; 4] = ["PWD", "OLDPWD", "SHLVL", "OUTFS_SECRET_KEY"];
/// The same for everybody.
const FIXED: [(&str, &str); 5] =
    [("LANG", "C.UTF-8"), ("TZ", "UTC"), ("TERM", "dumb"), ("SHELL", "/bin/sh"), ("TMPDIR", "/tmp")];
/// So many are named, at most.
const MOST: usize = 5;
/// Of what a command said, so much of the end is looked at.
const TAIL: usize = 1 << 16;

/// The variables inside, out of the caller's.
pub(super) fn inside(
    caller: impl Iterator<Item = (OsString, OsString)>,
    declared: &[String],
    net: bool,
) -> Vec<(OsString, OsString)> {
    let is_declared = |name: &OsString| declared.iter().any(|d| name == d.as_str());
    let passes = |name: &OsString| {
        is_declared(name) || PASSED.iter().any(|p| name == p) || net && NETWORK.iter().any(|of| name == of)
    };
    // One that is declared and not set is not set inside.
    let fixed = FIXED.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    let fixed = fixed.filter(|(name, _)| !is_declared(name));
    fixed.chain(caller.filter(|(name, _)| passes(name))).collect()
}

/// The caller's variables that messages name and that are not inside.
pub(super) fn wanted(
    said: &[u8],
    caller: impl Iterator<Item = (OsString, OsString)>,
    inside: &[(OsString, OsString)],
) -> Vec<String> {
    let said = &said[said.len().saturating_sub(TAIL)..];
    let words: std::collections::BTreeSet<&[u8]> =
        said.split(|b| !(b.is_ascii_alphanumeric() || *b == b'_')).collect();
    let named = caller.map(|(name, _)| name).filter(|name| words.contains(name.as_bytes()));
    // What is written in small letters, or is one letter, may be a word.
    let is_name = |name: &OsString| name.len() > 1 && !name.as_bytes().iter().any(u8::is_ascii_lowercase);
    let is_ours = |name: &OsString| NEVER_NAMED.iter().any(|never| name == never);
    let withheld =
        named.filter(|name| is_name(name) && !is_ours(name) && inside.iter().all(|(there, _)| there != name));
    let mut names: Vec<String> = withheld.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names.truncate(MOST);
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller() -> impl Iterator<Item = (OsString, OsString)> {
        [
            "PATH",
            "HOME",
            "LANG",
            "LC_ALL",
            "CC",
            "http_proxy",
            "OUTFS_SECRET_KEY",
            "OUTFS_STORE",
            "TEXT",
            "A",
            "PWD",
        ]
        .into_iter()
        .map(|name| (name.into(), format!("caller's {name}").into()))
    }

    fn of(declared: &[&str], net: bool) -> Vec<String> {
        let declared: Vec<String> = declared.iter().map(|&d| d.to_owned()).collect();
        let all = inside(caller(), &declared, net).into_iter();
        let text = |s: OsString| s.into_string().unwrap();
        let mut all: Vec<String> =
            all.map(|(name, value)| format!("{}={}", text(name), text(value))).collect();
        all.sort();
        all
    }

    #[test]
    fn what_is_not_declared_is_the_same_for_everybody() {
        let fixed = ["LANG=C.UTF-8", "SHELL=/bin/sh", "TERM=dumb", "TMPDIR=/tmp", "TZ=UTC"];
        let passed = ["HOME=caller's HOME", "OUTFS_STORE=caller's OUTFS_STORE", "PATH=caller's PATH"];
        let with = |more: &[&'static str]| {
            let mut all = [&fixed[..], &passed, more].concat();
            all.sort();
            all
        };
        assert_eq!(of(&[], false), with(&[]));
        assert_eq!(of(&["CC", "NOT_SET"], false), with(&["CC=caller's CC"]));
        assert_eq!(of(&[], true), with(&["http_proxy=caller's http_proxy"]));
        // Declared, it counts as the caller has it, or has not.
        let declared = of(&["LANG", "TZ"], false);
        assert!(declared.contains(&"LANG=caller's LANG".to_owned()), "{declared:?}");
        assert!(!declared.iter().any(|v| v.starts_with("TZ=")), "{declared:?}");
    }

    #[test]
    fn what_messages_name_and_is_not_inside() {
        let inside = inside(caller(), &[], false);
        let named = |said: &str| wanted(said.as_bytes(), caller(), &inside);
        assert_eq!(
            named("sh: 1: CC: parameter not set\nLC_ALL? PATH, LANG and $TEXT"),
            ["CC", "LC_ALL", "TEXT"]
        );
        assert_eq!(named("A CCC MY_CC http_proxy text PWD OUTFS_SECRET_KEY"), Vec::<String>::new());
    }
}
