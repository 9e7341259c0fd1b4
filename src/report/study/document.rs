//! A report as blocks, written as Markdown, as one HTML page, or as text for a terminal.

use crate::report::chart::Figure;
use crate::report::svg::escape;

pub enum Block {
    Heading(usize, String),
    Paragraph(String),
    /// What a reader must not miss.
    Warning(String),
    List(Vec<String>),
    Table(Table),
    /// A picture: its file beside the Markdown, what it shows, and the figure.
    Picture(&'static str, String, Figure),
}

#[derive(Default)]
pub struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<Field>>,
}

/// A cell of a table.
#[derive(Clone, Default)]
pub struct Field {
    pub text: String,
    pub strong: bool,
}

impl<T: Into<String>> From<T> for Field {
    fn from(text: T) -> Field {
        Field { text: text.into(), strong: false }
    }
}

const STYLE: &str = "\
body{font:16px/1.5 system-ui,sans-serif;color:#282c34;max-width:1200px;margin:2em auto;padding:0 1.2em}\
h1,h2,h3{line-height:1.2;margin:1.6em 0 .5em}table{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}\
th,td{padding:.3em .8em;border-bottom:1px solid #dcdee4;text-align:left;font-variant-numeric:tabular-nums;vertical-align:top}\
th{border-bottom:2px solid #787c84}figure{margin:1.5em 0}figcaption{color:#5a5e66}\
svg{width:100%;height:auto;font-family:system-ui,sans-serif}.warning{border-left:4px solid #d55e00;padding:.3em 1em;background:#fdf3ec}\
@media print{body{font-size:11px;max-width:none;margin:0}table{display:table}figure,tr{break-inside:avoid}h2,h3{break-after:avoid}}";

pub fn markdown(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        match block {
            Block::Heading(level, text) => out += &format!("{} {}\n\n", "#".repeat(*level), plain(text)),
            Block::Paragraph(text) => out += &format!("{}\n\n", plain(text)),
            Block::Warning(text) => out += &format!("> **{}**\n\n", plain(text)),
            Block::List(items) => {
                items.iter().for_each(|item| out += &format!("- {}\n", plain(item)));
                out.push('\n');
            }
            Block::Table(table) => {
                let line = |fields: Vec<String>| format!("| {} |\n", fields.join(" | "));
                out += &line(table.head.iter().map(|h| plain(h)).collect());
                out += &line(table.head.iter().map(|_| "---".to_string()).collect());
                for row in &table.rows {
                    let strong = |f: &Field| if f.strong { format!("**{}**", plain(&f.text)) } else { plain(&f.text) };
                    out += &line(row.iter().map(strong).collect());
                }
                out.push('\n');
            }
            Block::Picture(file, caption, _) => out += &format!("![{0}]({file})\n\n{0}\n\n", plain(caption)),
        }
    }
    out
}

/// Text without meaning to Markdown.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '|' | '*' | '`' | '[' | ']' | '\\' => out.extend(['\\', c]),
            '\n' | '\r' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

/// A page that needs no other file.
pub fn html(title: &str, blocks: &[Block]) -> String {
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head>\n<body>\n",
        escape(title)
    );
    let tagged = |tag: &str, text: &str| format!("<{tag}>{}</{tag}>", escape(text));
    for block in blocks {
        out += &match block {
            Block::Heading(level, text) => tagged(&format!("h{level}"), text),
            Block::Paragraph(text) => tagged("p", text),
            Block::Warning(text) => format!("<p class=\"warning\"><strong>{}</strong></p>", escape(text)),
            Block::List(items) => format!("<ul>{}</ul>", items.iter().map(|i| tagged("li", i)).collect::<String>()),
            Block::Table(table) => {
                let head: String = table.head.iter().map(|h| tagged("th", h)).collect();
                let field = |f: &Field| match f.strong {
                    true => format!("<td>{}</td>", tagged("strong", &f.text)),
                    false => tagged("td", &f.text),
                };
                let row = |row: &Vec<Field>| format!("<tr>{}</tr>", row.iter().map(field).collect::<String>());
                let rows: String = table.rows.iter().map(row).collect();
                format!("<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>")
            }
            Block::Picture(_, caption, figure) => {
                format!("<figure>{}<figcaption>{}</figcaption></figure>", figure.svg(), escape(caption))
            }
        };
        out.push('\n');
    }
    out + "</body>\n</html>\n"
}

/// For a terminal; pictures are left out and what is strong has a star.
pub fn terminal(blocks: &[Block]) -> String {
    let mut out = String::new();
    for block in blocks {
        match block {
            Block::Heading(_, text) | Block::Paragraph(text) => out += &format!("{text}\n\n"),
            Block::Warning(text) => out += &format!("warning: {text}\n\n"),
            Block::List(items) => {
                items.iter().for_each(|item| out += &format!("- {item}\n"));
                out.push('\n');
            }
            Block::Table(table) => out += &(aligned(table) + "\n"),
            Block::Picture(..) => {}
        }
    }
    out
}

/// A table with columns as wide as their longest field.
fn aligned(table: &Table) -> String {
    let text = |f: &Field| format!("{}{}", f.text, if f.strong { " *" } else { "" });
    let mut rows = vec![table.head.clone()];
    rows.extend(table.rows.iter().map(|row| row.iter().map(text).collect()));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..table.head.len()).map(width).collect();
    let line = |row: &Vec<String>| row.iter().zip(&widths).map(|(field, w)| format!("{field:w$}  ")).collect::<String>();
    rows.iter().map(|row| format!("{}\n", line(row).trim_end())).collect()
}
