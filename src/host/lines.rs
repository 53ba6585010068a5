//! A program's output, cut into lines while it arrives.

use crate::proto::Stream;

/// Longer lines are cut here, in bytes.
const MAX_LINE: usize = 8 << 10;

/// What has arrived of lines that are not complete yet, of each stream.
#[derive(Default)]
pub(crate) struct Lines {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Lines {
    /// Takes a data frame: a byte that names the stream, then what was written.
    pub(crate) fn take(&mut self, frame: &[u8], told: &mut impl FnMut(Stream, &str)) {
        let Some((stream, bytes)) = frame
            .split_first()
            .and_then(|(first, rest)| Some((Stream::of(*first)?, rest)))
        else {
            return;
        };
        let partial = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") || partial.len() >= MAX_LINE {
                tell(stream, partial, told);
            }
        }
    }

    /// The program has ended: what is left is a line too.
    pub(crate) fn finish(mut self, told: &mut impl FnMut(Stream, &str)) {
        for (stream, partial) in [(Stream::Stdout, &mut self.stdout), (Stream::Stderr, &mut self.stderr)] {
            if !partial.is_empty() {
                tell(stream, partial, told);
            }
        }
    }
}

fn tell(stream: Stream, line: &mut Vec<u8>, told: &mut impl FnMut(Stream, &str)) {
    let text = String::from_utf8_lossy(line);
    told(stream, text.trim_end_matches(['\n', '\r']));
    line.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(frames: &[&[u8]]) -> Vec<(Stream, String)> {
        let mut all = Vec::new();
        let mut told = |stream, line: &str| all.push((stream, line.to_owned()));
        let mut lines = Lines::default();
        for frame in frames {
            lines.take(frame, &mut told);
        }
        lines.finish(&mut told);
        all
    }

    #[test]
    fn pieces_become_lines_of_their_stream() {
        let got = lines(&[b"\x01one\ntw", b"\x02warn", b"\x01o\r\n\n", b"", b"\x07?", b"\x02ing"]);
        let expected = [
            (Stream::Stdout, "one"),
            (Stream::Stdout, "two"),
            (Stream::Stdout, ""),
            (Stream::Stderr, "warning"),
        ];
        assert_eq!(got, expected.map(|(stream, text)| (stream, text.to_owned())));
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let endless = [&[1], vec![b'x'; 3 * MAX_LINE].as_slice()].concat();
        let got = lines(&[endless.as_slice(), endless.as_slice()]);
        assert!(got.iter().all(|(_, line)| line.len() <= 3 * MAX_LINE), "{}", got.len());
        assert_eq!(got.len(), 2);
    }
}
