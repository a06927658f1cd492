//! What users bring: names of other libraries, weight files of wrapped models, recipes of their own. What was made of it is
//! said once.

use std::path::Path;

use model_zoo::catalog::{self, CatalogError, Named, Spec};
use model_zoo::weights::{self, Source, WeightError};
use model_zoo::{Boxes, Modality};

use crate::data::recipe::Recipe;
use crate::data::recipe::boxes::DetectionRecipe;
use crate::data::recipe_file::{self, Own, RecipeError};
use crate::task::Kind;
use crate::terminal::remark_once;

/// The network that a name means, here or in another library.
pub fn named(name: &str) -> Result<Named, CatalogError> {
    let named = catalog::named(name)?;
    if let Some(remark) = named.remark() {
        remark_once(&format!("note: {remark}"));
    }
    Ok(named)
}

/// The networks that a pattern matches, or that a name means.
pub fn matching(pattern: &str) -> Result<Vec<Named>, CatalogError> {
    if !pattern.contains(['*', '?']) {
        return Ok(vec![named(pattern)?]);
    }
    let found = catalog::matching(pattern)?;
    found.into_iter().map(|spec| named(spec.name)).collect()
}

/// Opens a weight file.
pub fn open(file: &Path) -> Result<Box<dyn Source>, WeightError> {
    let source = weights::open(file)?;
    let prefix = source.prefix();
    if !prefix.is_empty() {
        remark_once(&format!(
            "note: {}: every key begins with `{prefix}`, which is dropped here and in exported files",
            source.origin()
        ));
    }
    Ok(source)
}

/// What a user's files say of how pictures become inputs: the file of `--recipe`, else a configuration beside the
/// user's own weights; nothing where there is neither. The libraries' configurations are of classifiers, and are not looked
/// for beside a detector's weights.
pub fn recipe_file(
    spec: &Spec,
    recipe: Option<&Path>,
    weights: Option<&Path>,
) -> Result<Option<Own>, RecipeError> {
    match (recipe, weights) {
        (Some(file), _) => recipe_file::read(file).map(Some),
        (None, Some(weights)) if spec.head().is_none() => recipe_file::beside(weights),
        (None, _) => Ok(None),
    }
}

/// The recipe of a network's weights for a task's samples: the user's, with a note, or the catalog's; none where the
/// samples have one form for all networks.
pub fn recipe_for(
    kind: &Kind,
    spec: &Spec,
    own: Option<&Own>,
) -> Result<Option<String>, RecipeError> {
    // A network of another kind than the task's is refused with a message of its own.
    Ok(match kind.one_form() {
        true => None,
        false if kind.judges == Boxes::DOES => {
            boxes_recipe(spec, own)?.map(|recipe| recipe.to_string())
        }
        false => Some(recipe(spec, own)?.to_string()),
    })
}

/// The recipe of a detector's weights: the user's, with a note, or the catalog's; none where the network finds no boxes.
pub fn boxes_recipe(
    spec: &Spec,
    own: Option<&Own>,
) -> Result<Option<DetectionRecipe>, RecipeError> {
    let (Some(recipe), Some(own)) = (DetectionRecipe::of(spec), own) else {
        return Ok(DetectionRecipe::of(spec));
    };
    let Some(boxes) = &own.boxes else {
        let problem = "prepares pictures for classifiers; a detector's recipe is a TOML file with min_size, max_size, score_threshold and others (docs/weights.md)";
        return Err(recipe_file::refused(&own.from, problem.to_owned()));
    };
    let recipe = boxes
        .onto(recipe)
        .map_err(|problem| recipe_file::refused(&own.from, problem))?;
    remark_once(&format!(
        "note: {}: boxes are found as {} says: {recipe}",
        spec.name,
        own.from.display()
    ));
    Ok(Some(recipe))
}

/// The recipe of a classifier's weights: the user's, with a note, or the catalog's.
pub fn recipe(spec: &Spec, own: Option<&Own>) -> Result<Recipe, RecipeError> {
    if let Some(own) = own
        && own.boxes.is_some()
    {
        let problem = "prepares pictures for detectors; a classifier's recipe has size, resize or crop_pct, interpolation, mean and std (docs/weights.md)";
        return Err(recipe_file::refused(&own.from, problem.to_owned()));
    }
    let Some((recipe, file)) = own.and_then(|own| Some((own.recipe?, &own.from))) else {
        return Ok(Recipe::of(spec));
    };
    remark_once(&format!(
        "note: {}: pictures are prepared as {} says: {recipe}",
        spec.name,
        file.display()
    ));
    Ok(recipe)
}
