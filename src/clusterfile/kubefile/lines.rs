//! From a text to logical lines: comments gone, continued lines joined, here-documents seen.

use super::{Dialect, Line, unknown_instruction};
use crate::problem::Problem;
use crate::yaml::Position;

/// A recipe cut into logical lines, and what is to be told about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    /// What could be understood as an instruction, in the order of the text.
    pub lines: Vec<Line>,
    /// What could not, and a FROM that is missing or does not come first. A recipe with problems means nothing.
    pub problems: Vec<Problem>,
    /// What may not be meant as it is written.
    pub warnings: Vec<Problem>,
}

/// Cuts `text` into logical lines. Each begins with an instruction of the dialect; unknown ones are named with the nearest
/// known one.
#[must_use]
pub fn lines(text: &str, file: &str, dialect: Dialect) -> Lines {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let problem = |at: Position, message: String| Problem {
        file: file.to_string(),
        at,
        message,
    };
    let mut found = Lines::default();
    let directive = escape_directive(text).map(|at| {
        let message = "the escape character is always \\; the escape directive is not supported";
        problem(at, message.to_string())
    });
    found.problems.extend(directive);
    for logical in join_continuations(text) {
        if let Some(number) = logical.empty_line {
            let message = "the empty line does not end the instruction, because the line before it ends with \\; take one of \
                           them out";
            let at = Position {
                line: number,
                column: 1,
            };
            found.warnings.push(problem(at, message.to_string()));
        }
        match logical.line(dialect) {
            Ok(line) => match logical.here_document {
                Some(offset) => found
                    .problems
                    .push(problem(logical.place(offset), here_document(line.keyword))),
                None => found.lines.push(line),
            },
            Err(message) => found.problems.push(problem(logical.place(0), message)),
        }
    }
    // What could not be understood may have been the FROM.
    if found.problems.is_empty() {
        let missing = check_from(&found.lines, dialect);
        found.problems.extend(missing.map(|(at, message)| problem(at, message)));
    }
    found
}

/// FROM comes first, and comes.
fn check_from(lines: &[Line], dialect: Dialect) -> Option<(Position, String)> {
    match lines.iter().find(|line| line.keyword != "ARG") {
        None => Some((Position::default(), format!("this {} has no FROM", dialect.name()))),
        Some(first) if first.keyword == "FROM" => None,
        Some(first) => {
            let message = format!(
                "the first instruction must be FROM, not {} (only ARG may come before)",
                first.keyword
            );
            Some((first.at, message))
        }
    }
}

/// Dockerfiles may choose another escape character in their first comments; ignoring that would misread the file.
fn escape_directive(text: &str) -> Option<Position> {
    for (number, line) in (1..).zip(text.lines()) {
        let comment = line.trim().strip_prefix('#')?;
        let (name, value) = comment.split_once('=')?;
        if name.trim().eq_ignore_ascii_case("escape") && value.trim() != "\\" {
            return Some(Position {
                line: number,
                column: 1,
            });
        }
    }
    None
}

/// What is told about a here-document of an instruction.
pub(super) fn here_document(keyword: &str) -> String {
    let instead = match keyword {
        "RUN" => {
            "put the text into a file of the build context and run that (RUN sh \"$CONTEXT/FILE\"), or end each line but the \
             last one with \\"
        }
        _ => "put the text into a file of the build context and name that",
    };
    format!("{keyword}: here-documents are not supported; {instead}")
}

/// A logical line before its first word is known to be an instruction.
#[derive(Debug, Default)]
struct Logical {
    text: String,
    /// As [`Line::parts`], of `text`.
    parts: Vec<(usize, Position)>,
    /// The number of the first empty line that it was continued over.
    empty_line: Option<u64>,
    /// Where the first here-document is opened whose text follows.
    here_document: Option<usize>,
}

impl Logical {
    fn push(&mut self, number: u64, text: &str) {
        let at = Position {
            line: number,
            column: 1,
        };
        self.parts.push((self.text.len(), at));
        self.text.push_str(text);
    }

    /// Where the text's first word, or what follows it from `offset` on, stands.
    fn place(&self, offset: usize) -> Position {
        let offset = offset.max(self.text.len() - self.text.trim_start().len());
        let Some((start, at)) = self.parts.iter().rev().find(|(start, _)| *start <= offset) else {
            return Position::default();
        };
        Position {
            line: at.line,
            column: at.column + self.text[*start..offset].chars().count() as u64,
        }
    }

    fn keyword(&self) -> String {
        let first = self.text.split_whitespace().next().unwrap_or_default();
        first.to_ascii_uppercase()
    }

    fn line(&self, dialect: Dialect) -> Result<Line, String> {
        let trimmed = self.text.trim();
        let (keyword, rest) = trimmed.split_once(char::is_whitespace).unwrap_or((trimmed, ""));
        let upper = keyword.to_ascii_uppercase();
        let known = dialect.instructions().iter().find(|known| **known == upper);
        let keyword = known.ok_or_else(|| unknown_instruction(keyword, &upper, dialect))?;
        let rest = rest.trim();
        // `rest` is a part of `text`: what stands before it there is what its offsets lack.
        let cut = if rest.is_empty() {
            self.text.len()
        } else {
            self.text.trim_end().len() - rest.len()
        };
        let first = (0, self.place(cut.min(self.text.len())));
        let later = self.parts.iter().filter(|(start, _)| *start > cut);
        let parts = std::iter::once(first).chain(later.map(|(start, at)| (start - cut, *at)));
        Ok(Line {
            number: self.place(0).line,
            keyword,
            rest: rest.to_string(),
            at: self.place(0),
            parts: parts.collect(),
        })
    }
}

/// What stands before the backslash that continues a line. As in Docker, two backslashes continue nothing.
fn continued(physical: &str) -> Option<&str> {
    let part = physical.trim_end().strip_suffix('\\')?;
    (!part.ends_with('\\')).then_some(part)
}

/// Physical lines joined where they end with a backslash, without comments and empty lines.
fn join_continuations(text: &str) -> Vec<Logical> {
    let physical: Vec<&str> = text.lines().collect();
    let mut result = Vec::new();
    let mut pending: Option<Logical> = None;
    let mut next = 0;
    while let Some(line) = physical.get(next) {
        next += 1;
        let number = next as u64;
        let trimmed = line.trim();
        if trimmed.is_empty() {
            if let Some(logical) = &mut pending {
                logical.empty_line.get_or_insert(number);
            }
            continue;
        }
        if trimmed.starts_with('#') {
            continue;
        }
        let mut logical = pending.take().unwrap_or_default();
        match continued(line) {
            Some(part) => {
                logical.push(number, part);
                pending = Some(logical);
            }
            None => {
                logical.push(number, line.trim_end());
                if let Some((offset, lines)) = here_documents(&logical, &physical[next..]) {
                    logical.here_document = Some(offset);
                    next += lines;
                }
                result.push(logical);
            }
        }
    }
    result.extend(pending);
    result.retain(|logical| !logical.text.trim().is_empty());
    result
}

/// Where an instruction opens its first here-document, and how many of the lines that follow are texts of such. None if a text
/// has no end: then what looks like a beginning is none.
fn here_documents(logical: &Logical, following: &[&str]) -> Option<(usize, usize)> {
    if !["RUN", "COPY", "ADD"].contains(&logical.keyword().as_str()) {
        return None;
    }
    let opened = openings(&logical.text);
    let mut lines = 0;
    for (_, delimiter, strips_tabs) in &opened {
        let ends = |line: &&str| match strips_tabs {
            true => line.trim_start_matches('\t') == *delimiter,
            false => *line == *delimiter,
        };
        lines += following[lines..].iter().position(ends)? + 1;
    }
    opened.first().map(|(offset, ..)| (*offset, lines))
}

/// Every `<<WORD` and `<<-WORD` outside of quotes: where it stands, the word without its quotes, and whether there is a `-`.
fn openings(text: &str) -> Vec<(usize, &str, bool)> {
    let mut found = Vec::new();
    let mut quote = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => drop(chars.next()),
            (None, '<') => {
                let run = text[at..].len() - text[at..].trim_start_matches('<').len();
                while chars.next_if(|(_, c)| *c == '<').is_some() {}
                let word = &text[at + run..];
                let strips_tabs = word.starts_with('-');
                let word = word.strip_prefix('-').unwrap_or(word).trim_start_matches([' ', '\t']);
                let delimiter = delimiter(word);
                if run == 2 && !delimiter.is_empty() {
                    found.push((at, delimiter, strips_tabs));
                }
            }
            _ => {}
        }
    }
    found
}

/// The word at the beginning of a text, without quotes around it.
fn delimiter(text: &str) -> &str {
    let open = text.chars().next().filter(|c| ['\'', '"'].contains(c));
    let inner = open.map_or(text, |open| text.strip_prefix(open).unwrap_or(text));
    let end = inner.find(|c: char| !(c.is_ascii_alphanumeric() || "_.-".contains(c)));
    &inner[..end.unwrap_or(inner.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(u64, &'static str, String)> {
        let found = lines(text, "Kubefile", Dialect::Kubefile);
        assert_eq!(found.problems, []);
        let lines = found.lines.into_iter();
        lines.map(|line| (line.number, line.keyword, line.rest)).collect()
    }

    fn texts(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    fn refused(text: &str) -> String {
        let problems = lines(text, "Kubefile", Dialect::Kubefile).problems;
        texts(&problems).join("\n")
    }

    #[test]
    fn continuations_and_comments_keep_the_first_line_number() {
        let text = "# head\n\nfrom scratch\nRUN a \\\n  # inside\n  b\nCOPY x y\n";
        assert_eq!(
            parsed(text),
            [
                (3, "FROM", "scratch".into()),
                (4, "RUN", "a   b".into()),
                (7, "COPY", "x y".into())
            ]
        );
    }

    #[test]
    fn an_empty_line_does_not_end_a_continued_instruction_and_is_told() {
        for text in [
            "FROM scratch\nRUN a \\\n\n  && b\nCOPY x y\n",
            "FROM scratch\r\nRUN a \\\r\n \t\r\n\r\n  && b\r\nCOPY x y\r\n",
        ] {
            let found = parsed(text);
            assert_eq!(found[1].2, "a   && b");
            assert_eq!(found[2].2, "x y");
            let warnings = lines(text, "f", Dialect::Kubefile).warnings;
            assert_eq!(warnings.len(), 1, "one for an instruction");
            let told = warnings[0].to_string();
            assert!(told.starts_with("f:3:1: the empty line does not end"), "{told}");
        }
        assert_eq!(parsed("FROM scratch\nRUN a \\\n\n")[1].2, "a");
        assert!(
            lines("FROM scratch\n\nRUN a\n", "f", Dialect::Kubefile)
                .warnings
                .is_empty()
        );
    }

    #[test]
    fn two_backslashes_at_the_end_continue_nothing() {
        let text = "FROM scratch\nRUN echo a\\\\\nCOPY x y\n";
        assert_eq!(parsed(text)[1].2, "echo a\\\\");
    }

    #[test]
    fn a_here_document_is_named_and_its_text_is_not_taken_for_instructions() {
        for (opening, body, column) in [
            ("RUN <<EOF", "apt-get update\nEOF", 5),
            ("COPY <<EOF /etc/x", "a: b\n\n# c \\\nEOF", 6),
            ("ADD <<'E-1' <<\"E_2\" d/", "a\nE-1\nb\nE_2", 5),
            ("RUN cat <<-EOF > x && \\\n true", "\ta\n\tEOF", 9),
            ("run cat << EOF >x", "FROM b\nEOF", 9),
        ] {
            let text = format!("FROM scratch\n{opening}\n{body}\nCPOY a b\n");
            let refused = refused(&text);
            let told: Vec<&str> = refused.lines().collect();
            assert_eq!(told.len(), 2, "{text}\n{refused}");
            let keyword = opening[..4].trim().to_uppercase();
            let expected =
                format!("Kubefile:2:{column}: {keyword}: here-documents are not supported; put the text into a file");
            assert!(told[0].starts_with(&expected), "{refused}");
            assert!(told[1].contains("unknown instruction \"CPOY\""), "{refused}");
        }
        for none in [
            "RUN cat <<<EOF\nEOF",
            "RUN echo '<<EOF'\nEOF",
            "RUN echo $((1<<EOF))\nCOPY a b",
            "ENV A=<<EOF\nEOF",
        ] {
            let found = lines(&format!("FROM scratch\n{none}\n"), "f", Dialect::Kubefile);
            assert!(found.lines.len() >= 2, "{none}: {found:?}");
        }
    }

    #[test]
    fn every_unknown_instruction_is_named_with_its_nearest() {
        assert_eq!(
            refused("FROM scratch\nCPOY a b\nENTRYPOINT x\nFOO\n"),
            "Kubefile:2:1: unknown instruction \"CPOY\", did you mean \"COPY\"?\n\
             Kubefile:3:1: ENTRYPOINT belongs in a Containerfile, not in a Kubefile\n\
             Kubefile:4:1: unknown instruction \"FOO\", did you mean \"FROM\"?"
        );
    }

    #[test]
    fn from_comes_first() {
        for (text, expected) in [
            (
                "COPY a b\nFROM scratch\n",
                "Kubefile:1:1: the first instruction must be FROM, not COPY",
            ),
            ("ARG X=1\n", "Kubefile: this Kubefile has no FROM"),
            ("", "Kubefile: this Kubefile has no FROM"),
        ] {
            let refused = refused(text);
            assert!(refused.starts_with(expected), "{refused}");
        }
        assert_eq!(refused("ARG X=1\nFROM scratch\n"), "");
    }

    #[test]
    fn every_byte_of_a_line_knows_its_place_across_continuations() {
        let text = "FROM scratch\n  COPY é b \\\n    # a comment\n    ccc d/\n";
        let lines = lines(text, "f", Dialect::Kubefile).lines;
        let place = |word: &str| {
            let at = lines[1].place_of(word);
            (at.line, at.column)
        };
        assert_eq!((lines[1].at().line, lines[1].at().column), (2, 3));
        assert_eq!(place("é"), (2, 8));
        assert_eq!(place("b"), (2, 10), "columns count characters");
        assert_eq!(place("ccc"), (4, 5));
        assert_eq!(place("d/"), (4, 9));
        assert_eq!(place("cc"), (2, 3), "a part of a word is not the word");
    }

    #[test]
    fn another_escape_character_is_refused_and_a_byte_order_mark_is_not_text() {
        let refused = refused("# syntax=x\n# escape=`\nFROM scratch\n");
        assert!(refused.starts_with("Kubefile:2:1: the escape character"), "{refused}");
        for good in [
            "# escape=\\\nFROM scratch\n",
            "\u{feff}FROM scratch\n",
            "# a note\n# escape=`\nFROM scratch\n",
        ] {
            assert!(lines(good, "f", Dialect::Kubefile).problems.is_empty(), "{good}");
        }
    }
}
