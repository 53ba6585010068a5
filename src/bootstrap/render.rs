//! A configuration file of the rootfs as a host gets it: the image's template, what the Clusterfile says about it, the host's variables.

use crate::{
    Error, Result, image,
    site::{Seat, Site},
    template::{self, Variables},
};
use clusterfile::{Config, Strategy};
use serde_json::Value;
use std::collections::BTreeSet;

/// The file at `path` (below the rootfs) for `seat`: rendered if it is a template, then replaced or merged by the Clusterfile's configs.
///
/// # Errors
/// When the image has no such file, a template cannot be rendered, or a document to merge is none.
pub fn file(site: &Site, seat: &Seat, path: &str) -> Result<String> {
    file_with(site, seat, path, &Variables::new())
}

/// As [`file`], with variables that are computed for this file.
///
/// # Errors
/// As [`file`].
pub fn file_with(site: &Site, seat: &Seat, path: &str, own: &Variables) -> Result<String> {
    let expand = |text: &str| expand(site, seat, path, text, own);
    let image_text = site.image.files.get(path);
    let configs = site.configs.iter().filter(|config| names(config, path));
    let mut text = image_text.map(|text| expand(text)).transpose()?;
    if text.is_none() && site.image.content.contains_key(path) {
        return Err(Error::Wish(format!("{path}: {}", no_text(path))));
    }
    for config in configs {
        let data = expand(&config.data)?;
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

/// Why a file that is there is not read.
pub fn no_text(path: &str) -> &'static str {
    match may_be_large(path) {
        true => {
            "it is no UTF-8 text of at most 16 MiB, or all such files together are too large; split it, or take files out of the image"
        }
        false => {
            "it is no text of at most 1 MiB, or lies outside of the folders for configuration; put it into the image instead"
        }
    }
}

/// Whether a file may have as many bytes as a manifest: it is one, or a template.
pub fn may_be_large(path: &str) -> bool {
    path.ends_with(".tmpl") || merges(path)
}

/// Whether `config` is about the rootfs file `path`; it may leave out the template's ending.
pub fn names(config: &Config, path: &str) -> bool {
    config.path == path || path.strip_suffix(".tmpl") == Some(&config.path)
}

/// Every file of the rootfs below `folder` that lies where configuration does, as paths below the rootfs. Those that only the
/// Clusterfile has are among them, and those that [`file`] refuses, so that none is passed over.
pub fn paths<'s>(site: &'s Site, folder: &str) -> BTreeSet<&'s str> {
    let (files, content) = (&site.image.files, &site.image.content);
    let added = site.configs.iter().map(|config| config.path.as_str());
    let added = added.filter(|path| !files.contains_key(&format!("{path}.tmpl")));
    let inside = content.keys().filter(|path| image::is_configuration(path));
    let all = files.keys().chain(inside).map(String::as_str).chain(added);
    all.filter(|path| path.starts_with(folder)).collect()
}

fn expand(site: &Site, seat: &Seat, path: &str, text: &str, own: &Variables) -> Result<String> {
    if path.ends_with(".tmpl") {
        let mut variables = site.variables(seat);
        variables.extend(site.app_env(path));
        variables.extend(own.clone());
        template::render(text, path, &variables).map_err(Error::Template)
    } else {
        Ok(text.to_owned())
    }
}

/// Whether a file can be merged: it holds YAML or JSON, going by its name.
pub fn merges(path: &str) -> bool {
    let plain = path.strip_suffix(".tmpl").unwrap_or(path);
    [".yaml", ".yml", ".json"].iter().any(|ending| plain.ends_with(ending))
}

fn merge_text(path: &str, base: &str, over: &str) -> Result<String> {
    if !merges(path) {
        return Err(Error::Wish(format!(
            "Config for {path}: strategy merge works for YAML and JSON only; use strategy overwrite"
        )));
    }
    let mut documents = documents(path, base)?;
    let overs = self::documents(path, over)?;
    for (index, over) in overs.into_iter().enumerate() {
        let same = documents.iter().position(|document| is_about(&over, document));
        // An object finds its like; anything else is merged with what stands at its place.
        let place = if over["kind"].is_string() { same } else { Some(index) };
        match place.and_then(|place| documents.get_mut(place)) {
            Some(document) => merge(document, over),
            None => documents.push(over),
        }
    }
    let texts: Vec<String> = documents.iter().map(yaml).collect::<Result<_>>()?;
    Ok(texts.join("---\n"))
}

/// Whether two documents are the same object: of one kind and, where `over` says them, of one name and namespace.
fn is_about(over: &Value, document: &Value) -> bool {
    let same = |over: &Value, document: &Value| over.is_null() || over == document;
    let metadata = |field: &str| same(&over["metadata"][field], &document["metadata"][field]);
    over["kind"] == document["kind"] && metadata("name") && metadata("namespace")
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
    fn objects_are_merged_with_their_like_wherever_it_stands() {
        let base = "kind: A\nmetadata: {name: x}\nv: 1\n---\nkind: B\nmetadata: {name: x}\nv: 1\n---\nkind: B\nmetadata: {name: y}\nv: 1\n";
        let over = "kind: B\nmetadata: {name: y}\nv: 2\n---\nkind: C\nmetadata: {name: z}\n";
        let merged = documents("x", &merge_text("a.yaml", base, over).unwrap()).unwrap();
        let values: Vec<_> = merged
            .iter()
            .map(|document| (document["kind"].clone(), document["v"].clone()))
            .collect();
        assert_eq!(json!(values), json!([["A", 1], ["B", 1], ["B", 2], ["C", null]]));
    }

    #[test]
    fn a_template_and_what_the_clusterfile_lays_over_it_see_the_variables() {
        let mut site = crate::testing::site();
        crate::testing::add_file(
            &mut site,
            "etc/app/a.yaml.tmpl",
            "ip: {{ .HostIP }}\nkeep: {b: 1}\n",
            false,
        );
        let config = |path: &str, strategy, data: &str| clusterfile::Config {
            name: "c".into(),
            path: path.into(),
            strategy,
            data: data.into(),
        };
        site.configs.push(config(
            "etc/app/a.yaml",
            Strategy::Merge,
            "keep: {c: '{{ .HostName }}'}\n",
        ));
        site.configs.push(config("etc/app/new.conf", Strategy::Overwrite, "x"));
        let text = file(&site, &site.seats[1], "etc/app/a.yaml.tmpl").unwrap();
        let expected = json!({"ip": "10.0.0.2", "keep": {"b": 1, "c": "n1"}});
        assert_eq!(documents("x", &text).unwrap(), [expected]);
        let both = ["etc/app/a.yaml.tmpl", "etc/app/new.conf"];
        assert_eq!(paths(&site, "etc/app/").into_iter().collect::<Vec<_>>(), both);
    }

    #[test]
    fn only_yaml_and_json_are_merged() {
        assert!(merge_text("etc/a.toml.tmpl", "a=1", "b=1").is_err());
        let merged = merge_text("etc/a.yaml.tmpl", "a: 1\n---\nb: 2\n", "a: 3\n").unwrap();
        assert_eq!(documents("x", &merged).unwrap(), [json!({"a": 3}), json!({"b": 2})]);
    }
}
