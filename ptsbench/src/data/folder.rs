//! Pictures in one folder per class: `train/CLASS/` and `val/CLASS/`, or `CLASS/` alone, of which a part is drawn to evaluate
//! on.
//!
//! A class is its place among the sorted names of the folders, or its line in `classes.txt` beside them. Nothing is passed
//! over in silence: a folder inside a class, a link to nothing or a class without pictures is an error, and files that are
//! no pictures are counted.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::data::error::{DataError, counted, entries, is_image_name, name, read_text};
use crate::data::imagenet::{self, Labelled, Wanted};
use crate::data::limits;
use crate::seed::Seed;

/// Names of the classes, where their order is not that of the folders.
pub const CLASSES: &str = "classes.txt";
/// The training pictures' folder.
const TRAIN: &str = "train";
/// Folders of pictures to evaluate on; the first that is there is taken.
const HELD_OUT: [&str; 4] = ["val", "valid", "validation", "test"];
/// Percent of each class that are drawn to evaluate on, where the folders do not say.
const SHARE: usize = 20;
/// Seed of that draw.
const SEED: Seed = Seed(0);

/// How the class folders lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In folders of their splits.
    Splits,
    /// By themselves.
    Classes,
}

/// A data set on disk: files and classes, no pixels.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Folders {
    /// Names by class.
    pub classes: Vec<String>,
    /// Training pictures.
    pub train: Vec<Labelled>,
    /// Pictures to evaluate on.
    pub evaluation: Vec<Labelled>,
    /// How the two were told apart, where the folders do not say.
    pub split: Option<String>,
    /// What is unusual.
    pub warnings: Vec<String>,
}

impl Folders {
    /// SHA-256 in hex of the classes' names and of a list of pictures.
    pub fn sha256(&self, list: &str) -> String {
        let mut hash = Sha256::new();
        for class in &self.classes {
            hash.update((class.len() as u64).to_le_bytes());
            hash.update(class);
        }
        hash.update(list);
        let digest = hash.finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The form in which a folder holds class folders, if it does.
pub fn form(root: &Path) -> Option<Form> {
    let split = |name: &&str| {
        let folder = root.join(name);
        folder.is_dir() && !folders(&folder).is_empty()
    };
    if HELD_OUT.iter().chain(&[TRAIN]).any(split) {
        return Some(Form::Splits);
    }
    // `train` is a class if there are other folders that are not splits.
    let pictured = pictured(root);
    let class = |name: &String| name != TRAIN && !HELD_OUT.contains(&name.as_str());
    (pictured.len() > 1 && pictured.iter().any(class)).then_some(Form::Classes)
}

/// The same for a folder that is not ImageNet's.
pub fn recognise(root: &Path) -> Option<Form> {
    let form = form(root)?;
    let classes: Vec<String> = match form {
        Form::Classes => pictured(root),
        Form::Splits => HELD_OUT
            .iter()
            .chain(&[TRAIN])
            .flat_map(|split| folders(&root.join(split)))
            .collect(),
    };
    let ours = !imagenet::listed(root) && !classes.iter().any(|class| imagenet::is_wnid(class));
    ours.then_some(form)
}

/// What a folder lacks that holds pictures and yet no class folders, if it looks like that.
pub fn lacking(root: &Path) -> Option<String> {
    if has_picture(root) {
        return Some("pictures are directly in it; sort them into one folder per class".to_owned());
    }
    let pictured = pictured(root);
    if pictured.iter().any(|class| imagenet::is_wnid(class)) {
        return Some(format!(
            "`{}` and others are classes of ImageNet; give the folder that holds train/ and val/",
            pictured[0]
        ));
    }
    match &pictured[..] {
        [class] => Some(format!(
            "it has one folder of pictures, `{class}`, and a classifier needs at least two classes; give the folder above, or add a class"
        )),
        [] => None,
        _ => Some(
            "pictures are directly in the folders of its splits; sort them into one folder per class, such as train/cat/ and val/cat/"
                .to_owned(),
        ),
    }
}

/// Names of the folders in a folder, sorted; none where it cannot be listed.
fn folders(folder: &Path) -> Vec<String> {
    let paths = entries(folder).unwrap_or_default();
    let folders = paths.iter().filter(|path| path.is_dir());
    folders.map(|path| name(path)).collect()
}

/// Those that hold a picture.
fn pictured(folder: &Path) -> Vec<String> {
    let mut names = folders(folder);
    names.retain(|name| has_picture(&folder.join(name)));
    names
}

fn has_picture(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .any(|path| is_image_name(&path) && !name(&path).starts_with('.') && path.is_file())
}

/// Reads a folder of this form, listing only the pictures that are wanted.
pub fn read(root: &Path, form: Form, wanted: Wanted) -> Result<Folders, DataError> {
    match form {
        Form::Splits => read_splits(root, wanted),
        Form::Classes => read_classes(root),
    }
}

fn read_splits(root: &Path, wanted: Wanted) -> Result<Folders, DataError> {
    let train = Some(root.join(TRAIN)).filter(|folder| folder.is_dir());
    let mut held_out = HELD_OUT
        .iter()
        .map(|split| root.join(split))
        .filter(|folder| folder.is_dir());
    let evaluation = held_out.next();
    let mut set = Folders::default();
    if let (Some(taken), Some(left)) = (&evaluation, held_out.next()) {
        set.warnings.push(format!(
            "{}: evaluating on {}/; {}/ is left alone",
            root.display(),
            name(taken),
            name(&left)
        ));
    }
    set.classes = classes(root, [&train, &evaluation].into_iter().flatten())?;
    if let Some(folder) = train.filter(|_| wanted != Wanted::Validation) {
        set.train = all(list(root, &folder, &set.classes, &mut set.warnings)?);
    }
    if let Some(folder) = evaluation.filter(|_| wanted != Wanted::Train) {
        set.evaluation = all(list(root, &folder, &set.classes, &mut set.warnings)?);
    }
    Ok(set)
}

/// All pictures lie together: the draw depends on a class's name and its pictures' names alone.
fn read_classes(root: &Path) -> Result<Folders, DataError> {
    let mut set = Folders {
        split: Some(format!(
            "{SHARE} % of each class to evaluate on, drawn with seed {}",
            SEED.0
        )),
        classes: classes(root, [&root.to_owned()].into_iter())?,
        ..Folders::default()
    };
    for (label, mut pictures) in list(root, root, &set.classes, &mut set.warnings)? {
        let class = &set.classes[label];
        if pictures.len() < 2 {
            let problem = "only one picture, and training and evaluation need one each; add some, or make train/ and val/";
            return Err(DataError::new(&root.join(class), problem));
        }
        let mut stream = SEED.stream(&format!("evaluation split of class {class}"));
        stream.shuffle(&mut pictures);
        let drawn = (pictures.len() * SHARE + 50) / 100;
        let train = pictures.split_off(drawn.max(1));
        let labelled = |path| Labelled { path, label };
        set.evaluation.extend(pictures.into_iter().map(labelled));
        set.train.extend(train.into_iter().map(labelled));
    }
    Ok(set)
}

/// The classes of a set: of its list, or of the folders of its splits, which must be the same ones.
fn classes<'a>(
    root: &Path,
    splits: impl Iterator<Item = &'a PathBuf>,
) -> Result<Vec<String>, DataError> {
    let list = root.join(CLASSES);
    if list.exists() {
        return listed(&list);
    }
    let splits: Vec<(&PathBuf, Vec<String>)> =
        splits.map(|split| (split, folders(split))).collect();
    if let [(train, of_train), (held_out, of_held_out)] = &splits[..]
        && of_train != of_held_out
    {
        let only = |these: &[String], others: &[String], split: &Path| {
            let only: Vec<String> = these
                .iter()
                .filter(|class| !others.contains(class))
                .map(|class| format!("`{class}`"))
                .collect();
            (!only.is_empty()).then(|| format!("only {}/ has {}", name(split), few(&only)))
        };
        let differences = [
            only(of_train, of_held_out, train),
            only(of_held_out, of_train, held_out),
        ];
        let differences: Vec<String> = differences.into_iter().flatten().collect();
        return Err(DataError::new(
            root,
            format!(
                "its splits have different classes: {}; make them equal, or name all classes in {CLASSES}, one a line",
                differences.join(", and ")
            ),
        ));
    }
    let classes = splits.into_iter().next().map(|split| split.1);
    let classes = classes.unwrap_or_default();
    enough(root, &classes)?;
    Ok(classes)
}

/// The classes that a file lists.
fn listed(file: &Path) -> Result<Vec<String>, DataError> {
    let text = read_text(file, limits::LABELS)?;
    let mut classes: Vec<String> = Vec::new();
    let mut lines = HashMap::new();
    for (line, class) in text.lines().map(str::trim).enumerate() {
        if class.is_empty() {
            continue;
        }
        if let Some(before) = lines.insert(class, line + 1) {
            let problem = format!(
                "lines {before} and {} both say `{class}`; name each class once",
                line + 1
            );
            return Err(DataError::new(file, problem));
        }
        classes.push(class.to_owned());
    }
    enough(file, &classes)?;
    Ok(classes)
}

fn enough(path: &Path, classes: &[String]) -> Result<(), DataError> {
    let found = match classes {
        [] => "no class".to_owned(),
        [class] => format!("one class only, `{class}`"),
        _ => return Ok(()),
    };
    let problem = format!(
        "{found}, and a classifier needs at least two; give the folder that holds a folder for each class, or add some"
    );
    Err(DataError::new(path, problem))
}

/// The first few of them.
pub(crate) fn few(names: &[String]) -> String {
    const MOST: usize = 5;
    match names.len().checked_sub(MOST) {
        Some(more @ 1..) => format!("{} and {more} more", names[..MOST].join(", ")),
        _ => names.join(", "),
    }
}

fn all(list: Vec<(usize, Vec<PathBuf>)>) -> Vec<Labelled> {
    let labelled = |(label, paths): (usize, Vec<PathBuf>)| {
        paths.into_iter().map(move |path| Labelled { path, label })
    };
    list.into_iter().flat_map(labelled).collect()
}

/// The pictures of each class in a folder of class folders, by name.
fn list(
    root: &Path,
    split: &Path,
    classes: &[String],
    warnings: &mut Vec<String>,
) -> Result<Vec<(usize, Vec<PathBuf>)>, DataError> {
    let complete = root.join(CLASSES).exists();
    let place: HashMap<&str, usize> = classes
        .iter()
        .enumerate()
        .map(|(label, class)| (class.as_str(), label))
        .collect();
    let (mut loose, mut found) = (0, Vec::new());
    let mut others = Vec::new();
    for path in entries(split)? {
        if !path.is_dir() {
            loose += usize::from(is_image_name(&path));
            continue;
        }
        let class = name(&path);
        let Some(&label) = place.get(class.as_str()) else {
            let problem = format!(
                "this folder is not a class of {}, which lists {}; add a line, or remove the folder",
                root.join(CLASSES).display(),
                counted(classes.len(), "name")
            );
            return Err(DataError::new(&path, problem));
        };
        let before = others.len();
        let pictures = pictures(&path, &mut others)?;
        match (pictures.is_empty(), complete) {
            (false, _) => found.push((label, pictures)),
            // A part of a set whose classes are known: this one is not in it.
            (true, true) => {}
            (true, false) => {
                let holds = match &others[before..] {
                    [] => "it is empty".to_owned(),
                    [other, ..] => format!("`{}` is none", name(other)),
                };
                let problem = format!(
                    "no pictures of this class (jpg, jpeg, png or webp; {holds}); add some, remove the folder, or name all classes in {CLASSES} beside it"
                );
                return Err(DataError::new(&path, problem));
            }
        }
    }
    found.sort_by_key(|(label, _)| *label);
    if found.is_empty() {
        let problem = "no pictures in class folders (jpg, jpeg, png or webp); add some";
        return Err(DataError::new(split, problem));
    }
    let missing = classes.len() - found.len();
    if missing > 0 {
        let without = if missing == 1 { "has" } else { "have" };
        warnings.push(format!(
            "{}: {missing} of {} classes {without} no pictures here",
            split.display(),
            classes.len()
        ));
    }
    if loose > 0 {
        warnings.push(format!(
            "{}: {} outside the class folders, left out",
            split.display(),
            counted(loose, "picture")
        ));
    }
    if let Some(first) = others.first() {
        warnings.push(format!(
            "{}: {} in class folders without a picture's ending (the first is {}), left out",
            split.display(),
            counted(others.len(), "file"),
            first.display()
        ));
    }
    Ok(found)
}

/// The pictures of one class; links to files are followed.
fn pictures(class: &Path, others: &mut Vec<PathBuf>) -> Result<Vec<PathBuf>, DataError> {
    let mut pictures = Vec::new();
    for path in entries(class)? {
        let refuse = |problem: &str| Err(DataError::new(&path, problem));
        let Ok(found) = fs::metadata(&path) else {
            return refuse(
                "cannot be examined; repair or remove it (a link to nothing, or no permission)",
            );
        };
        if found.is_dir() {
            return refuse(
                "a folder inside a class's folder; pictures are read from the class's own folder alone, so move them up",
            );
        }
        if !is_image_name(&path) {
            others.push(path);
        } else if found.is_file() {
            pictures.push(path);
        } else {
            return refuse("not a regular file; remove it");
        }
    }
    Ok(pictures)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Empty files of these names below a new folder.
    fn desk(files: &[&str]) -> tempfile::TempDir {
        let desk = tempfile::tempdir().unwrap();
        for file in files {
            let path = desk.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        desk
    }

    fn read_all(desk: &tempfile::TempDir) -> Result<Folders, String> {
        let form = form(desk.path()).expect("class folders");
        read(desk.path(), form, Wanted::Both).map_err(|error| error.to_string())
    }

    fn seen(pictures: &[Labelled]) -> Vec<(String, usize)> {
        pictures
            .iter()
            .map(|picture| (name(&picture.path), picture.label))
            .collect()
    }

    #[test]
    fn classes_are_sorted_names_or_lines() {
        let desk = desk(&[
            "train/dog/a.png",
            "train/cat/a.png",
            "test/cat/b.JPG",
            "test/dog/c.webp",
        ]);
        let sorted = read_all(&desk).unwrap();
        assert_eq!(sorted.classes, ["cat", "dog"]);
        let pair = |file: &str, label| (file.to_owned(), label);
        assert_eq!(
            seen(&sorted.evaluation),
            [pair("b.JPG", 0), pair("c.webp", 1)]
        );
        assert_eq!(sorted.split, None);
        fs::write(desk.path().join(CLASSES), "\u{feff}dog\r\n\r\ncow\r\ncat").unwrap();
        let listed = read_all(&desk).unwrap();
        assert_eq!(listed.classes, ["dog", "cow", "cat"]);
        assert_eq!(seen(&listed.train), [pair("a.png", 0), pair("a.png", 2)]);
        assert!(
            listed.warnings[0].contains("1 of 3 classes has no pictures"),
            "{listed:?}"
        );
        assert_ne!(sorted.sha256("list"), listed.sha256("list"));
    }

    #[test]
    fn a_part_of_each_class_is_drawn_by_names_alone() {
        let files: Vec<String> = (0..10)
            .flat_map(|at| [format!("set/cat/{at}.png"), format!("set/dog/{at}.png")])
            .collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let read = |desk: &tempfile::TempDir| {
            read(&desk.path().join("set"), Form::Classes, Wanted::Both).unwrap()
        };
        let (one, other) = (desk(&files), desk(&files));
        let set = read(&one);
        assert_eq!((set.train.len(), set.evaluation.len()), (16, 4));
        assert_eq!(seen(&set.evaluation), seen(&read(&other).evaluation));
        // The draw of the first release: another one would be another task version.
        let drawn = seen(&set.evaluation)
            .into_iter()
            .map(|(name, label)| format!("{label}/{name}"));
        assert_eq!(drawn.collect::<Vec<_>>(), DRAWN);
        let drawn: std::collections::HashSet<_> =
            set.evaluation.iter().map(|one| &one.path).collect();
        assert!(set.train.iter().all(|one| !drawn.contains(&one.path)));
        // Another class changes nothing in the others.
        fs::create_dir(other.path().join("set/cow")).unwrap();
        for name in ["0.png", "1.png"] {
            fs::write(other.path().join("set/cow").join(name), "").unwrap();
        }
        let more = read(&other);
        assert_eq!(seen(&more.evaluation)[..2], seen(&set.evaluation)[..2]);
        assert_eq!(more.evaluation.len(), 5);
    }

    const DRAWN: [&str; 4] = ["0/5.png", "0/0.png", "1/8.png", "1/7.png"];

    #[test]
    fn what_is_odd_is_refused_by_name() {
        for (files, words) in [
            (
                &[
                    "train/cat/a.png",
                    "train/dog/b.txt",
                    "val/cat/a.png",
                    "val/dog/a.png",
                ][..],
                ["train/dog", "`b.txt` is none"],
            ),
            (
                &["train/cat/a.png", "val/cat/a.png"],
                ["one class only, `cat`", "two"],
            ),
            (
                &[
                    "train/cat/a.png",
                    "train/dog/a.png",
                    "val/cat/a.png",
                    "val/cow/a.png",
                ],
                ["only train/ has `dog`", "only val/ has `cow`"],
            ),
            (
                &["cat/a.png", "cat/b.png", "dog/a.png"],
                ["dog", "one picture"],
            ),
            (
                &["cat/a.png", "cat/more/b.png", "dog/a.png"],
                ["cat/more", "move them up"],
            ),
            (
                &["val/cat/a.png", "val/dog/a.png", "classes.txt"],
                ["classes.txt", "no class"],
            ),
        ] {
            let error = read_all(&desk(files)).expect_err("a bad set");
            for word in words {
                assert!(error.contains(word), "{word:?} is missing in {error}");
            }
        }
        let files = ["val/cat/a.png", "val/dog/a.png"];
        for (list, word) in [
            ("cat\ndog\ncat\n", "lines 1 and 3"),
            ("cat\ncow\n", "val/dog"),
        ] {
            let desk = desk(&files);
            fs::write(desk.path().join(CLASSES), list).unwrap();
            let error = read_all(&desk).expect_err("a bad list");
            assert!(error.contains(word), "{word:?} is missing in {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_where_they_lead_to_files() {
        use std::os::unix::fs::symlink;
        let desk = desk(&["cat/a.png", "cat/b.png", "dog/a.png", "elsewhere.png"]);
        let link = desk.path().join("dog/b.png");
        symlink(desk.path().join("elsewhere.png"), &link).unwrap();
        let set = read_all(&desk).unwrap();
        assert_eq!(set.train.len() + set.evaluation.len(), 4);
        assert!(set.warnings[0].contains("1 picture outside the class folders"));
        fs::remove_file(desk.path().join("elsewhere.png")).unwrap();
        assert!(read_all(&desk).unwrap_err().contains("a link to nothing"));
        fs::remove_file(&link).unwrap();
        symlink(desk.path(), &link).unwrap();
        assert!(read_all(&desk).unwrap_err().contains("dog/b.png"));
    }

    #[test]
    fn forms_are_recognised() {
        for (files, found) in [
            (
                &["train/cat/a.png", "val/cat/a.png"][..],
                Some(Form::Splits),
            ),
            (&["cat/a.png", "dog/a.png"], Some(Form::Classes)),
            // `train` is a class here, and a split there.
            (&["car/a.png", "train/a.png"], Some(Form::Classes)),
            (&["train/a.png", "val/a.png"], None),
            (&["cat/a.png"], None),
            (&["a.png", "b.png"], None),
            // ImageNet's.
            (&["train/n01440764/a.JPEG", "val/n01440764/b.JPEG"], None),
            (&["n01440764/a.JPEG", "n01443537/b.JPEG"], None),
            (&["train/cat/a.png", "LOC_synset_mapping.txt"], None),
        ] {
            assert_eq!(recognise(desk(files).path()), found, "{files:?}");
        }
        for (files, words) in [
            (&["cat/a.png"][..], "`cat`"),
            (&["a.png"], "directly in it"),
            (&["n01440764/a.JPEG"], "ImageNet"),
            (&["train/a.png", "val/a.png"], "train/cat/"),
        ] {
            let said = lacking(desk(files).path()).expect("a hint");
            assert!(said.contains(words), "{said}");
        }
        assert_eq!(lacking(desk(&["a.txt"]).path()), None);
    }
}
