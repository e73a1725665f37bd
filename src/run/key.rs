//! The parts of a task's key, and the key made of them.
//!
//! Purpose: one canonical form of everything that decides what a task makes. Invariants: different parts
//! give different bytes (every field is tagged and every length is written), the same parts the same,
//! on every machine; the form has a version, which is part of the key; no path of this machine
//! and no value of a variable or secret is in it. Must not know: where the parts come from.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};

use super::pieces::Pieces;
use crate::model::{BlobHash, EntryKey};

/// The version of the canonical form.
pub const VERSION: u32 = 2;

/// What stands for the value of a variable that is not set: no hash looks like it.
pub const ABSENT: &str = "absent";

/// With more inputs than this the list is not kept in the metadata: only what it hashes to.
pub const PARTS_LIMIT: usize = 100_000;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A file.
    File,
    /// A file that may be executed.
    Program,
    /// A symlink: its hash is of the target's text.
    Link,
}

/// One input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Input {
    /// Below the project's top.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Of its content.
    pub hash: BlobHash,
}

impl Input {
    /// What it is and has, for people.
    pub fn state(&self) -> String {
        let kind = match self.kind {
            Kind::File => "",
            Kind::Program => " executable",
            Kind::Link => " symlink",
        };
        format!("{}{kind}", &self.hash.to_hex()[..12])
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::File => 'f',
            Kind::Program => 'x',
            Kind::Link => 'l',
        };
        write!(f, "{kind} {} {}", self.hash, self.path)
    }
}

impl FromStr for Input {
    type Err = String;
    fn from_str(line: &str) -> Result<Self, String> {
        let err = || format!("{line:?} is no input");
        let (kind, rest) = line.split_once(' ').ok_or_else(err)?;
        let (hash, path) = rest.split_once(' ').ok_or_else(err)?;
        let kind = match kind {
            "f" => Kind::File,
            "x" => Kind::Program,
            "l" => Kind::Link,
            _ => return Err(err()),
        };
        Ok(Input { path: path.to_owned(), kind, hash: hash.parse().map_err(|_| err())? })
    }
}

/// Of a line as it lies in memory: there are very many.
impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Line;
        impl de::Visitor<'_> for Line {
            type Value = Input;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an input")
            }
            fn visit_str<E: de::Error>(self, line: &str) -> Result<Input, E> {
                line.parse().map_err(E::custom)
            }
        }
        from.deserialize_str(Line)
    }
}

impl From<Input> for String {
    fn from(input: Input) -> String {
        input.to_string()
    }
}

/// All parts of a key. Maps and lists are sorted; paths are [text](super::text).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Parts {
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// Hash of the command's own file.
    pub program: String,
    /// Named tools and the hashes of their files.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tools: BTreeMap<String, String>,
    /// The working directory below the project's top.
    pub cwd: String,
    /// Declared outputs, relative to the working directory.
    #[serde(default)]
    pub outputs: Vec<String>,
    /// Declared variables and the hashes of their values, or [`ABSENT`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Secrets and the keyed hashes of their values, or [`ABSENT`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Parameters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// Tasks before this one, and what their outputs hash to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub after: BTreeMap<String, String>,
    /// Paths at which earlier results are read, and what those hash to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub from: BTreeMap<String, String>,
    /// The same paths, and those results as they were named (which does not count).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// The earlier result that the command starts from, as it was named (which does not count), and what it hashes to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub base: BTreeMap<String, String>,
    /// Operating system and processor.
    pub platform: String,
    /// What the command runs in.
    pub sandbox: String,
    /// What of the network it sees.
    pub network: String,
    /// Every input, sorted by path; empty when they are too many to be kept.
    #[serde(default)]
    pub inputs: Vec<Input>,
    /// How many inputs there are.
    pub input_count: u64,
    /// Hash of the list of inputs.
    pub inputs_hash: String,
}

/// Writes tagged, length-prefixed fields into a hash.
struct Canon(Pieces);

impl Canon {
    fn of(context: &str) -> Canon {
        Canon(Pieces::of(blake3::Hasher::new_derive_key(context)))
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.add_with_length(bytes);
    }

    fn one(&mut self, tag: &str, value: &str) {
        self.list(tag, [value]);
    }

    fn list<'a>(
        &mut self,
        tag: &str,
        values: impl IntoIterator<Item = &'a str, IntoIter: ExactSizeIterator>,
    ) {
        let values = values.into_iter();
        self.bytes(tag.as_bytes());
        self.0.add(&(values.len() as u64).to_le_bytes());
        values.for_each(|v| self.bytes(v.as_bytes()));
    }

    fn map(&mut self, tag: &str, values: &BTreeMap<String, String>) {
        let flat: Vec<&str> = values.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]).collect();
        self.list(tag, flat);
    }

    fn end(self) -> blake3::Hash {
        self.0.end()
    }
}

impl Parts {
    /// Puts the inputs in, in order, with their count and hash.
    pub fn set_inputs(&mut self, mut inputs: Vec<Input>) {
        inputs.sort();
        inputs.dedup_by(|a, b| a.path == b.path);
        let mut canon = Canon::of("outfs run inputs 1");
        for input in &inputs {
            canon.bytes(input.path.as_bytes());
            canon.0.add(&[input.kind as u8]).add(input.hash.as_bytes());
        }
        self.inputs_hash = canon.end().to_hex().to_string();
        self.input_count = inputs.len() as u64;
        self.inputs = inputs;
    }

    /// The key.
    pub fn key(&self) -> EntryKey {
        // All of them by name: a new part cannot be forgotten here.
        let Parts {
            argv,
            program,
            tools,
            cwd,
            outputs,
            env,
            secrets,
            params,
            after,
            from,
            sources: _,
            base,
            platform,
            sandbox,
            network,
            inputs: _,
            input_count: _,
            inputs_hash,
        } = self;
        let mut canon = Canon::of("outfs run key");
        canon.0.add(&VERSION.to_le_bytes());
        canon.list("argv", argv.iter().map(String::as_str));
        canon.one("program", program);
        canon.map("tools", tools);
        canon.one("cwd", cwd);
        canon.list("outputs", outputs.iter().map(String::as_str));
        canon.map("env", env);
        canon.map("secrets", secrets);
        canon.map("params", params);
        canon.map("after", after);
        canon.map("from", from);
        canon.list("base", base.values().map(String::as_str));
        canon.one("platform", platform);
        canon.one("sandbox", sandbox);
        canon.one("network", network);
        canon.one("inputs", inputs_hash);
        EntryKey::parse(&canon.end().to_hex()).expect("64 hexadecimal digits are a key")
    }

    /// As it is kept: without the list of inputs when that is too long.
    pub fn to_keep(&self) -> Parts {
        let mut kept = self.clone();
        if kept.inputs.len() > PARTS_LIMIT {
            kept.inputs.clear();
        }
        kept
    }

    /// The list of inputs was too long to be kept.
    pub fn inputs_left_out(&self) -> bool {
        self.inputs.len() as u64 != self.input_count
    }
}

/// The hash of a variable's value, or [`ABSENT`].
pub fn value_hash(value: Option<&[u8]>) -> String {
    value.map_or(ABSENT.to_owned(), |v| blake3::hash(v).to_hex().to_string())
}

/// The keyed hash of a secret's value, or [`ABSENT`]: of no use to whoever lacks the team's key.
pub fn secret_hash(team_key: &[u8], name: &str, value: Option<&[u8]>) -> String {
    let Some(value) = value else { return ABSENT.to_owned() };
    let key = blake3::derive_key("outfs run secrets 1", team_key);
    let mut hasher = blake3::Hasher::new_keyed(&key);
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name.as_bytes());
    hasher.update(value);
    hasher.finalize().to_hex().to_string()
}

/// Operating system and processor of this machine.
pub fn platform() -> String {
    format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn input(path: &str, content: &str) -> Input {
        Input { path: path.into(), kind: Kind::File, hash: BlobHash::of(content.as_bytes()) }
    }

    /// Parts with something in every field.
    pub fn parts() -> Parts {
        let map = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let mut parts = Parts {
            argv: vec!["make".into(), "all".into()],
            program: value_hash(Some(b"make")),
            tools: map("cc", "11"),
            cwd: "sub".into(),
            outputs: vec!["app".into(), "lib".into()],
            env: map("CC", &value_hash(Some(b"gcc"))),
            secrets: map("TOKEN", "22"),
            params: map("level", "3"),
            after: map("gen", "33"),
            from: map("lib", "44"),
            sources: map("lib", "dep"),
            base: map("step", "55"),
            platform: "linux-x86_64".into(),
            sandbox: "none".into(),
            network: "host".into(),
            ..Parts::default()
        };
        parts.set_inputs(vec![input("sub/b.c", "b"), input("sub/a.c", "a")]);
        parts
    }

    #[test]
    fn every_part_counts_and_order_of_inputs_does_not() {
        let base = parts();
        let changes: [fn(&mut Parts); 24] = [
            |p| p.argv.push("x".into()),
            |p| p.argv = vec!["makeall".into()],
            |p| p.argv = vec!["mak".into(), "eall".into()],
            |p| p.program.push('0'),
            |p| p.tools.clear(),
            |p| drop(p.tools.insert("ld".into(), "11".into())),
            |p| p.cwd.clear(),
            |p| drop(p.outputs.pop()),
            |p| p.outputs = vec!["app".into(), "lib".into(), "".into()],
            |p| drop(p.env.insert("CC".into(), ABSENT.into())),
            |p| drop(p.env.insert("CC".into(), value_hash(Some(b"")))),
            |p| p.env.clear(),
            |p| p.secrets = std::mem::take(&mut p.env),
            |p| drop(p.params.insert("level".into(), "4".into())),
            |p| drop(p.after.insert("gen".into(), "34".into())),
            |p| drop(p.from.insert("lib".into(), "45".into())),
            |p| p.after.append(&mut p.from),
            |p| drop(p.base.insert("step".into(), "56".into())),
            |p| p.base.clear(),
            |p| p.platform = "linux-aarch64".into(),
            |p| p.sandbox = "bwrap".into(),
            |p| p.network = "none".into(),
            |p| p.set_inputs(vec![input("sub/a.c", "a")]),
            |p| {
                let mut program = input("sub/a.c", "a");
                program.kind = Kind::Program;
                p.set_inputs(vec![program, input("sub/b.c", "b")]);
            },
        ];
        let mut seen = std::collections::HashSet::from([base.key()]);
        for (n, change) in changes.iter().enumerate() {
            let mut other = base.clone();
            change(&mut other);
            assert!(seen.insert(other.key()), "change {n} gives a key that was there");
        }
        let mut other = base.clone();
        other.set_inputs(vec![input("sub/a.c", "a"), input("sub/b.c", "b")]);
        assert_eq!(other.key(), base.key());
        other.base = BTreeMap::from([("the same by another name".to_owned(), "55".to_owned())]);
        other.sources = BTreeMap::from([("lib".to_owned(), "the same by another name".to_owned())]);
        assert_eq!(other.key(), base.key());
    }

    #[test]
    fn the_canonical_form_stays_as_it_is() {
        // Whoever changes the form must change VERSION: keys in stores and lock files are of this one.
        assert_eq!(VERSION, 2);
        let key = parts().key();
        assert_eq!(key.as_str(), "580af7f2468df176444337e51541e596076445fcfdfc1bac401b44711beb38dc");
    }

    #[test]
    fn parts_survive_json() {
        let text = serde_json::to_string(&parts()).unwrap();
        assert_eq!(serde_json::from_str::<Parts>(&text).unwrap(), parts());
        assert_eq!(serde_json::from_str::<Parts>(&text).unwrap().key(), parts().key());
        for bad in ["", "f", "f 00 x", "q 00", "f  x"] {
            assert!(bad.parse::<Input>().is_err(), "{bad:?}");
        }
        let odd = input("a b  c", "");
        assert_eq!(odd.to_string().parse(), Ok(odd));
    }

    #[test]
    fn secrets_are_keyed_and_bound_to_their_name() {
        let of = |key: &[u8], name, value| secret_hash(key, name, value);
        let one = of(b"team", "A", Some(b"x"));
        assert_eq!(one, of(b"team", "A", Some(b"x")));
        for other in [
            of(b"other", "A", Some(b"x")),
            of(b"team", "B", Some(b"x")),
            of(b"team", "A", Some(b"")),
            of(b"team", "A", None),
            value_hash(Some(b"x")),
        ] {
            assert_ne!(one, other);
        }
        assert_ne!(value_hash(None), value_hash(Some(b"")), "absent differs from empty");
    }
}
