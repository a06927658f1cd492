//! Options of algorithms, from plans and command lines into cells: a cell holds those that differ from their defaults, so
//! that a new option leaves the keys of old cells alone.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Values of a list that labels show whole.
const SHOWN: usize = 4;

/// By name.
pub type Options = BTreeMap<String, Value>;

/// An option that an algorithm does not have, or a value that it does not take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("options of `{name}`: {why}")]
pub struct BadOptions {
    /// The algorithm.
    pub name: &'static str,
    /// What is wrong, and what there is.
    pub why: String,
}

/// The settings of the algorithm `name`: its defaults where `options` are silent.
pub fn settings<T: DeserializeOwned>(
    name: &'static str,
    options: &Options,
) -> Result<T, BadOptions> {
    let map: serde_json::Map<String, Value> = options.clone().into_iter().collect();
    serde_json::from_value(Value::Object(map)).map_err(|error| BadOptions {
        name,
        why: error.to_string(),
    })
}

/// Refuses options of an algorithm that has none.
pub fn none(name: &'static str, options: &Options) -> Result<(), BadOptions> {
    match options.keys().next() {
        None => Ok(()),
        Some(option) => Err(BadOptions {
            name,
            why: format!("there is no option `{option}`; it takes none"),
        }),
    }
}

/// All of `settings`.
pub fn all<T: Serialize>(settings: &T) -> Options {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map.into_iter().collect(),
        _ => unreachable!("settings are structs of numbers and names"),
    }
}

/// What of `settings` differs from the defaults.
pub fn differing<T: Serialize + Default>(settings: &T) -> Options {
    let mut defaults = all(&T::default());
    all(settings)
        .into_iter()
        .filter(|(name, value)| defaults.remove(name).as_ref() != Some(value))
        .collect()
}

/// An algorithm as plans name it: `"erk"`, or `{ name = "erk", erk_power = 0.5 }`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub struct Chosen {
    /// Its name.
    pub name: String,
    /// What it is told.
    pub options: Options,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a name, or a table with `name` and options"
)]
enum Written {
    Name(String),
    Table {
        name: String,
        #[serde(flatten)]
        options: Options,
    },
}

impl From<Written> for Chosen {
    fn from(written: Written) -> Self {
        match written {
            Written::Name(name) => Self::plain(name),
            Written::Table { name, options } => Self { name, options },
        }
    }
}

impl Chosen {
    /// With its defaults.
    pub fn plain(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            options: Options::new(),
        }
    }
}

/// On a command line: `wanda`, or `wanda,group=layer`. Values are TOML's, and words need no quotes.
impl std::str::FromStr for Chosen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut depth = 0i32;
        let parts = text.split(|c| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            c == ',' && depth == 0
        });
        let mut parts = parts.map(str::trim);
        let mut chosen = Self::plain(parts.next().unwrap_or_default());
        for part in parts {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("`{part}` is no option; write NAME,OPTION=VALUE"))?;
            let value = match toml::from_str::<toml::Table>(&format!("v = {value}")) {
                Ok(mut table) => table.remove("v").and_then(|v| serde_json::to_value(v).ok()),
                Err(_) => Some(Value::from(value)),
            };
            chosen
                .options
                .insert(name.trim().to_owned(), value.unwrap_or_default());
        }
        Ok(chosen)
    }
}

/// The name, and the options where there are some.
impl std::fmt::Display for Chosen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)?;
        write_options(f, &self.options)
    }
}

/// ` (a = 1, b = "x")`, or nothing.
pub fn write_options(f: &mut std::fmt::Formatter<'_>, options: &Options) -> std::fmt::Result {
    match options.is_empty() {
        true => Ok(()),
        false => write!(f, " ({})", list(options, shortened)),
    }
}

/// A long list by its beginning: a label may name dozens of layers.
fn shortened(value: &Value) -> String {
    match value {
        Value::Array(all) if all.len() > SHOWN => {
            let first: Vec<String> = all[..2].iter().map(Value::to_string).collect();
            format!("[{} and {} more]", first.join(","), all.len() - 2)
        }
        value => value.to_string(),
    }
}

/// `a = 1, b = "x"`.
pub fn listed(options: &Options) -> String {
    list(options, Value::to_string)
}

fn list(options: &Options, text: impl Fn(&Value) -> String) -> String {
    let pair = |(name, value): (&String, &Value)| format!("{name} = {}", text(value));
    let pairs: Vec<String> = options.iter().map(pair).collect();
    pairs.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Few {
        power: f64,
        steps: usize,
    }

    impl Default for Few {
        fn default() -> Self {
            Self {
                power: 1.0,
                steps: 5,
            }
        }
    }

    #[test]
    fn defaults_are_filled_in_and_left_out() {
        let given = Options::from([("steps".to_owned(), 7.into()), ("power".into(), 1.0.into())]);
        let few: Few = settings("few", &given).unwrap();
        assert_eq!(
            few,
            Few {
                power: 1.0,
                steps: 7
            }
        );
        assert_eq!(
            differing(&few),
            Options::from([("steps".to_owned(), 7.into())])
        );
        let unknown = Options::from([("stesp".to_owned(), 7.into())]);
        let error = settings::<Few>("few", &unknown).unwrap_err().to_string();
        assert!(
            error.contains("few") && error.contains("`stesp`"),
            "{error}"
        );
        assert!(none("plain", &unknown).is_err() && none("plain", &Options::new()).is_ok());
    }

    #[test]
    fn plans_name_an_algorithm_with_or_without_options() {
        #[derive(Deserialize)]
        struct Plan {
            all: Vec<Chosen>,
        }
        let plan: Plan = toml::from_str(r#"all = ["erk", { name = "few", steps = 7 }]"#).unwrap();
        assert_eq!(plan.all[0], Chosen::plain("erk"));
        assert_eq!(plan.all[1].options["steps"], 7);
        assert_eq!(plan.all[1].to_string(), "few (steps = 7)");
        let typed: Chosen = "few,steps=7,word=layer,list=[[64, 8], [1, 1]]"
            .parse()
            .unwrap();
        assert_eq!(
            typed.to_string(),
            "few (list = [[64,8],[1,1]], steps = 7, word = \"layer\")"
        );
        let long: Chosen = "few,list=[1,2,3,4,5]".parse().unwrap();
        assert_eq!(long.to_string(), "few (list = [1,2 and 3 more])");
        assert_eq!(listed(&long.options), "list = [1,2,3,4,5]");
        assert!("few,steps".parse::<Chosen>().is_err());
    }
}
