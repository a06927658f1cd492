//! Ctrl-C: the first asks long work to stop where it loses nothing, the second stops at once.
//!
//! Long work polls [`check`] between steps. A termination signal counts as a Ctrl-C. The flag is process-wide because
//! signals are; nothing else here is.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::note;

/// The exit code of an interrupted program, as shells expect it (128 + SIGINT).
pub const EXIT_CODE: u8 = 130;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; what is finished is kept, run the same command again to go on")]
pub struct Interrupted;

/// Starts listening; `kept` says, at the first Ctrl-C, what will be kept. Call once, before long work.
pub fn install(kept: &'static str) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            note!(
                "\nstopped at once; what was finished before is kept, run the same command again to go on"
            );
            std::process::exit(i32::from(EXIT_CODE));
        }
        note!("\nstopping after this step; {kept}. Ctrl-C again stops at once");
    })
}

/// Whether the user asked to stop.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}

/// An error once the user asked to stop.
pub fn check() -> Result<(), Interrupted> {
    if requested() {
        Err(Interrupted)
    } else {
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    const ROLE: &str = "PTSBENCH_TEST_INTERRUPT";

    /// Not a test of its own: what the child of the tests below does.
    #[test]
    fn child() {
        let Ok(role) = std::env::var(ROLE) else {
            return;
        };
        install("finished units are kept").unwrap();
        assert_eq!(check(), Ok(()));
        eprintln!("ready");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(5));
            if role == "polite" && check().is_err() {
                eprintln!("left in order");
                std::process::exit(i32::from(EXIT_CODE));
            }
        }
    }

    fn start(role: &str) -> (Child, BufReader<std::process::ChildStderr>) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "interrupt::tests::child", "--nocapture"])
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        wait_for(&mut stderr, "ready");
        (child, stderr)
    }

    fn wait_for(stderr: &mut impl BufRead, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "no `{word}`");
        }
    }

    fn signal(child: &Child) {
        let status = Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn the_first_signal_lets_work_end_in_order() {
        let (mut child, mut stderr) = start("polite");
        signal(&child);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("finished units are kept"), "{rest}");
        assert!(rest.contains("left in order"), "{rest}");
        assert_eq!(child.wait().unwrap().code(), Some(i32::from(EXIT_CODE)));
    }

    #[test]
    fn the_second_signal_stops_at_once() {
        let (mut child, mut stderr) = start("deaf");
        signal(&child);
        wait_for(&mut stderr, "Ctrl-C again");
        signal(&child);
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert!(rest.contains("stopped at once"), "{rest}");
        assert_eq!(child.wait().unwrap().code(), Some(i32::from(EXIT_CODE)));
    }
}
