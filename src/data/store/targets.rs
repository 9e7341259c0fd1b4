//! What is learnt of whole scans: the classes or the quantity in one column.

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
const NO_VALUE: &str = "has no value of any scan";

/// What is known of whole scans: of those of a store, or of files.
pub trait Known {
    /// Names of their grades, which are the column [`GRADE`]; `None`: they have none.
    fn grades(&self) -> Option<&[String]>;
    fn columns(&self) -> &[Column];
    fn scans(&self) -> usize;
    /// Id, grade and values of a scan.
    fn scan(&self, scan: usize) -> (&str, Option<u8>, &BTreeMap<String, Value>);

    /// What stands in a column.
    fn value(&self, scan: usize, column: &str) -> Option<Value> {
        let (_, grade, values) = self.scan(scan);
        match (self.grades(), grade) {
            (Some(names), Some(grade)) if column == GRADE => names.get(usize::from(grade)).cloned().map(Value::Text),
            _ => values.get(column).cloned(),
        }
    }

    /// As [`Known::value`], where it is a number; grades are numbered from 0.
    fn number(&self, scan: usize, column: &str) -> Option<f64> {
        let grade = self.scan(scan).1.filter(|_| column == GRADE).map(f64::from);
        grade.or_else(|| self.value(scan, column)?.number())
    }
}

impl Known for Index {
    fn grades(&self) -> Option<&[String]> {
        self.classes.as_deref()
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn scans(&self) -> usize {
        self.subjects.len()
    }

    fn scan(&self, scan: usize) -> (&str, Option<u8>, &BTreeMap<String, Value>) {
        let Entry { id, class, values, .. } = &self.subjects[scan];
        (id, *class, values)
    }
}

/// One column, as it is learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets {
    pub column: Column,
    pub values: Values,
}

/// Of all scans, in their order; `None` where one has no value.
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
    pub fn classes(known: &dyn Known, column: Option<&str>, order: &[String]) -> Result<Targets> {
        let column = choose(known, column)?;
        let values: Vec<Option<Value>> = (0..known.scans()).map(|scan| known.value(scan, &column.name)).collect();
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        values.iter().flatten().for_each(|value| *found.entry(value.to_string()).or_default() += 1);
        let numbers = values.iter().flatten().all(|value| value.number().is_some());
        let graded = known.grades().filter(|_| column.name == GRADE);
        let names: Vec<String> = match (order, graded) {
            ([], Some(grades)) => grades.to_vec(),
            ([], None) => sorted(found.keys(), numbers),
            (order, _) => order.to_vec(),
        };
        let at = |what: &str| format!("column `{}` {what}", column.name);
        ensure!(
            names.len() <= MOST_CLASSES,
            "{}",
            at(&format!(
                "holds {} distinct values, at most {MOST_CLASSES} are classes{}",
                names.len(),
                if numbers { "; --task regression learns quantities" } else { "" }
            ))
        );
        ensure!(!names.is_empty(), "{}", at(NO_VALUE));
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
    pub fn numbers(known: &dyn Known, column: Option<&str>) -> Result<Targets> {
        let column = choose(known, column)?;
        let (mut numbers, mut others) = (vec![], vec![]);
        for scan in 0..known.scans() {
            let number = known.number(scan, &column.name);
            let value = known.value(scan, &column.name).filter(|_| number.is_none());
            let value = value.filter(|value| value.to_string().parse::<f64>().is_err());
            others.extend(value.map(|value| format!("{value} ({})", known.scan(scan).0)));
            numbers.push(number);
        }
        ensure!(!others.is_empty() || numbers.iter().any(Option::is_some), "column `{}` {NO_VALUE}", column.name);
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

    /// What a column holds, where nobody says whether classes or a quantity: names, grades and few whole numbers are classes.
    ///
    /// Errors: as those of [`Targets::classes`] and [`Targets::numbers`].
    pub fn recognised(known: &dyn Known, column: Option<&str>) -> Result<Targets> {
        let name = choose(known, column)?.name;
        let values = (0..known.scans()).filter_map(|scan| known.value(scan, &name));
        let numbers: Option<Vec<f64>> = values.map(|value| value.number()).collect();
        if numbers.is_none_or(|numbers| is_few(&numbers)) {
            Targets::classes(known, column, &[])
        } else {
            Targets::numbers(known, column)
        }
    }

    /// Classes that scans have where nobody says what is learnt: grades, or those of the only column.
    pub fn usual(known: &dyn Known) -> Option<Targets> {
        let targets = Targets::recognised(known, None).ok()?;
        matches!(targets.values, Values::Classes { .. }).then_some(targets)
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
                let mut fifths = fifths(&numbers.iter().flatten().copied().collect::<Vec<_>>()).into_iter();
                numbers.iter().map(|number| number.and_then(|_| fifths.next())).collect()
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
                let order = if *ordered { "in this order" } else { "without an order, which `finetune --classes` gives" };
                format!("column {name}: {} classes {order}, with their scans: {}", names.len(), counts.join(", "))
            }
            Values::Numbers(numbers) => {
                let known: Vec<f64> = numbers.iter().flatten().copied().collect();
                let [low, high] = [f64::min, f64::max].map(|pick| known.iter().copied().reduce(pick).unwrap_or_default());
                let few = if is_few(&known) {
                    let distinct = distinct(&known);
                    format!("; these are {distinct} distinct whole numbers, which --task classification takes for classes")
                } else {
                    String::new()
                };
                format!("column {name}: a quantity from {low} to {high} of {} scans{few}", known.len())
            }
        }
    }
}

fn distinct(numbers: &[f64]) -> usize {
    let mut distinct = numbers.to_vec();
    distinct.sort_by(f64::total_cmp);
    distinct.dedup();
    distinct.len()
}

/// Whether numbers are whole and so few that they are taken for classes.
fn is_few(numbers: &[f64]) -> bool {
    numbers.iter().all(|number| number.fract() == 0.) && distinct(numbers) <= FEW
}

/// The fifth of all numbers that each is in.
pub fn fifths(numbers: &[f64]) -> Vec<u8> {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let fifth = |number: &f64| sorted.partition_point(|other| other < number) * STRATA / sorted.len();
    numbers.iter().map(|number| fifth(number) as u8).collect()
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
fn choose(known: &dyn Known, name: Option<&str>) -> Result<Column> {
    let grade = known.grades().map(|_| Column { name: GRADE.into(), unit: None });
    let all: Vec<Column> = grade.into_iter().chain(known.columns().iter().cloned()).collect();
    let names = all.iter().map(|column| column.name.as_str()).collect::<Vec<_>>().join(", ");
    match (name, &all[..]) {
        (_, []) => bail!("no scan has a class or a quantity; `preprocess --column` takes them from a table"),
        (None, [only]) => Ok(only.clone()),
        (None, _) => bail!("the store has the columns {names}; --column says which is learnt"),
        (Some(name), all) => {
            let found = all.iter().find(|column| column.name == name);
            let found = found.or_else(|| all.iter().find(|column| column.name.eq_ignore_ascii_case(name)));
            found.cloned().with_context(|| format!("no column `{name}` of whole scans; there are {names}"))
        }
    }
}
