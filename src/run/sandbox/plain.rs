//! No sandbox: the command runs in the project, as any process.
//!
//! Invariant: trees that were put in are taken away again, but nothing that stood there before.

use std::path::{Path, PathBuf};

use super::room::{Owned, Room, remove_all};
use super::{Left, Rooms, Sandbox, Scene, Tree};
use crate::run::capture::Sink;
use crate::run::exec::{Outcome, Plan, execute};
use crate::run::outputs::clear;
use crate::run::{Result, RunError};

/// The project itself.
pub struct Plain<'a> {
    scene: Scene<'a>,
    rooms: &'a Rooms,
    /// Remembers what was put in, should this process die.
    room: Option<Room>,
    laid: Vec<PathBuf>,
    /// Directories that were made above them, the inner ones last.
    above: Vec<PathBuf>,
}

impl<'a> Plain<'a> {
    /// For a run that was not made yet.
    pub fn new(scene: Scene<'a>, rooms: &'a Rooms) -> Plain<'a> {
        Plain { scene, rooms, room: None, laid: Vec::new(), above: Vec::new() }
    }
}

impl Sandbox for Plain<'_> {
    fn create(&mut self) -> Result<()> {
        clear(&self.scene.place.cwd, self.scene.outputs)
    }

    fn restore(&mut self, base: &mut dyn Tree) -> Result<()> {
        let (cwd, outputs) = (&self.scene.place.cwd, self.scene.outputs);
        let missing: Vec<PathBuf> = outputs.iter().filter(|o| !base.has(o)).cloned().collect();
        clear(cwd, &missing)?;
        match base.stands() {
            true => Ok(()),
            false => base.lay(cwd, Some(outputs)),
        }
    }

    fn inject(&mut self, at: &Path, tree: &mut dyn Tree) -> Result<()> {
        let path = self.scene.place.cwd.join(at);
        // First, as it sweeps: what stands there may be of a run that was killed.
        let room = match &mut self.room {
            Some(room) => room,
            none => none.insert(self.rooms.make()?),
        };
        if path.symlink_metadata().is_ok() {
            return Err(RunError::usage(format!(
                "{} exists; --from puts a result there for the time of the run, so name a path that is free (or use \
                 --sandbox bwrap)",
                at.display()
            )));
        }
        let cwd = &self.scene.place.cwd;
        let missing =
            path.ancestors().skip(1).take_while(|dir| *dir != cwd && dir.symlink_metadata().is_err());
        let missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        for dir in missing.into_iter().rev() {
            std::fs::create_dir(&dir).map_err(|e| RunError::io("create", &dir, e))?;
            self.above.push(dir.clone());
            room.owns(&dir, Owned::IfEmpty)?;
        }
        std::fs::create_dir(&path).map_err(|e| RunError::io("create", &path, e))?;
        self.laid.push(path.clone());
        room.owns(&path, Owned::Whole)?;
        tree.lay(&path, None)
    }

    fn work(&self) -> PathBuf {
        self.scene.place.cwd.clone()
    }

    fn exec(&mut self, plan: Plan<'_>, sink: &mut dyn Sink) -> Result<Outcome> {
        execute(&plan, sink).map_err(|e| RunError::io("run", Path::new(&plan.argv[0]), e))
    }

    fn snapshot(&mut self) -> Result<Left> {
        self.remove()?;
        Ok(Left::default())
    }

    fn exists(&self) -> bool {
        !self.laid.is_empty() || !self.above.is_empty()
    }

    fn remove(&mut self) -> Result<()> {
        for path in self.laid.drain(..) {
            remove_all(&path).map_err(|e| RunError::io("remove", path, e))?;
        }
        // Those that have something else in them now stay.
        self.above.drain(..).rev().for_each(|dir| drop(std::fs::remove_dir(dir)));
        self.room = None;
        Ok(())
    }
}
