//! Merging inside files: line by line, where gitattributes or a transaction ask for it.
//!
//! Spec: gitattributes(5), "Performing a three-way merge".

use std::num::NonZero;

use gix::bstr::{BStr, ByteSlice};
use gix::merge::blob::Resolution;
use gix::merge::blob::builtin_driver::text::{Conflict, ConflictStyle, Labels, Options};

use datakit_git::{Mode, ObjectId, ReadError};

use super::MergeDriver;
use crate::objects::Fresh;

/// Largest file that is merged line by line, in bytes.
const TEXT_BYTES_MAX: usize = 16 << 20;

/// What a merge of texts made.
pub(super) enum Outcome {
    /// The merged text.
    Clean(Vec<u8>),
    /// A text with conflict markers.
    Marked(Vec<u8>),
    /// One of them is not text, or too large.
    NotText,
}

/// Merges three texts.
pub(super) fn merge(
    objects: &Fresh,
    base: Option<ObjectId>,
    ours: ObjectId,
    theirs: ObjectId,
    driver: MergeDriver,
) -> Result<Outcome, ReadError> {
    let mut texts = Vec::new();
    for id in [base, Some(ours), Some(theirs)] {
        match id.map(|id| objects.blob(id)).transpose() {
            Ok(bytes) => texts.push(bytes),
            Err(ReadError::TooLarge { .. }) => return Ok(Outcome::NotText),
            Err(error) => return Err(error),
        }
    }
    let texts: Vec<&[u8]> = texts.iter().map(|text| text.as_deref().unwrap_or_default()).collect();
    let is_text = |text: &&[u8]| text.len() <= TEXT_BYTES_MAX && text.find_byte(0).is_none();
    if !texts.iter().all(is_text) {
        return Ok(Outcome::NotText);
    }
    let conflict = match driver {
        MergeDriver::Union => Conflict::ResolveWithUnion,
        _ => Conflict::Keep {
            style: ConflictStyle::Diff3,
            marker_size: NonZero::new(7).unwrap_or(NonZero::<u8>::MIN),
        },
    };
    let options = Options { conflict, ..Options::default() };
    let labels = Labels {
        ancestor: Some(BStr::new("base")),
        current: Some(BStr::new("ours")),
        other: Some(BStr::new("theirs")),
    };
    let mut out = Vec::new();
    let resolution = text_merge(&mut out, labels, [texts[1], texts[0], texts[2]], options);
    Ok(match resolution {
        Resolution::Conflict => Outcome::Marked(out),
        Resolution::Complete | Resolution::CompleteWithAutoResolvedConflict => Outcome::Clean(out),
    })
}

fn text_merge(
    out: &mut Vec<u8>,
    labels: Labels<'_>,
    [ours, base, theirs]: [&[u8]; 3],
    options: Options,
) -> Resolution {
    let mut input = gix::diff::blob::InternedInput::new(&[][..], &[][..]);
    gix::merge::blob::builtin_driver::text(out, &mut input, labels, ours, base, theirs, options)
}

/// What `.gitattributes` at the root of our side says of merging.
#[derive(Default)]
pub(super) struct Attributes {
    search: Option<(gix::attrs::Search, gix::attrs::search::MetadataCollection)>,
}

impl Attributes {
    /// Reads them; without, or with damaged ones, no driver is chosen.
    pub fn of(objects: &Fresh, ours: Option<ObjectId>) -> Attributes {
        let read = || {
            let tree = objects.tree(ours?).ok()?;
            let entry = tree.try_find(b".gitattributes").filter(|entry| entry.mode != Mode::Tree)?;
            objects.blob(entry.id).ok()
        };
        let Some(bytes) = read() else { return Attributes::default() };
        let mut collection = gix::attrs::search::MetadataCollection::default();
        let mut search = gix::attrs::Search::default();
        let added = search.add_patterns_buffer(&bytes, ".gitattributes".into(), None, &mut collection, true);
        if added.is_err() {
            return Attributes::default();
        }
        Attributes { search: Some((search, collection)) }
    }

    /// The driver for a path, if one is named that we know.
    pub fn driver(&self, path: &BStr) -> Option<MergeDriver> {
        let (search, collection) = self.search.as_ref()?;
        let mut outcome = gix::attrs::search::Outcome::default();
        outcome.initialize_with_selection(collection, ["merge"]);
        search.pattern_matching_relative_path(
            path,
            gix::glob::pattern::Case::Sensitive,
            Some(false),
            &mut outcome,
        );
        let found = outcome.iter_selected().next()?;
        match found.assignment.state {
            gix::attrs::StateRef::Set => Some(MergeDriver::Text),
            gix::attrs::StateRef::Unset => Some(MergeDriver::Binary),
            gix::attrs::StateRef::Value(value) => MergeDriver::parse(value.as_bstr().to_str().ok()?),
            gix::attrs::StateRef::Unspecified => None,
        }
    }
}
