//! The little of apt.conf(5) that decides how an archive is fetched.
//!
//! Understands both spellings, `A::B "v";` and `A { B "v"; };`, comments (`//`, `#`, `/* */`). Not handled:
//! `#include`, `#clear` and lists, which none of the options below use.

use std::path::Path;

/// Options that matter to us.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct AptConfig {
    /// `Acquire::http::Proxy`; `DIRECT` is kept as it is.
    pub http_proxy: Option<String>,
    /// `Acquire::https::Proxy`.
    pub https_proxy: Option<String>,
    /// `Acquire::Check-Valid-Until` is false.
    pub ignore_valid_until: bool,
}

impl AptConfig {
    /// Reads `etc/apt/apt.conf.d/*` and `etc/apt/apt.conf` below `root`, in apt's order. Files that cannot be
    /// read count as empty: apt's own configuration may be closed to the user, and its default is a good guess.
    pub fn load(root: &Path) -> Self {
        let mut files: Vec<_> = std::fs::read_dir(root.join("etc/apt/apt.conf.d"))
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_none_or(|extension| extension == "conf"))
            .collect();
        files.sort();
        files.push(root.join("etc/apt/apt.conf"));
        let mut config = Self::default();
        for text in files.iter().filter_map(|file| std::fs::read_to_string(file).ok()) {
            config.apply(&text);
        }
        config
    }

    fn apply(&mut self, text: &str) {
        for (name, value) in options(text) {
            match name.to_ascii_lowercase().as_str() {
                "acquire::http::proxy" => self.http_proxy = Some(value),
                "acquire::https::proxy" => self.https_proxy = Some(value),
                "acquire::check-valid-until" => {
                    self.ignore_valid_until = matches!(
                        value.to_ascii_lowercase().as_str(),
                        "false" | "no" | "0" | "off" | "disable"
                    );
                }
                _ => {}
            }
        }
    }
}

/// All `name::of::option = value` pairs of a configuration text.
fn options(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut scopes: Vec<String> = Vec::new();
    let mut words: Vec<(String, bool)> = Vec::new();
    for token in tokens(text) {
        match token {
            Token::Word(word, is_quoted) => words.push((word, is_quoted)),
            Token::Open => {
                let name: Vec<_> = words.drain(..).map(|(word, _)| word).collect();
                scopes.push(name.join("::"));
            }
            Token::Close | Token::End => {
                if let [(name, false), (value, _)] = words.as_slice() {
                    let scope = scopes.iter().filter(|scope| !scope.is_empty()).cloned();
                    let path: Vec<_> = scope.chain([name.clone()]).collect();
                    found.push((path.join("::"), value.clone()));
                }
                words.clear();
                if matches!(token, Token::Close) {
                    scopes.pop();
                }
            }
        }
    }
    found
}

enum Token {
    Word(String, bool),
    Open,
    Close,
    End,
}

fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip_to = |end: &str| rest.find(end).map_or("", |at| &rest[at + end.len()..]);
        match first {
            '#' => rest = skip_to("\n"),
            '/' if rest.starts_with("//") => rest = skip_to("\n"),
            '/' if rest.starts_with("/*") => rest = skip_to("*/"),
            '"' => {
                let body = &rest[1..];
                let end = body.find('"').unwrap_or(body.len());
                tokens.push(Token::Word(body[..end].to_owned(), true));
                rest = body.get(end + 1..).unwrap_or("");
            }
            '{' | '}' | ';' => {
                tokens.push(match first {
                    '{' => Token::Open,
                    '}' => Token::Close,
                    _ => Token::End,
                });
                rest = &rest[1..];
            }
            _ if first.is_whitespace() => rest = &rest[first.len_utf8()..],
            _ => {
                let end = rest.find(|c: char| c.is_whitespace() || "{};\"".contains(c)).unwrap_or(rest.len());
                tokens.push(Token::Word(rest[..end].to_owned(), false));
                rest = &rest[end..];
            }
        }
    }
    tokens
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> AptConfig {
        let mut config = AptConfig::default();
        config.apply(text);
        config
    }

    #[test]
    fn both_spellings_give_the_proxy() {
        let proxy = Some("http://proxy:3128/".to_owned());
        assert_eq!(parsed("Acquire::http::Proxy \"http://proxy:3128/\";").http_proxy, proxy);
        assert_eq!(parsed("// c\nAcquire {\n http { Proxy \"http://proxy:3128/\"; };\n /* x */ https::Proxy \"DIRECT\"; };").http_proxy, proxy);
        assert_eq!(parsed("acquire { https::proxy \"DIRECT\"; }").https_proxy, Some("DIRECT".to_owned()));
    }

    #[test]
    fn valid_until_is_ignored_only_when_said() {
        assert!(parsed("Acquire::Check-Valid-Until \"false\";").ignore_valid_until);
        assert!(!parsed("Acquire::Check-Valid-Until \"true\";").ignore_valid_until);
        assert!(!parsed("# Acquire::Check-Valid-Until \"false\";").ignore_valid_until);
    }

    #[test]
    fn lists_and_nonsense_are_passed_over() {
        assert_eq!(parsed("DPkg { Post-Invoke {\"rm -f x || true\";}; } \" {{{ ;"), AptConfig::default());
    }
}
