//! What clients do. Each action succeeds, or is refused as it is promised that it may be; anything else is an error.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::calls::{BACK, COMMAND, call, within};
use crate::ingest::{files, ingest, whole, whole_in, write_files};
use crate::mapped::Mapped;
use crate::{Day, KEYS, Random, key, library};

/// `Ok(false)`: refused, as promised.
pub type Done = Result<bool, String>;
type Action = fn(&Client, &mut Random) -> Done;

/// With how often each is done. Of [`ONE_OF`] attempts one has to succeed.
pub const ACTIONS: [(&str, Action, u64); 17] = [
    ("publish", Client::publish, 30),
    ("publish against others", Client::rival, 8),
    ("read", Client::read, 30),
    ("write in place", Client::in_place, 6),
    ("hold open", Client::hold_open, 10),
    ("hold mapped", Client::hold_mapped, 10),
    ("shell tools", Client::shell, 4),
    ("evict", Client::evict, 6),
    ("trash", Client::trash, 6),
    ("pin", Client::pin, 3),
    ("collect", Client::collect, 4),
    ("restore", Client::restore, 3),
    ("bind", Client::bind, 2),
    ("view", Client::view, 2),
    ("a view of all", Client::shared, 10),
    ("replace", Client::replace, 3),
    ("library", Client::library, 4),
];
pub const ONE_OF: u64 = 20;
/// Keys that all clients publish.
const RIVALRIES: u64 = 3;

/// One of those who work.
pub struct Client {
    pub day: Arc<Day>,
    pub number: u64,
    /// What it stored last.
    pub last: RefCell<Option<String>>,
}

/// What the daemon may say instead of doing it: there is no such thing, it is held, there is no room.
const NOT_FOUND: &[&str] = &["there is no entry"];
const PINNED: &[&str] = &["is pinned by"];
const NO_ROOM: &[&str] = &["has no room"];
const OTHER_OUTPUTS: &[&str] = &["exists with different outputs", "there is a draft for"];
const MOUNTED: &[&str] = &["there is a mount already"];
const NOT_MOUNTED: &[&str] = &["the daemon has no view at", "nothing is mounted on"];
const IN_USE: &[&str] = &["is busy"];
/// The last is said of a work draft with the key's name, which a killed daemon left.
const NO_DRAFT: &[&str] =
    &["there is no draft", "is gone: it was sealed or dropped", "is not a draft", "has no key yet"];

/// An error that may come; others stop everything.
fn allowed(what: &str, result: io::Result<()>, errnos: &[i32]) -> Done {
    match result {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error().is_some_and(|n| errnos.contains(&n)) => Ok(false),
        Err(e) => Err(format!("{what}: {e}")),
    }
}

fn absent_or_whole(result: Result<(), String>) -> Done {
    match result {
        Ok(()) => Ok(true),
        Err(why) if why.contains("(os error 2)") => Ok(false),
        // What a dead daemon cannot excuse.
        Err(why) if why.contains("its bytes") => panic!("{why}"),
        Err(why) => Err(why),
    }
}

fn is_there(at: &Path) -> Done {
    allowed("looking", call("stat", at, || fs::symlink_metadata(at)).map(drop), &[libc::ENOENT])
        .map_err(|why| format!("{}: {why}", at.display()))
}

impl Client {
    /// A key that this client alone stores under.
    fn own(&self, random: &mut Random) -> String {
        key(random.below(KEYS / self.day.threads) * self.day.threads + self.number)
    }

    /// Asks the daemon; it may refuse in these words.
    fn ask(&self, args: &[&str], refusals: &[&[&str]]) -> Done {
        let daemon = &self.day.daemon;
        let asked = || within(COMMAND, "a command", &daemon.store(), || daemon.ask(args));
        let answer = match args {
            ["evict", key] => self.day.removals.during(key, asked),
            _ => asked(),
        };
        match answer {
            Ok(_) => Ok(true),
            Err(why) if refusals.iter().copied().flatten().any(|words| why.contains(words)) => Ok(false),
            Err(why) => Err(why),
        }
    }

    /// It is thrown away, if it is there.
    fn trash_of(&self, at: &Path, name: &str) -> Done {
        self.trash_in(&self.day.mnt(), at, name)
    }

    fn trash_in(&self, mnt: &Path, at: &Path, name: &str) -> Done {
        let trash = mnt.join(".outfs/trash").join(name);
        let thrown = || call("rename into the trash", at, || fs::rename(at, trash));
        allowed("trashing", self.day.removals.during(name, thrown), &[libc::ENOENT, libc::EBUSY])
    }

    fn publish(&self, random: &mut Random) -> Done {
        let key = self.own(random);
        let gesture = [0, 1, 0, 3][random.below(4) as usize];
        let result = ingest(&self.day.daemon, &key, gesture);
        if result.is_err() {
            self.trash_of(&self.day.mnt().join(".outfs/work").join(&key), &key)?;
            let _ = fs::remove_dir_all(self.day.daemon.scratch().join(&key));
        } else {
            self.day.stored(&key);
            self.last.replace(Some(key));
        }
        let refused = |why: &str| [NO_ROOM, OTHER_OUTPUTS].concat().iter().any(|words| why.contains(words));
        match result {
            // A put that was refused says so in words.
            Err(e) if e.raw_os_error().is_none() && refused(&e.to_string()) => Ok(false),
            other => allowed("publishing", other.map(drop), &[libc::EEXIST, libc::ENOSPC]),
        }
    }

    /// Somebody else may publish the same key with other content, and be first. Whoever was, their content is there, whole.
    fn rival(&self, random: &mut Random) -> Done {
        let key = format!("rival{}", random.below(RIVALRIES));
        let mine = format!("{key}.{}", self.number);
        let entry = self.day.mnt().join(&key);
        let draft = self.day.mnt().join(".outfs/work").join(&mine);
        let who = draft.join("outputs/who");
        let written = call("mkdir of a draft", &draft, || fs::create_dir(&draft))
            .and_then(|()| write_files(&draft.join("outputs"), &mine))
            .and_then(|()| call("write in a draft", &who, || fs::write(&who, &mine)));
        if random.below(2) == 0 {
            self.trash_of(&entry, &mine)?;
        }
        let published =
            written.and_then(|()| call("rename that publishes", &draft, || fs::rename(&draft, &entry)));
        if published.is_err() {
            self.trash_of(&draft, &mine)?;
        }
        let first = allowed("publishing against others", published, &[libc::EEXIST, libc::ENOSPC])?;
        self.whole_of_one(&key)?;
        Ok(first)
    }

    /// All of an entry is by the same client. It is looked at through a descriptor: by its name it may be another's next.
    fn whole_of_one(&self, key: &str) -> Done {
        let outputs = self.day.mnt().join(key).join("outputs");
        let read = || {
            let dir = File::open(&outputs)?;
            let held = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
            fs::read_to_string(held.join("who")).map(|who| (dir, held, who))
        };
        match call("open and read", &outputs, read) {
            Ok((_dir, held, who)) => {
                assert!(who.starts_with(&format!("{key}.")), "{key} is by {who:?}");
                absent_or_whole(whole_in(&held, &who)).map_err(|why| format!("{key} by {who}: {why}"))
            }
            Err(e) => allowed("reading what others publish", Err(e), &[libc::ENOENT]),
        }
    }

    fn in_place(&self, random: &mut Random) -> Done {
        let key = format!("own{}.{}", self.number, random.below(20));
        let mnt = self.day.mnt();
        let result = ingest(&self.day.daemon, &key, 2);
        let there = result.is_ok();
        // Refused, it is a draft, or an entry of an earlier time.
        if !there {
            self.trash_of(&mnt.join(&key), &key)?;
        }
        // Whoever evicts may have been faster than the one who set the mode.
        let errnos = [libc::EEXIST, libc::ENOSPC, libc::ENOENT, libc::EROFS];
        let stored = allowed("writing in place", result.map(drop), &errnos)?;
        if there {
            absent_or_whole(whole(&mnt, &key))?;
        }
        Ok(stored)
    }

    fn read(&self, random: &mut Random) -> Done {
        absent_or_whole(whole(&self.day.mnt(), &self.day.some_key(random)))
    }

    /// Opens a file of an entry: its key, its path, what is in it.
    fn open(&self, random: &mut Random) -> Result<Option<(String, File, Vec<u8>)>, String> {
        let key = self.day.some_key(random);
        let (name, content) = files(&key).swap_remove(random.below(4) as usize);
        let path = self.day.mnt().join(&key).join("outputs").join(name);
        match call("open", &path, || File::open(&path)) {
            Ok(file) => Ok(Some((key, file, content))),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(e) => Err(format!("opening {}: {e}", path.display())),
        }
    }

    /// Its entry goes, or not, while it is held.
    fn let_go(&self, key: &str, random: &mut Random) -> Done {
        match random.below(3) {
            0 => self.ask(&["evict", key], &[NOT_FOUND, PINNED]),
            1 => self.trash_of(&self.day.mnt().join(key), key),
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(random.below(200)));
                Ok(true)
            }
        }
    }

    /// What is open stays good, whatever becomes of the entry.
    fn hold_open(&self, random: &mut Random) -> Done {
        let Some((key, mut file, content)) = self.open(random)? else { return Ok(false) };
        let at = self.day.mnt().join(&key);
        for again in [false, true] {
            let mut bytes = Vec::new();
            call("read of what is open", &at, || file.rewind().and_then(|()| file.read_to_end(&mut bytes)))
                .map_err(|e| format!("{key}, of which a file is open: {e}"))?;
            assert!(bytes == content, "{key}: a file that is open has other bytes");
            if !again {
                self.let_go(&key, random)?;
            }
        }
        Ok(true)
    }

    /// So does what is mapped and not open any more, also those pages that nobody has looked at yet.
    fn hold_mapped(&self, random: &mut Random) -> Done {
        let Some((key, file, content)) = self.open(random)? else { return Ok(false) };
        let fail = |e: io::Error| format!("{key}, of which a file is mapped: {e}");
        let at = self.day.mnt().join(&key);
        let mapped = call("mmap", &at, || Mapped::new(&file)).map_err(fail)?;
        call("close of what is mapped", &at, || drop(file));
        for most in [4096, usize::MAX] {
            let bytes = call("read of what is mapped", &at, || mapped.bytes(most)).map_err(fail)?;
            assert!(content.starts_with(&bytes), "{key}: a file that is mapped has other bytes");
            assert!(bytes.len() == content.len().min(most), "{key}: a file that is mapped is shorter");
            if most == 4096 {
                self.let_go(&key, random)?;
            }
        }
        Ok(true)
    }

    fn library(&self, random: &mut Random) -> Done {
        library::put_and_read(&self.day.daemon, &self.own(random), &self.day.some_key(random))
    }

    fn shell(&self, random: &mut Random) -> Done {
        let script = [
            "find . -type f | sort | head -100; du -s .",
            "tar cf - . | tar tf -",
            "grep -r nothing . || true; ls -lR .",
            "cmp outputs/small outputs/small; cat outputs/large | wc -c",
        ][random.below(4) as usize];
        let at = self.day.mnt().join(self.day.some_key(random));
        let run = || Command::new("timeout").args(["60", "sh", "-c", script]).current_dir(&at).output();
        let output = match within(COMMAND, "shell tools", &at, run) {
            Ok(output) => output,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
            Err(e) => return Err(format!("{}: {e}", at.display())),
        };
        // An entry that is evicted is hidden at once, and what is not looked up yet with it.
        let said = String::from_utf8_lossy(&output.stderr);
        let absent =
            |line: &str| line.contains("No such file or directory") || line.contains("previous errors");
        match output.status.success() && said.is_empty() {
            true => Ok(true),
            false if output.status.code() != Some(124) && !said.is_empty() && said.lines().all(absent) => {
                Ok(false)
            }
            false => Err(format!("{script} in {}: {}: {said}", at.display(), output.status)),
        }
    }

    fn evict(&self, random: &mut Random) -> Done {
        self.ask(&["evict", &self.day.some_key(random)], &[NOT_FOUND, PINNED])
    }

    fn trash(&self, random: &mut Random) -> Done {
        let key = self.day.some_key(random);
        self.trash_of(&self.day.mnt().join(&key), &key)
    }

    fn pin(&self, random: &mut Random) -> Done {
        let key = self.day.some_key(random);
        // Others may pin it, too, and let go of it earlier.
        let name = format!("client{}", self.number);
        if !self.ask(&["pin", &key, "--name", &name], &[NOT_FOUND])? {
            return Ok(false);
        }
        let kept = whole(&self.day.mnt(), &key);
        self.ask(&["unpin", &key, "--name", &name], &[])?;
        kept.map(|()| true).map_err(|why| format!("pinned: {why}"))
    }

    fn collect(&self, _random: &mut Random) -> Done {
        self.ask(&["gc"], &[])
    }

    fn restore(&self, random: &mut Random) -> Done {
        let key = self.day.some_key(random);
        let to = self.day.place.path().join(format!("restored{}", self.number));
        let how = ["auto", "copy", "link"][random.below(3) as usize];
        let over = self.day.removals.over(&key);
        let restored = self.ask(&["restore", &key, to.to_str().expect("text"), "--as", how], &[NOT_FOUND])?;
        // A link holds its entry.
        let read = if restored {
            call("read of a restored file", &to, || fs::read(to.join("large")))
        } else {
            Ok(Vec::new())
        };
        let removed = match fs::symlink_metadata(&to) {
            Ok(m) if m.is_symlink() => fs::remove_file(&to),
            Ok(_) => fs::remove_dir_all(&to),
            Err(_) => Ok(()),
        };
        // A link is a lease: what somebody takes away on purpose is hidden at once all the same.
        let gone =
            |e: &io::Error| e.raw_os_error() == Some(libc::ENOENT) && self.day.removals.any_since(&key, over);
        if how == "link" && read.as_ref().is_err_and(gone) {
            return removed.map(|()| false).map_err(|e| format!("removing a link: {e}"));
        }
        let bytes =
            read.and_then(|bytes| removed.map(|()| bytes)).map_err(|e| format!("restored as {how}: {e}"))?;
        assert!(!restored || bytes == files(&key)[2].1, "{key}: restored as {how} it has other bytes");
        Ok(restored)
    }

    /// Somebody's sandbox; only root can.
    fn bind(&self, random: &mut Random) -> Done {
        if !nix::unistd::geteuid().is_root() {
            return Ok(false);
        }
        let key = self.day.some_key(random);
        let to = self.day.place.path().join(format!("bound{}", self.number));
        fs::create_dir_all(&to).map_err(|e| e.to_string())?;
        let from = self.day.mnt().join(&key).join("outputs");
        let mount = || Command::new("mount").arg("--bind").arg(&from).arg(&to).output();
        let bound = within(COMMAND, "mount --bind", &from, mount).map_err(|e| e.to_string())?;
        if !bound.status.success() {
            let said = String::from_utf8_lossy(&bound.stderr);
            let absent = said.contains("does not exist") || said.contains("No such file");
            return if absent { Ok(false) } else { Err(format!("binding: {said}")) };
        }
        let evicted = self.ask(&["evict", &key], &[NOT_FOUND, PINNED]);
        let read = call("read of what is bound", &to, || fs::read(to.join("large")));
        unbind(&to)?;
        evicted?;
        let bytes = read.map_err(|e| format!("bound and evicted: {e}"))?;
        assert!(bytes == files(&key)[2].1, "{key}: bound and evicted it has other bytes");
        Ok(true)
    }

    /// A view of a few entries, which go on being there.
    fn view(&self, random: &mut Random) -> Done {
        let key = self.day.some_key(random);
        let at = self.day.view_of(self.number);
        let to = at.to_str().expect("text");
        if !self.ask(&["mount", to, "--read-only", "--key", &key], &[NOT_FOUND])? {
            return Ok(false);
        }
        let there = is_there(&at.join(&key));
        let evicted = self.ask(&["evict", &key], &[NOT_FOUND, PINNED]);
        let kept = match there {
            Ok(true) => whole(&at, &key).map_err(|why| format!("in a view: {why}")),
            _ => Ok(()),
        };
        // Busy for a moment, as in `unbind`.
        let by = Instant::now() + BACK;
        while !self.ask(&["unmount", to], &[IN_USE])? {
            if Instant::now() > by {
                return Err(format!("{to} stays busy"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        evicted?;
        kept?;
        there
    }

    /// One view that all mount and unmount, and read in meanwhile: what is there is whole, and what is open stays good.
    fn shared(&self, random: &mut Random) -> Done {
        let at = self.day.shared();
        let to = at.to_str().expect("text");
        let lazily = ["unmount", "--lazy", to];
        match random.below(8) {
            0 | 1 => self.ask(&["mount", to, "--read-only"], &[MOUNTED]),
            2 => self.ask(&["unmount", to], &[NOT_MOUNTED, IN_USE]),
            3 => self.ask(&lazily, &[NOT_MOUNTED]),
            4 => {
                let key = self.day.some_key(random);
                let file = at.join(&key).join("outputs/large");
                let mut open = match call("open", &file, || File::open(&file)) {
                    Ok(open) => open,
                    Err(e) => return allowed("opening in a view of all", Err(e), &[libc::ENOENT]),
                };
                self.ask(&lazily, &[NOT_MOUNTED])?;
                let mut bytes = Vec::new();
                call("read of what is open", &file, || open.read_to_end(&mut bytes))
                    .map_err(|e| format!("{key}, open in a view that was detached: {e}"))?;
                assert!(
                    bytes == files(&key)[2].1,
                    "{key}: open in a view that was detached it has other bytes"
                );
                Ok(true)
            }
            _ => absent_or_whole(whole(&at, &self.day.some_key(random))),
        }
    }

    fn replace(&self, random: &mut Random) -> Done {
        let key = self.last.borrow().clone().unwrap_or_else(|| self.own(random));
        let at = self.day.replacing().join(&key);
        if !is_there(&at)? {
            return Ok(false);
        }
        let extra = at.join("outputs/extra");
        let written = call("write into an entry", &extra, || fs::write(&extra, key.as_bytes()));
        let sealed = written.is_ok() && self.ask(&["seal", &key], &[NO_DRAFT, NO_ROOM])?;
        if !sealed {
            self.trash_in(&self.day.replacing(), &at, &key)?;
        }
        let written =
            allowed("replacing", written, &[libc::ENOENT, libc::ENOSPC, libc::ESTALE, libc::EEXIST])?;
        Ok(written && sealed)
    }
}

/// A program that another client starts has this one's open files until it is executed: busy for a moment is no finding.
fn unbind(at: &Path) -> Result<(), String> {
    let by = Instant::now() + BACK;
    loop {
        let unbound = Command::new("umount").arg(at).output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&unbound.stderr);
        if unbound.status.success() {
            return Ok(());
        }
        if !said.contains("busy") || Instant::now() > by {
            let _ = Command::new("umount").arg("--lazy").arg(at).output();
            return Err(format!("unbinding: {said}"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
