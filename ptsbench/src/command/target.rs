//! Files that a command is asked to write: judged before the long work, and never one of those it reads.

use std::path::Path;

use anyhow::ensure;

/// Refuses a name with another ending than `extension`, a folder, and a place where nothing can be written.
pub(super) fn check(option: &str, file: &Path, extension: &str) -> anyhow::Result<()> {
    let name = file.display();
    let named = file
        .extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(extension));
    ensure!(
        named,
        "{option} {name}: the output is a .{extension} file; name it {}",
        file.with_extension(extension).display()
    );
    ensure!(
        !file.is_dir(),
        "{option} {name}: is a folder; name a file in it"
    );
    let folder = file.parent().filter(|folder| *folder != Path::new(""));
    ensure!(
        folder.is_none_or(Path::is_dir),
        "{option} {name}: its folder does not exist; make it first"
    );
    Ok(())
}

/// Refuses a file that is one of the inputs, under whatever name; `inputs` are what they are called, and where they lie.
pub(super) fn spare(option: &str, file: &Path, inputs: &[(&str, &Path)]) -> anyhow::Result<()> {
    for (what, input) in inputs {
        ensure!(
            !same(file, input),
            "{option} {}: is the file that {what} are read from ({}), and would be overwritten; name another file",
            file.display(),
            input.display()
        );
    }
    Ok(())
}

/// Whether two names are of one file. One that does not exist yet is no other.
pub(super) fn same(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (a.canonicalize(), b.canonicalize()) else {
        return false;
    };
    a == b || one_inode(&a, &b)
}

/// Hard links have one content and nothing else in common.
#[cfg(unix)]
fn one_inode(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| {
        let found = path.metadata().ok()?;
        Some((found.dev(), found.ino()))
    };
    identity(a).is_some_and(|a| identity(b) == Some(a))
}

#[cfg(not(unix))]
fn one_inode(_: &Path, _: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_judged_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("folder.npz")).unwrap();
        let told = |name: &str| check("--out", &at(name), "npz").unwrap_err().to_string();
        assert!(told("a.pth").ends_with("a.npz"), "{}", told("a.pth"));
        assert!(told("a").contains("name it"), "{}", told("a"));
        assert!(told("folder.npz").contains("is a folder"));
        assert!(told("none/a.npz").contains("does not exist"));
        assert!(check("--out", &at("a.npz"), "npz").is_ok());
        assert!(check("--out", Path::new("a.NPZ"), "npz").is_ok());
    }

    #[test]
    fn an_input_is_known_under_every_name() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("input"), "x").unwrap();
        std::fs::write(at("equal"), "x").unwrap();
        std::fs::create_dir(at("below")).unwrap();
        let spared = |name: &Path| spare("--out", name, &[("weights", &at("input"))]).is_ok();
        assert!(!spared(&at("input")));
        assert!(!spared(&at("below/../input")));
        assert!(spared(&at("equal")));
        assert!(spared(&at("new")));
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("input"), at("link")).unwrap();
            std::fs::hard_link(at("input"), at("second")).unwrap();
            assert!(!spared(&at("link")));
            assert!(!spared(&at("second")));
        }
    }
}
