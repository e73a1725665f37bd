//! What `src/run/marker.rs` has, asked of a kernel made of shuttle's parts: names, inodes, descriptors that children inherit,
//! flock, and processes that may be killed before any call. A thread is a process once it has begun.
//!
//! It knows who is in the air, too, and forbids two at once; and it can be faulty.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shuttle::rand::Rng;
use shuttle::thread::{ThreadId, yield_now};

use crate::sync::{Condvar, Mutex};

pub type Pid = u32;

/// What is done wrong.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Who has locked a marker does not look whether it still stands there.
    NoSecondLook,
    /// Who sweeps does not ask for the lock.
    SweepsWhatIsLocked,
    /// Who lands unlocks first, and removes then.
    RemovesWithoutLock,
}

#[derive(Default)]
pub struct Kernel {
    state: Mutex<State>,
    /// Somebody has unlocked something.
    unlocked: Condvar,
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, usize>,
    /// By whom each is signed.
    inodes: Vec<Option<Pid>>,
    open: HashMap<usize, Open>,
    opened: usize,
    processes: HashMap<ThreadId, Pid>,
    /// How many more calls each living process has.
    alive: HashMap<Pid, u32>,
    begun: Pid,
    air: HashMap<PathBuf, Vec<Pid>>,
    fault: Fault,
    /// A minute has passed.
    late: bool,
}

/// An open file description.
struct Open {
    inode: usize,
    by: Vec<Pid>,
    lock: Lock,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lock {
    None,
    Shared,
    Alone,
}

thread_local! {
    /// All of shuttle's threads are one of the system's.
    static KERNEL: RefCell<Arc<Kernel>> = RefCell::default();
}

fn kernel() -> Arc<Kernel> {
    KERNEL.with_borrow(Arc::clone)
}

/// A new machine.
pub fn boot(fault: Fault) {
    let kernel = Kernel::default();
    kernel.state.lock().fault = fault;
    KERNEL.set(Arc::new(kernel));
}

/// Makes this thread a process; it is killed instead of its last call, if there is one.
pub fn begin(calls: Option<u32>) -> Pid {
    let (kernel, me) = (kernel(), shuttle::thread::current().id());
    let mut state = kernel.state.lock();
    let pid = state.new_process(calls.unwrap_or(u32::MAX));
    state.processes.insert(me, pid);
    pid
}

/// A minute passes.
pub fn grow_late() {
    kernel().state.lock().late = true;
}

/// Names that there are.
pub fn names() -> usize {
    kernel().state.lock().names.len()
}

impl State {
    fn new_process(&mut self, calls: u32) -> Pid {
        self.begun += 1;
        self.alive.insert(self.begun, calls);
        self.begun
    }

    fn me(&self) -> Option<Pid> {
        let pid = self.processes.get(&shuttle::thread::current().id()).expect("it has begun");
        self.alive.contains_key(pid).then_some(*pid)
    }

    fn close(&mut self, number: usize, pid: Pid) {
        let Some(open) = self.open.get_mut(&number) else { return };
        open.by.retain(|by| *by != pid);
        if open.by.is_empty() {
            self.open.remove(&number);
        }
    }

    /// A process is over, however it came to that.
    fn end(&mut self, pid: Pid) {
        self.alive.remove(&pid);
        let open: Vec<usize> = self.open.keys().copied().collect();
        open.into_iter().for_each(|number| self.close(number, pid));
        self.air.values_mut().for_each(|by| by.retain(|by| *by != pid));
    }

    /// The strongest lock that others than `number` have of its inode.
    fn others(&self, number: usize) -> Lock {
        let inode = self.open[&number].inode;
        let mut locks =
            self.open.iter().filter(|(n, o)| **n != number && o.inode == inode).map(|(_, o)| o.lock);
        match locks.clone().any(|l| l == Lock::Alone) {
            true => Lock::Alone,
            false => locks.find(|l| *l == Lock::Shared).unwrap_or(Lock::None),
        }
    }
}

fn killed() -> io::Error {
    io::Error::other("killed")
}

/// One call of this thread's process, which may be killed instead.
fn call<T>(work: impl FnOnce(&mut State, Pid) -> io::Result<T>) -> io::Result<T> {
    if std::thread::panicking() {
        return Err(killed());
    }
    let kernel = kernel();
    let mut state = kernel.state.lock();
    let pid = state.me().ok_or_else(killed)?;
    let left = state.alive.get_mut(&pid).expect("it lives");
    *left -= 1;
    if *left == 0 {
        state.end(pid);
        kernel.unlocked.notify_all();
        return Err(killed());
    }
    work(&mut state, pid)
}

/// Does something that is no call.
pub fn work() -> io::Result<()> {
    call(|_, _| Ok(()))
}

/// The command starts.
pub fn take_off(path: &Path) -> io::Result<()> {
    let alone = call(|state, pid| {
        let by = state.air.entry(path.to_owned()).or_default();
        by.push(pid);
        Ok(by.len() == 1)
    })?;
    assert!(alone, "two in the air with one key");
    Ok(())
}

/// The result is kept.
pub fn land(path: &Path) -> io::Result<()> {
    call(|state, pid| {
        state.air.get_mut(path).expect("it is in the air").retain(|by| *by != pid);
        Ok(())
    })
}

/// A child that has inherited what its parent has open, and is in the air with it.
pub struct Guard(Pid);

impl Guard {
    pub fn start() -> io::Result<Guard> {
        call(|state, parent| {
            let guard = state.new_process(u32::MAX);
            state.open.values_mut().filter(|o| o.by.contains(&parent)).for_each(|o| o.by.push(guard));
            state.air.values_mut().filter(|by| by.contains(&parent)).for_each(|by| by.push(guard));
            Ok(Guard(guard))
        })
    }

    pub fn end(self) {
        let kernel = kernel();
        kernel.state.lock().end(self.0);
        kernel.unlocked.notify_all();
    }
}

/// As the real one.
#[derive(Debug)]
pub struct Marker {
    number: usize,
    sweeps: bool,
}

impl Marker {
    fn opened(path: &Path, make: bool) -> io::Result<Marker> {
        call(|state, pid| {
            let inode = match state.names.get(path) {
                Some(inode) => *inode,
                None if make => {
                    state.inodes.push(None);
                    state.names.insert(path.to_owned(), state.inodes.len() - 1);
                    state.inodes.len() - 1
                }
                None => return Err(io::ErrorKind::NotFound.into()),
            };
            state.opened += 1;
            state.open.insert(state.opened, Open { inode, by: vec![pid], lock: Lock::None });
            Ok(Marker { number: state.opened, sweeps: !make })
        })
    }

    pub fn open_or_make(_dir: &Path, path: &Path) -> io::Result<Marker> {
        Marker::opened(path, true)
    }

    pub fn open(path: &Path) -> io::Result<Marker> {
        Marker::opened(path, false)
    }

    pub fn try_lock(&self) -> io::Result<bool> {
        call(|state, _| {
            if self.sweeps && state.fault == Fault::SweepsWhatIsLocked {
                return Ok(true);
            }
            let free = state.others(self.number) == Lock::None;
            if free {
                state.open.get_mut(&self.number).expect("it is open").lock = Lock::Alone;
            }
            Ok(free)
        })
    }

    pub fn wait(&self) -> io::Result<()> {
        work()?;
        let kernel = kernel();
        let mut state = kernel.state.lock();
        while state.others(self.number) == Lock::Alone {
            kernel.unlocked.wait(&mut state);
        }
        state.open.get_mut(&self.number).expect("it is open").lock = Lock::Shared;
        drop(state);
        // Whoever waited, too, is to have its turn: it unlocks at once.
        yield_now();
        Ok(())
    }

    pub fn stands_at(&self, path: &Path) -> io::Result<bool> {
        call(|state, _| {
            let there = state.names.get(path) == Some(&state.open[&self.number].inode);
            Ok(there || state.fault == Fault::NoSecondLook)
        })
    }

    pub fn is_empty(&self) -> io::Result<bool> {
        call(|state, _| Ok(state.inodes[state.open[&self.number].inode].is_none()))
    }

    /// A process may be stopped for a minute at any time.
    pub fn is_old(&self) -> bool {
        call(|state, _| Ok(state.late || shuttle::rand::thread_rng().gen_range(0..4) == 0)).unwrap_or(false)
    }

    pub fn sign(&self) -> io::Result<()> {
        call(|state, pid| {
            let inode = state.open[&self.number].inode;
            state.inodes[inode] = Some(pid);
            Ok(())
        })
    }

    pub fn signed(&self) -> Option<Pid> {
        call(|state, _| Ok(state.inodes[state.open[&self.number].inode])).ok()?
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        unreachable!("what is inherited is Guard's affair")
    }
}

impl Drop for Marker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let kernel = kernel();
        let mut state = kernel.state.lock();
        if let Some(pid) = state.me() {
            state.close(self.number, pid);
            kernel.unlocked.notify_all();
        }
    }
}

pub fn all(dir: &Path) -> Vec<PathBuf> {
    let below = |state: &mut State| state.names.keys().filter(|p| p.starts_with(dir)).cloned().collect();
    call(|state, _| Ok(below(state))).unwrap_or_default()
}

pub fn remove(path: &Path) -> io::Result<()> {
    let too_late = call(|state, pid| {
        let too_late = state.fault == Fault::RemovesWithoutLock;
        if too_late {
            state.open.values_mut().filter(|o| o.by == [pid]).for_each(|o| o.lock = Lock::None);
        }
        Ok(too_late)
    })?;
    if too_late {
        kernel().unlocked.notify_all();
    }
    call(|state, _| state.names.remove(path).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into()))
}

pub fn moment() {
    yield_now();
}
