//! `debug/src/<source>/{doc,level}`: what is logged, changed at run time.

use std::sync::{Arc, Mutex};

use p9p::Errno;

use super::attached::Attached;
use super::directory::Fixed;
use super::text::{CommandFile, Shown};
use crate::logs::{Level, Source};

pub(crate) fn debug(attached: &Arc<Attached>) -> Fixed {
    let mut sources = Fixed::new(attached);
    for source in Source::ALL {
        let logs = Arc::clone(&attached.logs);
        let level = Arc::new(Mutex::new(format!("{}\n", logs.level(source).name()).into_bytes()));
        let set = CommandFile::new(
            move |text, _| {
                let text = String::from_utf8_lossy(text);
                let level = Level::parse(text.trim()).ok_or_else(|| {
                    Errno::EINVAL
                        .with_text(format!("\"{}\" is not error, warning, info or debug", text.trim()))
                })?;
                logs.set_level(source, level);
                Ok(format!("{}\n", level.name()).into_bytes())
            },
            &level,
        );
        let one = Fixed::new(attached)
            .file("doc", Shown::fixed(format!("{}\n", source.doc()).into_bytes()))
            .file("level", set);
        sources = sources.directory(source.name(), one);
    }
    Fixed::new(attached).directory("src", sources)
}
