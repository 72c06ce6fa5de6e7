//! Writing configuration files, line by line.

/// Lines of text.
#[derive(Default)]
pub(crate) struct Text(pub(crate) String);

impl Text {
    pub(crate) fn line(&mut self, line: impl AsRef<str>) {
        self.0 += line.as_ref();
        self.0.push('\n');
    }

    pub(crate) fn comment(&mut self, line: impl AsRef<str>) {
        self.line(format!("# {}", line.as_ref()).trim_end());
    }

    /// A comment of as many lines as it takes.
    pub(crate) fn wrapped(&mut self, text: &str) {
        const WIDTH: usize = 98;
        let mut line = String::new();
        for word in text.split_whitespace() {
            if !line.is_empty() && line.len() + 1 + word.len() > WIDTH {
                self.comment(&line);
                line.clear();
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        self.comment(&line);
    }

    /// A list of texts, or what is shown as such.
    pub(crate) fn list<T: ToString>(&mut self, key: &str, values: &[T]) {
        let values: Vec<String> = values
            .iter()
            .map(|value| quoted(&value.to_string()))
            .collect();
        self.line(format!("{key} = [{}]", values.join(", ")));
    }
}

pub(crate) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// This name, or where it is taken the first of `NAME-2`, `NAME-3`, ... that is not.
pub(crate) fn unique(name: String, taken: &[&str]) -> String {
    let mut unique = name.clone();
    let mut number = 2;
    while taken.contains(&unique.as_str()) {
        unique = format!("{name}-{number}");
        number += 1;
    }
    unique
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_are_quoted() {
        for name in ["nb0", "a\"b", "a\\b", "a'b"] {
            let parsed: toml::Table = format!("x = {}", quoted(name)).parse().unwrap();
            assert_eq!(parsed["x"].as_str(), Some(name));
        }
    }

    #[test]
    fn long_comments_are_wrapped() {
        let mut text = Text::default();
        text.wrapped(&"word ".repeat(50));
        assert_eq!(text.0.lines().count(), 3);
        assert!(
            text.0
                .lines()
                .all(|line| line.starts_with("# word") && line.len() <= 100)
        );
        assert_eq!(text.0.matches("word").count(), 50);
    }
}
