//! Tables of JSON fields in the documentation, against what is printed. For tests.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// The type of each field, by its way from the root: `bonds[].paths[].name`. `is_map`: whether the keys of
/// what is found there are data; what stands for them then.
fn types(
    value: &Value,
    at: &str,
    is_map: fn(&str) -> Option<&'static str>,
    into: &mut BTreeMap<String, &'static str>,
) {
    let kind = match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = is_map(at).unwrap_or(key);
                let dot = if at.is_empty() { "" } else { "." };
                types(value, &format!("{at}{dot}{key}"), is_map, into);
            }
            "object"
        }
        Value::Array(elements) => {
            for element in elements {
                types(element, &format!("{at}[]"), is_map, into);
            }
            "array"
        }
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
    };
    if !at.is_empty() && !at.ends_with("[]") {
        into.insert(at.to_owned(), kind);
    }
}

/// The fields as they are printed, each with its type, and with `or null` where it may have none. `full` has
/// every field with a value; each of `without` lacks some that may have none.
#[must_use]
pub(crate) fn printed<T: Serialize>(
    full: &T,
    without: &[T],
    is_map: fn(&str) -> Option<&'static str>,
) -> BTreeMap<String, String> {
    let of = |value: &T| {
        let mut found = BTreeMap::new();
        let value = serde_json::to_value(value).expect("it is printed as JSON");
        types(&value, "", is_map, &mut found);
        found
    };
    let nulls: Vec<String> = without
        .iter()
        .flat_map(of)
        .filter_map(|(field, kind)| (kind == "null").then_some(field))
        .collect();
    let described = of(full).into_iter().map(|(field, kind)| {
        let or_null = if nulls.contains(&field) {
            " or null"
        } else {
            ""
        };
        (field, format!("{kind}{or_null}"))
    });
    described.collect()
}

/// The first two columns of the tables whose first column is a field in code, below a heading and before the
/// next one: a line that starts with `#`.
#[must_use]
pub(crate) fn documented(document: &str, heading: &str) -> BTreeMap<String, String> {
    let (_, section) = document
        .split_once(&format!("\n{heading}\n"))
        .unwrap_or_else(|| panic!("no heading {heading}"));
    let rows = section
        .lines()
        .take_while(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let field = cells.next()?.trim_end_matches('`').to_owned();
            Some((field, cells.next()?.to_owned()))
        });
    rows.collect()
}
