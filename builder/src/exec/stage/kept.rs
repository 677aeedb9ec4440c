//! What of a step did an earlier build keep, what is kept for the next, and why is a step made again?

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::Result;
use image::Digest;
use image::store::{Archive, Blob, Step, Tree};
use serde_json::{Value, json};

use super::Running;
use crate::exec::splice::{Before, Later, List};
use crate::exec::{Event, layer, lock, pick};

/// Changes when the same instruction makes something else than before.
const EDITION: u32 = 1;
/// In what is remembered of an instruction, the keys of what it made.
const MADE: &str = "made";
/// How many of them. What a build has made that failed later is of no use to the next.
const MADE_MOST: usize = 4;

/// What a step's result depends on, as a key.
pub fn key(parts: &Value) -> Digest {
    Digest::of(json!([EDITION, parts]).to_string().as_bytes())
}

/// A layer as an archive, as a tree (a folder of it), or as both.
type Layered<'t> = (Option<Blob>, Option<(Tree, &'t str)>);

/// What else is known of a layer: above which step's tree its own is, what its archive holds, and that it is still being made.
type More = (Option<Digest>, Option<List>, Option<Later>);

/// An instruction of a Dockerfile.
pub(super) struct Series {
    key: Digest,
    /// What its step depended on, and the files that it took.
    parts: Value,
    listing: Option<String>,
    /// What it made before, the last first.
    pub(super) made: Vec<Digest>,
}

/// What a step came to.
pub(in crate::exec) enum Effect {
    Nothing,
    /// The layer of that key.
    Layer(Digest),
}

impl Running<'_, '_> {
    fn label(&self) -> String {
        self.build.options.latest.map_or_else(|| "kept".to_owned(), |n| n.to_string())
    }

    /// What an earlier build kept under a key, if it can be used; and the key under which it was made last.
    pub(in crate::exec) fn kept(&self, key: &Digest) -> Result<Option<(Digest, Step)>> {
        let build = self.build;
        let store = build.store;
        lock(&build.shared.used).push(key.clone());
        if self.no_cache {
            return Ok(None);
        }
        if let Some(step) = store.step(key)? {
            if let Some(instead) = &step.instead {
                return self.kept(instead);
            }
            if self.is_here(key, &step)? {
                store.touch_step(key);
                return Ok(Some((key.clone(), step)));
            }
        }
        let Some(step) = build.remote.step(key, &self.label(), build.options.whole) else { return Ok(None) };
        store.keep_step(key, step, None)?;
        lock(&build.shared.kept).push(key.clone());
        match &step.instead {
            Some(instead) => self.kept(instead),
            None => Ok(Some((key.clone(), step.clone()))),
        }
    }

    /// Whether what a step made can be had here.
    fn is_here(&self, key: &Digest, step: &Step) -> Result<bool> {
        let store = self.build.store;
        let archive = step.archives.get(&self.label());
        Ok(step.empty
            || step.instead.is_some()
            || store.step_tree(key, step)?.is_some()
            || lock(&self.build.shared.later).contains_key(key)
            || lock(&self.build.shared.blobs).contains_key(key)
            || archive.is_some_and(|a| store.has(&a.diff_id).unwrap_or(false)))
    }

    /// The effect of a step that an earlier build has made.
    pub(super) fn cached(&self, key: &Digest) -> Result<Option<(Digest, Effect)>> {
        let kept = self.kept(key)?;
        Ok(kept.map(|(key, step)| {
            let effect = if step.empty { Effect::Nothing } else { Effect::Layer(key.clone()) };
            (key, effect)
        }))
    }

    /// Keep what was made under its key; under another, if something else was made under that before. The key under which it is.
    pub(super) fn keep(
        &self,
        key: Digest,
        title: &str,
        made: Option<Layered<'_>>,
        more: Option<More>,
    ) -> Result<(Digest, Effect)> {
        let store = self.build.store;
        let mut step = Step::of(title);
        step.empty = made.is_none();
        let mut tree = None;
        let mut blob = None;
        if let Some((archive, made)) = made {
            (blob, tree) = (archive, made);
        }
        let actual = match store.step(&key)? {
            // Others may be looking at that right now, and what came after it stands on it.
            Some(before) if self.no_cache && self.is_here(&key, &before)? => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                let actual =
                    self::key(&json!({"again": key, "at": now.map_or(0, |d| d.as_nanos()).to_string()}));
                let mut other = Step::of(title);
                other.instead = Some(actual.clone());
                lock(&self.build.shared.used).push(actual.clone());
                Some((actual, other))
            }
            _ => None,
        };
        let kept_under = actual.as_ref().map_or(&key, |(actual, _)| actual).clone();
        if let Some(blob) = blob {
            let archive = Archive { diff_id: blob.digest().clone(), size: blob.size() };
            step.archives.insert(self.label(), archive);
            lock(&self.build.shared.blobs).insert(kept_under.clone(), blob);
        }
        if let Some((over, list, later)) = more {
            step.over = over;
            if let Some(later) = later {
                lock(&self.build.shared.later).insert(kept_under.clone(), later);
            }
            if let Some(list) = list {
                store.keep_entries(&kept_under, &list.to_bytes())?;
            }
        }
        store.keep_step(&kept_under, &step, tree)?;
        let mut kept = lock(&self.build.shared.kept);
        kept.push(kept_under.clone());
        if let Some((_, other)) = actual {
            store.keep_step(&key, &other, None)?;
            kept.push(key);
        }
        let effect = if step.empty { Effect::Nothing } else { Effect::Layer(kept_under.clone()) };
        Ok((kept_under, effect))
    }

    pub(super) fn keep_made(&self, key: Digest, title: &str, made: layer::Made) -> Result<(Digest, Effect)> {
        let layer::Made { blob, tree, over, list, later, .. } = made;
        self.keep(key, title, Some((blob, tree.map(|t| (t, "")))), Some((over, list, later)))
    }

    /// Tell what is other than in the last build of this instruction.
    pub(super) fn tell_why(
        &self,
        number: usize,
        parts: Value,
        sources: Option<&[pick::Source]>,
    ) -> Result<Series> {
        let build = self.build;
        let place = match &build.contexts.main {
            Some(folder) => {
                let stat = rustix::fs::fstat(&folder.root)?;
                (stat.st_dev, stat.st_ino)
            }
            None => (0, 0),
        };
        let series =
            key(&json!({"series": [build.source.name, self.node.number, self.steps.0], "of": place}));
        let listing = sources.and_then(pick::listing);
        let mut before = build.store.step(&series)?.map(|step| step.note);
        if let (Some(before), false) = (&before, self.no_cache) {
            let listed = match listing {
                Some(_) => build.store.step_entries(&series)?.and_then(|bytes| String::from_utf8(bytes).ok()),
                None => None,
            };
            let file =
                listed.as_deref().zip(listing.as_deref()).and_then(|(before, now)| changed_file(before, now));
            if let Some(text) = file.or_else(|| why(before, &parts)) {
                let text = format!("not from the cache: {text}");
                (build.tell)(Event::Note { step: number, text: &text });
            }
        }
        let made = before.as_mut().and_then(|before| serde_json::from_value(before[MADE].take()).ok());
        Ok(Series { key: series, parts, listing, made: made.unwrap_or_default() })
    }

    /// Keep what an instruction depends on now, and what it made, for its next build.
    pub(super) fn remember(&self, series: Series, made: Option<&Digest>) -> Result<()> {
        let Series { key: series, mut parts, listing, made: before } = series;
        if let Some(listing) = listing {
            self.build.store.keep_entries(&series, listing.as_bytes())?;
        }
        if let Some(all) = parts.as_object_mut() {
            let others = before.iter().filter(|b| Some(*b) != made);
            let made: Vec<&Digest> = made.into_iter().chain(others).take(MADE_MOST).collect();
            all.insert(MADE.to_owned(), json!(made));
        }
        let mut step = Step::of("what an instruction depended on");
        (step.empty, step.note) = (true, parts);
        self.build.store.keep_step(&series, &step, None)?;
        lock(&self.build.shared.kept).push(series);
        Ok(())
    }

    /// The layer that the same instruction made before, if it is still here.
    pub(super) fn before(&self, key: &Digest) -> Result<Option<Before>> {
        let store = self.build.store;
        let list = |key: &Digest| -> Result<Option<Rc<List>>> {
            Ok(store.step_entries(key)?.and_then(List::parse).map(Rc::new))
        };
        let Some(step) = store.step(key)? else { return Ok(None) };
        let Some(archive) = step.archives.get(&self.label()) else { return Ok(None) };
        if !store.has(&archive.diff_id)? {
            return Ok(None);
        }
        let Some(entries) = list(key)? else { return Ok(None) };
        let mut tree = None;
        if store.step_tree(key, &step)?.is_some() {
            tree = Some((key.clone(), entries.clone()));
        } else if let Some(over) = &step.over
            && let Some(lower) = store.step(over)?
            && store.step_tree(over, &lower)?.is_some()
        {
            tree = list(over)?.map(|list| (over.clone(), list));
        }
        Ok(Some(Before { list: entries, archive: store.parts(&archive.diff_id)?, tree }))
    }
}

/// The first file that is other than before, in a line.
fn changed_file(before: &str, now: &str) -> Option<String> {
    // Lines that both have at their beginning and at their end say nothing.
    let (b, n) = (before.as_bytes(), now.as_bytes());
    let first = b.iter().zip(n).take_while(|(b, n)| b == n).count();
    let first = b[..first].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let last = b[first..].iter().rev().zip(n[first..].iter().rev()).take_while(|(b, n)| b == n).count();
    let tail = &b[b.len() - last..];
    let last = tail.iter().position(|b| *b == b'\n').map_or(0, |at| tail.len() - at - 1);
    let (before, now) = (listed(before, first, last), listed(now, first, last));
    if let Some((path, _)) = now.iter().find(|(path, sum)| before.get(*path) != Some(sum)) {
        let how = if before.contains_key(path) { "has changed" } else { "is new" };
        return Some(format!("{path} {how}"));
    }
    let path = before.keys().find(|path| !now.contains_key(*path))?;
    Some(format!("{path} is gone"))
}

/// The first thing that is other than before, in a line.
fn why(before: &Value, now: &Value) -> Option<String> {
    if before["env"] != now["env"] {
        let name = |pair: &Value| pair[0].as_str().unwrap_or_default().to_owned();
        let (before, now) = (before["env"].as_array()?, now["env"].as_array()?);
        let other = now
            .iter()
            .find(|pair| !before.contains(pair))
            .or_else(|| before.iter().find(|p| !now.contains(p)));
        return other.map(|pair| format!("{} has another value", name(pair)));
    }
    let words = [
        ("run", "the command is another"),
        ("script", "the command is another"),
        ("mounts", "what is mounted is other"),
        ("user", "the user is another"),
        ("cwd", "the folder is another"),
        ("to", "the destination is another"),
        ("chown", "the owner is another"),
        ("chmod", "the mode is another"),
        ("remote", "what was fetched is other"),
        ("content", "what is copied is other"),
        ("on", "a step before it has changed"),
    ];
    let other = words.iter().find(|(part, _)| before[part] != now[part]);
    other.map(|(_, text)| (*text).to_owned())
}

/// What a listing holds, by path, but for so many bytes at its beginning and its end.
fn listed(text: &str, first: usize, last: usize) -> BTreeMap<&str, &str> {
    let lines = text.get(first..text.len() - last).unwrap_or_default().lines();
    lines.filter_map(|l| l.split_once(' ').map(|(sum, path)| (path, sum))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_file_that_is_other_is_told() {
        for (before, now, told) in [
            ("1 a\n2 b\n3 c\n", "1 a\n4 b\n3 c\n", "b has changed"),
            ("1 a\n2 b\n3 c\n", "1 a\n2 b\n3 c\n4 d\n", "d is new"),
            ("1 a\n2 b\n3 c\n", "2 b\n3 c\n", "a is gone"),
            ("1 a\n2 b\n3 c\n", "1 a\n2 b\n", "c is gone"),
            ("1 a\n11 a2\n", "11 a\n11 a2\n", "a has changed"),
            ("1 a\n1 b\n", "1 a\n1 a1\n1 b\n", "a1 is new"),
            ("1 x y\n", "2 x y\n", "x y has changed"),
            ("1 é\n", "1 è\n", "è is new"),
            ("", "1 a\n", "a is new"),
        ] {
            assert_eq!(changed_file(before, now).as_deref(), Some(told));
        }
        assert_eq!(changed_file("1 a\n", "1 a\n"), None);
    }
}
