//! A detector's recipe in our own form: what differs from the numbers of the program that its family comes from.

use serde::Deserialize;

use crate::data::recipe::boxes::DetectionRecipe;

/// What a file says; the rest stays as it is.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnBoxes {
    /// The shorter side after resizing.
    min_size: Option<usize>,
    /// The longer side at most.
    max_size: Option<usize>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
    /// The smallest anchor's side.
    anchor_size: Option<usize>,
    score_threshold: Option<f32>,
    /// Boxes looked at: of a level, or of a class.
    candidates: Option<usize>,
    nms_threshold: Option<f32>,
    /// Boxes of an image at most.
    detections: Option<usize>,
}

/// The keys that only a detector's recipe has.
const KEYS: [&str; 7] = [
    "min_size",
    "max_size",
    "anchor_size",
    "score_threshold",
    "candidates",
    "nms_threshold",
    "detections",
];

/// What a detector's file says, and the names of classes if it has them.
type Said = (OwnBoxes, Option<Vec<String>>);

/// What a TOML file says; nothing where it does not speak of detectors.
pub(super) fn of_toml(text: &str) -> Option<Result<Said, String>> {
    let mut table: toml::Table = toml::from_str(text).ok()?;
    if !KEYS.iter().any(|key| table.contains_key(*key)) {
        return None;
    }
    let labels = table.remove("labels");
    let labels = labels.map(toml::Value::try_into::<Vec<String>>).transpose();
    let read = labels.and_then(|labels| Ok((OwnBoxes::deserialize(table)?, labels)));
    Some(read.map_err(|error| {
        format!(
            "{}; a detector's recipe may have {}, mean, std and labels (docs/weights.md)",
            error.to_string().trim_end(),
            KEYS.join(", ")
        )
    }))
}

/// Puts a value in its place where there is one.
fn put<T: Copy>(value: Option<T>, place: &mut T) {
    if let Some(value) = value {
        *place = value;
    }
}

impl OwnBoxes {
    /// The recipe with what the file says.
    pub fn onto(&self, mut recipe: DetectionRecipe) -> Result<DetectionRecipe, String> {
        match &mut recipe {
            DetectionRecipe::RetinaNet {
                sides,
                statistics,
                anchor,
                rules,
            } => {
                put(self.min_size, &mut sides.short);
                put(self.max_size, &mut sides.long);
                put(self.mean, &mut statistics.mean);
                put(self.std, &mut statistics.std);
                put(self.anchor_size, anchor);
                put(self.score_threshold, &mut rules.score);
                put(self.candidates, &mut rules.candidates);
                // The decimal that was written, not the nearest f32's.
                let overlap = self.nms_threshold.map(|value| value.to_string().parse());
                put(overlap.and_then(Result::ok), &mut rules.overlap);
                put(self.detections, &mut rules.most);
            }
            DetectionRecipe::Ssd { priors, rules } => {
                let fixed = [
                    ("min_size", self.min_size.is_some()),
                    ("max_size", self.max_size.is_some()),
                    ("mean", self.mean.is_some()),
                    ("std", self.std.is_some()),
                    ("anchor_size", self.anchor_size.is_some()),
                    ("detections", self.detections.is_some()),
                ];
                if let Some((key, _)) = fixed.iter().find(|(_, given)| *given) {
                    return Err(format!(
                        "{key} is for RetinaNet: an SSD's pictures are {0} x {0}, (value - 127) / 128, its priors are fixed, and no boxes are left out; take the key out",
                        priors.side
                    ));
                }
                put(self.score_threshold, &mut rules.score);
                put(self.candidates, &mut rules.candidates);
                put(self.nms_threshold, &mut rules.overlap);
            }
        }
        recipe.sound().map(|()| recipe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(model: &str, text: &str) -> Result<String, String> {
        let spec = model_zoo::catalog::find(model).unwrap();
        let (own, _) = of_toml(text).expect("a detector's file")?;
        let recipe = own.onto(DetectionRecipe::of(spec).unwrap())?;
        assert_eq!(recipe.to_string().parse(), Ok(recipe));
        Ok(recipe.to_string())
    }

    #[test]
    fn a_file_changes_what_it_names() {
        let text = "min_size = 400\nmax_size = 600\nnms_threshold = 0.6\nlabels = [\"a\"]\nmean = [0.5, 0.5, 0.5]";
        let found = recipe("retinanet_resnet18_fpn", text).unwrap();
        assert!(
            found
                .starts_with("shorter side 400, longer side 600, mean [0.5, 0.5, 0.5], std [0.229"),
            "{found}"
        );
        assert!(found.ends_with("overlap 0.6, 300 boxes"), "{found}");
        let found = recipe("mobilenetv1_ssd", "score_threshold = 0.3").unwrap();
        assert!(found.contains("score above 0.3, 200 candidates"), "{found}");
        assert_eq!(of_toml("size = 224"), None);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (model, text, says) in [
            (
                "mobilenetv1_ssd",
                "min_size = 320",
                "min_size is for RetinaNet",
            ),
            (
                "retinanet_resnet18_fpn",
                "min_size = 900\nmax_size = 800",
                "max_size 800",
            ),
            (
                "retinanet_resnet18_fpn",
                "score_threshold = 1.5",
                "threshold is 1.5",
            ),
            (
                "retinanet_resnet18_fpn",
                "min_size = 800\nsquash = true",
                "squash",
            ),
            (
                "retinanet_resnet18_fpn",
                "min_size = 8\nlabels = 3",
                "labels",
            ),
            ("retinanet_resnet18_fpn", "detections = 0", "0 boxes"),
        ] {
            let error = recipe(model, text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
