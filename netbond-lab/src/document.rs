//! A document whose commands can be run: the first line of each fenced block says on which machines.
//!
//! | block | first line | the rest |
//! |---|---|---|
//! | `sh` | `# on A and B` | commands for bash, on each of these machines |
//! | `ini`, `toml`, `sh` and others | `# A: /etc/bird/bird.conf` | the file to be written there |
//! | `text` | | what the commands of the `sh` block above print, on the first of its machines |
//! | `diagram` | | a picture |
//!
//! `<!-- test: M1 falls silent -->` on a line of its own is what happens to the machines at this place of
//! the document: no command does it, and whoever runs the document has to. A block of any other kind is an
//! error: what nobody runs is not to be found in the document.

use anyhow::{Context as _, Result, bail, ensure};

/// What to do at one place of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The line of the document, counted from 1.
    pub line: usize,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run commands on each of the machines.
    Run {
        machines: Vec<String>,
        script: String,
        /// What they print on the first one: see [`shows`].
        printed: Option<String>,
    },
    /// Write a file on each of the machines.
    Write {
        machines: Vec<String>,
        path: String,
        text: String,
    },
    /// Let this happen.
    Happen(String),
}

/// A fenced block.
struct Block<'a> {
    line: usize,
    language: &'a str,
    text: Vec<&'a str>,
}

/// The steps of a document, in its order.
///
/// # Errors
///
/// Names the line of a block that does not say where it runs.
pub fn parse(document: &str) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut lines = document.lines().zip(1..);
    while let Some((text, line)) = lines.next() {
        if let Some(comment) = text.strip_prefix("<!-- test: ") {
            let what = comment
                .strip_suffix(" -->")
                .with_context(|| format!("line {line}: the comment does not end with its line"))?;
            steps.push(Step {
                line,
                action: Action::Happen(what.to_owned()),
            });
        } else if let Some(language) = text.strip_prefix("```") {
            let text = lines
                .by_ref()
                .map(|(text, _)| text)
                .take_while(|text| *text != "```")
                .collect();
            let block = Block {
                line,
                language,
                text,
            };
            add(&mut steps, &block).with_context(|| format!("line {line}"))?;
        } else {
            let hidden = text.trim_start().starts_with("```") || text.starts_with("    ");
            ensure!(!hidden, "line {line}: a block that is indented is not run");
        }
    }
    Ok(steps)
}

fn add(steps: &mut Vec<Step>, block: &Block<'_>) -> Result<()> {
    match block.language {
        "diagram" => return Ok(()),
        "text" => {
            let last = steps.last_mut().map(|step| &mut step.action);
            let Some(Action::Run { printed, .. }) = last else {
                bail!("no commands above print this");
            };
            ensure!(printed.is_none(), "the commands above have their output");
            *printed = Some(lines(&block.text));
            return Ok(());
        }
        _ => {}
    }
    let (first, rest) = block.text.split_first().context("the block is empty")?;
    let action = if let Some(machines) = first.strip_prefix("# on ") {
        ensure!(block.language == "sh", "commands are marked `sh`");
        Action::Run {
            machines: names(machines)?,
            script: lines(rest),
            printed: None,
        }
    } else {
        let (machines, path) = first
            .strip_prefix("# ")
            .and_then(|marker| marker.split_once(": /"))
            .with_context(|| {
                format!("it begins with {first:?}, and not with `# on A` or `# A: /FILE`")
            })?;
        Action::Write {
            machines: names(machines)?,
            path: format!("/{path}"),
            text: lines(rest),
        }
    };
    steps.push(Step {
        line: block.line,
        action,
    });
    Ok(())
}

fn lines(text: &[&str]) -> String {
    text.iter().map(|line| format!("{line}\n")).collect()
}

/// The machines of `A, B and M1`.
fn names(text: &str) -> Result<Vec<String>> {
    let names: Vec<String> = text
        .replace(" and ", ", ")
        .split(", ")
        .map(str::to_owned)
        .collect();
    let good = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
    ensure!(names.iter().all(good), "{text:?} names no machines");
    Ok(names)
}

/// Commands within sentences that no block runs. A span of code is taken for a command where it begins
/// with a program that blocks run, and goes on.
#[must_use]
pub fn not_run(document: &str, steps: &[Step]) -> Vec<String> {
    let scripts: Vec<&str> = steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Run { script, .. } => Some(script.as_str()),
            Action::Write { .. } | Action::Happen(_) => None,
        })
        .collect();
    let programs: Vec<&str> = scripts
        .iter()
        .flat_map(|script| script.lines())
        .filter_map(|line| line.split(' ').next())
        .collect();
    let mut fenced = false;
    let mut left = Vec::new();
    for (line, number) in document.lines().zip(1..) {
        if line.starts_with("```") {
            fenced = !fenced;
        }
        if fenced {
            continue;
        }
        // Every second part stands between backquotes.
        for code in line.split('`').skip(1).step_by(2) {
            let is_command = code
                .split_once(' ')
                .is_some_and(|(program, _)| programs.contains(&program));
            if is_command && !scripts.iter().any(|script| script.contains(code)) {
                left.push(format!("line {number}: {code}"));
            }
        }
    }
    left
}

/// Whether what was printed is what the document shows: each of the lines shown is there, in whatever order
/// (which neighbour comes first depends on who was faster), and others may be. Figures may differ: a word that
/// begins with a digit stands for any other, and for `-`, which is a figure not known. A line `...` stands for
/// nothing, at the end of a line for all that follows.
///
/// # Errors
///
/// Names the first line that is missing.
pub fn shows(shown: &str, printed: &str) -> Result<()> {
    let mut left: Vec<&str> = printed.lines().collect();
    for line in shown.lines() {
        if line.trim().is_empty() || line == "..." {
            continue;
        }
        let place = left.iter().position(|candidate| alike(line, candidate));
        let place = place
            .with_context(|| format!("{line:?} is missing in what was printed:\n{printed}"))?;
        left.remove(place);
    }
    Ok(())
}

fn alike(shown: &str, printed: &str) -> bool {
    let figure = |word: &str| word == "-" || word.starts_with(|c: char| c.is_ascii_digit());
    let mut printed = printed.split_whitespace();
    for word in shown.split_whitespace() {
        if word == "..." {
            return true;
        }
        match printed.next() {
            Some(other) if word == other || figure(word) && figure(other) => {}
            Some(_) | None => return false,
        }
    }
    printed.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_say_where_they_run() {
        let document = "\
Text.
```sh
# on A, B and M1
ip link
```
```text
1: lo: ...
```
<!-- test: M1 falls silent -->
```ini
# A and B: /etc/x.conf
# a comment
y = 1
```
```diagram
A === B
```
";
        let both = || vec!["A".to_owned(), "B".to_owned()];
        let steps = parse(document).unwrap();
        let expected = [
            Step {
                line: 2,
                action: Action::Run {
                    machines: vec!["A".to_owned(), "B".to_owned(), "M1".to_owned()],
                    script: "ip link\n".to_owned(),
                    printed: Some("1: lo: ...\n".to_owned()),
                },
            },
            Step {
                line: 9,
                action: Action::Happen("M1 falls silent".to_owned()),
            },
            Step {
                line: 10,
                action: Action::Write {
                    machines: both(),
                    path: "/etc/x.conf".to_owned(),
                    text: "# a comment\ny = 1\n".to_owned(),
                },
            },
        ];
        assert_eq!(steps, expected);
    }

    #[test]
    fn what_does_not_say_where_it_runs_is_refused() {
        for (document, wanted) in [
            (
                "a\n```sh\nip link\n```\n",
                "line 2: it begins with \"ip link\"",
            ),
            ("```\n# on A\nx\n```\n", "commands are marked `sh`"),
            ("```sh\n# on\nx\n```\n", "it begins with"),
            ("```sh\n# on A B\nx\n```\n", "names no machines"),
            ("```text\nx\n```\n", "no commands above"),
            (
                "- x:\n  ```sh\n  # on A\n  ```\n",
                "line 2: a block that is indented",
            ),
            ("x\n\n    ip link\n", "line 3: a block that is indented"),
            ("```sh\n```\n", "empty"),
            ("<!-- test: x\n-->\n", "line 1: the comment"),
        ] {
            let error = format!("{:#}", parse(document).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn commands_in_sentences_are_run_somewhere() {
        let document =
            "`ip link` and `ip route`, by `ip`.\n```sh\n# on A\nip link show\n```\n`x y`";
        let steps = parse(document).unwrap();
        assert_eq!(not_run(document, &steps), ["line 1: ip route"]);
    }

    #[test]
    fn figures_may_differ_and_words_may_not() {
        let printed = "nb0: up, 2 of 2\n\nPATH  RTT ms\nvia-m1  -\nvia-m2  8.12\n";
        for shown in [
            "nb0: up, 1 of 2\n",
            "PATH RTT ms\nvia-m1  9.1\n",
            "via-m2  1.0\n",
            "nb0: ...\n...\nvia-m2 ...\n",
            "via-m2  1.0\nvia-m1  9.1\n",
        ] {
            shows(shown, printed).unwrap();
        }
        for shown in [
            "nb0: down, 2 of 2\n",
            "PATH  RTT\n",
            "PATH  RTT ms  X\n",
            // Not as often.
            "via-m1  1.0\nvia-m1  9.1\n",
            "via-m3  1.0\n",
        ] {
            shows(shown, printed).unwrap_err();
        }
    }
}
