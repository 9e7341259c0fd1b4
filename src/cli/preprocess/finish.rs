//! What a finished `preprocess` says.

use super::Args;
use crate::data::layouts::Dataset;
use crate::data::names::some;
use crate::data::slices::Slices;
use crate::data::store::build::{Filled, disagree};
use crate::data::store::shards::Part;
use crate::data::store::{Entry, LeftOut, enlarged};
use crate::print::{self, note, say};
use crate::shard::Shard;
use anyhow::{Result, bail, ensure};
use indicatif::HumanBytes;
use std::collections::BTreeMap;
use std::time::Duration;

/// Says what a shard has done; an error if it is not done. Gives whether others are not.
pub fn finish_shard(args: &Args, all: usize, part: &Part, took: Duration) -> Result<bool> {
    let Part { stored, kept, left_out, stopped, missing } = part;
    let (shard, out, bad) = (args.shard, args.out.display(), left_out.len());
    if *stopped {
        bail!("interrupted: {stored} scans of shard {shard} are in {out}; run the same command to go on");
    }
    ensure!(
        bad == 0 || args.skip_bad,
        "{bad} scans of shard {shard} cannot be used; {stored} are done and kept in {out}: mend the others and run the same command; or, when \
         the other shards are done, run it with --skip-bad and without --shard, which makes the store without them"
    );
    let missing: Vec<String> = missing.iter().map(Shard::to_string).collect();
    let missing: Vec<&str> = missing.iter().map(String::as_str).collect();
    say!(
        "{out}: shard {shard}: {stored} of all {all} scans ({kept} kept{}), {:.1} s; {}",
        if bad > 0 { format!(", {bad} left out") } else { String::new() },
        took.as_secs_f64(),
        match missing.len() {
            0 => "all shards are done".to_string(),
            n => format!("{n} of {} shards are not done: {}; the last one makes the store whole", shard.count, some(&missing)),
        }
    );
    Ok(!missing.is_empty())
}

/// Says what was done and what comes next; an error if the store is not complete.
pub fn finish(args: &Args, dataset: &Dataset, filled: &Filled, took: Duration) -> Result<()> {
    let &Filled { ref index, kept, stopped, .. } = filled;
    let (stored, out) = (index.subjects.len(), args.out.display());
    if stopped {
        bail!("interrupted: {stored} of {} scans are in {out}; run the same command to go on", dataset.subjects.len());
    }
    let bad = index.left_out.len();
    if bad > 0 {
        note!("{bad} left out:");
        for LeftOut { id, reason } in &index.left_out {
            note!("  {id}: {reason}");
        }
    }
    ensure!(stored > 0, "no subject of {} can be used", args.data.display());
    ensure!(
        index.complete,
        "{bad} scans cannot be used; {stored} are done and kept in {out}: mend the others and run the same command, or add \
         --skip-bad{} to go on without them",
        if args.shard.is_whole() { "" } else { " (and no --shard)" }
    );
    for group in index.duplicates() {
        let ids: Vec<&str> = group.iter().map(|entry| entry.id.as_str()).collect();
        let differ = if disagree(&group) { "; their classes or labels differ" } else { "" };
        note!(
            "warning: {} subjects hold the same scan: {}{differ}; --skip-duplicates leaves copies out",
            ids.len(),
            some(&ids)
        );
    }
    let outside: Vec<&str> = index.subjects.iter().filter(|s| s.outside.is_some()).map(|s| s.id.as_str()).collect();
    if !outside.is_empty() {
        let voxels: usize = index.subjects.iter().filter_map(|s| s.outside.as_ref()).map(|o| o.voxels).sum();
        note!(
            "warning: {voxels} labelled voxels of {} scans lie outside of the foreground's box: {}; the boxes are widened to hold them, \
             but `predict`, which knows no label, does not reach them, so the test of `finetune` counts them as missed; a lower \
             --foreground makes the boxes larger",
            outside.len(),
            some(&outside)
        );
    }
    let incomplete: Vec<&Entry> = index.subjects.iter().filter(|s| !s.missing.is_empty()).collect();
    for name in index.channels.iter().filter(|name| incomplete.iter().any(|s| s.missing.contains(name))) {
        let ids: Vec<&str> = incomplete.iter().filter(|s| s.missing.contains(name)).map(|s| s.id.as_str()).collect();
        note!("--missing zero: {} of {stored} scans have no {name}, which is 0 in them: {}", ids.len(), some(&ids));
    }
    let mut resampled: BTreeMap<&[String], Vec<&str>> = BTreeMap::new();
    let elsewhere = index.subjects.iter().filter(|s| !s.resampled.is_empty());
    elsewhere.for_each(|s| resampled.entry(&s.resampled).or_default().push(&s.id));
    for (channels, ids) in resampled {
        note!(
            "{} of {} scans lay on other grids than {} and were resampled onto it: {}",
            channels.join(", "),
            ids.len(),
            index.channels[0],
            some(&ids)
        );
    }
    if let Some(first) = index.subjects.iter().find(|s| !s.few_values.is_empty()) {
        let n = index.subjects.iter().filter(|s| !s.few_values.is_empty()).count();
        let values: Vec<String> = first.few_values.iter().map(i64::to_string).collect();
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        note!(
            "warning: {n} of {stored} scans hold whole numbers as labels do, the first {} ({}); if they are labels, name \
             them ID_seg after the scan's ID_.., list them in a manifest's column `label`, or move them away",
            first.id,
            some(&values)
        );
    }
    if let Some(text) = enlarged::describe(filled) {
        note!("{text}");
    }
    let side = |pick: fn(usize, usize) -> usize, a: usize| index.subjects.iter().map(|s| s.shape[a]).reduce(pick).unwrap_or(0);
    let size = [0, 1, 2].map(|a| match (side(usize::min, a), side(usize::max, a)) {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low}-{high}"),
    });
    say!(
        "{out}: {stored} scans ({kept} kept{}), channels {}, {} voxels, {}, {:.1} s",
        if bad > 0 { format!(", {bad} left out") } else { String::new() },
        index.channels.join(", "),
        size.join(" x "),
        HumanBytes(index.subjects.iter().map(|s| s.bytes).sum()),
        took.as_secs_f64()
    );
    let out = args.out.to_string_lossy();
    let mut next = vec!["pretrain", "--task", "rot", "--data", &out];
    // Scans that are one slice each; those across the first axis are images anyway.
    let plane = [(1, Slices::Coronal), (2, Slices::Axial)].into_iter().find(|&(axis, _)| size[axis] == "1");
    next.extend(plane.iter().flat_map(|(_, plane)| ["--slices", plane.name()]));
    say!("next: {}", print::command_line(next));
    Ok(())
}
