//! Changes single settings in the text of a configuration file; all else, comments too, stays as it is.

use anyhow::{Context as _, Result, bail};
use netbond_common::names::Mode;
use toml_edit::{DocumentMut, Item, TableLike, Value};

/// One setting, and what it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// The mode of a bond, of which `bond` is the name.
    Mode { bond: String, mode: Mode },
    /// The weight of a path, whose name is `path`.
    Weight { path: String, weight: u32 },
}

impl Setting {
    /// As the file says it.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Mode { mode, .. } => format!("mode = \"{}\"", mode.label()),
            Self::Weight { weight, .. } => format!("weight = {weight}"),
        }
    }

    /// The text of a file with this setting in it. Whether the file means something then is another
    /// matter: [`super::Config::parse`] says.
    ///
    /// # Errors
    ///
    /// Where the text is no TOML, or has no such bond or path.
    pub fn write_into(&self, text: &str) -> Result<String> {
        let mut document: DocumentMut = text.parse().context("the file is not TOML")?;
        let bonds = document.get_mut("bond");
        match self {
            Self::Mode { bond, mode } => {
                let mut bonds = tables(bonds).into_iter();
                let Some(table) = bonds.find(|table| is_named(&**table, bond)) else {
                    bail!("the file has no bond \"{bond}\"");
                };
                set(table, "mode", mode.label().into());
            }
            Self::Weight { path, weight } => {
                let bonds = tables(bonds).into_iter();
                let mut paths = bonds.flat_map(|bond| tables(bond.get_mut("path")));
                let Some(table) = paths.find(|table| is_named(&**table, path)) else {
                    bail!("the file has no path \"{path}\"");
                };
                set(table, "weight", i64::from(*weight).into());
            }
        }
        Ok(document.to_string())
    }
}

/// The tables of a list, whichever way it is written: `[[bond]]`, or `bond = [{ .. }]`.
fn tables(list: Option<&mut Item>) -> Vec<&mut dyn TableLike> {
    match list {
        Some(Item::ArrayOfTables(tables)) => tables
            .iter_mut()
            .map(|table| table as &mut dyn TableLike)
            .collect(),
        Some(Item::Value(Value::Array(values))) => values
            .iter_mut()
            .filter_map(|value| Some(value.as_inline_table_mut()? as &mut dyn TableLike))
            .collect(),
        Some(Item::None | Item::Value(_) | Item::Table(_)) | None => Vec::new(),
    }
}

fn is_named(table: &dyn TableLike, name: &str) -> bool {
    table.get("name").and_then(Item::as_str) == Some(name)
}

/// A value that was there gives its place, and the comment behind it, to the new one.
fn set(table: &mut dyn TableLike, key: &str, mut value: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            *value.decor_mut() = old.decor().clone();
            *old = value;
        }
        None => {
            table.insert(key, Item::Value(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const EXAMPLE: &str = include_str!("../../../netbond.example.toml");

    fn mode(bond: &str, mode: Mode) -> Setting {
        Setting::Mode {
            bond: bond.to_owned(),
            mode,
        }
    }

    fn weight(path: &str, weight: u32) -> Setting {
        Setting::Weight {
            path: path.to_owned(),
            weight,
        }
    }

    /// The lines of one text that the other has not, and the other way round.
    fn difference(before: &str, after: &str) -> (Vec<String>, Vec<String>) {
        let lacks = |text: &str, line: &str| !text.lines().any(|other| other == line);
        let of = |one: &str, other: &str| {
            let lines = one.lines().filter(|line| lacks(other, line));
            lines.map(str::to_owned).collect()
        };
        (of(before, after), of(after, before))
    }

    #[test]
    fn a_value_changes_and_nothing_else() {
        let after = mode("nb0", Mode::Weighted).write_into(EXAMPLE).unwrap();
        assert_eq!(
            difference(EXAMPLE, &after),
            (
                vec!["mode = \"round-robin\"".to_owned()],
                vec!["mode = \"weighted\"".to_owned()]
            )
        );
        assert_eq!(after.lines().count(), EXAMPLE.lines().count());
        let config = Config::parse(&after, "x").unwrap();
        assert_eq!(config.bonds[0].mode, Mode::Weighted);
    }

    #[test]
    fn a_new_key_stands_in_its_own_table() {
        let weighted = mode("nb0", Mode::Weighted).write_into(EXAMPLE).unwrap();
        let after = weight("via-m1", 7).write_into(&weighted).unwrap();
        assert_eq!(
            difference(&weighted, &after),
            (Vec::new(), vec!["weight = 7".to_owned()])
        );
        let config = Config::parse(&after, "x").unwrap();
        let weights = config.bonds[0].paths.iter().map(|path| path.weight);
        assert_eq!(weights.collect::<Vec<_>>(), [7, 1]);
    }

    #[test]
    fn the_comment_behind_a_value_stays() {
        let text = "[[bond]]\nname='nb0' # one\n mode  =  'flow'   # why\n";
        let after = mode("nb0", Mode::Weighted).write_into(text).unwrap();
        assert_eq!(after, text.replace("'flow'", "\"weighted\""));
    }

    #[test]
    fn lists_written_in_line() {
        let text = "bond = [{ name = \"nb0\", path = [{ name = \"a\", weight = 1 }] }]\n";
        let after = weight("a", 9).write_into(text).unwrap();
        assert_eq!(after, text.replace("weight = 1", "weight = 9"));
        let after = mode("nb0", Mode::Flow).write_into(text).unwrap();
        assert!(after.contains("mode = \"flow\""), "{after}");
        assert!(after.parse::<DocumentMut>().is_ok(), "{after}");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        for (setting, text, said) in [
            (mode("nb9", Mode::Flow), EXAMPLE, "no bond \"nb9\""),
            (weight("via-m9", 1), EXAMPLE, "no path \"via-m9\""),
            (weight("via-m1", 1), "bond = 1", "no path"),
            (weight("via-m1", 1), "[[", "not TOML"),
        ] {
            let error = setting.write_into(text).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
