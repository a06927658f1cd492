use super::*;
use crate::cell::*;
use crate::record::*;
use model_zoo::Grain;
use std::io;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A record with every optional field, of a cell that `seed` makes distinct.
pub(crate) fn sample(seed: u64) -> Record {
    let part = |name: &str| Part::plain(name, 1);
    let cell = Cell {
        model: "micro_resnet8".into(),
        precision: kernels::Precision::Bf16,
        weights: "ab".repeat(32),
        task: TaskCell {
            name: "micro".into(),
            version: 1,
            samples: 200,
            data: Some("cd".repeat(32)),
            split: None,
            recipe: Some("crop 32".into()),
        },
        sparsity: Some(Sparsity {
            batch_norm: crate::cell::BatchNorm::Kept,
            calibration: Some(CalibrationCell {
                images: 64,
                batch: 16,
                seed,
                list: Some("ee".repeat(32)),
            }),
            repair: Some(part("bn_re_estimation")),
            pattern: Pattern::Unstructured { rate: 0.7 },
            allocation: Some(part("l2norm")),
            criterion: part("magnitude"),
            rule: Rule::Exact,
            reconstruction: Some(Reconstruction {
                version: 1,
                granularity: Grain::Layer,
                inputs: Inputs::Sparse,
                correction: CorrectionCell::plain(true),
                calibration: CalibrationCell {
                    images: 32,
                    batch: 16,
                    seed,
                    list: Some("ef".repeat(32)),
                },
                fit: Fit {
                    optimizer: Optimizer::Sgd {
                        lr: 1e-4,
                        bias_lr: 0.0,
                        momentum: 0.9,
                    },
                    steps: 5,
                    early_stop: 1e-5,
                },
            }),
        }),
    };
    Record {
        schema: SCHEMA,
        key: cell.key(),
        cell,
        score: Score::top1(133, 200, 2000),
        cost: Cost {
            weights: 1000,
            zeros: 700,
            parameters: 1100,
            macs: 50_000,
            sparse_macs: 20_000,
        },
        layers: vec![LayerOutcome {
            path: "conv1".into(),
            shape: vec![16, 3, 3, 3],
            weights: 432,
            zeros: 100,
            rate: Some(0.23),
        }],
        units: vec![UnitOutcome {
            path: "conv1".into(),
            grain: Grain::Single,
            steps: 5,
            loss_before: 0.1,
            loss_after: 1e-300,
        }],
        search: Some(Search(vec![Level::Number(0.5), Level::Number(0.25)])),
        training: Some(TrainingCurve(vec![EpochOutcome {
            loss: 0.5,
            penalty: 0.001,
            rate: 0.801,
        }])),
        budget: Budget {
            images: 32,
            labels: 0,
            gradient_steps: 5,
            forward_passes: 99,
        },
        timing: Timing::default(),
        environment: Environment::default(),
    }
}

/// The same without anything optional.
fn bare() -> Record {
    let mut record = sample(0);
    record.cell.sparsity = None;
    record.key = record.cell.key();
    record.units.clear();
    record.search = None;
    record.training = None;
    record.layers[0].rate = None;
    record
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().join("records")).unwrap();
    (folder, store)
}

#[test]
fn what_is_put_is_got_and_lies_where_it_should() {
    let (_folder, store) = store();
    let record = sample(0);
    assert_eq!(store.get(&record.key).unwrap(), None);
    store.put(&record).unwrap();
    assert_eq!(store.get(&record.key).unwrap(), Some(record.clone()));
    let key = record.key.as_str();
    let text =
        fs::read_to_string(store.root().join(&key[..2]).join(format!("{key}.json"))).unwrap();
    assert!(text.starts_with("{\n  \"schema\": 2,") && text.ends_with("}\n"));
    assert_eq!(store.state(&record.key), State::Done);
}

#[test]
fn there_is_nothing_beside_the_records() {
    let (_folder, store) = store();
    let mut expected: Vec<PathBuf> = (0..3)
        .map(|seed| {
            store.put(&sample(seed)).unwrap();
            store.path(&sample(seed).key)
        })
        .collect();
    expected.sort();
    let folders = fs::read_dir(store.root()).unwrap();
    let mut found: Vec<PathBuf> = folders
        .flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn a_record_is_written_once() {
    let (_folder, store) = store();
    let record = sample(0);
    store.put(&record).unwrap();
    let bytes = fs::read(store.path(&record.key)).unwrap();

    let mut again = record.clone();
    again.timing.evaluate_s = 9.0;
    store.put(&again).unwrap();
    let mut other = record.clone();
    other.cost.zeros += 1;
    let error = store.put(&other).unwrap_err().to_string();
    assert!(
        error.contains("other numbers") && error.contains(record.key.as_str()),
        "{error}"
    );
    assert_eq!(fs::read(store.path(&record.key)).unwrap(), bytes);
}

#[test]
fn the_digest_covers_all_but_timing_and_environment() {
    let record = sample(0);
    let mut same = record.clone();
    same.timing.finished_unix = 1;
    same.environment.threads = 7;
    assert_eq!(digest(&record), digest(&same));
    let mut other = record.clone();
    other.units[0].loss_after = other.units[0].loss_after.next_up();
    assert_ne!(digest(&record), digest(&other));
}

#[test]
fn a_broken_record_is_named_with_what_to_do() {
    let (_folder, store) = store();
    let record = sample(0);
    store.put(&record).unwrap();
    let path = store.path(&record.key);
    let sound = fs::read_to_string(&path).unwrap();
    let other_key = sample(1).key.to_string();
    let cases: Vec<(String, &str)> = vec![
        (sound[..sound.len() / 2].to_string(), "EOF while parsing"),
        (String::new(), "EOF while parsing"),
        ("[]".into(), "expected a JSON object"),
        ("{}".into(), "no schema number"),
        (
            sound.replacen("\"schema\": 2", "\"schema\": 3", 1),
            "schema is 3, and this program reads 1 to 2",
        ),
        (sound.replace("\"digest\"", "\"digset\""), "no digest"),
        (
            sound.replace("\"zeros\": 700", "\"zeros\": 701"),
            "something changed it",
        ),
        (sound.replace("\"zeros\": 700", "\"zeros\": null"), "null"),
        (
            sound.replace("\"macs\"", "\"maccs\""),
            "unknown field `maccs`",
        ),
        (
            sound.replace("\"rate\": 0.7\n", "\"rate\": 0.8\n"),
            "its cell's is",
        ),
        (
            sound.replacen(record.key.as_str(), &other_key, 1),
            "its cell's is",
        ),
        (sound.replacen(record.key.as_str(), "short", 1), "not a key"),
    ];
    for (text, says) in cases {
        assert_ne!(text, sound, "{says}");
        fs::write(&path, text).unwrap();
        let error = store.get(&record.key).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert!(error.contains(says), "expected {says}: {error}");
        let remedy = match says.contains("schema is") {
            true => "use the program that wrote it, or another store with --store; or move it away",
            false => "bring back a sound copy",
        };
        assert!(error.ends_with(remedy), "{error}");
    }
    fs::write(&path, [0xff, 0xfe]).unwrap();
    let error = store.get(&record.key).unwrap_err().to_string();
    assert!(error.contains("not UTF-8"), "{error}");
    // A sound record under another's name.
    fs::write(store.path(&sample(0).key), {
        store.put(&sample(1)).unwrap();
        fs::read(store.path(&sample(1).key)).unwrap()
    })
    .unwrap();
    let error = store.get(&record.key).unwrap_err().to_string();
    assert!(error.contains("its name says"), "{error}");
}

#[test]
fn numbers_that_are_not_finite_become_failures() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let (_folder, store) = store();
        let mut record = sample(0);
        record.units[0].loss_after = bad;
        let error = store.put(&record).unwrap_err().to_string();
        assert!(error.starts_with("units.0.loss_after of cell"), "{error}");
        assert_eq!(store.get(&record.key).unwrap(), None);
        let why = "units.0.loss_after is not a finite number".to_string();
        assert_eq!(store.state(&record.key), State::Failed(why));
    }
}

#[test]
fn a_failure_is_kept_until_it_is_cleared_or_the_cell_succeeds() {
    let (_folder, store) = store();
    let record = sample(0);
    store
        .fail(&record.key, &record.cell, "out of luck")
        .unwrap();
    let failure = store.failure(&record.key).unwrap().unwrap();
    assert_eq!(
        (failure.error.as_str(), &failure.cell),
        ("out of luck", &record.cell)
    );
    store.clear_failure(&record.key).unwrap();
    store.clear_failure(&record.key).unwrap();
    assert_eq!(store.state(&record.key), State::Open);
    store.fail(&record.key, &record.cell, "again").unwrap();
    store.put(&record).unwrap();
    assert_eq!(store.failure(&record.key).unwrap(), None);
}

#[test]
fn checkpoints_go_when_the_record_is_there() {
    let (_folder, store) = store();
    let record = sample(0);
    let work = store.work_dir(&record.key).unwrap();
    store
        .write_atomic(&work.join("unit-0"), b"weights")
        .unwrap();
    assert_eq!(store.work_dir(&record.key).unwrap(), work);
    store.put(&record).unwrap();
    assert!(!work.exists());
    // Killed between record and removal: the next start cleans up, and keeps what is still needed.
    store.work_dir(&record.key).unwrap();
    let open = store.work_dir(&sample(1).key).unwrap();
    Store::open(store.root()).unwrap();
    assert!(!work.exists() && open.exists());
}

#[test]
fn a_claimed_cell_shows_and_a_recorded_one_cannot_be_claimed() {
    let (_folder, store) = store();
    let record = sample(0);
    let Attempt::Claimed(claim) = store.claim(&record.key).unwrap() else {
        panic!("a free cell could not be claimed")
    };
    assert!(matches!(store.state(&record.key), State::Claimed(_)));
    assert!(matches!(
        store.claim(&record.key).unwrap(),
        Attempt::Held(_)
    ));
    store.put(&record).unwrap();
    drop(claim);
    assert!(matches!(store.claim(&record.key).unwrap(), Attempt::Done));
}

#[test]
fn records_come_in_the_order_of_their_keys() {
    let (_folder, store) = store();
    for seed in 0..20 {
        store.put(&sample(seed)).unwrap();
    }
    let contents = store.read().unwrap();
    assert_eq!(contents.broken.len() + contents.unlisted.len(), 0);
    let keys: Vec<&Key> = contents.records.iter().map(|record| &record.key).collect();
    assert_eq!(keys.len(), 20);
    assert!(keys.is_sorted());
}

#[test]
fn verification_finds_all_that_is_broken_and_ignores_what_is_on_its_way() {
    let (_folder, store) = store();
    for seed in 0..3 {
        store.put(&sample(seed)).unwrap();
    }
    store.fail(&sample(3).key, &sample(3).cell, "no").unwrap();
    let _claim = store.claim(&sample(4).key).unwrap();
    let shard = store.path(&sample(0).key).parent().unwrap().to_path_buf();
    fs::write(shard.join(".tmp-half"), "{").unwrap();
    fs::write(store.root().join("notes.txt"), "mine").unwrap();
    let found = store.verify().unwrap();
    assert_eq!((found.records, found.failures, found.claimed), (3, 1, 1));
    assert_eq!((found.broken.len(), found.strange.len()), (0, 1));

    fs::write(store.path(&sample(1).key), "{").unwrap();
    fs::write(store.file(&sample(3).key, "failed.json"), "{").unwrap();
    let found = store.verify().unwrap();
    assert_eq!(
        (found.records, found.failures, found.broken.len()),
        (2, 0, 2)
    );
    let contents = store.read().unwrap();
    assert_eq!((contents.records.len(), contents.broken.len()), (2, 1));
    assert_eq!(contents.broken[0].0, sample(1).key);
}

/// Everything that can stand where a file should, made by what it is called.
#[cfg(unix)]
fn spoil(path: &Path, how: &str) {
    let _ = fs::remove_file(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    match how {
        "object" => fs::write(path, "{}").unwrap(),
        "garbage" => fs::write(path, [0xff, 0x00, 0xfe]).unwrap(),
        "empty" => fs::write(path, "").unwrap(),
        "folder" => fs::create_dir(path).unwrap(),
        "pipe" => {
            let made = Command::new("mkfifo").arg(path).status().unwrap();
            assert!(made.success());
        }
        "endless" => std::os::unix::fs::symlink("/dev/zero", path).unwrap(),
        "dangling" => std::os::unix::fs::symlink("nowhere", path).unwrap(),
        "huge" => fs::File::create(path).unwrap().set_len(1 << 40).unwrap(),
        "nested" => fs::write(path, "[".repeat(100_000)).unwrap(),
        other => panic!("{other}"),
    }
}

#[cfg(unix)]
#[test]
fn a_bad_file_costs_its_own_cell_and_nothing_else() {
    for how in [
        "object", "garbage", "empty", "folder", "pipe", "endless", "dangling", "huge", "nested",
    ] {
        for ending in ["json", "claim", "failed.json"] {
            let (_folder, store) = store();
            store.put(&sample(0)).unwrap();
            let bad = sample(1);
            let path = store.file(&bad.key, ending);
            spoil(&path, how);

            let name = path.display().to_string();
            let State::Broken(why) = store.state(&bad.key) else {
                panic!("{how} {ending}: {:?}", store.state(&bad.key))
            };
            assert!(why.contains(&name), "{how} {ending}: {why}");
            assert!(
                why.contains("remove") || why.contains("move it away"),
                "{how} {ending}: {why}"
            );
            assert!(!why.contains('\n'), "{why}");
            assert_eq!(store.state(&sample(0).key), State::Done);

            let contents = store.read().unwrap();
            assert_eq!(contents.records, [sample(0)], "{how} {ending}");
            let named: Vec<&Key> = contents.broken.iter().map(|(key, _)| key).collect();
            let expected = if ending == "json" {
                vec![&bad.key]
            } else {
                vec![]
            };
            assert_eq!(named, expected, "{how} {ending}");

            // Nobody writes over it, and other cells can be taken.
            match (ending, store.claim(&bad.key)) {
                ("json", Ok(Attempt::Done)) | ("failed.json", Ok(Attempt::Claimed(_))) => {}
                ("claim", Err(error)) => assert!(error.costs_one_cell(), "{error}"),
                (_, other) => panic!("{how} {ending}: {other:?}"),
            }
            if ending == "json" {
                let error = store.put(&bad).unwrap_err();
                assert!(error.costs_one_cell(), "{how}: {error}");
            }
            assert!(matches!(
                store.claim(&sample(2).key).unwrap(),
                Attempt::Claimed(_)
            ));

            // It is listed, and does not keep the store from being opened.
            let found = Store::open(store.root()).unwrap().verify().unwrap();
            assert_eq!(
                (found.records, found.broken.len()),
                (1, 1),
                "{how} {ending}"
            );
            assert!(found.broken[0].to_string().contains(&name));
        }
    }
}

#[test]
fn files_of_other_versions_are_left_to_their_programs() {
    let (_folder, store) = store();
    store.put(&sample(0)).unwrap();
    store.fail(&sample(1).key, &sample(1).cell, "no").unwrap();
    let files = [
        store.path(&sample(0).key),
        store.file(&sample(1).key, "failed.json"),
    ];
    for (file, key) in files.iter().zip([sample(0).key, sample(1).key]) {
        let text = fs::read_to_string(file).unwrap();
        for schema in [0, 99] {
            let other = text.replacen(
                &format!("\"schema\": {SCHEMA}"),
                &format!("\"schema\": {schema}, \"news\": []"),
                1,
            );
            fs::write(file, other).unwrap();
            let State::Broken(why) = store.state(&key) else {
                panic!("{:?}", store.state(&key))
            };
            assert!(
                why.contains(&format!("its schema is {schema}"))
                    && why.contains("use the program that wrote it"),
                "{why}"
            );
        }
    }
    // A claim with a field that this version does not know.
    let claim = store.file(&sample(2).key, "claim");
    let Attempt::Claimed(held) = store.claim(&sample(2).key).unwrap() else {
        panic!("a free cell could not be claimed")
    };
    let text = fs::read_to_string(&claim).unwrap();
    fs::write(&claim, text.replacen('{', "{\n  \"lease\": 5,", 1)).unwrap();
    let State::Broken(why) = store.state(&sample(2).key) else {
        panic!("{:?}", store.state(&sample(2).key))
    };
    assert!(why.contains("not a claim of this version"), "{why}");
    drop(held);
    assert!(claim.exists(), "what is not ours stays");
}

#[cfg(unix)]
#[test]
fn a_store_whose_lock_is_no_file_is_refused_at_once() {
    for how in ["folder", "pipe", "endless", "dangling"] {
        let folder = tempfile::tempdir().unwrap();
        spoil(&folder.path().join(LOCK), how);
        let error = Store::open(folder.path()).err().unwrap().to_string();
        assert!(
            error.contains(LOCK) && error.ends_with("remove it"),
            "{how}: {error}"
        );
    }
}

#[cfg(unix)]
#[test]
fn a_file_in_the_place_of_the_checkpoints_costs_its_own_cell() {
    let (_folder, store) = store();
    spoil(&store.work_path(&sample(0).key), "garbage");
    assert!(store.work_dir(&sample(0).key).unwrap_err().costs_one_cell());
    store.work_dir(&sample(1).key).unwrap();
}

/// A record as the program wrote it before there was another schema.
pub(crate) const OLD: &str = include_str!("record.v1.json");

#[test]
fn a_record_of_schema_1_is_read_as_one_of_this_schema_and_left_as_it_is() {
    let (_folder, store) = store();
    let value: Value = serde_json::from_str(OLD).unwrap();
    assert_eq!(value["schema"], 1);
    let key = Key::try_from(value["key"].as_str().unwrap().to_owned()).unwrap();
    let path = store.path(&key);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, OLD).unwrap();
    store.put(&sample(0)).unwrap();

    let record = store.get(&key).unwrap().unwrap();
    assert_eq!((record.schema, &record.key), (SCHEMA, &key));
    let old = |field: &str| value["score"][field].as_u64().unwrap();
    let counts = &record.score.counts;
    assert_eq!(
        [
            counts.correct().unwrap(),
            counts.total(),
            counts.available()
        ],
        ["correct", "total", "available"].map(old)
    );
    assert_eq!(
        record.score.value.number(),
        value["score"]["value"].as_f64()
    );
    let steps: usize = record.units.iter().map(|unit| unit.steps).sum();
    assert!(steps > 0);
    let images = 32;
    let expected = Budget {
        images,
        labels: 0,
        gradient_steps: steps as u64,
        forward_passes: images + 2 + record.units.len() as u64 * (2 * images + 1),
    };
    assert_eq!(record.budget, expected);

    // Both stand side by side; measuring the cell again gives the same record, and changes no byte.
    assert_eq!(store.state(&key), State::Done);
    assert_eq!(store.read().unwrap().records.len(), 2);
    let found = store.verify().unwrap();
    assert_eq!((found.records, found.older, found.broken.len()), (2, 1, 0));
    store.put(&record).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), OLD);

    // Its digest is that of what was written.
    for (from, to) in [
        ("\"zeros\": ", "\"zeros\": 1"),
        ("\"total\": ", "\"total\": 1"),
        ("\"steps\": ", "\"steps\": 1"),
    ] {
        fs::write(&path, OLD.replacen(from, to, 1)).unwrap();
        let error = store.get(&key).unwrap_err().to_string();
        assert!(
            error.contains("something changed it") || error.contains("its cell's is"),
            "{from}: {error}"
        );
    }
    for lost in ["\"correct\"", "\"units\"", "\"cell\"", "\"score\""] {
        fs::write(&path, OLD.replacen(lost, "\"lost\"", 1)).unwrap();
        assert!(store.get(&key).unwrap_err().costs_one_cell(), "{lost}");
    }
}

#[test]
fn a_collapsed_score_is_a_word() {
    let (_folder, store) = store();
    let mut record = sample(0);
    record.score.value = Level::Collapsed;
    store.put(&record).unwrap();
    let path = store.path(&record.key);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains("\"value\": \"collapsed\""), "{text}");
    assert_eq!(store.get(&record.key).unwrap(), Some(record.clone()));
    fs::write(&path, text.replace("\"collapsed\"", "\"broken\"")).unwrap();
    let error = store.get(&record.key).unwrap_err().to_string();
    assert!(error.contains("a number or \"collapsed\""), "{error}");
}

#[test]
fn temporary_files_go_when_their_writer_is_dead_or_unseen_for_a_day() {
    let (_folder, store) = store();
    let me = Process::this();
    let boot = me.boot_tag();
    let leave = |pid: u32, started: u64, machine: &str, boot: &str, hours: u64| {
        let name = format!(".tmp-{machine}-{boot}-{pid}-{started}-0");
        let path = store.root().join("ab").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "half").unwrap();
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600 * hours))
            .unwrap();
        path
    };
    let tag = me.machine_tag();
    let kept = [
        leave(me.pid, me.started, &tag, boot, 2),
        leave(me.pid, me.started, &tag, "anyother", 0),
        leave(1, 1, "elsewher", boot, 2),
    ];
    let gone = [
        leave(me.pid, me.started + 1, &tag, boot, 0),
        leave(me.pid, me.started + 1, &tag, "anyother", 2),
        leave(2, 1, "elsewher", boot, 25),
    ];
    Store::open(store.root()).unwrap();
    assert!(kept.iter().all(|path| path.exists()));
    if cfg!(target_os = "linux") {
        assert!(gone.iter().all(|path| !path.exists()));
    }
}

#[test]
fn a_dead_owners_claim_goes_once_the_cell_has_a_record() {
    let (_folder, store) = store();
    let leave = |key: &Key, later: u64| {
        let mut process = Process::this().clone();
        process.started += later;
        let owner = Owner {
            process,
            serial: 0,
            since_unix: now_unix(),
        };
        let path = store.file(key, "claim");
        store.write_atomic(&path, &pretty(&owner)).unwrap();
        path
    };
    store.put(&sample(0)).unwrap();
    store.put(&sample(1)).unwrap();
    let living = leave(&sample(0).key, 0);
    let dead = leave(&sample(1).key, 1);
    let open = leave(&sample(2).key, 1);
    Store::open(store.root()).unwrap();
    assert!(living.exists() && open.exists());
    if cfg!(target_os = "linux") {
        assert!(!dead.exists());
    }
}

#[test]
fn a_store_that_cannot_be_written_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let refuse = |path: &Path| Store::open(path).err().unwrap().to_string();
    assert!(refuse(&file).contains("is not a folder"));
    let below = refuse(&file.join("records"));
    assert!(
        below.contains("cannot write to the store") && below.contains("--store"),
        "{below}"
    );
    assert!(Store::view(&file).is_err());
    let absent = Store::view(folder.path().join("absent")).unwrap();
    assert_eq!(absent.read().unwrap().records, []);
    assert!(!absent.root().exists());
}

/// A disk on which one step fails from the `after`-th call on.
struct Failing {
    step: &'static str,
    kind: ErrorKind,
    after: usize,
    calls: AtomicUsize,
}

impl Failing {
    fn at(&self, step: &str) -> io::Result<()> {
        if step == self.step && self.calls.fetch_add(1, Ordering::SeqCst) >= self.after {
            return Err(self.kind.into());
        }
        Ok(())
    }
}

impl Disk for Failing {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.at("write") {
            // A full disk takes a part.
            fs::write(path, &bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        Filesystem.write(path, bytes)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at("rename")?;
        Filesystem.rename(from, to)
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.at("link")?;
        Filesystem.link(from, to)
    }
    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        self.at("sync")?;
        Filesystem.sync_folder(folder)
    }
}

fn failing(
    root: &Path,
    step: &'static str,
    kind: ErrorKind,
    after: usize,
) -> Result<Store, StoreError> {
    let disk = Failing {
        step,
        kind,
        after,
        calls: AtomicUsize::new(0),
    };
    Store::open_on(root, Arc::new(disk))
}

fn files_below(folder: &Path) -> usize {
    let below = |path: PathBuf| if path.is_dir() { files_below(&path) } else { 1 };
    list(folder).unwrap().into_iter().map(below).sum()
}

#[test]
fn a_full_disk_loses_nothing_and_leaves_no_half_file() {
    for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
        for step in ["write", "link"] {
            let folder = tempfile::tempdir().unwrap();
            // The probe at opening writes once, and links nothing.
            let after = if step == "write" { 2 } else { 1 };
            let store = failing(folder.path(), step, kind, after).unwrap();
            store.put(&sample(0)).unwrap();
            let error = store.put(&sample(1)).unwrap_err().to_string();
            let path = store.path(&sample(1).key);
            assert_eq!(
                error,
                format!(
                    "no space left while writing {}; what is finished is kept; free space and run again",
                    path.display()
                )
            );
            assert_eq!(files_below(folder.path()), 1);
            assert_eq!(store.get(&sample(0).key).unwrap(), Some(sample(0)));
            let roomy = Store::open(folder.path()).unwrap();
            roomy.put(&sample(1)).unwrap();
            assert_eq!(roomy.read().unwrap().records.len(), 2);
        }
    }
}

#[test]
fn a_disk_full_from_the_start_is_found_at_opening() {
    let folder = tempfile::tempdir().unwrap();
    let error = failing(folder.path(), "write", ErrorKind::StorageFull, 0)
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    let error = failing(folder.path(), "write", ErrorKind::ReadOnlyFilesystem, 0)
        .err()
        .unwrap();
    assert!(matches!(error, StoreError::Unwritable { .. }), "{error}");
    assert_eq!(files_below(folder.path()), 0);
}

#[test]
fn a_file_system_without_hard_links_will_do() {
    let folder = tempfile::tempdir().unwrap();
    let store = failing(folder.path(), "link", ErrorKind::Unsupported, 0).unwrap();
    store.put(&sample(0)).unwrap();
    store.put(&sample(0)).unwrap();
    assert_eq!(files_below(folder.path()), 1);
    assert_eq!(store.get(&sample(0).key).unwrap(), Some(sample(0)));
}

const CHILD: &str = "PTSBENCH_TEST_STORE";
const CELLS: u64 = 12;

/// Not a test of its own: what the children of the test below do. Each measures what it can claim and writes the
/// seeds it measured to stderr; `die` leaves a claim behind.
#[test]
fn child() {
    let Ok(root) = std::env::var(CHILD) else {
        return;
    };
    let store = Store::open(root).unwrap();
    loop {
        let mut open = 0;
        for seed in 0..CELLS {
            let record = sample(seed);
            match store.claim(&record.key).unwrap() {
                Attempt::Done => {}
                Attempt::Held(_) => open += 1,
                Attempt::Claimed(claim) => {
                    std::thread::sleep(Duration::from_millis(5));
                    if std::env::var("DIE").is_ok() {
                        std::process::abort();
                    }
                    eprintln!("measured {seed}");
                    store.put(&record).unwrap();
                    drop(claim);
                }
            }
        }
        if open == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn processes_share_a_store_and_take_over_from_the_dead() {
    let (_folder, store) = store();
    let spawn = |dies: bool| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "store::tests::child", "--nocapture"])
            .env(CHILD, store.root())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        if dies {
            command.env("DIE", "1");
        }
        command.spawn().unwrap()
    };
    let dead = spawn(true).wait_with_output().unwrap();
    assert!(!dead.status.success());
    let claims = |store: &Store| {
        let files = store.files().unwrap();
        files
            .iter()
            .filter(|f| matches!(f, Found::Claim(_)))
            .count()
    };
    assert_eq!(claims(&store), 1, "the dead child left its claim");

    let children: Vec<_> = (0..3).map(|_| spawn(false)).collect();
    let mut measured = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("measured "));
        measured.extend(lines.map(|seed| seed.parse::<u64>().unwrap()));
    }
    measured.sort();
    assert_eq!(
        measured,
        (0..CELLS).collect::<Vec<_>>(),
        "each cell is measured once"
    );
    let found = store.verify().unwrap();
    assert_eq!((found.records, found.broken.len()), (CELLS as usize, 0));
    assert_eq!(claims(&store), 0);
}

/// Checks a value against the parts of JSON Schema that ours uses; returns complaints. `seen` collects the schema's
/// properties that the value has.
fn check(
    root: &Value,
    schema: &Value,
    value: &Value,
    at: &str,
    seen: &mut std::collections::BTreeSet<String>,
) -> Vec<String> {
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(to) => root
            .pointer(to.trim_start_matches('#'))
            .expect("a $ref leads somewhere"),
        None => schema,
    };
    let mut complaints = Vec::new();
    for name in schema.as_object().unwrap().keys() {
        let known = [
            "$schema",
            "$id",
            "$defs",
            "title",
            "description",
            "type",
            "properties",
            "required",
            "additionalProperties",
            "items",
            "enum",
            "const",
            "oneOf",
            "pattern",
        ];
        assert!(
            known.contains(&name.as_str()),
            "the checker does not know `{name}`"
        );
    }
    if let Some(kind) = schema.get("type").and_then(Value::as_str) {
        let fits = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "boolean" => value.is_boolean(),
            "integer" => value.is_u64(),
            "number" => value.is_number(),
            other => panic!("the checker does not know type `{other}`"),
        };
        if !fits {
            complaints.push(format!("{at}: expected {kind}, found {value}"));
        }
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        complaints.push(format!("{at}: {value} is none of {allowed:?}"));
    }
    if let Some(constant) = schema.get("const")
        && constant != value
    {
        complaints.push(format!("{at}: {value} is not {constant}"));
    }
    if let Some(pattern) = schema.get("pattern") {
        assert_eq!(pattern, "^[0-9a-f]{64}$", "the checker knows one pattern");
        let text = value.as_str().unwrap_or_default();
        if Key::try_from(text.to_string()).is_err() {
            complaints.push(format!("{at}: {value} is no digest"));
        }
    }
    if let Some(variants) = schema.get("oneOf").and_then(Value::as_array) {
        let fitting: Vec<_> = variants
            .iter()
            .filter(|variant| check(root, variant, value, at, &mut Default::default()).is_empty())
            .collect();
        match fitting[..] {
            [one] => complaints.extend(check(root, one, value, at, seen)),
            _ => complaints.push(format!("{at}: {} variants fit {value}", fitting.len())),
        }
    }
    if let (Some(item), Some(values)) = (schema.get("items"), value.as_array()) {
        for value in values {
            complaints.extend(check(root, item, value, &format!("{at}[]"), seen));
        }
    }
    if let (Some(properties), Some(fields)) = (
        schema.get("properties").and_then(Value::as_object),
        value.as_object(),
    ) {
        assert_eq!(schema["additionalProperties"], false, "{at} must be closed");
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match properties.get(name) {
                Some(property) => complaints.extend(check(root, property, field, &at, seen)),
                None => complaints.push(format!("{at} is not in the schema")),
            }
            seen.insert(at);
        }
        for name in schema["required"].as_array().unwrap() {
            if !fields.contains_key(name.as_str().unwrap()) {
                complaints.push(format!("{at}.{name} is missing"));
            }
        }
    }
    complaints
}

/// Every property path the schema offers, through all variants.
fn offered(root: &Value, schema: &Value, at: &str, all: &mut std::collections::BTreeSet<String>) {
    let schema = match schema.get("$ref").and_then(Value::as_str) {
        Some(to) => root.pointer(to.trim_start_matches('#')).unwrap(),
        None => schema,
    };
    for variant in schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        offered(root, variant, at, all);
    }
    if let Some(item) = schema.get("items") {
        offered(root, item, &format!("{at}[]"), all);
    }
    for (name, property) in schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
    {
        let at = format!("{at}.{name}");
        offered(root, property, &at, all);
        all.insert(at);
    }
}

#[test]
fn the_schema_and_the_records_have_the_same_fields() {
    let schema: Value =
        serde_json::from_str(include_str!("../../../assets/schema/record.v2.json")).unwrap();
    let (_folder, store) = store();
    let mut records = vec![sample(0), bare()];
    for pattern in [
        Pattern::NofM { n: 2, m: 4 },
        Pattern::TransposableNofM { n: 2, m: 4 },
    ] {
        let mut record = sample(0);
        let sparsity = record.cell.sparsity.as_mut().unwrap();
        sparsity.pattern = pattern;
        sparsity.allocation = None;
        let fit = &mut sparsity.reconstruction.as_mut().unwrap().fit;
        fit.optimizer = Optimizer::Adam {
            lr: 1e-5,
            bias_lr: 1e-4,
        };
        record.key = record.cell.key();
        records.push(record);
    }
    let mut optional = sample(0);
    let sparsity = optional.cell.sparsity.as_mut().unwrap();
    for part in sparsity
        .allocation
        .iter_mut()
        .chain([&mut sparsity.criterion])
        .chain(&mut sparsity.repair)
    {
        part.options.insert("power".into(), 2.into());
    }
    let fitted = sparsity.reconstruction.as_mut().unwrap();
    fitted.correction = CorrectionCell::On(CorrectionOptions {
        part: CorrectedPart::Bias,
        calls: Calls::First,
        moments: Moments::Exact,
        few_kept: FewKept::Correct,
        layers: vec!["layer1.*".into()],
    });
    optional.cell.task.split = Some("20 % of each class".into());
    optional.key = optional.cell.key();
    optional.score.value = Level::Collapsed;
    optional.environment.paths = Some(Paths {
        dense: 1,
        csr: 2,
        nm: 3,
    });
    records.push(optional);
    let (total, available) = (100, 1000);
    for counts in [
        Counts::Boxes {
            found: 3,
            objects: 2,
            total,
            available,
        },
        Counts::Generated {
            reference: 50,
            total,
            available,
        },
    ] {
        let mut record = bare();
        record.score.counts = counts;
        record.score.also.insert("ap50".to_owned(), 12.5);
        record.cell.task.samples += records.len();
        record.key = record.cell.key();
        records.push(record);
    }
    let mut seen = Default::default();
    for record in &records {
        store.put(record).unwrap();
        let text = fs::read_to_string(store.path(&record.key)).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let complaints = check(&schema, &schema, &value, "", &mut seen);
        assert_eq!(complaints, Vec::<String>::new());

        let mut extra = value.clone();
        extra["surplus"] = 1.into();
        let mut lacking = value.clone();
        lacking["score"]
            .as_object_mut()
            .unwrap()
            .shift_remove("value");
        for wrong in [extra, lacking] {
            assert_eq!(
                check(&schema, &schema, &wrong, "", &mut Default::default()).len(),
                1
            );
        }
    }
    let mut all = Default::default();
    offered(&schema, &schema, "", &mut all);
    assert_eq!(all, seen, "the schema offers what no record has");
}
