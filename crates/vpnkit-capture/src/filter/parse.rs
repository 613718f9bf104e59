//! Text to expression: recursive descent over words.

use std::net::IpAddr;

use super::{DEPTH_MAX, EXPRESSION_MAX, Expression, FilterError, Protocol, Side, Test};

/// `None` is the empty expression.
pub fn parse(text: &str) -> Result<Option<Expression>, FilterError> {
    if text.len() > EXPRESSION_MAX {
        return Err(FilterError::Long);
    }
    let words = words(text);
    if words.is_empty() {
        return Ok(None);
    }
    let mut parser = Parser { words: &words, at: 0, end: text.len() + 1, depth: 0, last: None };
    let expression = parser.either()?;
    match parser.peek() {
        None => Ok(Some(expression)),
        Some(_) => Err(parser.unexpected("`and`, `or` or the end")),
    }
}

/// A word and its column.
type Word<'a> = (&'a str, usize);

fn words(text: &str) -> Vec<Word<'_>> {
    let mut found = Vec::new();
    let mut start = None;
    for (at, letter) in text.char_indices() {
        let is_alone = matches!(letter, '(' | ')' | '!');
        if letter.is_whitespace() || is_alone {
            if let Some(start) = start.take() {
                found.push((&text[start..at], start + 1));
            }
            if is_alone {
                found.push((&text[at..=at], at + 1));
            }
        } else if start.is_none() {
            start = Some(at);
        }
    }
    if let Some(start) = start {
        found.push((&text[start..], start + 1));
    }
    found
}

/// What stands before a value: `tcp src port`. A value alone takes what stood before the last one.
#[derive(Debug, Clone, Copy)]
struct Qualifier {
    protocol: Option<Protocol>,
    side: Side,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
    Ether,
}

struct Parser<'a> {
    words: &'a [Word<'a>],
    at: usize,
    end: usize,
    depth: usize,
    last: Option<Qualifier>,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|word| word.0)
    }

    /// Goes past the next word if it is one of these.
    fn accept(&mut self, any: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| any.contains(&word));
        self.at += usize::from(found);
        found
    }

    fn unexpected(&self, expected: &'static str) -> FilterError {
        let (word, column) = self.words.get(self.at).copied().unwrap_or(("the end", self.end));
        FilterError::Word { word: word.to_owned(), column, expected }
    }

    /// `and` and `or` are equally strong and go from the left, as pcap-filter(7) has it.
    fn either(&mut self) -> Result<Expression, FilterError> {
        let mut left = self.one()?;
        loop {
            if self.accept(&["or", "||"]) {
                left = Expression::Or(Box::new(left), Box::new(self.one()?));
            } else if self.accept(&["and", "&&"]) {
                left = Expression::And(Box::new(left), Box::new(self.one()?));
            } else {
                return Ok(left);
            }
        }
    }

    fn one(&mut self) -> Result<Expression, FilterError> {
        if self.depth >= DEPTH_MAX {
            return Err(FilterError::Deep);
        }
        self.depth += 1;
        let expression = if self.accept(&["not", "!"]) {
            Expression::Not(Box::new(self.one()?))
        } else if self.accept(&["("]) {
            let inner = self.either()?;
            if !self.accept(&[")"]) {
                return Err(self.unexpected("`)`"));
            }
            inner
        } else {
            Expression::Test(self.test()?)
        };
        self.depth -= 1;
        Ok(expression)
    }

    fn test(&mut self) -> Result<Test, FilterError> {
        if self.accept(&["broadcast"]) {
            return Ok(Test::Broadcast);
        }
        if self.accept(&["multicast"]) {
            return Ok(Test::Multicast);
        }
        if self.accept(&["less"]) {
            return self.value("a number of bytes").map(Test::Less);
        }
        if self.accept(&["greater"]) {
            return self.value("a number of bytes").map(Test::Greater);
        }
        let is_ether = self.accept(&["ether"]);
        let protocol = if is_ether { None } else { self.protocol() };
        let side = self.side();
        let Some(kind) = self.kind(is_ether) else {
            return self.without_kind(protocol, side, is_ether);
        };
        let qualifier = Qualifier { protocol, side: side.unwrap_or(Side::Either), kind };
        self.last = Some(qualifier);
        self.of(qualifier)
    }

    /// A protocol by itself, `src 10.0.0.1`, or a value that goes with the words before the last one.
    fn without_kind(
        &mut self,
        protocol: Option<Protocol>,
        side: Option<Side>,
        is_ether: bool,
    ) -> Result<Test, FilterError> {
        match (protocol, side) {
            (Some(protocol), None) => Ok(Test::Protocol(protocol)),
            (_, Some(side)) => {
                let kind = if is_ether { Kind::Ether } else { Kind::Host };
                let qualifier = Qualifier { protocol, side, kind };
                self.last = Some(qualifier);
                self.of(qualifier)
            }
            (None, None) => match self.last {
                Some(qualifier) if !is_ether => self.of(qualifier),
                _ => Err(self.unexpected("`host`, `net`, `port`, a protocol, `not` or `(`")),
            },
        }
    }

    fn protocol(&mut self) -> Option<Protocol> {
        let protocol = match self.peek()? {
            "arp" => Protocol::Arp,
            "ip" => Protocol::Ip,
            "ip6" => Protocol::Ip6,
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "icmp" => Protocol::Icmp,
            "icmp6" => Protocol::Icmp6,
            _ => return None,
        };
        self.at += 1;
        Some(protocol)
    }

    fn side(&mut self) -> Option<Side> {
        if self.accept(&["src"]) {
            Some(Side::Source)
        } else if self.accept(&["dst"]) {
            Some(Side::Destination)
        } else {
            None
        }
    }

    fn kind(&mut self, is_ether: bool) -> Option<Kind> {
        let kind = match self.peek()? {
            "host" if is_ether => Kind::Ether,
            "host" => Kind::Host,
            "net" if !is_ether => Kind::Net,
            "port" if !is_ether => Kind::Port,
            "portrange" if !is_ether => Kind::PortRange,
            _ => return None,
        };
        self.at += 1;
        Some(kind)
    }

    /// The value after `qualifier`.
    fn of(&mut self, qualifier: Qualifier) -> Result<Test, FilterError> {
        let Qualifier { protocol, side, kind } = qualifier;
        match kind {
            Kind::Ether => self.parsed("a hardware address like 02:00:00:00:00:01", |word| {
                hardware_address(word).map(|address| Test::Ether(side, address))
            }),
            Kind::Host => self.parsed("an IP address", |word| {
                let address: IpAddr = word.parse().ok()?;
                let prefix = if address.is_ipv4() { 32 } else { 128 };
                Some(Test::Net { protocol, side, address, prefix })
            }),
            Kind::Net => self.parsed("a network like 10.0.0.0/8", |word| {
                let (address, prefix) = word.split_once('/')?;
                let address: IpAddr = address.parse().ok()?;
                let prefix: u8 = prefix.parse().ok()?;
                let most = if address.is_ipv4() { 32 } else { 128 };
                (prefix <= most).then_some(Test::Net { protocol, side, address, prefix })
            }),
            Kind::Port => self.parsed("a port number", |word| {
                let port = word.parse().ok()?;
                Some(Test::Port { protocol, side, ports: port..=port })
            }),
            Kind::PortRange => self.parsed("a range of ports like 8000-8080", |word| {
                let (first, last) = word.split_once('-')?;
                let ports = first.parse().ok()?..=last.parse().ok()?;
                (!ports.is_empty()).then_some(Test::Port { protocol, side, ports })
            }),
        }
    }

    fn value<T: std::str::FromStr>(&mut self, expected: &'static str) -> Result<T, FilterError> {
        self.parsed(expected, |word| word.parse().ok())
    }

    fn parsed<T>(
        &mut self,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, FilterError> {
        let parsed = self.peek().and_then(parse).ok_or_else(|| self.unexpected(expected))?;
        self.at += 1;
        Ok(parsed)
    }
}

fn hardware_address(word: &str) -> Option<[u8; 6]> {
    let mut address = [0; 6];
    let mut parts = word.split(':');
    for byte in &mut address {
        let part = parts.next().filter(|part| matches!(part.len(), 1 | 2))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(address)
}
