//! Running a command: its output live and kept, its time limited, nothing of it left behind.
//!
//! Purpose: the one place that starts a task's processes; a sandbox is a longer argument vector.
//! Invariants: standard input is empty; both outputs are passed on as they come and kept within bounds, and whoever does not
//! take them keeps nothing else waiting; at
//! the time limit, or when outfs is asked to end, the whole process group is told so and killed
//! after a grace; when this returns, nothing of the group is alive. Must not know: keys, stores, terminals.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::capture::{Capture, Order, Sink};
use super::guard::{Post, die_with_parent, hand_down, kill_descendants, not_started, words};
use super::signals::{Signals, time_left};
use super::spool::Spool;
use crate::cache::pidfd_open;

/// How long a guard that was told to end everything may take.
const LAST_PATIENCE: Duration = Duration::from_secs(15);

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The command; a sandbox puts its own words before it.
    pub argv: &'a [OsString],
    /// Where.
    pub cwd: &'a Path,
    /// Variables to set, or to take away, in this process's environment.
    pub env: &'a [(OsString, Option<OsString>)],
    /// It has no others.
    pub bare: bool,
    /// How [`guard`](super::guard()) is started: a program, by its path, and arguments that take options, `--` and a command behind
    /// them. Without it the process group alone is asked, has the grace and is killed, and what the command leaves outside may
    /// outlive this. With it this process becomes a subreaper, and if the guard is killed all children of this process are.
    pub guard: &'a [OsString],
    /// The guard has these open, too, until nothing of the command is left.
    pub hold: &'a [BorrowedFd<'a>],
    /// The command is a sandbox that starts another guard inside: signals are for that one.
    pub inner: bool,
    /// Until it is ended.
    pub timeout: Option<Duration>,
    /// Between being asked to end and being killed.
    pub grace: Duration,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code (128 and the signal's number when one killed it).
    Exited(u8),
    /// It took too long.
    TimedOut,
    /// This process was asked to end by this signal.
    Interrupted(i32),
}

impl End {
    /// The exit code that says so.
    pub fn code(self) -> u8 {
        match self {
            End::Exited(code) => code,
            End::TimedOut => 124,
            End::Interrupted(signal) => 128 + signal as u8,
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Standard output, maybe cut.
    pub stdout: Vec<u8>,
    /// Standard error, maybe cut.
    pub stderr: Vec<u8>,
    /// How the two were interleaved.
    pub order: Order,
    /// From start to end.
    pub duration: Duration,
}

/// A command that runs.
struct Running {
    child: Child,
    guarded: bool,
    /// Ending this tells the guard to end everything.
    leash: Option<ChildStdin>,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    pipes: [Option<File>; 2],
    captures: [Capture; 2],
    order: Order,
}

/// Runs a command to its end. An error is one of starting or of watching it; then nothing runs any more.
pub fn execute(plan: &Plan<'_>, sink: &mut dyn Sink) -> io::Result<Outcome> {
    let started = Instant::now();
    let signals = Signals::catch(&[])?;
    if !plan.guard.is_empty() {
        // What a killed guard leaves comes to us.
        nix::sys::prctl::set_child_subreaper(true)?;
    }
    let mut running = match Running::start(plan) {
        Ok(running) => running,
        Err(e) if plan.guard.is_empty() => {
            let code = not_started(&e);
            let said = format!(
                "outfs: {}: {e}\n",
                plan.argv.first().map(|a| a.to_string_lossy()).unwrap_or_default()
            );
            sink.wrote(true, said.as_bytes());
            return Ok(Outcome::without_run(End::Exited(code), started));
        }
        Err(e) => return Err(e),
    };
    let spool = Spool::new().inspect_err(|_| running.end())?;
    // Whoever takes the output may block, and time goes on.
    let ended = std::thread::scope(|scope| {
        let (running, spool) = (&mut running, &spool);
        let watch = move || {
            let ended = running.watch(plan, &signals, spool, started);
            // Whatever happened: nothing stays.
            running.end();
            let asked = signals.take().map(End::Interrupted);
            drop(signals);
            spool.end();
            ended.map(|end| asked.unwrap_or(end))
        };
        let watcher = std::thread::Builder::new().spawn_scoped(scope, watch)?;
        spool.pass_on(sink);
        Ok(watcher.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    });
    // Without a thread nobody has watched the command.
    let end = ended.inspect_err(|_: &io::Error| running.end())??;
    let [out, err] = running.captures;
    let whole = out.is_whole() && err.is_whole();
    let order = if whole { running.order } else { Order::default() };
    let (stdout, stderr) = (out.into_bytes(), err.into_bytes());
    Ok(Outcome { end, stdout, stderr, order, duration: started.elapsed() })
}

impl Outcome {
    fn without_run(end: End, started: Instant) -> Outcome {
        let (stdout, stderr) = (Vec::new(), Vec::new());
        Outcome { end, stdout, stderr, order: Order::default(), duration: started.elapsed() }
    }
}

impl Running {
    fn start(plan: &Plan<'_>) -> io::Result<Running> {
        let guarded = !plan.guard.is_empty();
        let post = if plan.inner { Post::Sandbox } else { Post::Command };
        let guard = if guarded { words(plan.guard, post, plan.grace, &[]) } else { Vec::new() };
        let mut words = guard.iter().chain(plan.argv);
        let mut command = Command::new(words.next().ok_or(io::ErrorKind::NotFound)?);
        let stdin = if plan.guard.is_empty() { Stdio::null() } else { Stdio::piped() };
        command.args(words).current_dir(plan.cwd).stdin(stdin);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        if plan.bare {
            command.env_clear();
        }
        for (name, value) in plan.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        match plan.guard.is_empty() {
            true => die_with_parent(&mut command),
            false => hand_down(&mut command, plan.hold),
        }
        let mut child = command.spawn()?;
        let leash = child.stdin.take();
        let pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let pipes = pipes.map(|p| p.map(File::from));
        for pipe in pipes.iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let pidfd = pidfd_open(child.id()).inspect_err(|_| {
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let captures = Default::default();
        let guarded = leash.is_some();
        Ok(Running { child, guarded, leash, pidfd, status: None, pipes, captures, order: Order::default() })
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn watch(
        &mut self,
        plan: &Plan<'_>,
        signals: &Signals,
        spool: &Spool,
        started: Instant,
    ) -> io::Result<End> {
        let mut why = None;
        let mut deadline = plan.timeout.map(|t| started + t);
        loop {
            let ready = self.poll(signals, spool, deadline)?;
            self.drain(spool, false)?;
            if let Some(signal) = signals.take() {
                self.tell(signal);
                let grace = match why {
                    None => Some(plan.grace),
                    // Asked twice: at once; but a guard that kills already must be let finish.
                    Some(_) => (self.leash.is_some() || !self.guarded).then_some(Duration::ZERO),
                };
                why.get_or_insert(End::Interrupted(signal));
                deadline = grace.map_or(deadline, |g| Some(Instant::now() + g));
            }
            if ready {
                self.drain(spool, true)?;
                let code = exit_code(self.reap()?);
                return Ok(why.unwrap_or(End::Exited(code)));
            }
            if deadline.is_some_and(|d| Instant::now() >= d) {
                deadline = match (why, self.leash.take()) {
                    (None, leash) => {
                        self.leash = leash;
                        why = Some(End::TimedOut);
                        self.tell(libc::SIGTERM);
                        Some(Instant::now() + plan.grace)
                    }
                    (Some(_), Some(leash)) => {
                        drop(leash);
                        Some(Instant::now() + LAST_PATIENCE)
                    }
                    (Some(_), None) => {
                        self.tell(libc::SIGKILL);
                        None
                    }
                };
            }
        }
    }

    /// Waits for output, a signal, the end or the deadline; true when the process has ended.
    fn poll(&self, signals: &Signals, spool: &Spool, deadline: Option<Instant>) -> io::Result<bool> {
        let mut fds = vec![
            PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.fd(), PollFlags::POLLIN),
            PollFd::new(spool.fd(), PollFlags::POLLIN),
        ];
        spool.heard();
        let pipes = if spool.is_full() { &[] } else { &self.pipes[..] };
        fds.extend(pipes.iter().flatten().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, time_left(deadline)) {
            Ok(_) => Ok(fds[0].any() == Some(true)),
            Err(Errno::EINTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes all that is there to be read and there is room for; at the end there is room for all.
    fn drain(&mut self, spool: &Spool, end: bool) -> io::Result<()> {
        let mut buffer = [0; 1 << 16];
        for i in 0..2 {
            while let Some(pipe) = self.pipes[i].as_mut().filter(|_| end || !spool.is_full()) {
                match pipe.read(&mut buffer) {
                    Ok(0) => self.pipes[i] = None,
                    Ok(n) => {
                        spool.push(i == 1, &buffer[..n]);
                        self.captures[i].push(&buffer[..n]);
                        self.order.push(i == 1, n as u64);
                        if n < buffer.len() {
                            break;
                        }
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn tell(&self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            let _ = killpg(self.group(), signal);
        }
    }

    /// Takes the status, and kills what is left of the group: before that, while the number is still ours.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.tell(libc::SIGKILL);
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok(status)
    }

    /// Ends what is left: normally nothing.
    fn end(&mut self) {
        self.leash = None;
        let status = self.reap();
        // A guard that was killed leaves us what it guarded.
        if self.guarded && status.is_ok_and(|s| s.signal().is_some()) {
            kill_descendants();
        }
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, signal) => 128 + signal.unwrap_or(0) as u8,
    }
}
