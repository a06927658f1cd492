//! `pack`, and what reads the file it writes: the same as from the folder, byte for byte.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use ptsbench_tests::{program, workspace_root};

/// A folder with the records of the smoke plan.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        let desk = Desk(tempfile::tempdir().expect("a folder"));
        let assets = workspace_root().join("assets");
        desk.good(&format!(
            "run smoke --device flex --store records --assets {}",
            assets.display()
        ));
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        let mut command = program::command();
        command.current_dir(self.0.path()).args(line.split(' '));
        command.output().expect("the program")
    }

    /// What a command says that must work, and one that must not; standard output first.
    fn says(&self, line: &str, code: i32) -> [String; 2] {
        let output = self.run(line);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        let said = [text(output.stdout), text(output.stderr)];
        assert_eq!(output.status.code(), Some(code), "{line}: {said:?}");
        assert!(!said[1].contains("panicked"), "{line}: {said:?}");
        said
    }

    fn good(&self, line: &str) -> [String; 2] {
        self.says(line, 0)
    }

    fn bad(&self, line: &str, words: &[&str]) {
        let [_, text] = self.says(line, 1);
        for word in words {
            assert!(text.contains(word), "{line}: {word:?} is missing in {text}");
        }
    }

    /// The files below a folder, by name.
    fn below(&self, name: &str) -> BTreeMap<PathBuf, Vec<u8>> {
        fn collect(root: &Path, folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in folder.read_dir().expect("a folder") {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => collect(root, &path, found),
                    false => {
                        let name = path.strip_prefix(root).expect("below").to_owned();
                        found.insert(name, fs::read(&path).expect("a file"));
                    }
                }
            }
        }
        let (root, mut found) = (self.path(name), BTreeMap::new());
        collect(&root, &root, &mut found);
        found
    }

    /// The file of a record whose text holds this word.
    fn record(&self, word: &str) -> PathBuf {
        let mut named = self.below("records").into_iter().filter(|(_, bytes)| {
            let text = String::from_utf8_lossy(bytes);
            text.contains(word)
        });
        let (name, _) = named.next().expect("such a record");
        self.path("records").join(name)
    }
}

#[test]
fn a_packed_file_reports_as_its_folder_does() {
    let desk = Desk::new();
    let [out, _] = desk.good("pack all.jsonl.gz --store records");
    let size = fs::metadata(desk.path("all.jsonl.gz"))
        .expect("a file")
        .len();
    assert_eq!(out, format!("all.jsonl.gz: 3 records, {size} bytes\n"));
    let bytes = fs::read(desk.path("all.jsonl.gz")).expect("a file");
    // Of the plan, and packed again from what was packed.
    for line in [
        "pack again.jsonl.gz --store records --plan smoke",
        "pack again.jsonl.gz --store all.jsonl.gz --plan smoke",
    ] {
        desk.good(line);
        assert!(
            fs::read(desk.path("again.jsonl.gz")).expect("a file") == bytes,
            "{line}"
        );
    }

    for (out, store) in [("a", "records"), ("b", "all.jsonl.gz")] {
        desk.good(&format!("report --plan smoke --store {store} --out {out}"));
        desk.good(&format!("figures --plan smoke --store {store} --out {out}"));
    }
    let (a, b) = (desk.below("a"), desk.below("b"));
    assert!(a.len() > 5 && a.keys().any(|name| name.ends_with("report.html")));
    assert!(
        a.keys()
            .all(|name| !name.to_string_lossy().contains("shipped"))
    );
    for (name, bytes) in &a {
        assert!(b.get(name) == Some(bytes), "{}", name.display());
    }
    assert_eq!(a.len(), b.len());

    // A file has no state but its records.
    let [_, text] =
        desk.good("report --plan smoke --set grid.0.rates=[0.7,0.8] --store all.jsonl.gz --out c");
    assert!(
        text.contains("1 of 4 cells of the plan `smoke` have no record; the output"),
        "{text}"
    );
    let [out, _] = desk.good("doctor --store all.jsonl.gz");
    assert!(
        out.contains("packed records all.jsonl.gz: 3 sound records, 0 broken lines"),
        "{out}"
    );
    for command in ["run smoke --device flex", "plan smoke"] {
        desk.bad(
            &format!(
                "{command} --store all.jsonl.gz --assets {}",
                workspace_root().join("assets").display()
            ),
            &["all.jsonl.gz is not a folder", "--store", "report"],
        );
    }

    let cut = &bytes[..bytes.len() - 20];
    fs::write(desk.path("cut.jsonl.gz"), cut).expect("written");
    for command in [
        "report --out d",
        "figures --out d",
        "doctor",
        "pack d.jsonl.gz",
    ] {
        desk.bad(
            &format!("{command} --store cut.jsonl.gz"),
            &[
                "cut.jsonl.gz is broken",
                "too early",
                "pack the records again",
            ],
        );
    }
    assert!(!desk.path("d").exists() && !desk.path("d.jsonl.gz").exists());
}

#[test]
fn nothing_is_packed_that_is_not_whole() {
    let desk = Desk::new();
    for (name, says) in [
        ("records.gz", "name it records.jsonl.gz"),
        ("records.jsonl", "name it records.jsonl.gz"),
        (".jsonl.gz", "name it"),
        ("none/a.jsonl.gz", "its folder does not exist"),
    ] {
        desk.bad(&format!("pack {name} --store records"), &[name, says]);
    }
    fs::create_dir(desk.path("folder.jsonl.gz")).expect("a folder");
    desk.bad("pack folder.jsonl.gz --store records", &["is a folder"]);
    desk.bad("pack a.jsonl.gz --store none", &["no records in none"]);
    desk.bad(
        "report --store b.jsonl.gz",
        &["b.jsonl.gz: there is no such folder or file, did you mean `folder.jsonl.gz`? (--store takes"],
    );
    desk.good("pack a.jsonl.gz --store records");
    for command in ["report", "figures", "doctor"] {
        desk.bad(
            &format!("{command} --store a.jsnol.gz"),
            &["a.jsnol.gz: there is no such folder or file, did you mean `a.jsonl.gz`"],
        );
    }
    desk.bad(
        "pack a.jsonl.gz --store a.jsonl.gz",
        &["would be overwritten"],
    );
    desk.bad(
        "pack b.jsonl.gz --store records --plan smoke --set grid.0.rates=[0.7,0.8]",
        &[
            "1 of 4 cells of the plan `smoke` have no record",
            "nothing was written",
            "ptsbench run smoke",
        ],
    );
    // Broken ones are errors, of the plan or not.
    let record = desk.record("reconstruction");
    let text = fs::read_to_string(&record).expect("a record");
    fs::write(&record, &text[..100]).expect("written");
    for plan in ["", " --plan smoke"] {
        desk.bad(
            &format!("pack b.jsonl.gz --store records{plan}"),
            &[
                "is broken",
                "1 records that belong here are broken",
                "nothing was written",
            ],
        );
    }
    assert!(!desk.path("b.jsonl.gz").exists());
}

#[test]
fn a_report_says_what_differs_from_the_shipped_records() {
    let desk = Desk::new();
    fs::create_dir_all(desk.path("assets/results")).expect("a folder");
    let shipped = "assets/results/micro.jsonl.gz";
    desk.good(&format!("pack {shipped} --store records"));
    let table = || fs::read_to_string(desk.path("out/tables/micro_shipped.md"));
    let report = |store: &str| {
        let _ = fs::remove_dir_all(desk.path("out"));
        let [_, said] = desk.good(&format!("report --store {store}"));
        said
    };
    assert_eq!(report("records"), "");
    let text = table().expect("a table");
    assert!(
        text.contains("\n3 of 3 cells have a shipped record; all are equal.\n"),
        "{text}"
    );
    let page = fs::read_to_string(desk.path("out/report.html")).expect("a page");
    assert!(page.contains("id=\"micro_shipped\"") && page.contains("all are equal."));

    // A copy is another store; the file itself is none.
    fs::copy(desk.path(shipped), desk.path("copy.jsonl.gz")).expect("copied");
    report("copy.jsonl.gz");
    assert!(table().is_ok());
    report(shipped);
    assert!(table().is_err());
    report("assets/../assets/results/micro.jsonl.gz");
    assert!(table().is_err());

    // Bad files cost the comparison and nothing else.
    for (bytes, says) in [
        (&b"{}"[..], "does not begin as gzip does"),
        (b"", "is empty"),
        (
            &fs::read(desk.path(shipped)).expect("a file")[..300],
            "too early",
        ),
    ] {
        fs::write(desk.path(shipped), bytes).expect("written");
        let said = report("records");
        assert!(said.contains(shipped) && said.contains(says), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(table().is_err());
    }
    fs::remove_dir_all(desk.path("assets")).expect("removed");
    assert_eq!(report("records"), "");
    assert!(table().is_err());
}
