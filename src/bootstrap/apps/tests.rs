//! Which applications are launched, and what is said of those that cannot be.

use super::*;
use crate::testing::{add_file, clusterfile, site};

fn with(files: &[(&str, bool)]) -> Site {
    let mut site = site();
    for (path, executable) in files {
        add_file(&mut site, &format!("application/apps/{path}"), "text", *executable);
    }
    site
}

fn kind_of(files: &[(&str, bool)]) -> Result<Kind, String> {
    kind(&with(files).image, "web", Vec::new())
}

#[test]
fn what_lies_in_its_folder_tells_how_an_application_is_launched() {
    let chart = |path: &str| Ok(Kind::Chart(path.into()));
    let scripts = |names: &[&str]| Ok(Kind::Scripts(names.iter().map(|name| (*name).into()).collect()));
    for (files, expected) in [
        (
            &[
                ("web/Chart.yaml", false),
                ("web/x.sh", true),
                ("web/sub/Chart.yaml", false),
            ][..],
            chart(""),
        ),
        (
            &[("web/c/Chart.yaml", false), ("web/c/charts/d/Chart.yaml", false)],
            chart("c"),
        ),
        (&[("web/c-1.tgz", false), ("web/values.yaml", false)], chart("c-1.tgz")),
        (
            &[("web/b.sh.tmpl", false), ("web/a", true), ("web/x.yaml", false)],
            scripts(&["a", "b.sh"]),
        ),
        (&[("web/sub/x.yaml", false), ("web/README", false)], Ok(Kind::Manifests)),
    ] {
        assert_eq!(kind_of(files), expected, "{files:?}");
    }
    let commands = kind(&with(&[("web/Chart.yaml", false)]).image, "web", vec!["go".into()]);
    assert_eq!(commands, Ok(Kind::Commands(vec!["go".into()])));
    for (files, why) in [
        (
            &[("web/README", false), ("other/x.yaml", false)][..],
            "nothing can be launched",
        ),
        (
            &[("web/a.tgz", false), ("web/b/Chart.yaml", false)],
            "several charts (a.tgz, b)",
        ),
    ] {
        let error = kind_of(files).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn the_clusterfile_chooses_and_sets_and_what_means_nothing_is_refused() {
    let mut site = with(&[("web/Chart.yaml", false), ("db/x.yaml", false), ("job/x.sh", true)]);
    site.image.launch.apps = vec!["web".into(), "job".into()];
    let env = |text: &str| Env::from([("A".to_owned(), text.to_owned())]);
    site.image.apps.insert(
        "web".into(),
        image::AppMeta {
            env: env("image"),
            ..Default::default()
        },
    );
    let launched = |more: &str| launched(&clusterfile(more), &site.image).map_err(|e| e.to_string());
    let names = |more: &str| -> Vec<String> { launched(more).unwrap().into_iter().map(|app| app.name).collect() };
    let doc =
        |spec: &str| format!("---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {{name: a}}\nspec: {spec}\n");
    assert_eq!(names(""), ["web", "job"]);
    assert_eq!(names("  appNames: [db]\n"), ["db"]);
    assert_eq!(names("  appNames: ['']\n"), [""; 0]);
    assert_eq!(names(&doc("{launchApps: [job, db]}")), ["job", "db"]);
    let web = launched(&doc("{configs: [{name: web, env: [A=own, B=2], namespace: shop}]}"))
        .unwrap()
        .remove(0);
    assert_eq!(
        (web.namespace.as_str(), web.env["A"].as_str(), web.env["B"].as_str()),
        ("shop", "own", "2")
    );
    let job = launched(&doc("{configs: [{name: job, launch: {cmds: [x]}}]}"))
        .unwrap()
        .remove(1);
    assert_eq!(job.kind, Kind::Commands(vec!["x".into()]));
    for (more, why) in [
        (
            "  appNames: [wbe]\n".to_owned(),
            "has no application \"wbe\", did you mean \"web\"?",
        ),
        (
            doc("{configs: [{name: db, env: [A=1]}]}"),
            "settings for the application \"db\", which is not launched",
        ),
        (
            doc("{configs: [{name: job, namespace: x}]}"),
            "\"job\" is no helm chart but scripts",
        ),
    ] {
        let error = launched(&more).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn every_application_that_is_in_no_image_is_told_with_its_place_and_those_that_are() {
    let site = with(&[("web/a.yaml", false), ("job/run.sh", true)]);
    let refusal = |image: &Image, more: &str| launched(&clusterfile(more), image).unwrap_err().to_string();
    assert_eq!(
        refusal(&site.image, "  appNames: [web, jbo, bb]\n"),
        "Clusterfile:7:19: spec.appNames: the cluster image local/native:dev has no application \"jbo\", did you mean \"job\"?\n\
         Clusterfile:7:24: spec.appNames: the cluster image local/native:dev has no application \"bb\"\n\
         it has: job, web"
    );
    let mut without = crate::testing::site();
    add_file(&mut without, "etc/x", "text", false);
    let none = refusal(&without.image, "  appNames: [a]\n");
    assert!(none.ends_with("it has none at all"), "{none}");
    let settings = "---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {name: a}\nspec: {launchApps: [web], configs: [{name: job}]}\n";
    let error = refusal(&site.image, settings);
    assert!(
        error.starts_with("Clusterfile:11:44: spec.configs has settings for the application \"job\""),
        "{error}"
    );
}

#[test]
fn files_of_applications_are_files_of_the_rootfs() {
    let more = "---\napiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: c}\nspec: {path: ./etc//x, data: d}\n---\napiVersion: sealer.io/v2\nkind: Config\nmetadata: {name: v}\nspec: {appName: db, path: v.yaml, data: d}\n---\napiVersion: sealer.io/v2\nkind: Application\nmetadata: {name: a}\nspec: {configs: [{name: web, files: [{path: values.yaml, strategy: merge, data: 'a: 1'}]}]}\n";
    let paths: Vec<String> = configs(&clusterfile(more))
        .into_iter()
        .map(|config| config.path)
        .collect();
    assert_eq!(
        paths,
        [
            "etc/x",
            "application/apps/db/v.yaml",
            "application/apps/web/values.yaml"
        ]
    );
}

fn chart_site(chart: &str) -> (Site, App) {
    let mut site = with(&[(&format!("web/{chart}"), false), ("web/values.yaml", false)]);
    let app = App {
        name: "web".into(),
        env: Env::from([
            ("replicas".into(), "3".into()),
            ("tag".into(), "007".into()),
            ("on".into(), "true".into()),
        ]),
        namespace: "default".into(),
        kind: kind(&site.image, "web", Vec::new()).unwrap(),
    };
    site.apps.push(app.clone());
    (site, app)
}

#[test]
fn values_come_from_the_environment_and_from_a_file_beside_the_chart() {
    let (site, app) = chart_site("c.tgz");
    let (beside, values) = values(&site, &app, "c.tgz");
    assert_eq!(beside, ["/opt/installer/application/apps/web/values.yaml"]);
    assert_eq!(
        values.unwrap(),
        serde_json::json!({"replicas": 3, "tag": "007", "on": true})
    );
    let (site, app) = chart_site("Chart.yaml");
    assert!(
        super::values(&site, &app, "").0.is_empty(),
        "a chart's own values are read by helm itself"
    );
    let mut site = site;
    let meta = image::AppMeta {
        values: vec!["values.yaml.tmpl".into(), "a.yaml".into(), "prod.yaml.tmpl".into()],
        ..image::AppMeta::default()
    };
    site.image.apps.insert("web".into(), meta);
    assert_eq!(
        super::values(&site, &app, "").0,
        [
            "/opt/installer/application/apps/web/a.yaml",
            "/opt/installer/application/apps/web/prod.yaml"
        ],
        "those of --values follow in their order, as they are once rendered"
    );
}

#[test]
fn an_application_is_another_one_when_anything_that_matters_differs() {
    let (site, app) = chart_site("Chart.yaml");
    let first = digest(&site, &app).unwrap();
    assert_eq!(digest(&site, &app).unwrap(), first);
    let differs = |change: &dyn Fn(&mut Site, &mut App)| {
        let (mut site, mut app) = (site.clone(), app.clone());
        change(&mut site, &mut app);
        digest(&site, &app).unwrap() != first
    };
    assert!(differs(&|_, app| drop(app.env.insert("x".into(), "1".into()))));
    assert!(differs(&|_, app| app.namespace = "shop".into()));
    assert!(differs(&|site, _| add_file(
        site,
        "application/apps/web/templates/a.yaml",
        "new",
        false
    )));
    assert!(differs(&|site, _| site.configs.push(Config {
        name: "c".into(),
        path: "application/apps/web/values.yaml".into(),
        strategy: clusterfile::Strategy::Overwrite,
        data: "a: 1".into(),
    })));
    assert!(!differs(&|site, _| add_file(
        site,
        "application/apps/other/a.yaml",
        "new",
        false
    )));
    assert!(!differs(&|site, _| drop(site.image.env.insert("x".into(), "1".into()))));
    assert!(differs(&|_, app| app.kind = Kind::Scripts(vec!["x".into()])));
}
