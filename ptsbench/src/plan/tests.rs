//! Plans that make sense, and those that are refused.

use proptest::prelude::*;

use super::*;
use crate::cell::Sparsity;

/// A registry of three classifiers, two detectors and a generator. It knows other classifiers of the micro preset too, but not
/// as `micro_*`.
pub(crate) struct Fake;

impl Registry for Fake {
    fn weights(&self, model: &str) -> Lookup<String> {
        Ok(format!("{:064x}", model.len()))
    }
    fn models_matching(&self, glob: &str, task: &str) -> Lookup<Vec<String>> {
        let all: &[&str] = match task {
            "micro_boxes" => &["micro_retinanet_s", "micro_ssd_s"],
            "micro_generation" => &["micro_unet_s"],
            _ => &["micro_resnet8", "micro_resnet14", "micro_resnet20"],
        };
        let others = ["micro_mobilenetv2_100", "micro_regnetx_m", "micro_vit_nano"];
        let found: Vec<String> = all
            .iter()
            .filter(|name| match glob.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => **name == glob,
            })
            .chain(others.iter().filter(|name| match glob.strip_suffix('*') {
                Some(start) => start != "micro_" && name.starts_with(start),
                None => **name == glob,
            }))
            .map(|name| name.to_string())
            .collect();
        if found.is_empty() {
            return Err(format!("no model `{glob}`").into());
        }
        Ok(found)
    }
    fn fits(&self, model: &str, pattern: Pattern) -> Lookup<()> {
        match pattern {
            Pattern::NofM { m: 5, .. } => Err(format!("{pattern} fits nothing of {model}").into()),
            _ => Ok(()),
        }
    }
    fn layers_named(&self, model: &str, patterns: &[String]) -> Lookup<()> {
        let wrong = patterns
            .iter()
            .find(|pattern| !pattern.starts_with("layer1"));
        wrong.map_or(Ok(()), |wrong| {
            Err(format!("{wrong} is nothing of {model}").into())
        })
    }
    fn task(&self, name: &str) -> Lookup<TaskFacts> {
        let facts = |data| TaskFacts {
            version: 3,
            available: 2000,
            data,
            split: None,
        };
        match name {
            "micro" | "micro_boxes" | "micro_generation" => Ok(facts(None)),
            "files" => Ok(facts(Some("cd".repeat(32)))),
            _ => Err(format!("no task `{name}`").into()),
        }
    }
    fn recipe(&self, task: &str, model: &str) -> Lookup<Option<String>> {
        Ok((task == "files").then(|| format!("as {model} likes it")))
    }
    fn calibration(&self, task: &str, images: usize, seed: u64) -> Lookup<Option<String>> {
        Ok((task == "files").then(|| format!("{:064x}", images as u64 + seed)))
    }
    fn allocator(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(facts(chosen, chosen.name == "evopress"))
    }
    fn criterion(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(facts(
            chosen,
            ["wanda", "fcpts"].contains(&chosen.name.as_str()),
        ))
    }
    fn repair(&self, chosen: &Chosen) -> Lookup<PartFacts> {
        Ok(facts(chosen, true))
    }
    fn reconstruction_version(&self) -> u32 {
        1
    }
}

fn facts(chosen: &Chosen, images: bool) -> PartFacts {
    PartFacts {
        part: Part {
            options: chosen.options.clone(),
            ..Part::plain(&chosen.name, 1)
        },
        images,
        moves: chosen.name == "sparsegpt" || chosen.name == "fcpts" && chosen.options.is_empty(),
        whole: chosen.name == "fcpts",
    }
}

const SMALL: &str = r#"name = "small"
title = "Small"

[task]
name = "micro"
samples = 100

[calibration]
images = 8
batch = 4

[fit.few]
optimizer = "adam"
lr = 0.001
steps = 3

[[grid]]
name = "first"
track = "allocation"
models = ["micro_resnet8"]
rates = [0.5, "2:4"]
allocators = ["uniform", "erk"]
"#;

/// Networks of another kind have another task, and other images that guide them, in the same plan.
#[test]
fn a_grid_may_have_a_task_and_calibration_of_its_own() {
    let own = SMALL.to_owned()
        + r#"
[[grid]]
name = "second"
track = "reconstruction"
task = { name = "files", samples = 7 }
calibration = { images = 6, batch = 2 }
models = ["micro_resnet8"]
rates = [0.5]
allocators = ["uniform"]
granularity = ["layer"]
"#;
    let plan = parse(&own).unwrap();
    let cells = plan.expand(&Fake).unwrap();
    for planned in &cells {
        let (task, grid) = (&planned.cell.task, &planned.grids[0].grid);
        let (name, samples) = match grid.as_str() {
            "first" => ("micro", 100),
            _ => ("files", 7),
        };
        assert_eq!((task.name.as_str(), task.samples), (name, samples));
    }
    let dense = cells
        .iter()
        .filter(|planned| planned.cell.sparsity.is_none());
    assert_eq!(dense.count(), 2);
    let mut fitted = cells.iter().filter_map(|planned| {
        let sparsity = planned.cell.sparsity.as_ref()?;
        Some(&sparsity.reconstruction.as_ref()?.calibration)
    });
    let calibration = fitted.next().unwrap();
    assert_eq!((calibration.images, calibration.batch), (6, 2));
    assert_eq!(calibration.list, Some(format!("{:064x}", 6)));
    let notes = plan.footnotes(&Fake);
    let lines = |task: &str| -> Vec<&str> {
        let of_task = notes
            .iter()
            .filter(|line| line.task.as_deref() == Some(task));
        of_task.map(|line| line.text.as_str()).collect()
    };
    // The first grid looks at no image, so that the plan's calibration says nothing.
    assert_eq!(lines("micro"), ["Task micro: 100 samples."]);
    assert_eq!(
        lines("files"),
        [
            "Task files: 7 samples.",
            "Calibration: 6 images of files in batches of 2."
        ]
    );
    for (from, to, said) in [
        (
            "samples = 7",
            "samples = 2001",
            "task `files` holds 2000; ask",
        ),
        ("samples = 7", "samples = 0", "`second`: task.samples is 0"),
        ("\"files\"", "\"flies\"", "`second`: no task `flies`"),
        (
            "batch = 2 }",
            "batch = 7 }",
            "`second`: calibration has 6 images in batches of 7",
        ),
    ] {
        let found = error(&own.replacen(from, to, 1));
        assert!(found.contains(said), "{found}");
    }
}

/// What a folder of pictures holds is part of each cell; of the built-in images nothing is said.
#[test]
fn cells_name_their_data() {
    let text = SMALL.replace("\"micro\"", "\"files\"").replace(
        "allocators = [\"uniform\", \"erk\"]",
        "allocators = [\"uniform\"]\ngranularity = [\"layer\"]\nseeds = [1, 5]",
    );
    let mut lists = Vec::new();
    for planned in parse(&text).unwrap().expand(&Fake).unwrap() {
        assert_eq!(planned.cell.task.data, Some("cd".repeat(32)));
        let recipe = "as micro_resnet8 likes it";
        assert_eq!(planned.cell.task.recipe.as_deref(), Some(recipe));
        let settings = planned.cell.sparsity.and_then(|s| s.reconstruction);
        lists.extend(settings.and_then(|settings| settings.calibration.list));
    }
    let [a, b] = [8 + 1, 8 + 5].map(|sum| format!("{sum:064x}"));
    assert_eq!(lists, [&a, &b, &a, &b].map(String::clone));
    for planned in parse(SMALL).unwrap().expand(&Fake).unwrap() {
        assert_eq!(
            (planned.cell.task.data, planned.cell.task.recipe),
            (None, None)
        );
    }
}

fn parse(text: &str) -> Result<Plan, PlanError> {
    Plan::parse(text, "small.toml", &[])
}

fn error(text: &str) -> String {
    parse(text)
        .and_then(|plan| plan.expand(&Fake).map(|_| ()))
        .unwrap_err()
        .to_string()
}

fn set(set: &str) -> Result<Plan, String> {
    Plan::parse(SMALL, "small.toml", &[set.to_string()]).map_err(|error| error.to_string())
}

fn labels(plan: &Plan) -> Vec<String> {
    let cells = plan.expand(&Fake).unwrap();
    cells
        .iter()
        .map(|planned| planned.cell.to_string())
        .collect()
}

#[test]
fn a_grid_is_a_product_with_its_dense_reference() {
    assert_eq!(
        labels(&parse(SMALL).unwrap()),
        [
            "micro_resnet8 dense",
            "micro_resnet8 uniform 0.5",
            "micro_resnet8 erk 0.5",
            "micro_resnet8 2:4",
        ]
    );
}

#[test]
fn the_micro_preset_has_the_tables_cells_once() {
    let plan = Plan::load("micro", &[]).unwrap();
    let mut cells = plan.expand(&Fake).unwrap();
    let of_task = |task: &str| {
        let tasks = cells.iter().map(|planned| planned.cell.task.name.as_str());
        tasks.filter(|name| *name == task).count()
    };
    // Each network dense and under six allocators at four rates; with and without correction at two.
    assert_eq!(of_task("micro_boxes"), 2 * (1 + 6 * 4 + 2 * 2));
    assert_eq!(of_task("micro_generation"), 1 + 6 * 4 + 2 * 2);
    cells.retain(|planned| planned.cell.task.name == "micro");
    let reconstructed = cells.iter().filter(|planned| {
        let sparsity = planned.cell.sparsity.as_ref();
        sparsity.is_some_and(|s| s.reconstruction.is_some())
    });
    // Four networks, five distinct configurations of Table 4's seven rows, one rate, two draws.
    assert_eq!(reconstructed.count(), 4 * 5 * 2);
    // Three networks under six allocators at four rates, under three at 90 %, and with folded norms; a search with two draws.
    let allocated = 3 * (6 * 4 + 3 + 3 * 4) + 2;
    // The other networks, with the cells their reconstructions begin with.
    assert_eq!(cells.len(), 3 + allocated + 40 + 3 * 2);
    // (layer, sparse, corrected) stands in all three comparisons.
    let shared = cells.iter().filter(|planned| {
        let of_track_2 = |m: &&Member| m.track == Track::Reconstruction;
        planned
            .cell
            .to_string()
            .contains("layer sparse-input corrected")
            && planned.grids.iter().filter(of_track_2).count() == 3
    });
    assert_eq!(shared.count(), 4 * 2);
    assert!(
        cells
            .iter()
            .all(|planned| planned.key == planned.cell.key())
    );
}

#[test]
fn the_whole_plan_has_more_cells_and_all_of_the_usual_ones() {
    let mut plan = Plan::load("micro", &[]).unwrap();
    let keys = |plan: &Plan| -> std::collections::BTreeSet<Key> {
        let cells = plan.expand(&Fake).unwrap();
        cells.into_iter().map(|planned| planned.key).collect()
    };
    let usual = keys(&plan);
    plan.full = true;
    let whole = keys(&plan);
    assert!(whole.is_superset(&usual) && whole.len() > 2 * usual.len());
    let by_key = Plan::load("micro", &["full=true".to_owned()]).unwrap();
    assert_eq!(keys(&by_key), whole);
}

#[test]
fn the_smoke_preset_has_three_cells() {
    assert_eq!(
        labels(&Plan::load("smoke", &[]).unwrap()),
        [
            "micro_resnet8 dense",
            "micro_resnet8 uniform 0.7",
            "micro_resnet8 uniform 0.7 layer sparse-input corrected seed 0",
        ]
    );
}

#[test]
fn seeds_multiply_reconstructed_cells_only() {
    let free = SMALL.to_string() + "seeds = [0, 1, 2]\n";
    assert_eq!(labels(&parse(&free).unwrap()).len(), 4);
    let fitted = free + "granularity = [\"block\"]\n";
    assert_eq!(labels(&parse(&fitted).unwrap()).len(), 4 + 3 * 3);
}

#[test]
fn a_misspelt_key_has_its_place_and_the_key_meant() {
    for (right, wrong, place) in [
        (
            "samples",
            "smaples",
            "small.toml:6:1: unknown key `smaples`, did you mean `samples`?",
        ),
        (
            "title",
            "titel",
            "small.toml:2:1: unknown key `titel`, did you mean `title`?",
        ),
        (
            "rates",
            "rate",
            "small.toml:21:1: unknown key `rate`, did you mean `rates`?",
        ),
        (
            "batch",
            "bacth",
            "small.toml:10:1: unknown key `bacth`, did you mean `batch`?",
        ),
        (
            "steps",
            "step",
            "small.toml:15:1: unknown key `step`, did you mean `steps`?",
        ),
        (
            "[task]",
            "[tasks]",
            "small.toml:4:2: unknown key `tasks`, did you mean `task`?",
        ),
        (
            "\"adam\"",
            "\"adm\"",
            "small.toml:13:13: unknown value `adm`, did you mean `adam`?",
        ),
    ] {
        let message = error(&SMALL.replacen(right, wrong, 1));
        assert!(message.starts_with(place), "{wrong}: {message}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_the_remedy() {
    let with = |right: &str, wrong: &str| error(&SMALL.replacen(right, wrong, 1));
    for (message, says) in [
        (with("0.5", "1.5"), "21:10: rate 1.5 is not between 0 and 1"),
        (with("0.5", "0"), "21:10: rate 0 is not between 0 and 1"),
        (with("0.5", "nan"), "rate NaN is not between 0 and 1"),
        (with("2:4", "4:2"), "4:2 is not a pattern"),
        (with("0.5", "0.5, 0.5"), "twice"),
        (with("[0.5, \"2:4\"]", "[]"), "rates is empty"),
        (with("[\"micro_resnet8\"]", "[]"), "models is empty"),
        (
            with("allocators = [\"uniform\", \"erk\"]", ""),
            "rate 0.5 needs an allocator",
        ),
        (
            with("\"2:4\"", "\"2:5\""),
            "[[grid]] `first`: 2:5 fits nothing of micro_resnet8",
        ),
        (with("samples = 100", "samples = 0"), "task.samples is 0"),
        (
            with("samples = 100", "samples = 2001"),
            "the set of task `micro` holds 2000",
        ),
        (
            with("batch = 4", "batch = 9"),
            "batch must lie between 1 and images",
        ),
        (with("steps = 3", "steps = 0"), "[fit.few] steps = 0"),
        (with("lr = 0.001", "lr = -1"), "[fit.few] lr = -1"),
        (with("\"small\"", "\"a/b\""), "becomes part of file names"),
        (
            with("micro_resnet8", "resnot"),
            "[[grid]] `first`: no model `resnot`",
        ),
        (with("\"micro\"", "\"macro\""), "[task]: no task `macro`"),
        (
            error(&(SMALL.to_string() + "inputs = [\"dense\"]\n")),
            "needs granularity",
        ),
        (
            error(&(SMALL.to_string() + "granularity = [\"layer\"]\nfit = \"fwe\"\n")),
            "did you mean `few`?",
        ),
        (
            error(&(SMALL.to_string() + "granularity = [\"layer\"]\nseeds = []\n")),
            "seeds is empty",
        ),
        (
            error(&(SMALL.to_string() + "dense = true\n")),
            "dense = true",
        ),
        (error("name = "), "small.toml:1:"),
    ] {
        assert!(message.contains(says), "expected {says}: {message}");
    }
    let (head, grid) = SMALL.split_at(SMALL.find("[[grid]]").unwrap());
    assert!(error(head).contains("no [[grid]]"));
    let twice = format!("{SMALL}\n{grid}");
    assert!(error(&twice).contains("two [[grid]] are named `first`"));
    let renamed = format!("{SMALL}\n{}", grid.replace("first", "second"));
    assert!(error(&renamed).contains("[[grid]] `second` repeats `first`"));
}

#[test]
fn a_correction_may_have_options_and_those_that_it_does_not_take_have_their_place() {
    let with = |axis: &str| format!("{SMALL}granularity = [\"layer\"]\ncorrection = {axis}\n");
    let plan = parse(&with(
        "[true, { part = \"bias\" }, { layers = [\"layer1.*\"] }]",
    ))
    .unwrap();
    let found = labels(&plan);
    for label in [
        "micro_resnet8 erk 0.5 layer sparse-input corrected seed 0",
        "micro_resnet8 erk 0.5 layer sparse-input corrected (part = \"bias\") seed 0",
        "micro_resnet8 2:4 layer sparse-input corrected (layers = [\"layer1.*\"]) seed 0",
    ] {
        assert!(
            found.iter().any(|known| known == label),
            "{label}: {found:?}"
        );
    }
    for (axis, said) in [
        (
            "[{ part = \"wieght\" }]",
            "small.toml:24:24: part = \"wieght\", did you mean `weight`? (part takes both, weight, bias)",
        ),
        (
            "[{ prat = \"bias\" }]",
            "24:17: unknown key `prat`, did you mean `part`?",
        ),
        ("[{ layers = [] }]", "layers is empty"),
        ("[\"yes\"]", "expected true, false, or a table such as"),
        ("[true, { part = \"both\" }]", "correction lists true twice"),
        (
            "[{ layers = [\"layre1\"] }]",
            "[[grid]] `first`: correction.layers: layre1 is nothing of micro_resnet8",
        ),
    ] {
        let message = error(&with(axis));
        assert!(message.contains(said), "{axis}: {message}");
    }
    // A solver's weights would be undone by any of them.
    let solved = with("[{ part = \"bias\" }]")
        .replace("allocators =", "criterion = \"sparsegpt\"\nallocators =");
    assert!(error(&solved).contains("use correction = [false]"));
}

/// Each part of the UNet is what its list leaves.
#[test]
fn the_plan_of_parts_names_all_layers_outside_each() {
    let plan = Plan::load("unet_parts", &[]).unwrap();
    let layers = crate::pipeline::layers_of("micro_unet_s").unwrap();
    let layers: std::collections::BTreeSet<String> =
        layers.into_iter().map(|layer| layer.path).collect();
    let part = |name: &str| {
        let grid = plan.grid.iter().find(|grid| grid.name == name).unwrap();
        let dense = &grid.allocators[0].options["dense"];
        let dense: std::collections::BTreeSet<String> =
            serde_json::from_value(dense.clone()).unwrap();
        assert!(dense.is_subset(&layers), "{name}: {dense:?}");
        layers.difference(&dense).cloned().collect::<Vec<_>>()
    };
    let (attention, convolutions) = (part("attention"), part("convolutions"));
    let in_attention = |layer: &&String| layer.contains(".attentions.");
    let of_time = |layer: &&String| layer.contains("time_emb");
    assert_eq!(attention.len(), layers.iter().filter(in_attention).count());
    assert!(attention.iter().all(|layer| in_attention(&layer)));
    let others = layers
        .iter()
        .filter(|layer| !in_attention(layer) && !of_time(layer));
    assert_eq!(convolutions, others.cloned().collect::<Vec<_>>());
}

/// An empty axis would drop cells, or be taken for an absent one.
#[test]
fn every_empty_axis_is_refused_by_its_name() {
    let plan = SMALL.to_string() + "granularity = [\"layer\"]\n";
    for key in [
        "rates",
        "seeds",
        "grid.0.models",
        "grid.0.rates",
        "grid.0.allocators",
        "grid.0.granularity",
        "grid.0.inputs",
        "grid.0.correction",
        "grid.0.seeds",
    ] {
        let axis = key.rsplit('.').next().unwrap();
        let said = Plan::parse(&plan, "small.toml", &[format!("{key}=[]")]);
        let said = said.unwrap_err().to_string();
        assert!(said.contains(&format!("{axis} is empty")), "{key}: {said}");
    }
    let said = error(&SMALL.replace("name = \"small\"", "name = \"small\"\nseeds = []"));
    assert!(
        said.contains("small.toml:2:") && said.contains("seeds is empty"),
        "{said}"
    );
    // A pattern needs no allocators, and an empty list of them says nothing.
    let said = error(
        &SMALL
            .replace("[0.5, \"2:4\"]", "[\"2:4\"]")
            .replace("[\"uniform\", \"erk\"]", "[]"),
    );
    assert!(said.contains("allocators is empty"), "{said}");
}

#[test]
fn one_value_can_be_overridden() {
    assert_eq!(set("task.samples=7").unwrap().task.samples, 7);
    assert_eq!(
        set("title=Plain words, no quotes").unwrap().title,
        "Plain words, no quotes"
    );
    assert_eq!(set("fit.few.lr = 0.5").unwrap().fit["few"].lr, 0.5);
    let rates = Some(vec![Amount(Pattern::Unstructured { rate: 0.9 })]);
    assert_eq!(set("grid.0.rates=[0.9]").unwrap().grid[0].rates, rates);
    assert_eq!(set("grid.first.rates=[0.9]").unwrap().grid[0].rates, rates);
}

#[test]
fn an_override_that_fits_nothing_is_refused_with_the_nearest() {
    for (given, says) in [
        (
            "task.smaples=7",
            "unknown key `smaples`, did you mean `samples`?",
        ),
        ("taks.samples=7", "unknown key `taks`, did you mean `task`?"),
        ("fit.fwe.steps=7", "no [fit.fwe], did you mean `few`?"),
        ("grid.1.rates=[0.5]", "`grid` has no entry `1`"),
        ("grid.fisrt.rates=[0.5]", "did you mean `first`?"),
        (
            "grid.rates=[0.5]",
            "name one of its 1 entries, such as grid.0.rates",
        ),
        ("grid.0.rates=[0.5", "is not a TOML value"),
        ("grid.0.rates=[1.5]", "rate 1.5 is not between 0 and 1"),
        ("title.x=1", "`title` is a string"),
        ("task.samples", "expected KEY=VALUE"),
        ("task..samples=1", "empty part"),
        ("task.samples=many", "invalid type"),
    ] {
        let message = set(given).unwrap_err();
        assert!(
            message.starts_with(&format!("--set {given}: ")),
            "{message}"
        );
        assert!(message.contains(says), "expected {says}: {message}");
    }
}

#[test]
fn an_unknown_plan_names_the_presets() {
    let message = Plan::load("mirco", &[]).unwrap_err().to_string();
    assert!(
        message.contains(
            "did you mean `micro`? (presets: micro, smoke, correction, unet_parts, methods)"
        ),
        "{message}"
    );
    let message = Plan::load(".", &[]).unwrap_err().to_string();
    assert!(message.starts_with("the plan . is a folder"), "{message}");
}

#[test]
fn footnotes_follow_overrides() {
    let lines = set("fit.few.steps=9").unwrap().footnotes(&Fake);
    assert!(
        lines.iter().any(
            |line| line.text.contains("Fit `few`: Adam, 9 steps per unit") && line.task.is_none()
        ),
        "{lines:?}"
    );
}

proptest! {
    #[test]
    fn expansion_repeats_itself_and_lists_each_cell_once(
        rates in prop::collection::btree_set(1u32..100, 1..5),
        seeds in prop::collection::btree_set(0u64..9, 1..4),
        grains in prop::sample::subsequence(vec!["single", "layer", "block"], 0..=3),
        allocators in prop::sample::subsequence(vec!["uniform", "l2norm", "erk"], 1..=3),
    ) {
        let rates: Vec<String> = rates.iter().map(|r| format!("{}", f64::from(*r) / 100.0)).collect();
        let seeds: Vec<u64> = seeds.into_iter().collect();
        let (head, _) = SMALL.split_at(SMALL.find("[[grid]]").unwrap());
        let grid = |name: &str, glob: &str| format!(
            "[[grid]]\nname = \"{name}\"\ntrack = \"size\"\nmodels = [\"{glob}\"]\nrates = [{}]\n\
             allocators = {allocators:?}\nseeds = {seeds:?}\n{}",
            rates.join(", "),
            if grains.is_empty() { String::new() } else { format!("granularity = {grains:?}\n") }
        );
        let text = format!("{head}{}{}", grid("all", "micro_*"), grid("one", "micro_resnet14"));
        let cells = parse(&text).unwrap().expand(&Fake).unwrap();
        prop_assert_eq!(&cells, &parse(&text).unwrap().expand(&Fake).unwrap());

        let distinct: std::collections::HashSet<&Key> = cells.iter().map(|planned| &planned.key).collect();
        prop_assert_eq!(distinct.len(), cells.len());
        let per_model = 1 + rates.len() * allocators.len() * (1 + grains.len() * seeds.len());
        prop_assert_eq!(cells.len(), 3 * per_model);
        let shared = cells.iter().filter(|planned| planned.grids.len() == 2).count();
        prop_assert_eq!(shared, per_model);
    }
}

#[test]
fn what_looks_at_images_is_measured_once_for_each_seed() {
    let text = SMALL.replace(
        "allocators =",
        "criterion = { name = \"wanda\", group = \"layer\" }\nrepair = [\"none\", \"bn_re_estimation\"]\nseeds = [3, 4]\nallocators =",
    );
    let plan = Plan::parse(&text, "test", &[]).unwrap();
    let cells = plan.expand(&Fake).unwrap();
    let sparse: Vec<_> = cells
        .iter()
        .filter_map(|c| c.cell.sparsity.as_ref())
        .collect();
    let alone: Vec<_> = sparse
        .iter()
        .filter(|s| s.reconstruction.is_none())
        .collect();
    let seeds = |s: &&&Sparsity| s.calibration.as_ref().map(|c| c.seed);
    for seed in [3, 4] {
        assert_eq!(
            alone.iter().filter(|s| seeds(s) == Some(seed)).count() * 2,
            alone.len()
        );
    }
    assert!(
        sparse
            .iter()
            .all(|s| s.criterion.options["group"] == "layer")
    );
    assert!(sparse.iter().any(|s| s.repair.is_some()) && sparse.iter().any(|s| s.repair.is_none()));
    let without = text.replace("[calibration]\nimages = 8\nbatch = 4\n", "");
    let error = parse(&without)
        .unwrap()
        .expand(&Fake)
        .unwrap_err()
        .to_string();
    assert!(error.contains("add [calibration]"), "{error}");
    let folded = text.replace("seeds =", "batch_norm = [\"folded\"]\nseeds =");
    let error = Plan::parse(&folded, "test", &[]).unwrap_err().to_string();
    assert!(error.contains("folding removes them"), "{error}");
}

/// A whole method learns rates: it has nothing to do with patterns, the released counting, or units after it.
#[test]
fn a_whole_method_is_refused_where_it_has_no_say() {
    let learned = |grid: &str| {
        let text = SMALL.replace("rates = [0.5, \"2:4\"]", grid);
        parse(&text).unwrap().expand(&Fake)
    };
    let cells = learned("rates = [0.5]\ncriterion = \"fcpts\"\nseeds = [0, 1]").unwrap();
    // The dense network, and two allocations to start from with two draws each.
    assert_eq!(cells.len(), 1 + 2 * 2);
    for planned in &cells[1..] {
        let sparsity = planned.cell.sparsity.as_ref().unwrap();
        assert_eq!(sparsity.criterion.name, "fcpts");
        assert!(sparsity.allocation.is_some() && sparsity.calibration.is_some());
    }
    for (grid, says) in [
        (
            "rates = [0.5, \"2:4\"]\ncriterion = \"fcpts\"",
            ["the pattern 2:4", "another criterion"],
        ),
        (
            "rates = [0.5]\ncriterion = \"fcpts\"\nrule = \"msbench\"",
            ["counts exactly", "rule = \"exact\""],
        ),
        (
            "rates = [0.5]\ncriterion = \"fcpts\"\ngranularity = [\"layer\"]",
            ["trains every weight", "weights = \"dense\""],
        ),
    ] {
        let error = learned(grid).unwrap_err().to_string();
        for part in ["`first`", "`fcpts`", says[0], says[1]] {
            assert!(error.contains(part), "{error}");
        }
    }
    let allocation = "rates = [0.5]\ncriterion = { name = \"fcpts\", weights = \"dense\" }\n\
                      granularity = [\"layer\"]";
    assert_eq!(learned(allocation).unwrap().len(), 1 + 2 * 2);
}
