//! How are results printed? `--format json`, `table`, `table TEMPLATE` or a Go template, as docker has them.

pub mod human;
mod printf;
mod run;
pub mod template;
pub mod value;

use anyhow::Result;
use serde_json::Value;

use template::Template;
use value::Value as Shown;

/// What `--format` says.
#[derive(Clone, Debug)]
pub enum Format {
    /// The columns of the verb.
    Table,
    /// One object a line.
    Json,
    Template(Template),
    /// A template whose first line is the names of what it prints.
    TableOf(Template),
}

impl Format {
    pub fn parse(text: Option<&str>) -> Result<Format> {
        match text.map(str::trim_start) {
            None | Some("" | "table") => Ok(Format::Table),
            Some("json") => Ok(Format::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(template) => Ok(Format::TableOf(Template::parse(template)?)),
                None => Ok(Format::Template(Template::parse(text)?)),
            },
        }
    }
}

/// A column: its heading, and the field that it shows.
pub type Column = (&'static str, &'static str);

/// Print rows of objects: in columns, or as the format says. `headings` are the names that fields have above a column.
pub fn rows(format: &Format, columns: &[Column], headings: &[Column], rows: &[Value]) -> Result<String> {
    let mut out = String::new();
    match format {
        Format::Json => {
            for row in rows {
                out.push_str(&serde_json::to_string(row)?);
                out.push('\n');
            }
        }
        Format::Template(template) => {
            for row in rows {
                out.push_str(&template.render(row)?);
                out.push('\n');
            }
        }
        Format::TableOf(template) => {
            let names: serde_json::Map<String, Value> = headings
                .iter()
                .map(|(heading, field)| ((*field).to_owned(), Value::from(*heading)))
                .collect();
            let mut lines = vec![template.header(&Value::Object(names))?];
            for row in rows {
                lines.push(template.render(row)?);
            }
            out.push_str(&aligned(
                lines.iter().map(|l| l.split('\t').map(str::to_owned).collect()).collect(),
            ));
        }
        Format::Table => {
            let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
            for row in rows {
                lines.push(columns.iter().map(|(_, field)| Shown::from(&row[*field]).print()).collect());
            }
            out.push_str(&aligned(lines));
        }
    }
    Ok(out)
}

/// A cell and the space behind it have at least so many characters, as in docker's tables.
const CELL_LEAST: usize = 10;

/// Columns under each other, three spaces apart.
fn aligned(lines: Vec<Vec<String>>) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |i: usize| lines.iter().filter_map(|l| l.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..count).map(|i| (width(i) + 3).max(CELL_LEAST)).collect();
    let mut out = String::new();
    for line in &lines {
        let mut text = String::new();
        for (i, cell) in line.iter().enumerate() {
            text.push_str(cell);
            if i + 1 < line.len() {
                text.extend(std::iter::repeat_n(' ', widths[i] - cell.chars().count()));
            }
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tables_and_lines() {
        let data = [json!({"A": "one", "B": 1}), json!({"A": "three", "B": null})];
        let columns = [("AAA", "A"), ("BB", "B")];
        let print =
            |format: Option<&str>| rows(&Format::parse(format).unwrap(), &columns, &columns, &data).unwrap();
        assert_eq!(print(None), "AAA       BB\none       1\nthree     <no value>\n");
        assert_eq!(print(Some("json")), "{\"A\":\"one\",\"B\":1}\n{\"A\":\"three\",\"B\":null}\n");
        assert_eq!(print(Some("{{.A}}!")), "one!\nthree!\n");
        assert_eq!(
            print(Some(r"table {{.B}}\t{{.A}}")),
            "BB           AAA\n1            one\n<no value>   three\n"
        );
    }
}
