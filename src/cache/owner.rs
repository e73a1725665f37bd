//! Which process something belongs to, as text that outlives it, and whether it still lives.
//!
//! Invariant: a process is dead only if that is certain: of one in another PID namespace nothing is said. Must not
//! know: what it owns.

use std::os::unix::fs::MetadataExt;

/// This process, for [`is_dead`]: its PID namespace, number and start time. `None` where there is no /proc.
pub fn this_process() -> Option<String> {
    let pid = std::process::id();
    Some(format!("{}.{pid}.{}", namespace()?, started(pid)?))
}

/// Is the process that said so dead? False when it cannot be told.
pub fn is_dead(process: &str) -> bool {
    let mut parts = process.splitn(3, '.').map(|part| part.parse::<u64>().ok());
    let (Some(Some(of)), Some(Some(pid)), Some(Some(since))) = (parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let Ok(pid) = u32::try_from(pid) else { return false };
    namespace() == Some(of) && started(pid) != Some(since)
}

fn namespace() -> Option<u64> {
    std::fs::metadata("/proc/self/ns/pid").ok().map(|m| m.ino())
}

/// In ticks since the machine started.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may have spaces and parentheses in it; the state follows the last one.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_lives_and_who_is_dead() {
        let us = this_process().unwrap();
        assert!(!is_dead(&us));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let its = format!("{}.{pid}.{}", namespace().unwrap(), started(pid).unwrap());
        let another = format!("{}.{pid}.1", namespace().unwrap());
        let elsewhere = format!("1.{pid}.1");
        assert!(!is_dead(&its) && is_dead(&another) && !is_dead(&elsewhere));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_dead(&its) && !is_dead(&elsewhere) && !is_dead("nonsense") && !is_dead("1.2"));
    }
}
