use super::*;

fn survey(files: &[(&str, &str)]) -> Survey {
    let mut config = ClusterConfig::default();
    config.env.insert("Tag".into(), "v9".into());
    let mut survey = Survey::new(Rules::default(), &config);
    files.iter().for_each(|(path, text)| survey.file(path, path, text));
    survey
}

fn carried(names: &[&str]) -> BTreeMap<Reference, Descriptor> {
    let manifest = Descriptor::of(oci::media_type::MANIFEST, b"m");
    let entry = |name: &&str| (name.parse().unwrap(), manifest.clone());
    names.iter().map(entry).collect()
}

fn prove(survey: Survey, carried: &BTreeMap<Reference, Descriptor>) -> Result<Lock, String> {
    let lock = survey.prove("linux/amd64", carried, &BTreeMap::new(), &BTreeMap::new());
    lock.map_err(|error| error.to_string())
}

fn pod(image: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: {image}\n")
}

#[test]
fn the_files_that_can_name_images_are_known_by_their_place() {
    for (path, expected) in [
        ("manifests/a.yaml", Some(Role::Objects)),
        ("manifests/x/a.yml.tmpl", Some(Role::Objects)),
        ("application/apps/web/a.json", Some(Role::Objects)),
        ("etc/kubernetes/manifests/etcd", Some(Role::Objects)),
        ("etc/kubernetes/manifests/.hidden", None),
        ("manifests/imageList", Some(Role::List)),
        ("application/apps/web/imageList", Some(Role::List)),
        ("imageList", None),
        ("etc/containerd/conf.d/a.toml", Some(Role::Runtime)),
        ("etc/containerd/config.toml.tmpl", Some(Role::Runtime)),
        ("manifests/readme.md", None),
        ("etc/other.yaml", None),
    ] {
        assert_eq!(role(path), expected, "{path}");
    }
}

#[test]
fn templates_are_rendered_as_far_as_values_are_known() {
    let text = "kind: Pod\n{{ if .X }}\nspec:\n{{- end }}\n  containers:\n  - image: \"{{ .RegistryURL }}/a:{{ .Tag }}\"\n    args: \
                [{{ .Y }}]\n  - image: {{ .Who }}\n";
    let config = "[x]\n  sandbox_image = \"a.b/pause:1\" # why\n  y = {{ .Y }}\n";
    let survey = survey(&[
        ("manifests/a.yaml.tmpl", text),
        ("etc/containerd/config.toml.tmpl", config),
        (
            "etc/containerd/more.toml",
            "[plugins.cri]\nsandbox_image = 'a.b/pause:2'",
        ),
    ]);
    let (named, faults, _) = survey.finish();
    let named: Vec<String> = named
        .iter()
        .map(|(name, places)| format!("{name} {places:?}"))
        .collect();
    assert_eq!(
        named,
        [
            "a.b/pause:1 {etc/containerd/config.toml.tmpl:2}",
            "a.b/pause:2 {etc/containerd/more.toml:2}",
            "sea.hub:5000/a:v9 {manifests/a.yaml.tmpl:6}",
        ]
    );
    assert_eq!((faults.len(), faults[0].line), (1, 8));
}

#[test]
fn what_is_not_carried_is_named_with_the_nearest() {
    let carried = carried(&["a.b/web:v1"]);
    let digest = Digest::of(b"m");
    for good in [
        "a.b/web:v1",
        "sea.hub:5000/a.b/web:v1",
        &format!("a.b/web@{digest}"),
        &format!("a.b/web:x@{digest}"),
    ] {
        let lock = prove(survey(&[("manifests/m.yaml", &pod(good))]), &carried).unwrap();
        let locked = &lock.images[&good.parse().unwrap()];
        assert_eq!(locked.digest, digest, "{good}");
        let direct = *good == *"a.b/web:v1";
        assert_eq!(
            locked.carried_as.as_ref().map(ToString::to_string),
            (!direct).then(|| "a.b/web:v1".to_string())
        );
        assert_eq!(locked.named, BTreeSet::from([Place::new("manifests/m.yaml", 5)]));
    }
    for (bad, expected) in [
        (
            "a.b/web:v2",
            "manifests/m.yaml:5: the image a.b/web:v2 is not carried, nearest carried one: a.b/web:v1\n",
        ),
        (
            "a.b/wbe:v1",
            "the image a.b/wbe:v1 is not carried, nearest carried one: a.b/web:v1\n",
        ),
        ("web:v1", "the image web:v1 is not carried\n"),
        ("A B", "manifests/m.yaml:5: \"A B\" is not an image reference"),
    ] {
        let text = prove(survey(&[("manifests/m.yaml", &pod(bad))]), &carried).unwrap_err();
        assert!(text.contains(expected), "{bad}: {text}");
        let unclear = bad == "A B";
        assert_eq!(text.contains("FROM oci-archive:"), !unclear, "{bad}: {text}");
    }
}

#[test]
fn everything_wrong_in_all_files_is_told_at_once() {
    let text = prove(
        survey(&[
            ("manifests/a.yaml", "a: [\n"),
            ("manifests/imageList", "x:1\nX Y\n"),
            ("etc/containerd/a.toml", "a = \n"),
        ]),
        &carried(&[]),
    )
    .unwrap_err();
    for expected in [
        "manifests/a.yaml:",
        "manifests/imageList:1: the image x:1",
        "manifests/imageList:2: \"X Y\"",
        "a.toml:1: ",
    ] {
        assert!(text.contains(expected), "{expected} in {text}");
    }
}

#[test]
fn only_what_a_registry_can_have_is_wanted() {
    let files = [
        "b.c/d:1",
        "installer.internal/x:1",
        "sea.hub:5000/library/e:1",
        "sea.hub:5000/q.io/f",
        "a.b/web:v1",
    ];
    let list = files.join("\n");
    let survey = survey(&[("manifests/imageList", &list)]);
    let wanted: Vec<String> = survey
        .wanted(&carried(&["a.b/web:v1"]))
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(wanted, ["b.c/d:1", "docker.io/library/e:1", "q.io/f:latest"]);
    let failed = BTreeMap::from([("b.c/d:1".parse().unwrap(), "no answer".to_string())]);
    let error = survey
        .prove("linux/amd64", &carried(&["a.b/web:v1"]), &BTreeMap::new(), &failed)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("manifests/imageList:1: the image b.c/d:1 is not carried and cannot be pulled: no answer\n"),
        "{error}"
    );
}

#[test]
fn objects_that_every_apply_needs_and_nobody_serves_are_faults() {
    let old = "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\n";
    let mut survey = survey(&[("manifests/a.yaml", old), ("application/apps/web/a.yaml", old)]);
    survey.document("APP web: chart web: templates/a.yaml", old);
    let (_, faults, unserved) = survey.finish();
    let faults: Vec<(&str, u64)> = faults.iter().map(|fault| (fault.file.as_str(), fault.line)).collect();
    assert_eq!(faults, [("manifests/a.yaml", 1)]);
    assert_eq!(unserved.len(), 2, "{unserved:?}");
}
