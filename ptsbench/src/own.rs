//! What users bring: names of other libraries, weight files of wrapped models, recipes of their own. What was made of it is
//! said once.

use std::path::Path;

use model_zoo::catalog::{self, CatalogError, Named, Spec};
use model_zoo::weights::{self, Source, WeightError};

use crate::data::recipe::Recipe;
use crate::data::recipe_file::{self, Own, RecipeError};
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
/// user's own weights; nothing where there is neither.
pub fn recipe_file(
    recipe: Option<&Path>,
    weights: Option<&Path>,
) -> Result<Option<Own>, RecipeError> {
    match (recipe, weights) {
        (Some(file), _) => recipe_file::read(file).map(Some),
        (None, Some(weights)) => recipe_file::beside(weights),
        (None, None) => Ok(None),
    }
}

/// The recipe of a network's weights: the user's, with a note, or the catalog's.
pub fn recipe(spec: &Spec, own: Option<&Own>) -> Recipe {
    let Some((recipe, file)) = own.and_then(|own| Some((own.recipe?, &own.from))) else {
        return Recipe::of(spec);
    };
    remark_once(&format!(
        "note: {}: pictures are prepared as {} says: {recipe}",
        spec.name,
        file.display()
    ));
    recipe
}
