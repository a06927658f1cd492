//! Attacks on a store: files that are broken, foreign or endless, kills among them, and processes that stand still.
//! Each costs its own cell at most; everything else is measured, drawn and kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use ptsbench::cell::Key;
use ptsbench::command::run::HELD;
use ptsbench::plan::Plan;
use ptsbench::registry::Zoo;
use ptsbench::seed::Seed;
use ptsbench::store::{Attempt, Store};
use ptsbench_tests::{program, workspace_root};

use super::{CELLS, Desk, files, kills, lasting, records, said, shared};

/// The program on a store, with the words of its command line.
fn command(words: &str, store: &Path) -> Command {
    let mut command = program::command();
    command.args(words.split(' ')).arg("--store").arg(store);
    command
}

const RUN: &str = "run smoke --device flex --threads 1";

/// What a command says, on both outputs, after it ended with this code.
fn told(words: &str, store: &Path, code: i32) -> String {
    let output = command(words, store).output().unwrap();
    format!(
        "{}{}",
        said(&output, code),
        String::from_utf8_lossy(&output.stdout)
    )
}

/// The smoke plan with steps enough for a kill to fall among them.
const LONGER: &str = "--set fit.few.steps=60";

/// The keys of the smoke plan's cells, in its order.
fn smoke(sets: &[String]) -> Vec<Key> {
    let zoo = Zoo::new(&workspace_root().join("assets"), Default::default()).unwrap();
    let cells = Plan::load("smoke", sets).unwrap().expand(&zoo).unwrap();
    cells.into_iter().map(|planned| planned.key).collect()
}

fn file(store: &Path, key: &str, ending: &str) -> PathBuf {
    store.join(&key[..2]).join(format!("{key}.{ending}"))
}

/// Puts something else in a file's place.
fn spoil(path: &Path, how: &str) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match how {
        "pipe" => {
            let made = Command::new("mkfifo").arg(path).status();
            assert!(made.unwrap().success());
        }
        "endless" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        text => fs::write(path, text).unwrap(),
    }
}

/// A store of a plan, complete.
fn complete(folder: &Path, run: &str) -> PathBuf {
    let store = folder.join("complete");
    told(run, &store, 0);
    store
}

fn copy(from: &Path, to: &Path) {
    for (name, path) in files(from) {
        let target = to.join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(path, target).unwrap();
    }
}

/// The lasting part of the plan's records.
fn lasting_of(store: &Path, keys: &[Key]) -> BTreeMap<String, String> {
    let read = |key: &Key| {
        let text = fs::read_to_string(file(store, key.as_str(), "json")).ok()?;
        Some((key.to_string(), lasting(&text)))
    };
    keys.iter().filter_map(read).collect()
}

fn names(text: &str, path: &Path) -> usize {
    let name = path.file_name().unwrap().to_str().unwrap();
    text.lines().filter(|line| line.contains(name)).count()
}

#[test]
fn a_bad_file_costs_a_line_and_its_own_cell() {
    let folder = tempfile::tempdir().unwrap();
    let (sound, keys) = (complete(folder.path(), RUN), smoke(&[]));
    let drawn = folder.path().join("drawn");
    let draw = |what: &str| format!("{what} --out {}", drawn.display());
    let fresh = |name: &str| {
        let store = folder.path().join(name);
        copy(&sound, &store);
        store
    };
    let page = drawn.join("report.html");

    // Of no cell of the plan: a line each, and nothing else is lost.
    for (place, how) in ["{}", "hello", "pipe", "endless", r#"{"schema": 99}"#]
        .iter()
        .enumerate()
    {
        let store = fresh(&format!("other-{place}"));
        fs::remove_file(file(&store, keys[0].as_str(), "json")).unwrap();
        let bad = file(&store, &format!("{place:02}").repeat(32), "json");
        spoil(&bad, how);
        for (words, code) in [
            (RUN.to_owned(), 0),
            ("plan smoke".to_owned(), 0),
            (draw("report --plan smoke"), 0),
            (draw("figures --plan smoke"), 0),
            // All records are asked for.
            (draw("report"), 1),
            (draw("figures"), 1),
            ("doctor".to_owned(), 1),
        ] {
            let _ = fs::remove_file(&page);
            let text = told(&words, &store, code);
            assert_eq!(names(&text, &bad), 1, "{how}: {words}: {text}");
            assert_eq!(page.exists(), words.starts_with("report"), "{how}: {words}");
        }
        assert_eq!(lasting_of(&store, &keys), lasting_of(&sound, &keys));
    }

    // A record of the plan, while another cell is still to be measured.
    for how in ["{}", "pipe"] {
        let store = fresh(&format!("record-{how}"));
        let bad = file(&store, keys[1].as_str(), "json");
        spoil(&bad, how);
        fs::remove_file(file(&store, keys[2].as_str(), "json")).unwrap();
        let text = told(RUN, &store, 1);
        assert!(
            text.contains("3 cells, 1 done, 1 to compute, 1 broken"),
            "{text}"
        );
        assert!(text.contains("1 cells have a broken file"), "{text}");
        assert_eq!(names(&text, &bad), 1, "{text}");
        assert!(file(&store, keys[2].as_str(), "json").is_file());
        if how == "{}" {
            assert_eq!(fs::read_to_string(&bad).unwrap(), "{}", "it is kept");
        }
        for words in [draw("report --plan smoke"), draw("figures --plan smoke")] {
            let text = told(&words, &store, 1);
            assert!(
                text.contains("1 of 3 cells of the plan `smoke` have no record"),
                "{text}"
            );
            assert!(
                text.contains("1 records that belong here are broken"),
                "{text}"
            );
            assert_eq!(names(&text, &bad), 1, "{text}");
        }
        let text = told("plan smoke", &store, 1);
        assert!(
            text.contains("2 done, 0 failed, 0 claimed, 0 open, 1 broken"),
            "{text}"
        );
        assert_eq!(names(&text, &bad), 1, "{text}");
    }

    // A claim and a failure: their cells are left, and reports say what is missing.
    for ending in ["claim", "failed.json"] {
        let store = fresh(ending);
        for key in &keys[1..] {
            fs::remove_file(file(&store, key.as_str(), "json")).unwrap();
        }
        let bad = file(&store, keys[1].as_str(), ending);
        spoil(&bad, "{}");
        let text = told(RUN, &store, 1);
        assert!(
            text.contains("3 cells, 1 done, 1 to compute, 1 broken"),
            "{text}"
        );
        assert_eq!(names(&text, &bad), 1, "{text}");
        assert!(file(&store, keys[2].as_str(), "json").is_file());
        let text = told(&draw("report --plan smoke"), &store, 0);
        assert!(text.contains("have no record (1 broken)"), "{text}");
        let text = told("doctor", &store, 1);
        assert_eq!(names(&text, &bad), 1, "{text}");
        // What the line says to do helps.
        fs::remove_file(&bad).unwrap();
        told(RUN, &store, 0);
        assert_eq!(lasting_of(&store, &keys), lasting_of(&sound, &keys));
    }
}

#[test]
fn a_plan_is_not_done_while_others_hold_its_cells() {
    let folder = tempfile::tempdir().unwrap();
    let (store, keys) = (folder.path().join("records"), smoke(&[]));
    let held = Store::open(&store).unwrap();
    let Attempt::Claimed(claim) = held.claim(&keys[0]).unwrap() else {
        panic!("a free cell could not be claimed")
    };
    let me = format!("process {}", std::process::id());
    for to_compute in [2, 0] {
        let text = told(RUN, &store, i32::from(HELD));
        let start = format!(
            "3 cells, {} done, {to_compute} to compute, 1 held by other processes",
            2 - to_compute
        );
        assert!(text.contains(&start), "{text}");
        assert!(
            text.contains("1 cells have no record yet and are held by") && text.contains(&me),
            "{text}"
        );
        assert_eq!(text.matches(": top-1 ").count(), to_compute, "{text}");
    }
    let out = folder.path().join("drawn");
    let text = told(
        &format!("report --plan smoke --out {}", out.display()),
        &store,
        0,
    );
    assert!(
        text.contains("1 of 3 cells of the plan `smoke` have no record (1 in progress)"),
        "{text}"
    );
    drop(claim);
    told(RUN, &store, 0);
}

/// Kills at random moments, with checkpoints damaged in between, in a store full of other things.
#[test]
fn kills_among_foreign_files_and_damaged_checkpoints_change_nothing() {
    let kills = kills();
    let folder = tempfile::tempdir().unwrap();
    let set = LONGER.trim_start_matches("--set ").to_owned();
    let (run, keys) = (format!("{RUN} {LONGER}"), smoke(&[set]));
    let start = Instant::now();
    let sound = complete(folder.path(), &run);
    let whole = start.elapsed();
    let expected = lasting_of(&sound, &keys);
    assert_eq!(expected.len(), keys.len());

    let store = folder.path().join("attacked");
    let record = fs::read_to_string(file(&sound, keys[0].as_str(), "json")).unwrap();
    let strange = |digits: &str| file(&store, &digits.repeat(32), "json");
    let bad = [strange("aa"), strange("bb"), strange("cc"), strange("dd")];
    spoil(&bad[0], "a shopping list");
    spoil(&bad[1], &record.replacen("\"zeros\": ", "\"zeros\": 1", 1));
    spoil(
        &bad[2],
        &record.replacen("\"schema\": ", "\"schema\": 9", 1),
    );
    spoil(&bad[3], "endless");
    let texts = || -> Vec<String> {
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap();
        bad[..3].iter().map(read).collect()
    };
    let before = texts();

    let mut moments = Seed(7).stream("attack");
    let longest = (whole * 2).as_millis() as u64;
    let (mut done, mut damaged, mut refitted) = (0, 0, 0);
    let mut kept = BTreeMap::new();
    let mut heard = |output: &Output| {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!text.contains("panicked"), "{text}");
        refitted += text.matches("is fitted again").count();
        for path in &bad {
            assert!(names(&text, path) <= 1, "{text}");
        }
        text
    };
    while done < kills {
        let mut process = command(&run, &store);
        process.stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = process.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(1 + moments.below(longest)));
        let ended = child.try_wait().unwrap().is_some();
        if !ended {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        heard(&output);
        done += usize::from(!ended);
        // Nothing that was recorded is lost, or another.
        let now = lasting_of(&store, &keys);
        for (key, text) in &kept {
            assert_eq!(now.get(key), Some(text));
        }
        kept = now;
        assert!(kept.iter().all(|(key, text)| expected[key] == *text));
        if ended {
            // Complete: begin anew, among the same files.
            assert_eq!(output.status.code(), Some(0));
            for key in &keys {
                fs::remove_file(file(&store, key.as_str(), "json")).unwrap();
            }
            kept.clear();
            continue;
        }
        let checkpoints = files(&store.join("work"));
        let mut whole_ones = checkpoints.values().filter(|path| {
            path.extension()
                .is_some_and(|ending| ending == "safetensors")
        });
        if let Some(path) = whole_ones.next_back() {
            let mut bytes = fs::read(path).unwrap();
            let at = bytes.len() - 1 - moments.below(64.min(bytes.len() as u64)) as usize;
            bytes[at] ^= 0x80;
            fs::write(path, bytes).unwrap();
            damaged += 1;
        }
    }
    let output = command(&run, &store).output().unwrap();
    let text = heard(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(bad.iter().all(|path| names(&text, path) == 1), "{text}");
    assert_eq!(lasting_of(&store, &keys), expected);
    assert_eq!(texts(), before, "what is foreign stays as it is");
    let doctor = told("doctor", &store, 1);
    assert!(
        doctor.contains("3 sound records, 0 failed cells, 0 cells in progress, 4 broken files"),
        "{doctor}"
    );
    // So many kills cannot all miss the reconstruction.
    assert!(refitted > 0 || kills < 20);
    println!(
        "{kills} kills of a plan of {:.1} s among 4 bad files, {damaged} times with a damaged checkpoint, of which \
         {refitted} were met and fitted again; the records are those of an undisturbed run",
        whole.as_secs_f64()
    );
}

fn signal(process: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

/// Whether a process holds a claim in the store.
fn holds(store: &Path, process: u32) -> bool {
    let claims = files(store);
    let mut claims = claims.iter().filter(|(name, _)| name.ends_with(".claim"));
    let pid = format!("\"pid\": {process},");
    claims.any(|(_, path)| fs::read_to_string(path).is_ok_and(|text| text.contains(&pid)))
}

/// Whether nobody has the store's lock.
fn unlocked(store: &Path) -> bool {
    match fs::File::open(store.join(".lock")) {
        Ok(file) => file.try_lock().is_ok(),
        Err(_) => true,
    }
}

#[test]
fn four_processes_one_of_them_stopped_share_a_store() {
    let desk = Desk::new(1, 15);
    desk.finish("undisturbed");
    let store = desk.store("shared");
    let stopped = desk.start("shared");
    let patience = Instant::now();
    loop {
        assert!(patience.elapsed() < Duration::from_secs(60));
        if holds(&store, stopped.id()) {
            signal(stopped.id(), "STOP");
            // Whoever is stopped with the store's lock in hand stops everybody, and they say so: that is another test's.
            if holds(&store, stopped.id()) && unlocked(&store) {
                break;
            }
            signal(stopped.id(), "CONT");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let others = [(); 3].map(|()| desk.start("shared"));
    let mut measured = 0;
    for other in others {
        let (code, text) = shared(&other.wait_with_output().unwrap());
        // It lives, though it does nothing: nobody may take its cell.
        assert_eq!(code, i32::from(HELD), "{text}");
        assert!(
            text.contains(&format!("process {}", stopped.id())),
            "{text}"
        );
        measured += text.matches(": top-1 ").count();
    }
    signal(stopped.id(), "CONT");
    let text = said(&stopped.wait_with_output().unwrap(), 0);
    measured += text.matches(": top-1 ").count();
    assert_eq!(measured, CELLS, "each cell is measured once");
    assert_eq!(records(&store), records(&desk.store("undisturbed")));
}

/// Waits a minute, so only where `PTSBENCH_KILLS` asks for the long tests; `store/watch.rs` tests the rule itself.
#[test]
fn a_dead_owner_whose_clock_was_a_day_ahead_is_taken_over_after_a_minute() {
    if std::env::var_os("PTSBENCH_KILLS").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (store, keys) = (folder.path().join("records"), smoke(&[]));
    let held = Store::open(&store).unwrap();
    let claim = file(&store, keys[0].as_str(), "claim");
    let Attempt::Claimed(mine) = held.claim(&keys[0]).unwrap() else {
        panic!("a free cell could not be claimed")
    };
    let text = fs::read_to_string(&claim).unwrap();
    drop(mine);
    let host = text.lines().find(|line| line.contains("\"host\"")).unwrap();
    fs::write(&claim, text.replace(host, "    \"host\": \"elsewhere\",")).unwrap();
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 3600);
    let opened = fs::OpenOptions::new().write(true).open(&claim).unwrap();
    opened.set_modified(tomorrow).unwrap();
    let start = Instant::now();
    let text = told(RUN, &store, 0);
    let took = start.elapsed().as_secs();
    assert!((55..120).contains(&took), "{took} s: {text}");
    let found: BTreeSet<String> = files(&store)
        .into_keys()
        .filter(|name| name.ends_with(".claim"))
        .collect();
    assert_eq!(found, BTreeSet::new());
    println!("a claim of a clock a day ahead was taken over after {took} s");
}
