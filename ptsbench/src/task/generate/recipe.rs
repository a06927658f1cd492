//! How images are generated and compared, as a text in the cell: every number that changes one of them.

use std::fmt;
use std::str::FromStr;

use model_zoo::catalog::Spec;
use model_zoo::diffusion::sampler::{Noising, Prediction, Process, Spacing};

/// Version of the streams that noise and prompts are drawn from: raised whenever a draw may change.
pub const STREAM: u32 = 1;

/// Classifier-free guidance of Stable Diffusion 2, where nobody says otherwise.
const GUIDANCE: f64 = 7.5;

/// How images are generated and compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Recipe {
    /// What the network undoes, by how many steps.
    pub process: Process,
    /// Channels, height and width of the noise that an image begins as.
    pub noise: [usize; 3],
    /// The strength of classifier-free guidance; none for a network without a context.
    pub guidance: Option<f64>,
    /// SHA-256 of what stands around the network: text encoder, tokenizer, autoencoder; none where nothing does.
    pub parts: Option<String>,
    /// Whose features are compared; none where nothing is.
    pub features: Option<String>,
}

impl Recipe {
    /// The recipe that a network is made for; nothing for networks that predict no noise.
    pub fn of(spec: &Spec, features: Option<&str>) -> Option<Self> {
        Some(Self {
            process: spec.process()?,
            noise: spec.input,
            guidance: spec.context().map(|_| GUIDANCE),
            parts: None,
            features: features.map(str::to_owned),
        })
    }
}

/// As `DDIM, 20 steps (trailing), cosine noising, velocity, noise of 3x32x32 (stream 1), features of random_conv`.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Process {
            noising,
            prediction,
            spacing,
            steps,
        } = self.process;
        let [channels, height, width] = self.noise;
        write!(
            f,
            "DDIM, {steps} steps ({}), {} noising, predicts {}, noise of {channels}x{height}x{width} (stream {STREAM})",
            spacing.name(),
            noising.name(),
            prediction.name()
        )?;
        if let Some(guidance) = self.guidance {
            write!(f, ", guidance {guidance}")?;
        }
        if let Some(parts) = &self.parts {
            write!(f, ", parts {parts}")?;
        }
        match &self.features {
            Some(features) => write!(f, ", features of {features}"),
            None => Ok(()),
        }
    }
}

/// A text that is no recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no recipe of generated images: {problem}")]
pub struct BadRecipe {
    text: String,
    problem: String,
}

/// What is between two texts.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

/// The value of this name.
fn called<T: Copy>(all: &[T], name: fn(T) -> &'static str, wanted: &str) -> Option<T> {
    all.iter().copied().find(|one| name(*one) == wanted)
}

impl FromStr for Recipe {
    type Err = BadRecipe;

    fn from_str(text: &str) -> Result<Self, BadRecipe> {
        let bad = |problem: String| BadRecipe {
            text: text.to_owned(),
            problem,
        };
        let mut clauses = text.split(", ");
        let mut next = |what: &'static str| {
            let clause = clauses.next();
            clause.ok_or_else(|| bad(format!("expected {what} at its end")))
        };
        let wrong = |clause: &str, what: &str| bad(format!("expected {what}, found `{clause}`"));
        let clause = next("DDIM")?;
        if clause != "DDIM" {
            return Err(wrong(clause, "DDIM"));
        }
        let what = "the steps, as `20 steps (trailing)`";
        let clause = next(what)?;
        let steps = clause.strip_suffix(')').and_then(|clause| {
            let (steps, spacing) = clause.split_once(" steps (")?;
            let spacing = called(&Spacing::ALL, Spacing::name, spacing)?;
            Some((steps.parse().ok()?, spacing))
        });
        let (steps, spacing) = steps.ok_or_else(|| wrong(clause, what))?;
        let what = "how noise grows, as `cosine noising`";
        let clause = next(what)?;
        let noising = between(clause, "", " noising")
            .and_then(|name| called(&Noising::ALL, Noising::name, name))
            .ok_or_else(|| wrong(clause, what))?;
        let what = "the prediction, as `predicts velocity`";
        let clause = next(what)?;
        let prediction = between(clause, "predicts ", "")
            .and_then(|name| called(&Prediction::ALL, Prediction::name, name))
            .ok_or_else(|| wrong(clause, what))?;
        let what = format!("the noise, as `noise of 3x32x32 (stream {STREAM})`");
        let clause = next("the noise")?;
        let noise = between(clause, "noise of ", &format!(" (stream {STREAM})"))
            .and_then(|shape| {
                let sides: Option<Vec<usize>> =
                    shape.split('x').map(|side| side.parse().ok()).collect();
                <[usize; 3]>::try_from(sides?).ok()
            })
            .ok_or_else(|| wrong(clause, &what))?;
        let mut recipe = Self {
            process: Process {
                noising,
                prediction,
                spacing,
                steps,
            },
            noise,
            guidance: None,
            parts: None,
            features: None,
        };
        for clause in clauses {
            if let Some(guidance) = clause.strip_prefix("guidance ") {
                let guidance: Option<f64> = guidance.parse().ok();
                let finite = guidance.filter(|guidance| guidance.is_finite());
                recipe.guidance = Some(finite.ok_or_else(|| wrong(clause, "a number"))?);
            } else if let Some(parts) = clause.strip_prefix("parts ") {
                recipe.parts = Some(parts.to_owned());
            } else if let Some(features) = clause.strip_prefix("features of ") {
                recipe.features = Some(features.to_owned());
            } else {
                return Err(wrong(clause, "guidance, parts or features"));
            }
        }
        Ok(recipe)
    }
}

#[cfg(test)]
mod tests {
    use model_zoo::catalog;

    use super::*;

    #[test]
    fn a_recipe_is_its_text() {
        let micro = Recipe::of(catalog::find("micro_unet_s").unwrap(), Some("random_conv"));
        let micro = micro.unwrap();
        assert_eq!(
            micro.to_string(),
            "DDIM, 20 steps (trailing), cosine noising, predicts velocity, noise of 3x32x32 (stream 1), features of random_conv"
        );
        let large = Recipe::of(catalog::find("sd2_unet").unwrap(), None).unwrap();
        let large = Recipe {
            parts: Some("ab".repeat(32)),
            ..large
        };
        for recipe in [micro, large] {
            assert_eq!(recipe.to_string().parse(), Ok(recipe));
        }
        assert_eq!(Recipe::of(catalog::find("resnet18").unwrap(), None), None);
    }

    #[test]
    fn other_texts_are_refused_by_what_is_wrong() {
        let good = Recipe::of(catalog::find("sd2_unet").unwrap(), Some("inception")).unwrap();
        let good = good.to_string();
        for (from, to, said) in [
            ("DDIM", "DDPM", "expected DDIM, found `DDPM`"),
            ("(leading)", "(even)", "found `50 steps (even)`"),
            ("50", "many", "found `many steps"),
            ("scaled linear", "sudden", "found `sudden noising`"),
            ("noise, ", "colour, ", "found `predicts colour`"),
            ("4x64x64", "4x64", "found `noise of 4x64 "),
            ("stream 1", "stream 0", "(stream 1)`, found"),
            ("guidance 7.5", "guidance inf", "expected a number"),
            ("features of", "likes", "found `likes inception`"),
        ] {
            assert!(good.contains(from), "{from} in {good}");
            let error = good.replacen(from, to, 1).parse::<Recipe>().unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
        let error = "DDIM, 20 steps (trailing)".parse::<Recipe>().unwrap_err();
        assert!(error.to_string().contains("at its end"), "{error}");
    }
}
