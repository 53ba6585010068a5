//! Images that the container runtime asks for by itself: containerd's sandbox image and whatever else it pins.

use toml::de::{DeTable, DeValue};

use super::Found;

/// The images of a containerd configuration: `sandbox_image` of a plugin (version 1 and 2), every entry of a plugin's
/// `pinned_images` (version 3, where `sandbox` is one of them).
pub(super) fn images(text: &str) -> Vec<Found> {
    let line = |at: usize| {
        text.get(..at)
            .map_or(0, |before| before.matches('\n').count() as u64 + 1)
    };
    let table = match DeTable::parse(text) {
        Ok(table) => table.into_inner(),
        Err(error) => {
            let at = error.span().map_or(0, |span| line(span.start));
            return vec![Found::fault(at, error.message())];
        }
    };
    let mut found = Vec::new();
    for (key, value) in &table {
        if let ("plugins", DeValue::Table(plugins)) = (key.as_ref().as_ref(), value.as_ref()) {
            plugins
                .values()
                .for_each(|plugin| plugin_images(plugin.as_ref(), &mut found));
        }
    }
    found.sort();
    found.into_iter().map(|(at, text)| Found::of(line(at), text)).collect()
}

type Offsets = Vec<(usize, Result<String, String>)>;

fn plugin_images(plugin: &DeValue<'_>, found: &mut Offsets) {
    let DeValue::Table(settings) = plugin else { return };
    for (key, value) in settings {
        match (key.as_ref().as_ref(), value.as_ref()) {
            ("sandbox_image", image) => found.push((value.span().start, text_of(image))),
            ("pinned_images", DeValue::Table(pinned)) => {
                found.extend(
                    pinned
                        .values()
                        .map(|image| (image.span().start, text_of(image.as_ref()))),
                );
            }
            _ => {}
        }
    }
}

fn text_of(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        _ => Err("an image's name is expected, as a string".to_string()),
    }
}

/// The same for a template, which is no TOML yet: read by line.
pub(super) fn images_by_line(text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let Some((key, value)) = content.split_once('=') else {
            continue;
        };
        if ["sandbox_image", "sandbox"].contains(&key.trim()) {
            let value = value.split('#').next().unwrap_or_default();
            found.push(Found::image(line, value.trim().trim_matches(['"', '\''])));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_containerds_configuration_is_understood() {
        for (text, expected) in [
            ("[plugins.cri]\nsandbox_image = 'a/p:1'\n", Found::image(2, "a/p:1")),
            (
                "# sandbox_image = \"no\"\n[plugins.\"io.containerd.grpc.v1.cri\"]\n  x = \"\"\"\nsandbox_image = \"no\"\n\"\"\"\n  sandbox_image = \"a/p:2\"\n",
                Found::image(6, "a/p:2"),
            ),
            (
                "version = 3\n[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"a/p:3\"\n",
                Found::image(3, "a/p:3"),
            ),
            (
                "plugins = {cri = {sandbox_image = 7}}",
                Found::fault(1, "an image's name is expected, as a string"),
            ),
        ] {
            assert_eq!(images(text), [expected], "{text}");
        }
        assert!(images("[plugins.x.y]\nsandbox = \"a folder of another plugin\"\n").is_empty());
        assert!(matches!(
            images("a = 1\nb = [\n").as_slice(),
            [Found {
                line: 2..,
                what: Err(_)
            }]
        ));
    }

    #[test]
    fn templates_are_read_by_line() {
        let config = "[x]\n  sandbox_image = \"a.b/pause:1\" # why\n  a = {{ .B }}\n";
        assert_eq!(images_by_line(config), [Found::image(2, "a.b/pause:1")]);
    }
}
