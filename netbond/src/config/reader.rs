//! Reads tables of a TOML document key by key: records what is wrong, and goes on.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// Characters of a value that a message shows.
const SHOWN: usize = 60;

/// A problem with this value has been recorded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reported;

/// What is wrong with a value, to follow it in a sentence: "is no IP address".
pub(super) struct Wrong {
    what: String,
    /// What to write instead, where that is more than what is always expected there.
    write: Option<String>,
}

impl Wrong {
    pub(super) fn new(what: impl Into<String>) -> Self {
        let (what, write) = (what.into(), None);
        Self { what, write }
    }

    pub(super) fn write(self, write: impl Into<String>) -> Self {
        let write = Some(write.into());
        Self { write, ..self }
    }
}

/// The text of a file, and what has been found wrong with it.
pub(super) struct Document<'t> {
    text: &'t str,
    /// Byte offsets at which lines begin.
    line_starts: Vec<usize>,
    /// Shared by all sections, none of which holds a borrow.
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Document<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let ends = text.match_indices('\n').map(|(end, _)| end + 1);
        // What follows the last newline, if nothing, is no line: problems at the end of the file are
        // those of the last line that an editor shows.
        let starts = ends.filter(|&start| start < text.len());
        Self {
            text,
            line_starts: std::iter::once(0).chain(starts).collect(),
            problems: RefCell::new(Vec::new()),
        }
    }

    /// The line, counted from 1, of a byte offset.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset)
    }

    /// What the user wrote there, cut to a piece of a line.
    pub(super) fn source(&self, span: Range<usize>) -> String {
        let whole = self.text.get(span).unwrap_or_default();
        let line = whole.lines().next().unwrap_or_default();
        let mut shown = printable(line);
        if line.len() < whole.trim_end().len() && !shown.ends_with("...") {
            shown.push_str("...");
        }
        shown
    }

    /// The text of a line, counted from 1.
    pub(super) fn line_text(&self, line: usize) -> &'t str {
        self.text
            .lines()
            .nth(line.saturating_sub(1))
            .unwrap_or_default()
    }

    pub(super) fn report(&self, line: usize, message: String) {
        self.problems.borrow_mut().push(Problem { line, message });
    }

    /// All problems, in the order of lines.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// The text of a file, or where it is not text.
pub(super) fn utf8(bytes: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        let byte = bytes.get(good.len()).copied().unwrap_or_default();
        Problem {
            line: 1 + good.iter().filter(|&&byte| byte == b'\n').count(),
            message: format!("byte 0x{byte:02x} is not UTF-8: save the file as UTF-8"),
        }
    })
}

/// `text` without what would upset a terminal, cut to a length that a message can show.
pub(super) fn printable(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars
        .by_ref()
        .take(SHOWN)
        .map(|c| {
            if c.is_control() {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    if chars.next().is_some() {
        shown.push_str("...");
    }
    shown
}

/// A TOML value of one type (or of either of two).
pub(super) trait FromValue<'v>: Sized {
    /// `None` where it is of another type.
    fn from_value(value: &'v DeValue<'v>) -> Option<Self>;
}

impl<'v> FromValue<'v> for &'v str {
    fn from_value(value: &'v DeValue<'v>) -> Option<Self> {
        value.as_str()
    }
}

impl<'v> FromValue<'v> for bool {
    fn from_value(value: &'v DeValue<'v>) -> Option<Self> {
        value.as_bool()
    }
}

impl<'v> FromValue<'v> for &'v DeTable<'v> {
    fn from_value(value: &'v DeValue<'v>) -> Option<Self> {
        value.as_table()
    }
}

impl<'v> FromValue<'v> for i64 {
    /// Saturates: what does not fit is out of every range that a key has.
    fn from_value(value: &'v DeValue<'v>) -> Option<Self> {
        let integer = value.as_integer()?;
        let digits = integer.as_str();
        let limit = if digits.starts_with('-') {
            Self::MIN
        } else {
            Self::MAX
        };
        Some(Self::from_str_radix(digits, integer.radix()).unwrap_or(limit))
    }
}

/// A name or a number.
pub(super) enum TextOrInteger<'v> {
    Text(&'v str),
    Integer(i64),
}

impl<'v> FromValue<'v> for TextOrInteger<'v> {
    fn from_value(value: &'v DeValue<'v>) -> Option<Self> {
        let text = <&str>::from_value(value).map(Self::Text);
        text.or_else(|| i64::from_value(value).map(Self::Integer))
    }
}

/// A table whose keys are taken one after the other; [`Section::finish`] reports those left over.
pub(super) struct Section<'v> {
    document: &'v Document<'v>,
    /// `bond "nb0": `, before every message.
    context: String,
    line: usize,
    table: &'v DeTable<'v>,
    known: Vec<&'static str>,
}

impl<'v> Section<'v> {
    /// The table of the whole document.
    pub(super) fn root(document: &'v Document<'v>, table: &'v DeTable<'v>) -> Self {
        Self {
            document,
            context: String::new(),
            line: 1,
            table,
            known: Vec::new(),
        }
    }

    /// A table found at `line` of the same document: a `kind`, which may have a name.
    pub(super) fn inner(&self, kind: &str, line: usize, table: &'v DeTable<'v>) -> Self {
        let context = match table.get("name").and_then(|name| name.get_ref().as_str()) {
            Some(name) => format!("{kind} \"{}\": ", printable(name)),
            None => format!("{kind}: "),
        };
        Self {
            document: self.document,
            context,
            line,
            table,
            known: Vec::new(),
        }
    }

    /// Its header's line.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The line of a key's value; the header's where it is absent.
    pub(super) fn line_of(&self, key: &str) -> usize {
        let value = self.table.get(key);
        value.map_or(self.line, |value| self.document.line(value.span().start))
    }

    pub(super) fn report(&self, line: usize, message: impl Display) {
        self.document
            .report(line, format!("{}{message}", self.context));
    }

    /// Takes a key that may be absent. `expected` says what to write, `check` makes the result.
    pub(super) fn optional<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl FnOnce(V) -> Result<T, Wrong>,
    ) -> Result<Option<T>, Reported> {
        let value = self.take(key);
        value
            .map(|value| self.read(key, value, expected, check))
            .transpose()
    }

    /// How many elements the array at a key has.
    pub(super) fn tables(&self, key: &str) -> usize {
        let array = self
            .table
            .get(key)
            .and_then(|value| value.get_ref().as_array());
        array.map_or(0, |array| array.len())
    }

    /// Takes a key that must not be absent.
    pub(super) fn required<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl FnOnce(V) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        let value = self.optional(key, expected, check)?;
        value.ok_or_else(|| self.missing(key, expected))
    }

    /// Takes a key whose value is an array: the good ones of its elements, each with its line.
    /// `None` where the key is absent or no array.
    pub(super) fn list<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl Fn(V) -> Result<T, Wrong>,
    ) -> Option<Vec<(usize, T)>> {
        let value = self.take(key)?;
        let Some(array) = value.get_ref().as_array() else {
            self.wrong(key, value, wrong_type(value), expected);
            return None;
        };
        let read = |element: &'v Spanned<DeValue<'v>>| {
            let result = self.read(key, element, expected, &check).ok()?;
            Some((self.document.line(element.span().start), result))
        };
        Some(array.iter().filter_map(read).collect())
    }

    /// [`Section::list`] of an array that must have elements, if it is there.
    pub(super) fn filled_list<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl Fn(V) -> Result<T, Wrong>,
    ) -> Option<Vec<(usize, T)>> {
        let value = self.table.get(key);
        let empty = |value: &&Spanned<DeValue<'_>>| {
            value
                .get_ref()
                .as_array()
                .is_some_and(|array| array.is_empty())
        };
        if let Some(value) = value.filter(empty) {
            self.wrong(key, value, Wrong::new("is empty"), expected);
        }
        self.list(key, expected, check)
    }

    /// Takes a key whose value may be one thing or an array of such.
    pub(super) fn one_or_list<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl Fn(V) -> Result<T, Wrong>,
    ) -> Result<Option<Vec<T>>, Reported> {
        let array =
            |value: &Spanned<DeValue<'_>>| value.get_ref().as_array().map(|array| array.len());
        let Some(len) = self.table.get(key).and_then(array) else {
            return Ok(self.optional(key, expected, check)?.map(|one| vec![one]));
        };
        let all = self.filled_list(key, expected, check).unwrap_or_default();
        if len == 0 || all.len() < len {
            return Err(Reported);
        }
        Ok(Some(all.into_iter().map(|(_, one)| one).collect()))
    }

    /// [`Section::filled_list`] of a key that must not be absent.
    pub(super) fn required_list<V: FromValue<'v>, T>(
        &mut self,
        key: &'static str,
        expected: &str,
        check: impl Fn(V) -> Result<T, Wrong>,
    ) -> Option<Vec<(usize, T)>> {
        if !self.table.contains_key(key) {
            self.missing(key, expected);
        }
        self.filled_list(key, expected, check)
    }

    /// Reports the keys that nobody took.
    pub(super) fn finish(self) {
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if self.known.contains(&name) {
                continue;
            }
            let advice = match closest(name, self.known.iter().copied()) {
                Some(known) => format!("did you mean \"{known}\"?"),
                None => format!("the keys here are {}", self.known.join(", ")),
            };
            self.report(
                self.document.line(key.span().start),
                format_args!("unknown key \"{}\": {advice}", printable(name)),
            );
        }
    }

    fn take(&mut self, key: &'static str) -> Option<&'v Spanned<DeValue<'v>>> {
        self.known.push(key);
        self.table.get(key)
    }

    fn read<V: FromValue<'v>, T>(
        &self,
        key: &str,
        value: &'v Spanned<DeValue<'v>>,
        expected: &str,
        check: impl FnOnce(V) -> Result<T, Wrong>,
    ) -> Result<T, Reported> {
        V::from_value(value.get_ref())
            .ok_or_else(|| wrong_type(value))
            .and_then(check)
            .map_err(|wrong| self.wrong(key, value, wrong, expected))
    }

    fn missing(&self, key: &str, expected: &str) -> Reported {
        self.report(self.line, format_args!("{key} is missing: add {expected}"));
        Reported
    }

    fn wrong(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        wrong: Wrong,
        expected: &str,
    ) -> Reported {
        let Wrong { what, write } = wrong;
        let source = self.document.source(value.span());
        let write = write.as_deref().unwrap_or(expected);
        self.report(
            self.document.line(value.span().start),
            format_args!("{key} {source} {what}: write {write}"),
        );
        Reported
    }
}

fn wrong_type(value: &Spanned<DeValue<'_>>) -> Wrong {
    Wrong::new(match value.get_ref() {
        DeValue::String(_) => "is a string",
        DeValue::Integer(_) => "is an integer",
        DeValue::Float(_) => "is a float",
        DeValue::Boolean(_) => "is a boolean",
        DeValue::Datetime(_) => "is a date or time",
        DeValue::Array(_) => "is an array",
        DeValue::Table(_) => "is a table",
    })
}

/// The one of `known` that `name` is most likely a slip or a short form of, if any.
pub(super) fn closest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let tolerance = (name.len() / 3).max(1);
    let short_form = |known: &str| name.len() >= 3 && known.starts_with(name);
    known
        .map(|known| (edits(name, known), known))
        .filter(|&(edits, known)| edits <= tolerance || short_form(known))
        // What is edited throughout has nothing in common.
        .filter(|&(edits, known)| edits < known.len())
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein distance: how many bytes to add, drop or replace.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        row[0] = left;
        for (j, b) in to.bytes().enumerate() {
            let above = row[j + 1];
            left = (diagonal + usize::from(a != b))
                .min(left + 1)
                .min(above + 1);
            diagonal = above;
            row[j + 1] = left;
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (text, lines) in [
            ("", &[1][..]),
            ("a", &[1, 1]),
            ("\n", &[1, 1]),
            ("a\nb", &[1, 1, 2, 2]),
            ("\n\n", &[1, 2, 2]),
        ] {
            let document = Document::new(text);
            let found: Vec<_> = (0..=text.len())
                .map(|offset| document.line(offset))
                .collect();
            assert_eq!(found, lines, "{text:?}");
        }
    }

    #[test]
    fn shows_a_piece_of_a_line() {
        let long = "0123456789".repeat(7);
        let cut = format!("{}...", &long[..SHOWN]);
        for (text, shown) in [
            ("", ""),
            ("[1]", "[1]"),
            ("[1]\n", "[1]"),
            ("[1,\r\n2]", "[1,..."),
            ("a\u{1b}[3m\tb", "a\u{fffd}[3m\u{fffd}b"),
            (&long, &cut),
        ] {
            assert_eq!(Document::new(text).source(0..text.len()), shown, "{text:?}");
        }
        assert_eq!(
            Document::new("a").source(0..2),
            "",
            "a span of another text"
        );
    }

    #[test]
    fn distance() {
        for (from, to, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("adress", "address", 1),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(edits(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn slips() {
        let known = || ["name", "address", "key", "mtu", "ttl"].into_iter();
        assert_eq!(closest("adress", known()), Some("address"));
        assert_eq!(closest("addresses", known()), Some("address"));
        assert_eq!(closest("addr", known()), Some("address"));
        assert_eq!(closest("mtU", known()), Some("mtu"));
        assert_eq!(closest("ad", known()), None);
        assert_eq!(closest("colour", known()), None);
        assert_eq!(closest("", known()), None);
        assert_eq!(closest(&"long".repeat(1000), known()), None);
    }

    #[test]
    fn not_utf8() {
        assert_eq!(utf8(b"a\n"), Ok("a\n"));
        let problem = utf8(b"a\nb\xff").unwrap_err();
        assert_eq!(problem.line, 2);
        assert_eq!(
            problem.message,
            "byte 0xff is not UTF-8: save the file as UTF-8"
        );
    }
}
