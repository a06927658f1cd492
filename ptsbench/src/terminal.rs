//! Standard output and standard error, without panics.
//!
//! A reader that closes a pipe has seen enough: the command ends silently ([`CLOSED`]). A full disk behind standard
//! output is an error, since what was asked for is not there. Remarks on standard error are lost with it, and never
//! cost work.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use console::Term;

/// The exit code when nobody reads standard output any more, as shells know it (128 + SIGPIPE).
pub const CLOSED: u8 = 141;

/// Prints a line to standard output; gives a `Result`.
#[macro_export]
macro_rules! outln {
    ($($text:tt)*) => { $crate::terminal::print(format_args!("{}\n", format_args!($($text)*))) };
}

/// Prints to standard output; gives a `Result`.
#[macro_export]
macro_rules! out {
    ($($text:tt)*) => { $crate::terminal::print(format_args!($($text)*)) };
}

/// Prints a line to standard error, if that still exists.
#[macro_export]
macro_rules! note {
    ($($text:tt)*) => { $crate::terminal::remark(format_args!($($text)*)) };
}

/// Why standard output took nothing more.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Its reader is gone.
    #[error("nobody reads standard output any more")]
    Closed,
    /// It cannot be written.
    #[error("cannot write to standard output: {0}; what was printed is not complete")]
    Failed(io::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::Failed(error),
        }
    }
}

/// What [`out!`](crate::out) and [`outln!`](crate::outln) do. Flushed, so that an error is seen by whoever printed.
pub fn print(text: fmt::Arguments<'_>) -> Result<(), OutputError> {
    print_bytes(text.to_string().as_bytes())
}

/// The same for a text that is there already.
pub fn print_bytes(text: &[u8]) -> Result<(), OutputError> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text)?;
    Ok(stdout.flush()?)
}

/// What [`note!`](crate::note) does.
pub fn remark(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// How wide a text on standard output may be: as COLUMNS says, or as the terminal is; none where it goes elsewhere.
pub fn columns() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok();
    let said = said.and_then(|columns| columns.parse().ok());
    said.filter(|columns| *columns > 0).or_else(|| {
        let (_, columns) = io::stdout()
            .is_terminal()
            .then(|| Term::stdout().size_checked())??;
        Some(usize::from(columns))
    })
}

/// The same for what a command comes by many times and says at the first.
pub fn remark_once(text: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if said.insert(text.to_owned()) {
        remark(format_args!("{text}"));
    }
}

/// What `write` prints, to standard output as one text.
pub fn page(write: impl FnOnce(&mut Vec<u8>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut text = Vec::new();
    // What was written before an error explains it.
    let written = write(&mut text);
    print_bytes(&text)?;
    written
}
