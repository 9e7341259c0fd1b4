//! Channels as scans of their own, for encoders of one channel, whatever its contrast; and scans that do not have all channels.

use super::{Dataset, Problem, Source, Subject, UNNAMED};
use anyhow::{Result, ensure};
use rayon::prelude::*;

/// What becomes of scans that lack a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Missing {
    /// They are named and cannot be used
    #[default]
    Refuse,
    /// They are left out
    Drop,
    /// The channel is 0 after normalisation: of z-scores the mean of the foreground, otherwise the darkest value
    Zero,
}

/// Settles which scans are taken: `wanted` channels, or all, are those that matter. Until then [`Subject::contrasts`] names those that a
/// scan has.
pub fn settle(dataset: &mut Dataset, missing: Missing, wanted: &[String]) -> Result<()> {
    let names = dataset.channels.clone();
    for (i, name) in names.iter().enumerate() {
        ensure!(
            !names[..i].contains(name),
            "--missing: two channels are called `{name}`, so that which is missing is not known"
        );
    }
    let needed = |name: &String| wanted.is_empty() || wanted.contains(name);
    for mut subject in std::mem::take(&mut dataset.subjects) {
        let there = std::mem::take(&mut subject.contrasts);
        // One file with all of them has no names of its own.
        if !there.is_empty() {
            subject.missing = names.iter().filter(|name| !there.contains(name)).cloned().collect();
        }
        let lacks: Vec<String> = subject.missing.iter().filter(|name| needed(name)).cloned().collect();
        let none = lacks.len() == names.iter().filter(|name| needed(name)).count();
        if lacks.is_empty() || missing == Missing::Zero && !none {
            dataset.subjects.push(subject);
        } else {
            let problem = Problem::lacking(subject.channels[0].display(), &subject.id, lacks);
            dataset.ignored.push(problem);
        }
    }
    Ok(())
}

/// Makes a scan `id/channel` of every channel of every scan; the person stays what it is. The one channel of all has a name that says
/// nothing, which of them it is stands in [`Subject::contrasts`].
pub fn separate(dataset: &mut Dataset) {
    let names = std::mem::replace(&mut dataset.channels, vec![UNNAMED.into()]);
    let scans = std::mem::take(&mut dataset.subjects);
    dataset.subjects = scans.into_par_iter().flat_map_iter(|scan| of_scan(scan, &names)).collect();
}

/// `names`: of the channels of scans that have none of their own.
fn of_scan(scan: Subject, names: &[String]) -> Vec<Subject> {
    let names = if scan.contrasts.is_empty() { names } else { &scan.contrasts };
    let mut found: Vec<(String, Option<usize>, &Source)> = vec![];
    for (i, source) in scan.channels.iter().enumerate() {
        // What cannot be read is reported when it is read as a whole.
        let n = source.read_header().map_or(1, |header| header.channels);
        let parts = (0..n).map(|c| (n > 1).then_some(c));
        let own = if names.len() == scan.channels.len() { &names[i] } else { UNNAMED };
        found.extend(parts.map(|part| {
            let name = match part {
                Some(c) if scan.channels.len() == 1 && names.len() == n => names[c].clone(),
                Some(c) => format!("{own}_{c}"),
                None => own.to_owned(),
            };
            (name, part, source)
        }));
    }
    let unique = |i: usize, name: &str| match found.iter().filter(|other| other.0 == name).count() {
        1 => name.to_owned(),
        _ => format!("{name}_{i}"),
    };
    let each = found.iter().enumerate().map(|(i, &(ref name, part, source))| {
        let name = unique(i, name);
        // A name of the owners' may hold what no file name can.
        let in_id = name.replace(['/', '\\', '\0', '\n', '\r'], "_");
        Subject {
            id: format!("{}/{in_id}", scan.id),
            channels: vec![source.clone()],
            contrasts: vec![name],
            part,
            ..scan.clone()
        }
    });
    each.collect()
}
