//! What is learnt of whole scans: the classes or the quantity in one column of a store.

use super::index::{Entry, Index};
use crate::data::layouts::columns::{Column, Value};
use crate::data::names::some;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, HashMap};

/// What the classes of [`Index::classes`], the grades of photographs, are called as a column.
pub const GRADE: &str = "grade";
/// Distinct values beyond which a column holds no classes.
const MOST_CLASSES: usize = 64;
/// Distinct whole numbers up to which a column is taken for one of classes where nobody says what it is.
const FEW: usize = 10;
/// Parts of equal size into which a quantity is cut, so that the sides of a split have alike shares of each.
const STRATA: usize = 5;

/// One column, as it is learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    pub column: Column,
    pub values: Values,
}

/// Of the store's scans, in their order; `None` where one has no value.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    Classes {
        names: Vec<String>,
        /// Whether their order means anything.
        ordered: bool,
        of: Vec<Option<u8>>,
    },
    Numbers(Vec<Option<f64>>),
}

impl Targets {
    /// Classes, as many as there are distinct values. Their order is the given one, that of numbers, or the alphabet, which means
    /// nothing.
    ///
    /// Errors: no such column, several where none is named, too many classes, only one, values that are not in `order`.
    pub fn classes(index: &Index, column: Option<&str>, order: &[String]) -> Result<Targets> {
        let column = choose(index, column)?;
        let values: Vec<Option<Value>> = index.subjects.iter().map(|entry| value_of(index, entry, &column.name)).collect();
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        values.iter().flatten().for_each(|value| *found.entry(value.to_string()).or_default() += 1);
        let numbers = values.iter().flatten().all(|value| value.number().is_some());
        let graded = index.classes.as_ref().filter(|_| column.name == GRADE);
        let names: Vec<String> = match (order, graded) {
            ([], Some(grades)) => grades.clone(),
            ([], None) => sorted(found.keys(), numbers),
            (order, _) => order.to_vec(),
        };
        let at = |what: &str| format!("column `{}` {what}", column.name);
        ensure!(
            names.len() <= MOST_CLASSES,
            "{}",
            at(&format!(
                "holds {} distinct values, at most {MOST_CLASSES} are classes; --task regression learns quantities",
                names.len()
            ))
        );
        ensure!(names.len() > 1, "{}", at(&format!("holds one class only: {}", names.join(", "))));
        let mut places: HashMap<&str, u8> = HashMap::new();
        for (class, name) in names.iter().enumerate() {
            ensure!(places.insert(name, u8::try_from(class)?).is_none(), "--classes: `{name}` is named twice");
        }
        let strange: Vec<&str> = found.keys().map(String::as_str).filter(|value| !places.contains_key(value)).collect();
        ensure!(
            strange.is_empty(),
            "{}",
            at(&format!("also holds {}, which --classes does not name; name all, or empty these cells", some(&strange)))
        );
        let of = values.iter().map(|value| value.as_ref().map(|value| places[value.to_string().as_str()])).collect();
        let ordered = numbers || graded.is_some() || !order.is_empty();
        Ok(Targets { values: Values::Classes { names, ordered, of }, column })
    }

    /// A quantity. Errors: no such column, several where none is named, values that are no numbers.
    pub fn numbers(index: &Index, column: Option<&str>) -> Result<Targets> {
        let column = choose(index, column)?;
        let (mut numbers, mut others) = (vec![], vec![]);
        for entry in &index.subjects {
            let grade = entry.class.filter(|_| column.name == GRADE).map(f64::from);
            let value = value_of(index, entry, &column.name).filter(|_| grade.is_none());
            others.extend(
                value.iter().filter(|value| value.to_string().parse::<f64>().is_err()).map(|v| format!("{v} ({})", entry.id)),
            );
            numbers.push(grade.or(value.and_then(|value| value.number())));
        }
        ensure!(!others.is_empty() || numbers.iter().any(Option::is_some), "column `{}` has no value of any scan", column.name);
        let shown: Vec<&str> = others.iter().map(String::as_str).collect();
        ensure!(
            others.is_empty(),
            "column `{}` holds {} values that are no numbers: {}; --task regression takes plain numbers with a decimal point, without \
             units, and empty cells or n/a where there is none; --task classification learns classes",
            column.name,
            others.len(),
            some(&shown)
        );
        Ok(Targets { values: Values::Numbers(numbers), column })
    }

    /// Classes that a store has where nobody says what is learnt: grades, or those of its only column.
    pub fn usual(index: &Index) -> Option<Targets> {
        let targets = Targets::classes(index, None, &[]).ok()?;
        let numbers: Vec<f64> =
            index.subjects.iter().filter_map(|entry| value_of(index, entry, &targets.column.name)?.number()).collect();
        let Values::Classes { names, .. } = &targets.values else { return None };
        (numbers.is_empty() || is_whole(&numbers) && names.len() <= FEW).then_some(targets)
    }

    /// Class of a scan.
    pub fn class(&self, scan: usize) -> Option<u8> {
        match &self.values {
            Values::Classes { of, .. } => of[scan],
            Values::Numbers(_) => None,
        }
    }

    /// Quantity of a scan.
    pub fn number(&self, scan: usize) -> Option<f64> {
        match &self.values {
            Values::Classes { .. } => None,
            Values::Numbers(numbers) => numbers[scan],
        }
    }

    /// What splits balance, of each scan: the class, of a quantity the fifth of all values that it is in.
    pub fn strata(&self) -> Vec<Option<u8>> {
        match &self.values {
            Values::Classes { of, .. } => of.clone(),
            Values::Numbers(numbers) => {
                let mut known: Vec<f64> = numbers.iter().flatten().copied().collect();
                known.sort_by(f64::total_cmp);
                let fifth = |number: f64| known.partition_point(|&other| other < number) * STRATA / known.len();
                numbers.iter().map(|number| number.map(|number| fifth(number) as u8)).collect()
            }
        }
    }

    /// What was found, in a line.
    pub fn describe(&self) -> String {
        let name = &self.column;
        match &self.values {
            Values::Classes { names, ordered, of } => {
                let count = |class: usize| of.iter().flatten().filter(|&&of| usize::from(of) == class).count();
                let counts: Vec<String> = names.iter().enumerate().map(|(k, name)| format!("{name} ({})", count(k))).collect();
                let order = if *ordered { "in this order" } else { "without an order, which --classes gives" };
                format!("column {name}: {} classes {order}, with their scans: {}", names.len(), counts.join(", "))
            }
            Values::Numbers(numbers) => {
                let known: Vec<f64> = numbers.iter().flatten().copied().collect();
                let [low, high] = [f64::min, f64::max].map(|pick| known.iter().copied().reduce(pick).unwrap_or_default());
                let mut distinct = known.clone();
                distinct.sort_by(f64::total_cmp);
                distinct.dedup();
                let few = if is_whole(&known) && distinct.len() <= FEW {
                    format!(
                        "; these are {} distinct whole numbers, which --task classification takes for classes",
                        distinct.len()
                    )
                } else {
                    String::new()
                };
                format!("column {name}: a quantity from {low} to {high} of {} scans{few}", known.len())
            }
        }
    }
}

fn is_whole(numbers: &[f64]) -> bool {
    numbers.iter().all(|number| number.fract() == 0.)
}

/// Numbers by size, names by the alphabet.
fn sorted<'a>(values: impl Iterator<Item = &'a String>, numbers: bool) -> Vec<String> {
    let mut values: Vec<String> = values.cloned().collect();
    if numbers {
        let number = |text: &String| text.parse().unwrap_or(f64::NAN);
        values.sort_by(|a, b| f64::total_cmp(&number(a), &number(b)));
    }
    values
}

/// The column of a name in any case, or the only one.
fn choose(index: &Index, name: Option<&str>) -> Result<Column> {
    let grade = index.classes.as_ref().map(|_| Column { name: GRADE.into(), unit: None });
    let all: Vec<Column> = grade.into_iter().chain(index.columns.iter().cloned()).collect();
    let names = all.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, &all[..]) {
        (_, []) => bail!("no scan of the store has a class or a quantity; `preprocess --column` takes them from a table"),
        (None, [only]) => Ok(only.clone()),
        (None, _) => bail!("the store has the columns {names}; --column says which is learnt"),
        (Some(name), all) => {
            let found = all.iter().find(|column| column.name == name);
            let found = found.or_else(|| all.iter().find(|column| column.name.eq_ignore_ascii_case(name)));
            found.cloned().with_context(|| format!("--column {name}: the store has {names}"))
        }
    }
}

/// What stands in a column.
pub fn value_of(index: &Index, entry: &Entry, column: &str) -> Option<Value> {
    match (&index.classes, entry.class) {
        (Some(classes), Some(class)) if column == GRADE => classes.get(usize::from(class)).cloned().map(Value::Text),
        _ => entry.values.get(column).cloned(),
    }
}
