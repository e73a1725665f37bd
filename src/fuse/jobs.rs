//! Threads for what takes long, so that no thread the kernel's other requests need ever waits.

use crossbeam_channel::{Sender, unbounded};

type Job = Box<dyn FnOnce() + Send>;

/// A few threads that run jobs in the order they came.
#[derive(Clone)]
pub struct Jobs(Sender<Job>);

impl Jobs {
    /// Starts the threads; they end when this and its clones are dropped and all jobs are done.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Jobs> {
        let (tx, rx) = unbounded::<Job>();
        for n in 0..threads {
            let rx = rx.clone();
            std::thread::Builder::new().name(format!("{name}-{n}")).spawn(move || {
                for job in rx {
                    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a job panicked; its request is answered with EIO");
                    }
                }
            })?;
        }
        Ok(Jobs(tx))
    }

    /// Runs `job` soon.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        // The threads outlive the sender, so this cannot fail; a reply dropped answers EIO.
        let _ = self.0.send(Box::new(job));
    }
}
