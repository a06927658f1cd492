//! `ptsbench doctor`: what this program and machine offer, and whether every record in the store is sound.

mod gpu;

use std::io::Write;
use std::path::PathBuf;

use crate::machine;
use crate::record::SCHEMA;
use crate::store::packed::Source;
use crate::terminal;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Folder of the records, or a file that `pack` wrote
    #[arg(long, value_name = "DIR|FILE", default_value = "out/records")]
    pub store: PathBuf,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let mut devices = crate::device::describe();
    devices.extend(gpu::lines());
    terminal::page(|out| examine(&args, &devices, out))
}

/// Prints what there is and what is broken; fails where anything is broken. `devices` are lines of name and finding.
pub fn examine(
    args: &Args,
    devices: &[(String, String)],
    out: &mut impl Write,
) -> anyhow::Result<()> {
    let mut lines = vec![
        (
            "ptsbench".to_string(),
            env!("CARGO_PKG_VERSION").to_string(),
        ),
        ("features".into(), features()),
        (
            "platform".into(),
            format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        ),
        ("threads".into(), rayon::current_num_threads().to_string()),
        ("processor".into(), machine::processor()),
    ];
    lines.extend_from_slice(devices);
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    for (name, finding) in &lines {
        writeln!(out, "{name:<width$}  {finding}")?;
    }

    let source = Source::view(&args.store)?;
    let found = source.verify()?;
    let store = args.store.display();
    let existence = match args.store.exists() {
        true => "",
        false => " (no such folder yet)",
    };
    let (what, others, broken) = match source {
        Source::Folder(_) => (
            "store",
            format!(
                ", {} failed cells, {} cells in progress",
                found.failures, found.claimed
            ),
            "broken files",
        ),
        Source::Packed(_) => ("packed records", String::new(), "broken lines"),
    };
    writeln!(
        out,
        "\n{what} {store}{existence}: {} sound records{others}, {} {broken}",
        found.records,
        found.broken.len()
    )?;
    if found.older > 0 {
        writeln!(
            out,
            "{} records of an older schema: they are read as schema {SCHEMA}, and their files stay as they are",
            found.older
        )?;
    }
    for path in &found.strange {
        writeln!(out, "not part of the store, ignored: {}", path.display())?;
    }
    for error in &found.broken {
        writeln!(out, "{error}")?;
    }
    anyhow::ensure!(
        found.broken.is_empty(),
        "{} {broken} in {store}; each is named above with what to do",
        found.broken.len()
    );
    Ok(())
}

fn features() -> String {
    let compiled = [
        ("flex", true),
        ("wgpu", cfg!(feature = "wgpu")),
        ("vulkan", cfg!(feature = "vulkan")),
        ("cuda", cfg!(feature = "cuda")),
        ("autotune", cfg!(feature = "autotune")),
    ];
    machine::present(&compiled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tests::sample;

    #[test]
    fn a_sound_store_passes_and_a_broken_record_fails_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args {
            store: folder.path().join("records"),
        };
        let devices = [("device flex".to_string(), "always there".to_string())];
        let examined = |args: &Args| {
            let mut out = Vec::new();
            let result = examine(args, &devices, &mut out);
            (result, String::from_utf8(out).unwrap())
        };
        let (result, text) = examined(&args);
        assert!(
            result.is_ok() && text.contains("(no such folder yet)"),
            "{text}"
        );

        let store = Store::open(&args.store).unwrap();
        store.put(&sample(0)).unwrap();
        store.put(&sample(1)).unwrap();
        let (result, text) = examined(&args);
        assert!(result.is_ok(), "{text}");
        assert!(
            text.contains("2 sound records") && text.contains("always there"),
            "{text}"
        );

        // Beside one that an earlier version wrote.
        let old = crate::store::tests::OLD;
        let key = serde_json::from_str::<serde_json::Value>(old).unwrap()["key"].clone();
        let key = crate::cell::Key::try_from(key.as_str().unwrap().to_owned()).unwrap();
        let path = store.path(&key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, old).unwrap();
        let (result, text) = examined(&args);
        assert!(result.is_ok(), "{text}");
        assert!(
            text.contains("3 sound records") && text.contains("1 records of an older schema"),
            "{text}"
        );
        std::fs::remove_file(&path).unwrap();

        let path = store.path(&sample(1).key);
        std::fs::write(&path, "{").unwrap();
        let (result, text) = examined(&args);
        assert!(result.unwrap_err().to_string().contains("1 broken files"));
        assert!(
            text.contains("1 sound records") && text.contains(&path.display().to_string()),
            "{text}"
        );
    }
}
