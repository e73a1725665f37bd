//! A place in namespaces of its own, made by bubblewrap.
//!
//! Purpose: the command sees the machine read-only, of the project only its declared inputs, and can write to
//! private directories and its outputs alone. Invariants: the project's directory inside is a directory of
//! this run, in which inputs were copied or are bound read-only, so that nothing the command does reaches the project; what
//! stands at the outputs inside is moved out when it has ended. Must not know: keys, stores.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::layout::{self, Layout};
use super::room::{Room, remove_all};
use super::{Left, Rooms, Sandbox, Scene, Tree, move_tree};
use super::{environment, hint};
use crate::run::capture::Sink;
use crate::run::exec::{End, Outcome, Plan, execute};
use crate::run::guard::{self, NOT_HERE, Post};
use crate::run::outputs::{check_way, clear, there};
use crate::run::{Result, RunError};

/// What a command run by root keeps of root's rights: those over files, users and processes.
const ROOTS: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
];
/// Directories that are empty and private inside.
const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];
/// Where services have their sockets: these, too, without the network.
const SERVICES: [&str; 2] = ["/run", "/var/run"];
/// Says where the store is.
const STORE: &str = "OUTFS_STORE";
/// Where the program is inside that looks after the command: read-only, as everything there that is not the command's.
const GUARD: &str = "/dev/outfs-guard";
/// What bubblewrap's complaints begin with; what else looks like one is the command's.
const SETUP: &[&str] = &[
    "execvp /dev/outfs-guard",
    "Can't ",
    "Unable to ",
    "Failed to ",
    "No permissions ",
    "Creating ",
    "Setting ",
    "setting up ",
    "Unexpected ",
    "Dropping capability ",
    "cap",
    "prctl",
    "open /proc",
    "loopback: ",
    "pivot_root",
];

/// A place made by bubblewrap.
pub struct Bwrap<'a> {
    scene: Scene<'a>,
    rooms: &'a Rooms,
    program: OsString,
    /// An empty directory to be the project's, of a draft.
    draft: Option<PathBuf>,
    room: Option<Room>,
    layout: Layout,
    /// Trees to be bound: where they are, and where below the working directory.
    trees: Vec<(PathBuf, PathBuf)>,
    /// How the command ended, if it was no success, and what it said.
    failed: Option<Vec<u8>>,
}

impl<'a> Bwrap<'a> {
    /// For a run that was not made yet; with `draft`, an empty directory to be the project's inside.
    pub fn new(scene: Scene<'a>, rooms: &'a Rooms, draft: Option<PathBuf>) -> Result<Bwrap<'a>> {
        let root = &scene.place.root;
        if root.parent().is_none() {
            return Err(RunError::usage("the project is the machine's root: a sandbox would hide all of it"));
        }
        let program = find("bwrap").ok_or_else(|| {
            RunError::usage(
                "a sandbox is made by bubblewrap, and there is no bwrap here: install it (apt, dnf, apk or pacman: the \
                 package bubblewrap), or run without --sandbox",
            )
        })?;
        Ok(Bwrap {
            scene,
            rooms,
            program: program.into(),
            draft,
            room: None,
            layout: Layout::default(),
            trees: Vec::new(),
            failed: None,
        })
    }

    fn room(&mut self) -> Result<&mut Room> {
        match self.room.take() {
            Some(room) => Ok(self.room.insert(room)),
            None => Ok(self.room.insert(self.rooms.make()?)),
        }
    }

    /// The project's directory, from outside.
    fn root(&self) -> PathBuf {
        let own = || self.room.as_ref().map(|r| r.path("project"));
        self.draft.clone().or_else(own).unwrap_or_default()
    }

    fn prepare(&mut self) -> Result<()> {
        self.layout = layout::plan(&self.scene)?;
        if self.draft.is_none() {
            self.room()?.dir("project")?;
        }
        let work = self.work();
        std::fs::create_dir_all(&work).map_err(|e| RunError::io("create", work, e))?;
        layout::copy(&self.scene.place.root, &self.root(), &self.layout.copied)
    }

    /// What comes before the command: bubblewrap, and in it a guard as the first process. One of bubblewrap's own would end, and
    /// take all others with it, as soon as the command has ended.
    fn words(&self, plan: &Plan<'_>) -> Result<Vec<OsString>> {
        let Some((program, options)) = plan.guard.split_first() else {
            return Ok(self.around(None));
        };
        // Not its own path: that may be hidden inside.
        let real = Path::new(program).canonicalize().map_err(|e| {
            RunError::usage(format!(
                "outfs itself, which looks after the command in a sandbox, is not where it was started from (was it \
                 replaced meanwhile?): {e}"
            ))
        })?;
        let inside: Vec<OsString> = std::iter::once(GUARD.into()).chain(options.iter().cloned()).collect();
        let words = self.around(Some(&real)).into_iter();
        Ok(words.chain(guard::words(&inside, Post::Inside, plan.grace, self.scene.programs)).collect())
    }

    fn around(&self, guard: Option<&Path>) -> Vec<OsString> {
        let (place, scene) = (self.scene.place, &self.scene);
        let mut words = Words(vec![self.program.clone()]);
        words.all(["--die-with-parent", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-uts"]);
        words.all(["--unshare-cgroup-try"]);
        if !scene.net {
            words.all(["--unshare-net"]);
        }
        if nix::unistd::geteuid().is_root() {
            words.all(["--cap-drop", "ALL"]);
            ROOTS.iter().for_each(|cap| words.all(["--cap-add", cap]));
        }
        words.all(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]);
        if let Some(guard) = guard {
            words.all(["--as-pid-1"]);
            words.three("--ro-bind", guard, Path::new(GUARD));
        }
        let private = self.private();
        let empty = private.iter().copied().chain(scene.hidden.iter().map(PathBuf::as_path));
        for dir in empty.filter(|d| d.is_dir() && !d.is_symlink()) {
            words.two("--tmpfs", dir);
        }
        if !scene.net {
            SERVICES.iter().for_each(|dir| toolchains(Path::new(dir), &mut words));
        }
        words.three("--bind", &self.root(), &place.root);
        for path in &self.layout.bound {
            words.three("--ro-bind", path, path);
        }
        let outside = |i: &&&Path| !i.starts_with(&place.root) && private.iter().any(|p| i.starts_with(p));
        for path in scene.inputs.iter().filter(outside) {
            words.three("--ro-bind", path, path);
        }
        for (tree, at) in &self.trees {
            words.three("--ro-bind", tree, &place.cwd.join(at));
        }
        words.two("--chdir", &place.cwd);
        words.all(["--"]);
        words.0
    }

    /// Directories that are empty and private inside.
    fn private(&self) -> Vec<&'static Path> {
        let services = if self.scene.net { &[][..] } else { &SERVICES };
        PRIVATE.iter().chain(services).map(Path::new).collect()
    }

    /// The variables inside. They are bubblewrap's own, and not on its command line, which everybody can read.
    fn variables(&self) -> Vec<(OsString, OsString)> {
        let mut inside = environment::inside(std::env::vars_os(), self.scene.variables, self.scene.net);
        // However it was named outside: what runs inside is to find this one, which is hidden, and no other.
        if let Some(store) = self.scene.hidden.first() {
            inside.retain(|(name, _)| name != STORE);
            inside.push((STORE.into(), store.into()));
        }
        inside
    }

    /// What the command made beside its outputs: the topmost names of it.
    fn beside(&self) -> Result<Vec<PathBuf>> {
        let (place, root) = (self.scene.place, self.root());
        let mut known: BTreeSet<PathBuf> = BTreeSet::new();
        let inputs = self.layout.copied.iter().chain(&self.layout.bound).map(PathBuf::as_path);
        let given = self.scene.given.iter().chain(self.scene.outputs).map(|p| place.cwd.join(p));
        let all = inputs.map(Path::to_owned).chain(given).chain([place.cwd.clone()]);
        for path in all {
            let below = path.strip_prefix(&place.root).unwrap_or(&path);
            known.extend(below.ancestors().map(Path::to_owned));
        }
        let end: BTreeSet<PathBuf> =
            self.scene.outputs.iter().chain(self.scene.given).map(|p| place.below().join(p)).collect();
        let mut beside = Vec::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(dir) = waiting.pop() {
            let fail = |e| RunError::io("read", root.join(&dir), e);
            for entry in std::fs::read_dir(root.join(&dir)).map_err(fail)? {
                let entry = entry.map_err(fail)?;
                let below = dir.join(entry.file_name());
                if !known.contains(&below) {
                    beside.push(below);
                } else if entry.file_type().map_err(fail)?.is_dir() && !end.contains(&below) {
                    waiting.push(below);
                }
            }
        }
        beside.sort();
        Ok(beside)
    }

    /// The sandbox itself could not be made: why, and what helps.
    fn unmade(outcome: &Outcome) -> Option<RunError> {
        let said = outcome.stderr.strip_prefix(b"bwrap: ")?;
        let said = String::from_utf8_lossy(said).trim_end().to_owned();
        if outcome.end != End::Exited(1) || said.contains('\n') || !outcome.stdout.is_empty() {
            return None;
        }
        if !SETUP.iter().any(|start| said.starts_with(start)) {
            return None;
        }
        let help = match nix::unistd::geteuid().is_root() {
            true => "it needs the right to mount (CAP_SYS_ADMIN), which containers seldom have",
            false => {
                "user namespaces may be forbidden to ordinary users: see the sysctls \
                 kernel.unprivileged_userns_clone, user.max_user_namespaces and \
                 kernel.apparmor_restrict_unprivileged_userns, and the container's seccomp profile"
            }
        };
        Some(RunError::usage(format!("bubblewrap cannot make the sandbox: {said}; {help}")))
    }

    /// The command could not be started inside, as the guard there said.
    fn unstarted(command: &OsStr, outcome: &Outcome) -> Option<RunError> {
        let command = command.to_string_lossy().into_owned();
        let said = outcome.stderr.strip_prefix(format!("outfs: {command}: ").as_bytes())?;
        let alone =
            outcome.stdout.is_empty() && said.iter().position(|b| *b == b'\n') == Some(said.len() - 1);
        (outcome.end == End::Exited(127) && alone).then(|| {
            let said = String::from_utf8_lossy(said);
            let what = said.trim_end().strip_suffix(NOT_HERE).unwrap_or("it");
            let why = format!("{what} does not exist in the sandbox, where only declared inputs do");
            RunError::Command { command, why, code: 127 }
        })
    }
}

impl Sandbox for Bwrap<'_> {
    fn create(&mut self) -> Result<()> {
        self.prepare()
    }

    fn restore(&mut self, base: &mut dyn Tree) -> Result<()> {
        self.prepare()?;
        let (cwd, work) = (self.scene.place.cwd.clone(), self.work());
        let outputs = there(&cwd, self.scene.outputs);
        // A draft goes with this process, and what is in it.
        if self.draft.is_some() || !base.stands() || !self.room()?.takes(&work, &cwd, &outputs)? {
            return base.lay(&work, None);
        }
        outputs.iter().try_for_each(|output| move_tree(&cwd.join(output), &work.join(output)))
    }

    fn inject(&mut self, at: &Path, tree: &mut dyn Tree) -> Result<()> {
        let source = match tree.view() {
            Some(view) => view,
            None => {
                let name = format!("given-{}", self.trees.len());
                let dir = self.room()?.dir(&name)?;
                tree.lay(&dir, None)?;
                dir
            }
        };
        self.trees.push((source, at.to_owned()));
        Ok(())
    }

    fn work(&self) -> PathBuf {
        self.root().join(self.scene.place.below())
    }

    fn exec(&mut self, plan: Plan<'_>, sink: &mut dyn Sink) -> Result<Outcome> {
        let argv: Vec<OsString> = self.words(&plan)?.into_iter().chain(plan.argv.iter().cloned()).collect();
        let hold: Vec<_> = plan.hold.iter().copied().chain(self.room.iter().map(Room::fd)).collect();
        let variables = self.variables().into_iter().map(|(name, value)| (name, Some(value)));
        let env: Vec<_> = variables.chain(plan.env.iter().cloned()).collect();
        let outcome =
            execute(&Plan { argv: &argv, env: &env, bare: true, inner: true, hold: &hold, ..plan }, sink)
                .map_err(|e| RunError::io("run", &self.program, e))?;
        let unstarted = || plan.argv.first().and_then(|command| Self::unstarted(command, &outcome));
        if let Some(e) = Self::unmade(&outcome).or_else(unstarted) {
            return Err(e);
        }
        if !matches!(outcome.end, End::Exited(0)) {
            self.failed = Some(outcome.stderr.clone());
        }
        Ok(outcome)
    }

    fn snapshot(&mut self) -> Result<Left> {
        let (place, work) = (self.scene.place, self.work());
        let cwd = &place.cwd;
        let said = self.failed.take();
        let wanted = said.as_ref().map(|said| hint::wanted(said, &self.scene)).unwrap_or_default();
        let named = |said: &Vec<u8>| environment::wanted(said, std::env::vars_os(), &self.variables());
        let variables = said.as_ref().map(named).unwrap_or_default();
        // What cannot be read there is not named.
        let beside = Some(self.beside().unwrap_or_default());
        // What lies behind a symlink that the command made on the way is not its output.
        let below: Vec<_> = self.scene.outputs.iter().map(|output| place.below().join(output)).collect();
        check_way(&self.root(), &below)?;
        clear(cwd, self.scene.outputs)?;
        for output in self.scene.outputs {
            if work.join(output).symlink_metadata().is_ok() {
                move_tree(&work.join(output), &cwd.join(output))?;
            }
        }
        Ok(Left { beside, wanted, variables })
    }

    fn exists(&self) -> bool {
        self.room.is_some() || self.draft.is_some()
    }

    fn remove(&mut self) -> Result<()> {
        // What the command never gave back stands there again.
        let back = self.room.as_ref().map_or(Ok(()), Room::put_back);
        if let Some(draft) = &self.draft {
            let names = std::fs::read_dir(draft).map(|names| names.flatten().collect::<Vec<_>>());
            // What is left goes with the draft.
            names.unwrap_or_default().iter().for_each(|e| drop(remove_all(&e.path())));
        }
        self.draft = None;
        self.room = None;
        back
    }
}

/// An argument vector that grows.
struct Words(Vec<OsString>);

impl Words {
    fn all<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    fn two(&mut self, option: &str, path: &Path) {
        self.0.extend([OsStr::new(option), path.as_os_str()].map(OsStr::to_owned));
    }

    fn three(&mut self, option: &str, from: &Path, to: &Path) {
        self.two(option, from);
        self.0.push(to.into());
    }
}

/// Has what programs are found by stand in a directory that is empty otherwise: symlinks (NixOS has its system behind one), and
/// directories of PATH.
fn toolchains(dir: &Path, words: &mut Words) {
    if !dir.is_dir() || dir.is_symlink() {
        return;
    }
    let mut links = Vec::new();
    for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if let Ok(target) = path.read_link() {
            words.three("--symlink", &target, &path);
            links.push(path);
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for at in std::env::split_paths(&path).filter(|at| at.starts_with(dir) && at != dir && at.is_dir()) {
        if links.iter().any(|link| at.starts_with(link)) {
            continue;
        }
        // Bound alone, a directory behind a link would have nothing beside it that its programs lead to.
        let below = at.ancestors().take_while(|above| *above != dir);
        match below.filter_map(|above| Some((above, above.read_link().ok()?))).last() {
            Some((link, target)) => {
                words.three("--symlink", &target, link);
                links.push(link.to_owned());
                if let Ok(real) = link.canonicalize()
                    && real.starts_with(dir)
                {
                    words.three("--ro-bind", &real, &real);
                }
            }
            None => words.three("--ro-bind", &at, &at),
        }
    }
}

/// A program in PATH.
fn find(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| path.is_file())
}
