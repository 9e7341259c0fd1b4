//! Channels as scans of their own: for encoders of one channel, whatever its contrast.

use super::{Dataset, Source, Subject, UNNAMED};
use rayon::prelude::*;

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
