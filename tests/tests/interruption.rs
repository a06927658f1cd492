//! Runs that are killed, interrupted, repeated, or two at a time: nothing finished is lost or done again, and what is
//! recorded in the end is what an undisturbed run records.
//!
//! `PTSBENCH_KILLS` sets the number of kills (4 where it is not set), and has what waits for a minute run too.

#[cfg(unix)]
#[path = "interruption/attack.rs"]
mod attack;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use ptsbench::command::run::HELD;
use ptsbench::seed::Seed;
use ptsbench_tests::program;

/// Dense, two allocators at two rates, and one cell reconstructed at each granularity.
const PLAN: &str = r#"
name = "interruption"
title = "Interruption"

[task]
name = "micro"
samples = 200

[calibration]
images = 32
batch = 16

[fit.few]
optimizer = "adam"
lr = 0.0005
bias_lr = 0.0005
steps = 10

[[grid]]
name = "allocation"
track = "allocation"
models = ["micro_resnet8"]
rates = [0.6, 0.8]
allocators = ["uniform", "l2norm"]

[[grid]]
name = "reconstruction"
track = "reconstruction"
models = ["micro_resnet8"]
rates = [0.8]
allocators = ["l2norm"]
granularity = ["single", "layer", "block"]
"#;

const CELLS: usize = 8;

/// A folder with the plan, and how it is run; stores lie in it too.
struct Desk {
    folder: tempfile::TempDir,
    threads: usize,
    steps: usize,
}

impl Desk {
    fn new(threads: usize, steps: usize) -> Desk {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("plan.toml"), PLAN).unwrap();
        Desk {
            folder,
            threads,
            steps,
        }
    }

    fn store(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, store: &str) -> Command {
        let mut command = program::command();
        command
            .arg("run")
            .arg(self.folder.path().join("plan.toml"))
            .arg("--store")
            .arg(self.store(store))
            .args(["--device", "flex", "--threads", &self.threads.to_string()])
            .args(["--set", &format!("fit.few.steps={}", self.steps)]);
        command
    }

    fn start(&self, store: &str) -> Child {
        let mut command = self.command(store);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// Runs to the end, which must be a good one.
    fn finish(&self, store: &str) -> String {
        said(&self.command(store).output().unwrap(), 0)
    }

    fn doctor(&self, store: &str) -> String {
        let mut command = program::command();
        let store = self.store(store);
        let output = command.arg("doctor").arg("--store").arg(store).output();
        let output = output.unwrap();
        said(&output, 0);
        String::from_utf8(output.stdout).unwrap()
    }
}

/// What the program said, after it ended with this code and without a panic.
fn said(output: &Output, code: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

/// The code and words of a program that shared a store: at its end others may still be at work.
fn shared(output: &Output) -> (i32, String) {
    let code = output.status.code().unwrap_or(-1);
    assert!([0, i32::from(HELD)].contains(&code), "{output:?}");
    let text = said(output, code);
    assert_eq!(code != 0, text.contains("are held by process"), "{text}");
    (code, text)
}

/// Every file below a folder, by its path in it.
fn files(root: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        // A folder may go while a run is at work.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap();
                found.insert(name.to_str().unwrap().to_owned(), path);
            }
        }
    }
    found
}

/// A record's text without the two members that differ from run to run, which are cut out line by line: everything else
/// is compared byte for byte.
fn lasting(text: &str) -> String {
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        if line.starts_with("  \"timing\": {") || line.starts_with("  \"environment\": {") {
            inside = true;
        }
        if !inside {
            kept += line;
            kept.push('\n');
        }
        if line.starts_with("  }") {
            inside = false;
        }
    }
    for name in ["\"timing\"", "\"environment\""] {
        assert!(text.contains(name) && !kept.contains(name), "{text}");
    }
    assert!(kept.contains("\"digest\""), "{kept}");
    kept
}

/// The lasting part of every record, by file name; the store must hold nothing else but its lock.
fn records(store: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (name, path) in files(store) {
        if name == ".lock" {
            continue;
        }
        let key = name.split_once('/').map_or("", |(_, file)| file);
        let is_record = key.len() == 64 + ".json".len() && key.ends_with(".json");
        assert!(is_record, "{name} was left behind");
        found.insert(name, lasting(&fs::read_to_string(path).unwrap()));
    }
    assert_eq!(found.len(), CELLS);
    found
}

/// The files that mean finished work, with what would change if they were written again.
fn finished(store: &Path) -> BTreeMap<String, SystemTime> {
    files(store)
        .into_iter()
        .filter(|(name, _)| name.ends_with(".json") || name.ends_with(".safetensors"))
        .filter_map(|(name, path)| Some((name, fs::metadata(path).ok()?.modified().ok()?)))
        .collect()
}

/// What was finished before and is neither untouched nor, for a checkpoint, made needless by its cell's record.
fn done_again(before: &BTreeMap<String, SystemTime>, store: &Path) -> Vec<String> {
    let now = finished(store);
    let recorded: BTreeSet<&str> = now
        .keys()
        .filter_map(|name| name.strip_suffix(".json")?.split_once('/'))
        .map(|(_, key)| key)
        .collect();
    let again = before.iter().filter(|(name, time)| match now.get(*name) {
        Some(later) => later != *time,
        None => {
            let key = name
                .strip_prefix("work/")
                .and_then(|rest| rest.split('/').next());
            !key.is_some_and(|key| recorded.contains(key))
        }
    });
    again.map(|(name, _)| name.clone()).collect()
}

/// How often to kill a plan.
fn kills() -> usize {
    match std::env::var("PTSBENCH_KILLS") {
        Ok(number) => number.parse().expect("PTSBENCH_KILLS is a number"),
        Err(_) => 4,
    }
}

/// Kills a plan at random moments until it was killed often enough, and compares what comes out in the end.
fn killed(threads: usize) -> BTreeMap<String, String> {
    let kills = kills();
    let desk = Desk::new(threads, 40);
    let start = Instant::now();
    desk.finish("undisturbed");
    let whole = start.elapsed();
    let expected = records(&desk.store("undisturbed"));

    let store = desk.store("killed");
    let mut moments = Seed(threads as u64).stream("kill");
    // Twice an even share on average an even one, so that the kills spread over the whole plan.
    let longest = (whole * 2 / (kills as u32 + 1)).as_millis() as u64;
    let (mut done, mut claims, mut cut_units) = (0, 0, 0);
    let mut before = BTreeMap::new();
    while done < kills {
        let mut child = desk.start("killed");
        std::thread::sleep(Duration::from_millis(1 + moments.below(longest)));
        if child.try_wait().unwrap().is_some() {
            // It came to its end first: compare, and begin anew.
            said(&child.wait_with_output().unwrap(), 0);
            assert_eq!(records(&store), expected);
            fs::remove_dir_all(&store).unwrap();
            before.clear();
            continue;
        }
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        // A claim that was not taken over would leave the cell to its dead owner.
        assert!(!text.contains("are held by"), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        done += 1;
        claims += usize::from(files(&store).keys().any(|name| name.ends_with(".claim")));
        assert_eq!(done_again(&before, &store), Vec::<String>::new());
        before = finished(&store);
        cut_units += usize::from(before.keys().any(|name| name.starts_with("work/")));
    }
    let start = Instant::now();
    let text = desk.finish("killed");
    assert!(!text.contains("are held by"), "{text}");
    assert_eq!(done_again(&before, &store), Vec::<String>::new());
    assert_eq!(records(&store), expected);
    let doctor = desk.doctor("killed");
    assert!(
        doctor.contains(&format!(
            "{CELLS} sound records, 0 failed cells, 0 cells in progress, 0 broken files"
        )),
        "{doctor}"
    );
    // Without one, nothing was taken over and this test proved too little.
    assert!(claims > 0, "no kill hit a cell at work");
    println!(
        "{threads} threads: {kills} kills of a plan of {:.1} s, {claims} hit a cell at work, {cut_units} left finished \
         units of an unfinished cell, the last run took {:.1} s; the records are those of an undisturbed run",
        whole.as_secs_f64(),
        start.elapsed().as_secs_f64()
    );
    expected
}

#[test]
fn a_killed_plan_goes_on_and_ends_with_the_same_records() {
    let one = killed(1);
    let two = killed(2);
    let differing = one
        .iter()
        .filter(|(name, text)| two.get(*name) != Some(text));
    match differing.count() {
        0 => println!("1 and 2 threads give the same records"),
        n => println!("1 and 2 threads differ in {n} of {CELLS} records"),
    }
    assert!(one.keys().eq(two.keys()), "threads are no part of a cell");
}

#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_is_finished_and_says_how_to_go_on() {
    let desk = Desk::new(1, 15);
    let child = desk.start("records");
    let store = desk.store("records");
    // A unit's checkpoint says that a cell is at work and that there is something to keep.
    let patience = Instant::now();
    while !finished(&store)
        .keys()
        .any(|name| name.starts_with("work/"))
    {
        assert!(patience.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(5));
    }
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
    let text = said(&child.wait_with_output().unwrap(), 130);
    assert!(text.contains("finished cells and units are kept"), "{text}");
    assert!(
        text.contains("The same command goes on where this one stopped"),
        "{text}"
    );
    let kept = finished(&store);
    assert!(
        kept.keys().any(|name| name.ends_with(".safetensors")),
        "{kept:?}"
    );
    assert!(!files(&store).keys().any(|name| name.ends_with(".claim")));

    desk.finish("records");
    assert_eq!(done_again(&kept, &store), Vec::<String>::new());
    records(&store);

    // Nothing is left to do.
    let start = Instant::now();
    let text = desk.finish("records");
    let took = start.elapsed();
    assert!(
        text.contains(&format!("{CELLS} cells, {CELLS} done, 0 to compute")),
        "{text}"
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
    println!("a run with nothing to do took {:.2} s", took.as_secs_f64());
}

#[test]
fn two_processes_share_a_store() {
    let desk = Desk::new(1, 15);
    let children = [desk.start("shared"), desk.start("shared")];
    let texts = children.map(|child| shared(&child.wait_with_output().unwrap()));
    // Whoever ends last finds everything done.
    assert!(texts.iter().any(|(code, _)| *code == 0), "{texts:?}");
    let texts = texts.map(|(_, text)| text);
    let measured = texts
        .each_ref()
        .map(|text| text.matches(": top-1 ").count());
    assert_eq!(measured.iter().sum::<usize>(), CELLS, "{texts:?}");
    assert!(measured.iter().all(|&cells| cells > 0), "{texts:?}");
    records(&desk.store("shared"));
    desk.doctor("shared");
    println!(
        "two processes measured {} and {} of {CELLS} cells",
        measured[0], measured[1]
    );
}

/// One network that is trained as a whole, for long enough to be killed.
const WHOLE: &str = r#"
name = "whole"
title = "Whole"

[task]
name = "micro"
samples = 200

[calibration]
images = 64
batch = 16

[[grid]]
name = "whole"
track = "allocation"
models = ["micro_resnet8"]
rates = [0.8]
allocators = ["erk"]
criterion = { name = "fcpts", epochs = 30 }
"#;

#[test]
fn a_killed_training_goes_on_after_its_last_epoch() {
    let desk = Desk::new(1, 15);
    fs::write(desk.folder.path().join("plan.toml"), WHOLE).unwrap();
    let whole = |store: &str| {
        let records = files(&desk.store(store)).into_iter();
        let records = records.filter(|(name, _)| name.ends_with(".json"));
        records
            .map(|(name, path)| (name, lasting(&fs::read_to_string(path).unwrap())))
            .collect::<BTreeMap<_, _>>()
    };
    let run = |store: &str| {
        let mut command = program::command();
        let plan = desk.folder.path().join("plan.toml");
        command.arg("run").arg(plan);
        command.arg("--store").arg(desk.store(store));
        command.args(["--device", "flex", "--threads", "1"]);
        command
    };
    said(&run("undisturbed").output().unwrap(), 0);
    let expected = whole("undisturbed");
    assert_eq!(expected.len(), 2);

    let checkpoint = |store: &str| {
        let mut files = files(&desk.store(store)).into_iter();
        let (_, path) = files.find(|(name, _)| name.ends_with("training.safetensors"))?;
        fs::metadata(path).ok()?.modified().ok()
    };
    let mut last = None;
    for _ in 0..3 {
        let mut child = run("killed").stderr(Stdio::piped()).spawn().unwrap();
        let patience = Instant::now();
        // A new checkpoint, and a while into the epoch after it.
        while checkpoint("killed") == last {
            assert!(patience.elapsed() < Duration::from_secs(60));
            assert!(
                child.try_wait().unwrap().is_none(),
                "it was not killed in time"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(15));
        child.kill().unwrap();
        child.wait().unwrap();
        last = checkpoint("killed");
    }
    let text = said(&run("killed").output().unwrap(), 0);
    assert!(text.contains("fcpts: going on after epoch"), "{text}");
    assert_eq!(whole("killed"), expected);
    assert_eq!(checkpoint("killed"), None, "the record is there");
}
