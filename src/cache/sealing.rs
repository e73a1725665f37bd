//! The order in which a draft is sealed.
//!
//! Invariants: what is committed was read as of a generation that the draft still has when nobody else is inside and nobody has a
//! file open for writing; when somebody else can enter again, it has ended. `tests/interleavings` runs this very code in all
//! orders of threads. Must not know: how a draft is read, and what a commit is.

use std::time::Instant;

use super::gate::{Closed, Gates};

/// What came of a commit.
pub(crate) enum Committed<T> {
    /// The draft ends with that.
    Ends(T),
    /// The draft stays.
    Stays(T),
    /// What was prepared has become useless meanwhile.
    Stale,
}

/// What is done in that order.
pub(crate) trait Sealing {
    type Prepared;
    type Done;
    type Error;

    /// Somebody has a file open for writing: waits a little, or gives up.
    fn written_to(&mut self) -> Result<(), Self::Error>;
    /// The draft, read through [`Gates::as_of`], and as of which generation; `None`: once more.
    fn prepare(&mut self) -> Result<Option<(u64, Self::Prepared)>, Self::Error>;
    /// Until when it is waited for others to leave.
    fn patience(&self) -> Instant;
    /// They did not, or the draft has ended.
    fn closed(&self, why: Closed) -> Self::Error;
    /// The draft was changed while it was read: gives up, or not.
    fn changed(&mut self) -> Result<(), Self::Error>;
    /// Nobody else is inside.
    fn commit(&mut self, prepared: Self::Prepared) -> Result<Committed<Self::Done>, Self::Error>;
    /// Still nobody is, and the draft is about to end: tells the views.
    fn tell(&mut self, done: &Self::Done);
    /// A commit came to nothing.
    fn stale(&mut self);
}

/// Seals what is behind the gate.
pub(crate) fn seal<S: Sealing>(gates: &Gates, of: &mut S) -> Result<S::Done, S::Error> {
    loop {
        while gates.writers() > 0 {
            of.written_to()?;
        }
        let Some((generation, prepared)) = of.prepare()? else { continue };
        let alone = gates.alone(of.patience()).map_err(|closed| of.closed(closed))?;
        if !alone.is_still(generation) {
            of.changed()?;
            continue;
        }
        match of.commit(prepared)? {
            Committed::Ends(done) => {
                alone.going();
                of.tell(&done);
                alone.end();
                return Ok(done);
            }
            Committed::Stays(done) => return Ok(done),
            Committed::Stale => {
                drop(alone);
                of.stale();
            }
        }
    }
}
