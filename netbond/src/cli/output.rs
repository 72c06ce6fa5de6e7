//! Files that commands write.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Where a configuration goes that a command makes.
#[derive(Debug, clap::Args)]
pub(super) struct Output {
    /// File to write, which must not exist; standard output where it is left out
    #[arg(short = 'o', long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the file even where it exists
    #[arg(long, requires = "output")]
    force: bool,
}

/// What commands call a file that was written to standard output.
const UNNAMED: &str = "netbond.toml";

impl Output {
    /// Its name, for people.
    pub(super) fn name(&self) -> String {
        let path = self.output.as_ref();
        path.map_or_else(|| UNNAMED.to_owned(), |path| path.display().to_string())
    }

    /// Whether it is a file.
    pub(super) const fn is_file(&self) -> bool {
        self.output.is_some()
    }

    pub(super) fn write(&self, text: &str) -> Result<()> {
        match &self.output {
            None => Ok(std::io::stdout().lock().write_all(text.as_bytes())?),
            Some(path) => self.write_file(path, text),
        }
    }

    fn write_file(&self, path: &Path, text: &str) -> Result<()> {
        let file = path.display();
        let mut options = OpenOptions::new();
        if self.force {
            options.write(true).create(true).truncate(true);
        } else {
            options.write(true).create_new(true);
        }
        let mut opened = match options.open(path) {
            Ok(opened) => opened,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => bail!(
                "{file} exists and is left as it is: move it away, choose another file with -o, or add --force"
            ),
            Err(error) => return Err(error).with_context(|| format!("cannot create {file}")),
        };
        opened
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write {file}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exists_is_overwritten_only_where_that_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netbond.toml");
        let output = |force| Output {
            output: Some(path.clone()),
            force,
        };
        let content = || std::fs::read_to_string(&path).unwrap();
        output(false).write("the first, and longest").unwrap();
        let error = output(false).write("second").unwrap_err().to_string();
        assert!(error.contains("exists and is left as it is"), "{error}");
        assert_eq!(content(), "the first, and longest");
        output(true).write("third").unwrap();
        assert_eq!(content(), "third");
    }
}
