//! What each arm was fine-tuned with, where arms differ.

use super::document::Block;
use crate::study::read::Records;
use serde_json::{Map, Value};

/// By the sweep's settings; nothing where all arms share theirs.
pub fn by_arm(records: &Records) -> Vec<Block> {
    let settings = &records.sweep.settings;
    let (Some(shared), Some(arms)) = (settings["finetune"].as_object(), settings["arms"].as_array()) else { return Vec::new() };
    let tables = |key: &str| shared.get(key).and_then(Value::as_object).into_iter().flatten();
    let mut said = vec![format!("every arm: {}", listed(shared))];
    let given =
        |name: &str| settings["weights"].as_array().is_some_and(|all| all.iter().any(|weights| weights["name"] == name));
    said.extend(tables("pretext").map(|(name, table)| {
        let from = if given(name) { "from the weights" } else { "after pretraining by" };
        format!("{from} {name}: {}", of_table(table))
    }));
    for (name, table) in tables("arm").filter(|(name, _)| arms.iter().any(|arm| arm == *name)) {
        let base = table["base"].as_str().filter(|base| base != name);
        let of = base.map_or(String::new(), |base| format!(", a variant of {base}"));
        said.push(format!("{name}{of}: {}", of_table(table)));
    }
    match said.len() {
        1 => Vec::new(),
        _ => vec![
            Block::Heading(2, "Settings of the arms".into()),
            Block::Paragraph(
                "Flags of fine-tuning; a later line changes an earlier one. What is not here is the default.".into(),
            ),
            Block::List(said),
        ],
    }
}

fn of_table(table: &Value) -> String {
    table.as_object().map(listed).unwrap_or_default()
}

/// Plain settings; tables are not shown.
fn listed(settings: &Map<String, Value>) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let plain = settings.iter().filter(|(key, value)| !value.is_object() && *key != "base");
    let listed =
        plain.map(|(key, value)| format!("{} = {}", key.replace('_', "-"), text(value))).collect::<Vec<_>>().join(", ");
    if listed.is_empty() { "as every arm".into() } else { listed }
}
