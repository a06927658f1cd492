//! Recipes that come with somebody's own weights: timm's `config.json`, transformers' `preprocessor_config.json`, and a
//! small TOML file of our own. What a recipe cannot express is refused by name, never approximated.

mod boxes;

use std::path::{Path, PathBuf};

use model_zoo::file;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::recipe::{Recipe, Statistics};
use super::resize::Filter;

pub use boxes::OwnBoxes;

/// The largest file of this kind that is read: labels of many classes are its bulk.
const LIMIT: u64 = 16 << 20;

/// timm's file, and transformers' of the network.
const CONFIG: &str = "config.json";
/// transformers' file of the preprocessing.
const PREPROCESSOR: &str = "preprocessor_config.json";

/// What such files say.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// How pictures become inputs; none where only classes are named.
    pub recipe: Option<Recipe>,
    /// How they become a detector's, and its outputs boxes; none where the file does not speak of detectors.
    pub boxes: Option<OwnBoxes>,
    /// Names of the classes.
    pub labels: Option<Vec<String>>,
    /// The file that says so.
    pub from: PathBuf,
}

/// A file that says nothing usable.
#[derive(Debug, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct RecipeError {
    /// Which file.
    pub file: PathBuf,
    /// What was found, and what to do.
    pub problem: String,
}

/// What the file of `--recipe` says: ours, or either library's.
pub fn read(file: &Path) -> Result<Own, RecipeError> {
    let text = text(file)?;
    let json = file.extension().is_some_and(|ending| ending == "json");
    if let (false, Some(said)) = (json, boxes::of_toml(&text)) {
        let (boxes, labels) = said.map_err(|problem| refused(file, problem))?;
        return Ok(Own {
            recipe: None,
            boxes: Some(boxes),
            labels,
            from: file.to_owned(),
        });
    }
    let said = if json {
        object(&text).and_then(|config| of_json(&config))
    } else {
        of_toml(&text)
    };
    let own = |(recipe, labels): Said| {
        if recipe.is_none() {
            return Err(
                "it says nothing about size, mean and std; give timm's config.json, transformers' preprocessor_config.json, or our own form (docs/weights.md)"
                    .to_owned(),
            );
        }
        Ok(Own {
            recipe,
            boxes: None,
            labels,
            from: file.to_owned(),
        })
    };
    said.and_then(own).map_err(|problem| refused(file, problem))
}

/// What the libraries' files beside a weight file say; nothing where there are none that speak of it.
pub fn beside(weights: &Path) -> Result<Option<Own>, RecipeError> {
    let folder = weights.parent().unwrap_or(Path::new(""));
    let said = |name: &str| -> Result<Option<(PathBuf, Said)>, RecipeError> {
        let file = folder.join(name);
        if !file.is_file() {
            return Ok(None);
        }
        let said = object(&text(&file)?).and_then(|config| of_json(&config));
        let hint = |problem| {
            refused(
                &file,
                format!("{problem}; or give --recipe FILE, which is then read instead"),
            )
        };
        let said = said.map_err(hint)?;
        Ok(Some((file, said)))
    };
    let network = said(CONFIG)?;
    if let Some((from, (Some(recipe), labels))) = network {
        let recipe = Some(recipe);
        return Ok(Some(Own {
            recipe,
            boxes: None,
            labels,
            from,
        }));
    }
    let labels = network.and_then(|(file, (_, labels))| Some((file, labels?)));
    Ok(match (said(PREPROCESSOR)?, labels) {
        (Some((from, (recipe, named))), labels) => Some(Own {
            recipe,
            boxes: None,
            labels: labels.map(|(_, labels)| labels).or(named),
            from,
        }),
        (None, Some((from, labels))) => Some(Own {
            recipe: None,
            boxes: None,
            labels: Some(labels),
            from,
        }),
        (None, None) => None,
    })
}

/// A recipe and names of classes, as far as a file has them.
type Said = (Option<Recipe>, Option<Vec<String>>);

/// A file that says nothing usable.
pub fn refused(file: &Path, problem: String) -> RecipeError {
    RecipeError {
        file: file.to_owned(),
        problem,
    }
}

fn text(file: &Path) -> Result<String, RecipeError> {
    let bytes = file::read(file, LIMIT).map_err(|error| refused(file, error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| refused(file, "is not UTF-8 text".to_owned()))
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err("is JSON, but not an object in braces".to_owned()),
        Err(error) => Err(format!("is not JSON ({error})")),
    }
}

/// What a file of timm's or of transformers' says, whichever it is.
fn of_json(config: &Map<String, Value>) -> Result<Said, String> {
    // timm wraps its own part; its former files are that part alone.
    let inner = config.get("pretrained_cfg").and_then(Value::as_object);
    let part = inner.unwrap_or(config);
    if part.contains_key("input_size") {
        let labels = [part, config]
            .iter()
            .find_map(|part| part.get("label_names"))
            .map_or(Ok(None), list_of_labels)?;
        return Ok((Some(timm(part)?), labels));
    }
    if config.contains_key("image_mean") || config.contains_key("do_resize") {
        return Ok((Some(transformers(config)?), None));
    }
    let labels = config.get("id2label").map_or(Ok(None), map_of_labels)?;
    Ok((None, labels))
}

fn timm(config: &Map<String, Value>) -> Result<Recipe, String> {
    let sides = sides(config, "input_size")?;
    let &[3, height, width] = sides.as_slice() else {
        return Err(format!(
            "input_size is {sides:?}; inputs of three colours are read, [3, height, width]"
        ));
    };
    let crop = square("input_size", height, width)?;
    let squash = match config.get("crop_mode").and_then(Value::as_str) {
        None | Some("center") => false,
        Some("squash") => true,
        Some(other) => {
            return Err(format!(
                "crop_mode is `{other}`; only cutting out the centre (center) and squashing the whole picture (squash) are supported"
            ));
        }
    };
    let part = match config.get("crop_pct") {
        None | Some(Value::Null) => 0.875,
        Some(_) => number(config, "crop_pct")?,
    };
    let filter = match config.get("interpolation").and_then(Value::as_str) {
        Some("bilinear") => Filter::Bilinear,
        Some("bicubic") => Filter::Bicubic,
        other => {
            return Err(format!(
                "interpolation is {}; only bilinear and bicubic are supported",
                other.map_or("not given".to_owned(), |name| format!("`{name}`"))
            ));
        }
    };
    checked(Recipe {
        short: before_crop(crop, part)?,
        filter,
        crop,
        squash,
        statistics: Statistics {
            mean: three(config, "mean")?,
            std: three(config, "std")?,
        },
    })
}

/// timm's rule, in whole pixels: the crop is `part` of the shorter side.
fn before_crop(crop: usize, part: f64) -> Result<usize, String> {
    if !(part > 0.0 && part <= 1.0) {
        return Err(format!(
            "crop_pct is {part}; give the part of the shorter side that the crop takes, above 0 and at most 1"
        ));
    }
    Ok((crop as f64 / part).floor() as usize)
}

fn transformers(config: &Map<String, Value>) -> Result<Recipe, String> {
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    for key in ["do_resize", "do_rescale"] {
        if flag(key) == Some(false) {
            return Err(format!(
                "{key} is false; pictures are always resized, and scaled to [0, 1], here"
            ));
        }
    }
    if config.contains_key("rescale_factor") {
        let factor = number(config, "rescale_factor")?;
        if (factor * 255.0 - 1.0).abs() > 1e-6 {
            return Err(format!(
                "rescale_factor is {factor}; values are scaled by 1/255 here"
            ));
        }
    }
    let filter = match config.get("resample").and_then(Value::as_u64) {
        Some(2) => Filter::Bilinear,
        Some(3) => Filter::Bicubic,
        other => {
            return Err(format!(
                "resample is {}; only 2 (bilinear) and 3 (bicubic) are supported",
                other.map_or("not given".to_owned(), |code| code.to_string())
            ));
        }
    };
    let resized = size(config, "size")?;
    let cut = match (flag("do_center_crop"), config.contains_key("crop_size")) {
        (Some(false), _) | (None, false) => None,
        _ => match size(config, "crop_size")? {
            Resized::Both(side) | Resized::Shorter(side) | Resized::Number(side) => Some(side),
        },
    };
    let (short, crop, squash) = match (resized, cut) {
        (Resized::Shorter(short), Some(crop)) => (short, crop, false),
        (Resized::Both(short), crop) => (short, crop.unwrap_or(short), true),
        (Resized::Number(side), None) => (side, side, true),
        (Resized::Number(side), Some(_)) => {
            return Err(format!(
                "size is {side}, which some processors take for the shorter side and some for both; write {{\"shortest_edge\": {side}}} or {{\"height\": {side}, \"width\": {side}}}"
            ));
        }
        // ConvNeXt's form: the shorter side follows from the part, and large inputs are squashed.
        (Resized::Shorter(side), None) if config.contains_key("crop_pct") => {
            if side < 384 {
                let short = before_crop(side, number(config, "crop_pct")?)?;
                (short, side, false)
            } else {
                (side, side, true)
            }
        }
        (Resized::Shorter(_), None) => {
            return Err(
                "only the shorter side is resized and nothing is cut out, so inputs would differ in size; networks here take squares (do_center_crop, crop_size)"
                    .to_owned(),
            );
        }
    };
    let statistics = if flag("do_normalize") == Some(false) {
        Statistics {
            mean: [0.0; 3],
            std: [1.0; 3],
        }
    } else {
        Statistics {
            mean: three(config, "image_mean")?,
            std: three(config, "image_std")?,
        }
    };
    checked(Recipe {
        short,
        filter,
        crop,
        squash,
        statistics,
    })
}

/// transformers' sizes: `{"shortest_edge": 256}`, `{"height": 224, "width": 224}`, or a number of older files.
enum Resized {
    Shorter(usize),
    Both(usize),
    Number(usize),
}

fn size(config: &Map<String, Value>, key: &str) -> Result<Resized, String> {
    let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
    let found = config.get(key);
    let read = match found {
        Some(Value::Object(sides)) => {
            let side = |name: &str| sides.get(name).and_then(side);
            match (side("shortest_edge"), side("height"), side("width")) {
                (Some(short), ..) => Some(Resized::Shorter(short)),
                (None, Some(height), Some(width)) => {
                    Some(Resized::Both(square(key, height, width)?))
                }
                _ => None,
            }
        }
        Some(value) => side(value).map(Resized::Number),
        None => None,
    };
    read.ok_or_else(|| {
        let found = found.map_or("not given".to_owned(), Value::to_string);
        format!("{key} is {found}; give {{\"shortest_edge\": 256}} or {{\"height\": 224, \"width\": 224}}")
    })
}

fn square(key: &str, height: usize, width: usize) -> Result<usize, String> {
    if height == width {
        return Ok(height);
    }
    Err(format!(
        "{key} is {height} x {width}; networks here take squares"
    ))
}

/// Our own form.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// Side of the input.
    size: usize,
    /// The shorter side after resizing.
    resize: Option<usize>,
    /// Or the part of it that the crop takes.
    crop_pct: Option<f64>,
    #[serde(default)]
    squash: bool,
    interpolation: Interpolation,
    mean: [f32; 3],
    std: [f32; 3],
    labels: Option<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Interpolation {
    Bilinear,
    Bicubic,
}

fn of_toml(text: &str) -> Result<Said, String> {
    let file: File = toml::from_str(text).map_err(|error| {
        let error = error.to_string();
        format!(
            "{}; a recipe has size, resize or crop_pct, interpolation, mean, std, and may have squash and labels (docs/weights.md)",
            error.trim_end()
        )
    })?;
    let short = match (file.resize, file.crop_pct) {
        (Some(short), None) => short,
        (None, Some(part)) => before_crop(file.size, part)?,
        (Some(_), Some(_)) => {
            return Err("has both resize and crop_pct; give one of them".to_owned());
        }
        (None, None) => {
            return Err(
                "has neither resize (the shorter side in pixels) nor crop_pct; give one of them"
                    .to_owned(),
            );
        }
    };
    let recipe = checked(Recipe {
        short,
        filter: match file.interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic => Filter::Bicubic,
        },
        crop: file.size,
        squash: file.squash,
        statistics: Statistics {
            mean: file.mean,
            std: file.std,
        },
    })?;
    Ok((Some(recipe), file.labels))
}

fn checked(recipe: Recipe) -> Result<Recipe, String> {
    recipe.sound().map(|()| recipe)
}

fn number(config: &Map<String, Value>, key: &str) -> Result<f64, String> {
    let value = config.get(key);
    value.and_then(Value::as_f64).ok_or_else(|| {
        let found = value.map_or("not given".to_owned(), Value::to_string);
        format!("{key} is {found}; give a number")
    })
}

fn sides(config: &Map<String, Value>, key: &str) -> Result<Vec<usize>, String> {
    let value = config.get(key);
    let read = || -> Option<Vec<usize>> {
        let side = |value: &Value| usize::try_from(value.as_u64()?).ok();
        value?.as_array()?.iter().map(side).collect()
    };
    read().ok_or_else(|| {
        let found = value.map_or("not given".to_owned(), Value::to_string);
        format!("{key} is {found}; give whole numbers, such as [3, 224, 224]")
    })
}

fn three(config: &Map<String, Value>, key: &str) -> Result<[f32; 3], String> {
    let value = config.get(key);
    let read = || -> Option<[f32; 3]> {
        let number = |value: &Value| Some(value.as_f64()? as f32);
        let values: Option<Vec<f32>> = value?.as_array()?.iter().map(number).collect();
        values?.try_into().ok()
    };
    read().ok_or_else(|| {
        let found = value.map_or("not given".to_owned(), Value::to_string);
        format!("{key} is {found}; give three numbers, one for each colour")
    })
}

fn list_of_labels(value: &Value) -> Result<Option<Vec<String>>, String> {
    if value.is_null() {
        return Ok(None);
    }
    let label = |value: &Value| value.as_str().map(str::to_owned);
    let labels = value
        .as_array()
        .and_then(|all| all.iter().map(label).collect());
    match labels {
        Some(labels) => Ok(Some(labels)),
        None => Err("label_names is not a list of texts".to_owned()),
    }
}

/// `{"0": "cat", "1": "dog"}`: all numbers from 0, in any order.
fn map_of_labels(value: &Value) -> Result<Option<Vec<String>>, String> {
    let read = || -> Option<Vec<String>> {
        let all = value.as_object()?;
        (0..all.len())
            .map(|class| Some(all.get(&class.to_string())?.as_str()?.to_owned()))
            .collect()
    };
    read()
        .map(Some)
        .ok_or_else(|| "id2label does not name the classes from \"0\" on".to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TIMM: &str = r#"{
        "architecture": "resnet18", "num_classes": 3, "label_names": ["a", "b", "c"],
        "pretrained_cfg": {
            "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.95, "crop_mode": "center",
            "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "num_classes": 3
        }
    }"#;
    const TRANSFORMERS: &str = r#"{
        "do_center_crop": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
        "crop_size": {"height": 224, "width": 224}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}
    }"#;
    const TOML: &str = "size = 64\ncrop_pct = 0.875\ninterpolation = \"bilinear\"\nmean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]\n";

    fn json(text: &str) -> Result<Said, String> {
        of_json(&object(text)?)
    }

    fn written(said: Result<Said, String>) -> String {
        said.unwrap().0.unwrap().to_string()
    }

    #[test]
    fn timms_files_are_read() {
        assert_eq!(
            written(json(TIMM)),
            "shorter side 235 bicubic, crop 224, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]"
        );
        let labels = json(TIMM).unwrap().1.unwrap();
        assert_eq!(labels, ["a", "b", "c"]);
        // A former file is the inner part alone.
        let inner = &TIMM[TIMM.find("{\n            ").unwrap()..TIMM.rfind('}').unwrap()];
        assert_eq!(written(json(inner)), written(json(TIMM)));
        let squashed = TIMM.replace("\"center\"", "\"squash\"");
        assert!(written(json(&squashed)).starts_with("both sides 235"));
    }

    #[test]
    fn transformers_files_are_read() {
        let rest = "crop 224, mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5]";
        assert_eq!(
            written(json(TRANSFORMERS)),
            format!("shorter side 256 bicubic, {rest}")
        );
        let vit = TRANSFORMERS
            .replace("\"do_center_crop\": true, ", "")
            .replace("\"crop_size\": {\"height\": 224, \"width\": 224}, ", "")
            .replace(
                "{\"shortest_edge\": 256}",
                "{\"height\": 224, \"width\": 224}",
            )
            .replace("\"resample\": 3", "\"resample\": 2");
        assert_eq!(
            written(json(&vit)),
            format!("both sides 224 bilinear, {rest}")
        );
        // ConvNeXt's.
        let part = vit.replace(
            "\"size\": {\"height\": 224, \"width\": 224}",
            "\"size\": {\"shortest_edge\": 224}, \"crop_pct\": 0.875",
        );
        assert_eq!(
            written(json(&part)),
            format!("shorter side 256 bilinear, {rest}")
        );
    }

    #[test]
    fn what_cannot_be_expressed_is_refused_by_name() {
        for (from, to, word) in [
            ("0.95", "1.5", "crop_pct is 1.5"),
            ("0.95", "\"all\"", "crop_pct is \"all\""),
            ("\"bicubic\"", "\"lanczos\"", "`lanczos`"),
            ("\"center\"", "\"border\"", "`border`"),
            ("[3, 224, 224]", "[1, 224, 224]", "three colours"),
            ("[3, 224, 224]", "[3, 224, 192]", "squares"),
            ("[3, 224, 224]", "[3, 224, 9000]", "squares"),
            ("[3, 224, 224]", "[3, 9000, 9000]", "9000 x 9000"),
            ("[3, 224, 224]", "[3, 0, 0]", "0 x 0"),
            (
                "[0.229, 0.224, 0.225]",
                "[0.229, 0.224]",
                "std is [0.229,0.224]",
            ),
            ("[0.229, 0.224, 0.225]", "[0.229, 0, 0.2]", "above 0"),
            ("[0.485, 0.456, 0.406]", "null", "mean is null"),
            ("[\"a\", \"b\", \"c\"]", "[1]", "label_names"),
        ] {
            let said = json(&TIMM.replacen(from, to, 1)).unwrap_err();
            assert!(said.contains(word), "{to}: {said}");
        }
        for (from, to, word) in [
            ("\"resample\": 3", "\"resample\": 1", "resample is 1"),
            ("\"do_resize\": true", "\"do_resize\": false", "do_resize"),
            ("0.00392156862745098", "0.0078", "rescale_factor is 0.0078"),
            (
                "\"do_center_crop\": true",
                "\"do_center_crop\": false",
                "nothing is cut",
            ),
            (
                "{\"shortest_edge\": 256}",
                "{\"longest_edge\": 256}",
                "longest_edge",
            ),
            ("{\"shortest_edge\": 256}", "256", "some for both"),
            (
                "{\"shortest_edge\": 256}",
                "{\"shortest_edge\": 200}",
                "resized to 200",
            ),
        ] {
            let said = json(&TRANSFORMERS.replacen(from, to, 1)).unwrap_err();
            assert!(said.contains(word), "{to}: {said}");
        }
        for (from, to, word) in [
            ("crop_pct = 0.875\n", "", "neither resize"),
            (
                "size = 64\n",
                "size = 64\nresize = 70\n",
                "give one of them",
            ),
            ("crop_pct = 0.875", "resize = 60", "resized to 60"),
            ("size = 64\n", "", "missing field `size`"),
            (
                "size = 64\n",
                "size = 64\nsiez = 3\n",
                "unknown field `siez`",
            ),
            ("\"bilinear\"", "\"nearest\"", "unknown variant `nearest`"),
        ] {
            let said = of_toml(&TOML.replacen(from, to, 1)).unwrap_err();
            assert!(said.contains(word), "{to}: {said}");
        }
    }

    #[test]
    fn our_own_form_is_read() {
        assert_eq!(
            written(of_toml(TOML)),
            "shorter side 73 bilinear, crop 64, mean [0.5, 0.5, 0.5], std [0.25, 0.25, 0.25]"
        );
        let more = TOML.replace(
            "crop_pct = 0.875",
            "resize = 64\nsquash = true\nlabels = [\"x\"]",
        );
        let said = of_toml(&more).unwrap();
        assert_eq!(said.1, Some(vec!["x".to_owned()]));
        assert!(said.0.unwrap().squash);
    }

    #[test]
    fn the_files_beside_weights_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        let put = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        assert_eq!(beside(&weights).unwrap(), None);
        // Some other program's.
        put(CONFIG, "{\"theme\": \"dark\"}");
        assert_eq!(beside(&weights).unwrap(), None);
        put(CONFIG, "{\"id2label\": {\"1\": \"dog\", \"0\": \"cat\"}}");
        let own = beside(&weights).unwrap().unwrap();
        assert_eq!((own.recipe, own.labels.unwrap().len()), (None, 2));
        put(PREPROCESSOR, TRANSFORMERS);
        let own = beside(&weights).unwrap().unwrap();
        assert!(own.from.ends_with(PREPROCESSOR));
        assert_eq!(own.labels.unwrap(), ["cat", "dog"]);
        assert_eq!(own.recipe.unwrap().short, 256);
        put(CONFIG, TIMM);
        let own = beside(&weights).unwrap().unwrap();
        assert!(own.from.ends_with(CONFIG));
        assert_eq!(own.recipe.unwrap().short, 235);
        put(CONFIG, "[]");
        let error = beside(&weights).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && error.contains("--recipe"),
            "{error}"
        );
    }
}
