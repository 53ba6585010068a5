//! Charts with the real helm. Where there is none these tests say so and pass: nothing of ours would be tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::tests::Bench;
use crate::{AppKind, ClusterImage, Error};

/// Helm, where this workspace keeps its tools, or on PATH.
pub(crate) fn real_helm() -> Option<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let kept = target
        .into_iter()
        .chain([workspace])
        .map(|target| target.join("tools/helm"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path)
        .map(|folder| folder.join("helm"))
        .collect::<Vec<_>>();
    let found = kept.chain(installed).find(|path| path.is_file());
    if found.is_none() {
        eprintln!("helm is not installed; not compared");
    }
    found
}

struct Charts {
    bench: Bench,
    helm: PathBuf,
}

const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: {{ .Release.Name }}}\nspec:\n  template:\n    spec:\n      containers:\n      \
                          - name: web\n        image: {{ .Values.image }}\n";
const ONE: &str = "FROM scratch\nIMAGE a.b/web:v1 FROM web\n";

impl Charts {
    fn new() -> Option<Charts> {
        let charts = Charts {
            bench: Bench::new(),
            helm: real_helm()?,
        };
        charts
            .bench
            .write("chart/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.2.0\n");
        charts.bench.write("chart/values.yaml", "image: a.b/web:v1\n");
        charts.bench.write("chart/templates/deploy.yaml", DEPLOYMENT);
        Some(charts)
    }

    fn try_build(&self, tag: &str, kubefile: &str) -> Result<ClusterImage, Error> {
        self.bench.write("Kubefile", kubefile);
        let mut options = self.bench.options(tag);
        options.helm = Some(self.helm.clone());
        self.bench.try_build_with(options).map(|_| self.bench.open(tag))
    }

    fn refusal(&self, kubefile: &str) -> String {
        let text = self.try_build("t:9", kubefile).unwrap_err().to_string();
        text.replace(&format!("{}/", self.bench.context().display()), "")
    }
}

#[test]
fn images_in_a_charts_folder_are_found() {
    let Some(charts) = Charts::new() else { return };
    // Before any image of the store carries it.
    let error = charts.refusal("FROM scratch\nAPP web chart\n");
    assert!(
        error.starts_with("APP web: chart shop/templates/deploy.yaml:10: the image a.b/web:v1 is not carried"),
        "{error}"
    );
    let image = charts
        .try_build("t:1", &format!("{ONE}APP web chart\nLAUNCH web\n"))
        .unwrap();
    let app = &image.config.apps["web"];
    assert_eq!(
        (app.kind, app.files.as_slice(), app.values.len()),
        (AppKind::Chart, &[".".to_string()][..], 0)
    );
    assert!(image.read_file("application/apps/web/templates/deploy.yaml").is_ok());
    // The same through an image on top, which changes a value.
    charts.bench.write("new.yaml", "image: a.b/web:v2\n");
    let error = charts.refusal("FROM t:1\nCOPY new.yaml application/apps/web/values.yaml\n");
    for part in ["the image a.b/web:v2 is not carried", "nearest carried one: a.b/web:v1"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn values_of_the_launch_decide() {
    let Some(charts) = Charts::new() else { return };
    charts
        .bench
        .write("prod.yaml.tmpl", "image: \"{{ .RegistryURL }}/a.b/web:{{ .Tag }}\"\n");
    let kubefile =
        |tag: &str| format!("{ONE}ENV Tag=none\nAPP web chart --values prod.yaml.tmpl\nAPPENV web Tag={tag}\n");
    let image = charts.try_build("t:1", &kubefile("v1")).unwrap();
    assert_eq!(image.config.apps["web"].values, ["prod.yaml.tmpl"]);
    let error = charts.refusal(&kubefile("v2"));
    assert!(
        error.contains("the image sea.hub:5000/a.b/web:v2 is not carried"),
        "{error}"
    );
    let error = charts.refusal(&kubefile("v1").replace("Tag=v1", "Gat=v1").replace("ENV Tag=none\n", ""));
    assert!(error.contains("depends on a template value"), "{error}");
    // Variables are values themselves, and count most.
    let own = format!("{ONE}APP web chart\nAPPENV web image=a.b/web:v3\n");
    let error = charts.refusal(&own);
    assert!(error.contains("the image a.b/web:v3 is not carried"), "{error}");
    // The chart's own values as a template.
    fs::rename(
        charts.bench.path("chart/values.yaml"),
        charts.bench.path("chart/values.yaml.tmpl"),
    )
    .unwrap();
    charts
        .bench
        .write("chart/values.yaml.tmpl", "image: a.b/web:{{ .Tag }}\n");
    let image = charts
        .try_build("t:2", &format!("{ONE}APP web chart\nAPPENV web Tag=v1\n"))
        .unwrap();
    assert_eq!(image.config.apps["web"].values, ["values.yaml.tmpl"]);
}

#[test]
fn packed_charts_and_their_subcharts_are_found() {
    let Some(charts) = Charts::new() else { return };
    charts.bench.write(
        "chart/charts/db/Chart.yaml",
        "apiVersion: v2\nname: db\nversion: 0.1.0\n",
    );
    charts.bench.write("chart/charts/db/values.yaml", "image: a.b/db:v1\n");
    charts.bench.write("chart/charts/db/templates/deploy.yaml", DEPLOYMENT);
    let packed = Command::new(&charts.helm)
        .args(["package", "chart"])
        .current_dir(charts.bench.context())
        .env("HOME", charts.bench.dir.path())
        .output()
        .unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let error = charts.refusal(&format!("{ONE}APP web shop-1.2.0.tgz\n"));
    assert!(
        error.starts_with(
            "APP web: chart shop-1.2.0.tgz/charts/db/templates/deploy.yaml:10: the image a.b/db:v1 is not carried"
        ),
        "{error}"
    );
    // In charts/ of the rootfs, for commands to install.
    let error = charts.refusal(&format!("{ONE}COPY shop-1.2.0.tgz charts/\n"));
    assert!(
        error.starts_with("charts/shop-1.2.0.tgz/charts/db/templates/deploy.yaml:10: the image a.b/db:v1"),
        "{error}"
    );
    let kubefile = format!("{ONE}IMAGE a.b/db:v1 FROM web\nAPP web shop-1.2.0.tgz\n");
    let image = charts.try_build("t:1", &kubefile).unwrap();
    assert_eq!(image.config.apps["web"].files, ["shop-1.2.0.tgz"]);
    assert_eq!(
        charts.try_build("t:2", &kubefile).unwrap().index.digest,
        image.index.digest
    );
    let error = charts.refusal("FROM scratch\nCNI net shop-1.2.0.tgz\n");
    assert!(
        error.starts_with("Kubefile:2:9: shop-1.2.0.tgz: it is a helm chart"),
        "{error}"
    );
}

#[test]
fn a_chart_that_cannot_be_rendered_says_why() {
    let Some(charts) = Charts::new() else { return };
    charts.bench.write(
        "chart/Chart.yaml",
        "apiVersion: v2\nname: shop\nversion: 1.2.0\ndependencies:\n- {name: redis, version: 1.0.0, repository: \"https://charts.invalid\"}\n",
    );
    let error = charts.refusal(&format!("{ONE}APP web chart\n"));
    assert!(
        error.starts_with("APP web: chart shop: helm can't render it: "),
        "{error}"
    );
    assert!(error.contains("missing in charts/ directory: redis"), "{error}");
    assert!(error.contains("the build fetches nothing"), "{error}");
    charts
        .bench
        .write("chart/Chart.yaml", "apiVersion: v2\nname: shop\nversion: 1.2.0\n");
    charts.bench.write("chart/templates/bad.yaml", "{{ .Values.a.b.c }}\n");
    let error = charts.refusal(&format!("{ONE}APP web chart\n"));
    assert!(error.contains("shop/templates/bad.yaml"), "{error}");
}
