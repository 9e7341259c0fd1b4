//! Text tables as people save them: CSV with commas or semicolons, or TSV, with or without a byte order mark.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// What separates cells, most usual first.
const SEPARATORS: [u8; 3] = [b',', b';', b'\t'];

/// A table, its cells without white space around them. Columns and rows in which nothing stands are left out.
pub struct Table {
    pub path: PathBuf,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
    /// A comma within a cell may be a decimal one: it separates none.
    pub decimal_commas: bool,
}

pub struct Row {
    /// In the file, from 1.
    pub line: usize,
    /// One for each of the table's columns.
    pub cells: Vec<String>,
}

/// Whether a file is a table by its name.
pub fn is_table(path: &Path) -> bool {
    path.extension().is_some_and(|found| ["csv", "tsv"].iter().any(|known| found.eq_ignore_ascii_case(known)))
}

impl Table {
    /// Errors: no text in UTF-8, rows of another number of cells.
    pub fn read(path: &Path) -> Result<Table> {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(name)?;
        let text = String::from_utf8(bytes).ok();
        let text = text.with_context(|| format!("{}: expected CSV text in UTF-8; save it as `CSV UTF-8`", path.display()))?;
        Table::parse(path, &text).with_context(name)
    }

    fn parse(path: &Path, text: &str) -> Result<Table> {
        // Spreadsheets put a byte order mark first.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let first =
            text.lines().find(|line| !line.trim().is_empty()).context("expected a row of column names, found nothing")?;
        let separator = separator(first);
        let mut reader = csv::ReaderBuilder::new().delimiter(separator).trim(csv::Trim::All).from_reader(text.as_bytes());
        let header = reader.headers()?.clone();
        let mut rows = vec![];
        for record in reader.records() {
            let record = record?;
            let cells: Vec<String> = record.iter().map(str::to_owned).collect();
            if cells.iter().any(|cell| !cell.is_empty()) {
                rows.push(Row { line: record.position().map_or(0, |at| line(text, at)), cells });
            }
        }
        let used = |column: usize| !header[column].is_empty() || rows.iter().any(|row| !row.cells[column].is_empty());
        let kept: Vec<usize> = (0..header.len()).filter(|&column| used(column)).collect();
        let columns: Vec<String> = kept.iter().map(|&column| header[column].to_owned()).collect();
        for row in &mut rows {
            row.cells = kept.iter().map(|&column| std::mem::take(&mut row.cells[column])).collect();
        }
        Ok(Table { path: path.into(), columns, rows, decimal_commas: separator != b',' })
    }

    /// Errors on a column without a name, and on two of one name.
    pub fn check_names(&self) -> Result<()> {
        for (i, name) in self.columns.iter().enumerate() {
            ensure!(!name.is_empty(), "row 1: column {} has no name", i + 1);
            self.check_once(name)?;
        }
        Ok(())
    }

    /// Errors on two columns of this name.
    pub fn check_once(&self, name: &str) -> Result<()> {
        let once = self.columns.iter().filter(|found| *found == name).count() < 2;
        ensure!(once, "row 1: column `{name}` occurs twice");
        Ok(())
    }

    /// Where a column is, by its name in any case.
    pub fn position(&self, name: &str) -> Option<usize> {
        let exact = self.columns.iter().position(|found| found == name);
        exact.or_else(|| self.columns.iter().position(|found| found.eq_ignore_ascii_case(name.trim())))
    }

    /// As [`Table::position`]; an error names the columns that there are.
    pub fn column(&self, name: &str) -> Result<usize> {
        let Some(column) = self.position(name) else {
            bail!("{}: no column `{name}`; found {}", self.path.display(), self.columns.join(", "))
        };
        Ok(column)
    }
}

/// What stands most often between the names of columns.
fn separator(header: &str) -> u8 {
    let mut quoted = false;
    let outside: Vec<u8> = header
        .bytes()
        .filter(|&byte| {
            quoted ^= byte == b'"';
            !quoted
        })
        .collect();
    let count = |separator: u8| outside.iter().filter(|&&byte| byte == separator).count();
    SEPARATORS.into_iter().rev().max_by_key(|&separator| count(separator)).unwrap_or(SEPARATORS[0])
}

/// The line a record begins in; its position is that of the empty lines before it.
fn line(text: &str, position: &csv::Position) -> usize {
    let before = text.bytes().skip(position.byte() as usize).take_while(|b| b"\r\n".contains(b));
    position.line() as usize + before.filter(|b| *b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Table> {
        Table::parse(Path::new("t.csv"), text)
    }

    #[test]
    fn tables_as_programs_write_them() {
        // Commas, semicolons with decimal commas (a German spreadsheet), tabs, quotes, a byte order mark, spaces and empty columns.
        let same = [
            "id,age,sex\na,63.5,F\n\nb,,M\n",
            "\u{feff}id;age;sex;;\r\na;63.5;F;;\r\n;;;;\r\nb;;M;;\r\n",
            "id\tage\tsex \na\t63.5\tF\n\nb\t\tM\n",
            "\"id\",\"age\" , sex\n\"a\",\"63.5\",F\n\n\"b\",\"\",\"M\"\n",
        ];
        for text in same {
            let table = read(text).unwrap();
            assert_eq!(table.columns, ["id", "age", "sex"], "{text}");
            let rows: Vec<(usize, String)> = table.rows.iter().map(|row| (row.line, row.cells.join("|"))).collect();
            assert_eq!(rows, [(2, "a|63.5|F".into()), (4, "b||M".into())], "{text}");
            assert_eq!(table.decimal_commas, !text.contains(','), "{text}");
        }
        // Commas in a quoted name of a column separate nothing.
        let table = read("id;\"age, in years, of the, scan\"\na;63,5\n").unwrap();
        assert_eq!((table.columns.len(), table.rows[0].cells[1].as_str(), table.decimal_commas), (2, "63,5", true));
        assert_eq!((table.position("ID"), table.position("age")), (Some(0), None));
        let message = format!("{:#}", table.column("age").unwrap_err());
        assert!(message.contains("no column `age`; found id, age, in years"), "{message}");
    }

    #[test]
    fn what_is_no_table_is_named() {
        let cases = [
            ("", "found nothing"),
            ("id,age\na\n", "2 fields"),
            ("id,age,age\na,1,2\n", "column `age` occurs twice"),
            ("id,,age\na,1,2\n", "column 2 has no name"),
        ];
        for (text, says) in cases {
            let checked = read(text).and_then(|table| table.check_names());
            let message = format!("{:#}", checked.err().unwrap());
            assert!(message.contains(says), "{message}");
        }
    }
}
