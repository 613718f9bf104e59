//! The control format: paragraphs of `Field: value` with continuation lines. Spec: Debian Policy §5.1, deb822(5).

use std::io::BufRead;

/// Longest line that is accepted, in bytes. Depends lines of real archives stay below 64 KiB.
const LINE_BYTES_MAX: usize = 4 << 20;

/// One paragraph: fields in order, names as written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Paragraph {
    fields: Vec<(String, String)>,
    /// Line of the input that the paragraph starts at, from 1.
    pub line: usize,
}

impl Paragraph {
    /// Value of a field (names do not care for case); continuation lines are joined by newlines.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }
}

/// Reads paragraphs one at a time, so that an index of 50 MB needs no memory.
pub struct Paragraphs<R> {
    input: R,
    line: usize,
    keep: fn(&str) -> bool,
}

impl<R: BufRead> Paragraphs<R> {
    /// Reads all fields.
    pub fn new(input: R) -> Self {
        Self::only(input, |_| true)
    }

    /// Reads only the fields that `keep` says.
    pub fn only(input: R, keep: fn(&str) -> bool) -> Self {
        Self { input, line: 0, keep }
    }

    fn read_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        line.clear();
        let mut limited = std::io::Read::take(&mut self.input, LINE_BYTES_MAX as u64);
        if limited.read_until(b'\n', line)? == 0 {
            return Ok(false);
        }
        if line.len() == LINE_BYTES_MAX {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("line {} is too long", self.line),
            ));
        }
        self.line += 1;
        while line.last().is_some_and(|byte| byte.is_ascii_whitespace()) {
            line.pop();
        }
        Ok(true)
    }

    /// The next paragraph; `None` at the end.
    ///
    /// # Errors
    /// What the input says, or `InvalidData` with the line's number.
    pub fn read(&mut self) -> std::io::Result<Option<Paragraph>> {
        let mut paragraph = Paragraph::default();
        let (mut line, mut is_kept, mut is_empty) = (Vec::new(), false, true);
        while self.read_line(&mut line)? {
            if line.is_empty() {
                if is_empty {
                    continue;
                }
                break;
            }
            if line[0] == b'#' {
                continue;
            }
            if is_empty {
                paragraph.line = self.line;
                is_empty = false;
            }
            if matches!(line[0], b' ' | b'\t') {
                if let (true, Some((_, value))) = (is_kept, paragraph.fields.last_mut()) {
                    value.push('\n');
                    value.push_str(String::from_utf8_lossy(&line).trim());
                }
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            let Some((name, value)) = text.split_once(':') else {
                let message = format!("line {} is not a field", self.line);
                return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, message));
            };
            is_kept = (self.keep)(name);
            if is_kept {
                paragraph.fields.push((name.to_owned(), value.trim().to_owned()));
            }
        }
        Ok((!is_empty).then_some(paragraph))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_fields_and_continuations_are_told_apart() {
        let text = b"\n# note\nTypes: deb\nSigned-By:\n -----BEGIN\n .\n b\n\n\nTypes: deb-src\n";
        let mut paragraphs = Paragraphs::new(&text[..]);
        let first = paragraphs.read().unwrap().unwrap();
        assert_eq!(first.field("types"), Some("deb"));
        assert_eq!(first.field("Signed-By"), Some("\n-----BEGIN\n.\nb"));
        assert_eq!(first.line, 3);
        assert_eq!(paragraphs.read().unwrap().unwrap().field("Types"), Some("deb-src"));
        assert_eq!(paragraphs.read().unwrap(), None);
    }

    #[test]
    fn a_line_that_is_no_field_is_an_error_with_its_number() {
        let error = Paragraphs::new(&b"A: b\nnonsense\n"[..]).read().unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not a field");
    }

    #[test]
    fn unwanted_fields_and_their_continuations_are_dropped() {
        let text = b"Package: a\nDescription: x\n long\nVersion: 1\n";
        let paragraph = Paragraphs::only(&text[..], |name| name != "Description").read().unwrap().unwrap();
        assert_eq!(paragraph.field("Description"), None);
        assert_eq!(paragraph.field("Version"), Some("1"));
        assert_eq!(paragraph.field("Package"), Some("a"));
    }
}
