//! What a file says otherwise than another one: of what a reload changed.

use std::collections::BTreeMap;

use toml::{Table, Value};

/// What is named (a bond, a path, a class; empty: the file), and its settings.
type Sections = BTreeMap<String, BTreeMap<String, String>>;

/// What the text of a good file says that another one did not, a line each: sections that came and went, and
/// settings of those that stayed. Comments, order and layout are no difference.
#[must_use]
pub fn difference(before: &str, after: &str) -> Vec<String> {
    let (before, after) = (sections(before), sections(after));
    let mut lines = Vec::new();
    for (name, was) in &before {
        let Some(is) = after.get(name) else {
            lines.push(format!("{name} removed"));
            continue;
        };
        let about = if name.is_empty() {
            String::new()
        } else {
            format!("{name}: ")
        };
        for (key, value) in was {
            match is.get(key) {
                None => lines.push(format!("{about}{key} no longer set, was {value}")),
                Some(now) if now != value => lines.push(format!("{about}{key} {value} -> {now}")),
                Some(_) => {}
            }
        }
        for (key, value) in is.iter().filter(|(key, _)| !was.contains_key(*key)) {
            lines.push(format!("{about}{key} set to {value}"));
        }
    }
    let new = after.keys().filter(|name| !before.contains_key(*name));
    lines.extend(new.map(|name| format!("{name} added")));
    lines
}

fn sections(text: &str) -> Sections {
    let mut sections = Sections::new();
    // Another text was refused before.
    if let Ok(table) = text.parse::<Table>() {
        enter(&mut sections, "", &table);
    }
    sections
}

/// Takes in a table and those within it, which are known by their names.
fn enter(sections: &mut Sections, name: &str, table: &Table) {
    sections.entry(name.to_owned()).or_default();
    let within = |kind: &str, own: &str| {
        let separator = if name.is_empty() { "" } else { " " };
        format!("{name}{separator}{kind}{own}")
    };
    for (key, value) in table {
        match value {
            Value::Table(table) => enter(sections, &within(key, ""), table),
            Value::Array(all) if all.iter().any(Value::is_table) => {
                for table in all.iter().filter_map(Value::as_table) {
                    let own = table
                        .get("name")
                        .and_then(Value::as_str)
                        .unwrap_or_default();
                    enter(sections, &within(key, &format!(" {own}")), table);
                }
            }
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => {
                let settings = sections.entry(name.to_owned()).or_default();
                settings.insert(key.clone(), value.to_string());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
        route_protocols = ["bird"]
        [metrics]
        listen = 9469
        [[bond]]
        name = "nb0"
        mode = "weighted"
        [[bond.path]]
        name = "a"
        weight = 2
        [[bond.path]]
        name = "b"
        [[bond]]
        name = "nb1"
        [[bond.path]]
        name = "a"
    "#;

    #[test]
    fn what_changed_is_told_and_nothing_else() {
        let to = |from: &str, to: &str| difference(FILE, &FILE.replace(from, to));
        assert_eq!(
            to("name = \"b\"", "# A comment.\nname=\"b\""),
            Vec::<String>::new()
        );
        assert_eq!(
            to("\"weighted\"", "\"adaptive\""),
            ["bond nb0: mode \"weighted\" -> \"adaptive\""]
        );
        assert_eq!(
            to("weight = 2", ""),
            ["bond nb0 path a: weight no longer set, was 2"]
        );
        assert_eq!(
            to("name = \"b\"", "name = \"c\""),
            ["bond nb0 path b removed", "bond nb0 path c added"]
        );
        assert_eq!(
            to(
                "route_protocols = [\"bird\"]",
                "route_protocols = [\"bird\", \"zebra\"]"
            ),
            ["route_protocols [\"bird\"] -> [\"bird\", \"zebra\"]"]
        );
        assert_eq!(
            to("[metrics]\n        listen = 9469", "[bird]"),
            ["metrics removed", "bird added"]
        );
        assert_eq!(
            to("name = \"nb1\"", "name = \"nb1\"\nkey = 7"),
            ["bond nb1: key set to 7"]
        );
        let gone = to(
            "[[bond]]\n        name = \"nb1\"\n        [[bond.path]]\n        name = \"a\"",
            "",
        );
        assert_eq!(gone, ["bond nb1 removed", "bond nb1 path a removed"]);
    }
}
