//! Links of proxied pages: a page behind `…/proxy` says `/style.css` and means a path behind `…/proxy`, so that such links
//! get the path of the proxy in front. Pages are rewritten while they pass, a tag at a time.

use std::borrow::Cow;

/// A longer tag passes as it is.
const TAG_LIMIT: usize = 64 << 10;

/// What links are measured by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Base {
    /// Path of the proxy, without a slash at its end.
    pub prefix: String,
    /// Host and port that the caller asked.
    pub asked: String,
    /// Host and port of the page.
    pub target: String,
}

impl Base {
    /// A link as it reaches the same place from outside; `None` if it does so already: it is relative, of another host, or
    /// begins with the path of the proxy.
    pub fn rewrite(&self, link: &str) -> Option<String> {
        let (scheme, host, path) = split(link);
        if !path.starts_with('/') {
            return None;
        }
        // The host of the page is not reachable from outside, the asked one is kept.
        let origin = match host {
            Some(host) if host == self.asked => format!("{scheme}//{host}"),
            Some(host) if host != self.target => return None,
            _ => String::new(),
        };
        let prefix = if path.starts_with(&self.prefix) {
            ""
        } else {
            &self.prefix
        };
        let rewritten = format!("{origin}{prefix}{path}");
        (rewritten != link).then_some(rewritten)
    }
}

/// Scheme with its colon, host, and the rest of a link.
fn split(link: &str) -> (&str, Option<&str>, &str) {
    let colon = ["http:", "https:"].into_iter().find(|s| {
        let head = link.get(..s.len());
        head.is_some_and(|h| h.eq_ignore_ascii_case(s))
    });
    let (scheme, rest) = link.split_at(colon.map_or(0, str::len));
    match rest.strip_prefix("//") {
        Some(rest) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            (scheme, Some(&rest[..end]), &rest[end..])
        }
        // A scheme without a host is no link to a page.
        None if !scheme.is_empty() => (scheme, None, ""),
        None => (scheme, None, rest),
    }
}

/// Which attributes of a tag hold links (HTML, section "Attributes", and the older ones of HTML 4).
fn link_attributes(tag: &str) -> &'static [&'static str] {
    match tag {
        "a" | "area" | "base" | "link" => &["href"],
        "audio" | "embed" | "script" | "source" | "track" => &["src"],
        "blockquote" | "del" | "ins" | "q" => &["cite"],
        "body" => &["background"],
        "applet" => &["codebase"],
        "button" => &["formaction"],
        "command" => &["icon"],
        "form" => &["action"],
        "frame" | "iframe" => &["longdesc", "src"],
        "head" => &["profile"],
        "html" => &["manifest"],
        "img" => &["longdesc", "src", "usemap"],
        "input" => &["formaction", "src", "usemap"],
        "object" => &["classid", "codebase", "data", "usemap"],
        "video" => &["poster", "src"],
        _ => &[],
    }
}

/// Tags whose content is text, whatever it looks like.
fn is_raw(tag: &str) -> bool {
    matches!(
        tag,
        "script" | "style" | "textarea" | "title" | "xmp" | "iframe" | "noembed" | "noframes"
    )
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Text,
    /// Inside `<…>`; a quote that is open, and whether a value may begin.
    Tag {
        quote: u8,
        value: bool,
    },
    /// How many dashes came last, at most two.
    Comment {
        dashes: u8,
    },
}

/// Rewrites the links of a page that comes in pieces.
#[derive(Debug)]
pub struct Page {
    base: Base,
    state: State,
    /// The tag being read, from its `<`; empty once it is too long.
    tag: Vec<u8>,
    /// The tag whose end is waited for.
    raw: Option<String>,
}

impl Page {
    /// A page from its beginning.
    pub fn new(base: Base) -> Self {
        Self {
            base,
            state: State::Text,
            tag: Vec::new(),
            raw: None,
        }
    }

    /// Takes a piece in; what is certain of the page so far is appended to `out`.
    pub fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        for byte in piece {
            self.take(*byte, out);
        }
    }

    /// The end of the page: what was held back.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.tag);
    }

    fn take(&mut self, byte: u8, out: &mut Vec<u8>) {
        match self.state {
            State::Text if byte == b'<' => {
                self.tag.push(byte);
                self.state = State::Tag { quote: 0, value: false };
            }
            State::Text => out.push(byte),
            State::Comment { dashes } => {
                out.push(byte);
                self.state = match (byte, dashes) {
                    (b'>', 2) => State::Text,
                    (b'-', _) => State::Comment {
                        dashes: dashes.max(1) + u8::from(dashes == 1),
                    },
                    _ => State::Comment { dashes: 0 },
                };
            }
            State::Tag { quote, value } => self.take_tag(byte, quote, value, out),
        }
    }

    fn take_tag(&mut self, byte: u8, quote: u8, value: bool, out: &mut Vec<u8>) {
        let held = !self.tag.is_empty();
        if held && self.tag.len() == 1 && !(byte.is_ascii_alphabetic() || matches!(byte, b'/' | b'!' | b'?')) {
            // A lone `<` is text.
            out.append(&mut self.tag);
            self.state = State::Text;
            return self.take(byte, out);
        }
        if held {
            self.tag.push(byte);
            if let Some(raw) = &self.raw {
                let end = [b"</", raw.as_bytes()].concat();
                let at = self.tag.len().min(end.len());
                let longer = self.tag.len() == end.len() + 1 && !ends_name(byte);
                if longer || !self.tag[..at].eq_ignore_ascii_case(&end[..at]) {
                    // The byte may itself begin the end that is waited for.
                    self.tag.pop();
                    out.append(&mut self.tag);
                    self.state = State::Text;
                    return self.take(byte, out);
                }
            }
            if self.tag == b"<!--" {
                out.append(&mut self.tag);
                // Those of its beginning may be those of its end.
                self.state = State::Comment { dashes: 2 };
                return;
            }
            if self.tag.len() > TAG_LIMIT {
                out.append(&mut self.tag);
            }
        } else {
            out.push(byte);
        }
        self.state = match (quote, byte) {
            (0, b'>') => {
                self.end_tag(out);
                State::Text
            }
            (0, b'"' | b'\'') if value => State::Tag {
                quote: byte,
                value: false,
            },
            (0, _) => State::Tag {
                quote: 0,
                value: byte == b'=' || (value && byte.is_ascii_whitespace()),
            },
            (open, _) => State::Tag {
                quote: if byte == open { 0 } else { open },
                value: false,
            },
        };
    }

    fn end_tag(&mut self, out: &mut Vec<u8>) {
        let tag = std::mem::take(&mut self.tag);
        if self.raw.is_some() {
            // Only its end comes this far.
            self.raw = None;
        } else if tag.get(1).is_some_and(u8::is_ascii_alphabetic) {
            let end = tag[1..].iter().position(|b| ends_name(*b)).map_or(tag.len(), |i| i + 1);
            let name = String::from_utf8_lossy(&tag[1..end]).to_ascii_lowercase();
            rewrite_attributes(&self.base, &name, &tag, end, out);
            self.raw = is_raw(&name).then_some(name);
            return;
        }
        out.extend_from_slice(&tag);
    }
}

fn ends_name(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>' | b'=')
}

/// Appends a start tag with its links rewritten; `at` is where its name ends.
fn rewrite_attributes(base: &Base, name: &str, tag: &[u8], mut at: usize, out: &mut Vec<u8>) {
    let links = link_attributes(name);
    let mut copied = 0;
    let skip = |mut at: usize, skipped: fn(u8) -> bool| {
        while tag.get(at).is_some_and(|b| skipped(*b)) {
            at += 1;
        }
        at
    };
    while !links.is_empty() && at < tag.len() {
        let begin = skip(at, |b| b.is_ascii_whitespace() || b == b'/');
        let end = skip(begin, |b| !ends_name(b));
        let equals = skip(end, |b| b.is_ascii_whitespace());
        if tag.get(equals) != Some(&b'=') {
            at = end.max(begin + 1);
            continue;
        }
        let mut value = skip(equals + 1, |b| b.is_ascii_whitespace());
        let value_end = match tag.get(value) {
            Some(quote @ (b'"' | b'\'')) => {
                value += 1;
                let length = tag[value..].iter().position(|b| b == quote);
                length.map_or(tag.len(), |l| value + l)
            }
            _ => skip(value, |b| !b.is_ascii_whitespace() && b != b'>'),
        };
        let attribute = String::from_utf8_lossy(&tag[begin..end]).to_ascii_lowercase();
        if links.contains(&attribute.as_str())
            && let Cow::Borrowed(link) = String::from_utf8_lossy(&tag[value..value_end])
            && let Some(rewritten) = base.rewrite(link)
        {
            out.extend_from_slice(&tag[copied..value]);
            out.extend_from_slice(rewritten.as_bytes());
            copied = value_end;
        }
        at = value_end + 1;
    }
    out.extend_from_slice(&tag[copied..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> Base {
        Base {
            prefix: "/api/v1/namespaces/a/pods/p/proxy".into(),
            asked: "localhost:8001".into(),
            target: "10.0.0.1:80".into(),
        }
    }

    fn rewritten(page: &str, size: usize) -> String {
        let (mut rewriting, mut out) = (Page::new(base()), Vec::new());
        for piece in page.as_bytes().chunks(size) {
            rewriting.push(piece, &mut out);
        }
        rewriting.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_links_that_would_leave_the_proxy_are_rewritten() {
        let p = base().prefix;
        for (link, expected) in [
            ("/", Some(format!("{p}/"))),
            ("/a/b?q=1#x", Some(format!("{p}/a/b?q=1#x"))),
            ("http://10.0.0.1:80/a", Some(format!("{p}/a"))),
            ("//10.0.0.1:80/a", Some(format!("{p}/a"))),
            ("HTTP://localhost:8001/a", Some(format!("HTTP://localhost:8001{p}/a"))),
            ("//localhost:8001/a", Some(format!("//localhost:8001{p}/a"))),
            ("a/b", None),
            ("", None),
            ("#top", None),
            ("?q=/", None),
            ("mailto:a@b", None),
            ("https:/a", None),
            ("http://example.com/a", None),
            ("//example.com/a", None),
            ("http://10.0.0.1:80", None),
        ] {
            assert_eq!(base().rewrite(link), expected, "{link}");
        }
        assert_eq!(base().rewrite(&format!("{p}/a")), None);
    }

    #[test]
    fn links_in_the_attributes_of_tags_are_rewritten_and_nothing_else() {
        let p = base().prefix;
        for (page, expected) in [
            ("<a href=\"/x\">/x</a>", format!("<a href=\"{p}/x\">/x</a>")),
            ("<A HREF = '/x' title='/y'>", format!("<A HREF = '{p}/x' title='/y'>")),
            ("<a href=/x>", format!("<a href={p}/x>")),
            (
                "<img alt='a>b' src=/x usemap=#m/>",
                format!("<img alt='a>b' src={p}/x usemap=#m/>"),
            ),
            ("<link/href=\"/x\"/>", format!("<link/href=\"{p}/x\"/>")),
            ("<input disabled src=\"/x\">", format!("<input disabled src=\"{p}/x\">")),
            ("<p href=\"/x\">", "<p href=\"/x\">".into()),
            ("</a href=\"/x\">", "</a href=\"/x\">".into()),
            ("1 < 2 <a href='/x'>", format!("1 < 2 <a href='{p}/x'>")),
            (
                "<!-- <a href='/x'> --><a href='/y'>",
                format!("<!-- <a href='/x'> --><a href='{p}/y'>"),
            ),
            (
                "<!DOCTYPE html \"/x\"><a href='/y'>",
                format!("<!DOCTYPE html \"/x\"><a href='{p}/y'>"),
            ),
            (
                "<script src='/s'>if (a</b/) '<a href=\"/x\">' <</script><a href='/y'>",
                format!("<script src='{p}/s'>if (a</b/) '<a href=\"/x\">' <</script><a href='{p}/y'>"),
            ),
            ("<a href='/x", "<a href='/x".into()),
            ("a <", "a <".into()),
        ] {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(rewritten(page, size), expected, "in pieces of {size}");
            }
        }
    }

    #[test]
    fn a_tag_without_end_is_not_held_for_ever() {
        let page = format!("<a title=\"{}\" href=\"/x\"><a href=/y>", "x".repeat(TAG_LIMIT));
        let out = rewritten(&page, 4096);
        assert!(out.contains("href=\"/x\"") && out.contains("/proxy/y>"));
    }

    proptest! {
        #[test]
        fn how_a_page_is_cut_makes_no_difference(page in "[<>/!='\" a-c-]{0,80}(<a href=/x>)?[<>/!='\" s-]{0,40}", size in 1usize..9) {
            prop_assert_eq!(rewritten(&page, size), rewritten(&page, 1000));
        }

        #[test]
        fn a_page_without_links_stays_as_it_is(page in "[<>/!='\" p-t-]{0,200}", size in 1usize..9) {
            prop_assert_eq!(rewritten(&page, size), page);
        }
    }
}
