//! `imageList`: one reference a line, as Sealer's users write it.

use super::Found;

/// The file's fixed name.
pub(crate) const NAME: &str = "imageList";

/// The references of a list. `#` begins a comment, at the beginning of a line or after a blank.
pub(super) fn images(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let content = content.trim_start_matches('\u{feff}').trim();
        let reference = match content.split_once(" #").or_else(|| content.split_once("\t#")) {
            Some((reference, _)) => reference.trim_end(),
            None => content,
        };
        if !reference.is_empty() && !reference.starts_with('#') {
            found.push(Found::image(line, reference));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_but_comments_and_blanks_is_a_reference() {
        let text = "\u{feff}# mine\r\nnginx:1.27\r\n\n  quay.io/a/b:1\t# why\n #c\na b\nx:1 #\n";
        let expected = [(2, "nginx:1.27"), (4, "quay.io/a/b:1"), (6, "a b"), (7, "x:1")];
        assert_eq!(images(text), expected.map(|(line, name)| Found::image(line, name)));
    }
}
