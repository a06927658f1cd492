//! Heartbeats of owners that cannot be seen, as this process has watched them by its own steady clock.
//!
//! The time in a heartbeat is its owner's. Where that clock is a day ahead, a dead owner's claim would look alive for a
//! day; what tells is whether the heartbeat still moves.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::Owner;

/// What was seen of one claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Watched {
    /// How long the heartbeat has stood still.
    pub still: Duration,
    /// Whether it was ever seen to move.
    pub beats: bool,
}

#[derive(Default)]
struct Watch(HashMap<PathBuf, Sight>);

struct Sight {
    owner: Owner,
    heartbeat: SystemTime,
    since: Instant,
    beats: bool,
}

impl Watch {
    fn look(&mut self, path: &Path, owner: &Owner, heartbeat: SystemTime, now: Instant) -> Watched {
        let known = self.0.get(path).filter(|sight| sight.owner == *owner);
        let (since, beats) = match known {
            Some(sight) if sight.heartbeat == heartbeat => (sight.since, sight.beats),
            Some(_) => (now, true),
            None => (now, false),
        };
        let sight = Sight {
            owner: owner.clone(),
            heartbeat,
            since,
            beats,
        };
        self.0.insert(path.to_path_buf(), sight);
        Watched {
            still: now.saturating_duration_since(since),
            beats,
        }
    }
}

/// Looks at a claim, and says what was seen of it since this process first did.
pub(super) fn look(path: &Path, owner: &Owner, heartbeat: SystemTime) -> Watched {
    static WATCH: Mutex<Option<Watch>> = Mutex::new(None);
    let mut watch = WATCH.lock().unwrap_or_else(PoisonError::into_inner);
    watch
        .get_or_insert_default()
        .look(path, owner, heartbeat, Instant::now())
}

#[cfg(test)]
mod tests {
    use super::super::claim::{HEARTBEAT, Process, STALE};
    use super::*;

    #[test]
    fn a_heartbeat_that_stands_still_grows_old_whatever_its_time_says() {
        let mut watch = Watch::default();
        let owner = |serial| Owner {
            process: Process::this().clone(),
            serial,
            since_unix: 0,
        };
        let (path, start) = (Path::new("a.claim"), Instant::now());
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
        let seen = |still, beats| Watched { still, beats };

        // A dead owner.
        let first = watch.look(path, &owner(0), tomorrow, start);
        assert_eq!(first, seen(Duration::ZERO, false));
        let later = watch.look(path, &owner(0), tomorrow, start + STALE);
        assert_eq!(later, seen(STALE, false));

        // A living one beats, and is young again each time.
        for beat in 1..10 {
            let moment = start + STALE + beat * HEARTBEAT;
            let moved = watch.look(path, &owner(0), tomorrow + beat * HEARTBEAT, moment);
            assert_eq!(moved, seen(Duration::ZERO, true));
        }

        // Another owner, and another claim, are strangers.
        let moment = start + 4 * STALE;
        let other = watch.look(path, &owner(1), tomorrow, moment);
        assert_eq!(other, seen(Duration::ZERO, false));
        let other = watch.look(Path::new("b.claim"), &owner(1), tomorrow, moment + STALE);
        assert_eq!(other, seen(Duration::ZERO, false));
    }
}
