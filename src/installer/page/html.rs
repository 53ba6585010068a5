//! HTML that cannot be escaped from: markup is only what is written in this program, all else goes through [`Html::text`].

/// A page in the making.
#[derive(Default)]
pub struct Html(String);

impl Html {
    /// Markup of this program.
    pub fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Text from anywhere, in an element or a quoted attribute.
    pub fn text(&mut self, text: &str) -> &mut Self {
        for c in text.chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                '\n' | '\t' => self.0.push(c),
                // What else controls terminals has no place in a page.
                c if c.is_control() => self.0.push('\u{fffd}'),
                c => self.0.push(c),
            }
        }
        self
    }

    /// A number in markup, with at most two decimals.
    pub fn value(&mut self, number: f64) -> &mut Self {
        let text = format!("{number:.2}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        self.0
            .push_str(if text.is_empty() || text == "-0" { "0" } else { text });
        self
    }

    /// A cell of a table.
    pub fn cell(&mut self, text: &str) -> &mut Self {
        self.raw("<td>").text(text).raw("</td>")
    }

    /// A cell with a name, which is not broken.
    pub fn name(&mut self, text: &str) -> &mut Self {
        self.raw("<td class=\"w\">").text(text).raw("</td>")
    }

    /// A cell with a number.
    pub fn number(&mut self, text: &str) -> &mut Self {
        self.raw("<td class=\"n\">").text(text).raw("</td>")
    }

    /// The page.
    pub fn done(self) -> String {
        self.0
    }
}
