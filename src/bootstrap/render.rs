//! A configuration file of the rootfs as a host gets it: the image's template, what the Clusterfile says about it, the host's variables.

use crate::{
    Error, Result,
    site::{Seat, Site},
    template,
};
use clusterfile::{Config, Strategy};
use serde_json::Value;

/// The file at `path` (below the rootfs) for `seat`: rendered if it is a template, then replaced or merged by the Clusterfile's configs.
///
/// # Errors
/// When the image has no such file, a template cannot be rendered, or a document to merge is none.
pub fn file(site: &Site, seat: &Seat, path: &str) -> Result<String> {
    let image_text = site.image.files.get(path);
    let configs = site.configs.iter().filter(|config| names(config, path));
    let mut text = image_text.map(|text| expand(site, seat, path, text)).transpose()?;
    for config in configs {
        let data = expand(site, seat, path, &config.data)?;
        text = Some(match (config.strategy, text) {
            (Strategy::Merge, Some(base)) => merge_text(path, &base, &data)?,
            (Strategy::Merge | Strategy::Overwrite, _) => data,
        });
    }
    text.ok_or_else(|| Error::Image {
        image: site.image.reference.clone(),
        message: format!("its rootfs has no {path}; every image needs it, so build yours FROM one that has it"),
    })
}

/// Whether `config` is about the rootfs file `path`; it may leave out the template's ending.
pub fn names(config: &Config, path: &str) -> bool {
    let wanted = config.path.trim_start_matches("./");
    wanted == path || Some(wanted) == path.strip_suffix(".tmpl")
}

fn expand(site: &Site, seat: &Seat, path: &str, text: &str) -> Result<String> {
    if path.ends_with(".tmpl") {
        template::render(text, path, &site.variables(seat)).map_err(Error::Template)
    } else {
        Ok(text.to_owned())
    }
}

fn merge_text(path: &str, base: &str, over: &str) -> Result<String> {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    if ![".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending)) {
        return Err(Error::Wish(format!(
            "Config for {path}: strategy merge works for YAML and JSON only; use strategy overwrite"
        )));
    }
    let mut documents = documents(path, base)?;
    let overs = self::documents(path, over)?;
    for (index, over) in overs.into_iter().enumerate() {
        match documents.get_mut(index) {
            Some(document) => merge(document, over),
            None => documents.push(over),
        }
    }
    let texts: Vec<String> = documents.iter().map(yaml).collect::<Result<_>>()?;
    Ok(texts.join("---\n"))
}

/// The documents of a YAML (or JSON) text; empty ones are left out.
///
/// # Errors
/// When it cannot be parsed, with file and line.
pub fn documents(path: &str, text: &str) -> Result<Vec<Value>> {
    let nodes = clusterfile::yaml::parse(text).map_err(|e| Error::Wish(format!("{path}: {e}")))?;
    Ok(nodes
        .iter()
        .map(clusterfile::yaml::Node::to_json)
        .filter(|value| !value.is_null())
        .collect())
}

/// A value as YAML.
///
/// # Errors
/// Never for values that came from YAML or JSON.
pub fn yaml(value: &Value) -> Result<String> {
    serde_saphyr::to_string(value).map_err(|e| Error::Wish(format!("cannot write YAML: {e}")))
}

/// Lays `over` over `base`: mappings key by key, everything else replaced.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn mappings_merge_and_all_else_is_replaced() {
        let mut base = json!({"a": {"b": 1, "c": [1, 2]}, "d": 1});
        merge(&mut base, json!({"a": {"c": [3], "e": {"f": 1}}, "d": {"g": 1}}));
        assert_eq!(base, json!({"a": {"b": 1, "c": [3], "e": {"f": 1}}, "d": {"g": 1}}));
    }

    #[test]
    fn only_yaml_and_json_are_merged() {
        assert!(merge_text("etc/a.toml.tmpl", "a=1", "b=1").is_err());
        let merged = merge_text("etc/a.yaml.tmpl", "a: 1\n---\nb: 2\n", "a: 3\n").unwrap();
        assert_eq!(documents("x", &merged).unwrap(), [json!({"a": 3}), json!({"b": 2})]);
    }
}
