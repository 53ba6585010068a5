//! Whole builds: what recipes of other tools say, and what is told about it.

use crate::build_tests::{put, tar};
use crate::tests::{Bench, text};

const POD: &str = "apiVersion: v1\nkind: Pod\nspec: {containers: [{image: a.b/web:v1}]}\n";

#[test]
fn a_folder_that_means_something_is_never_a_file() {
    let bench = Bench::new();
    bench.write("imageList", "a.b/web:v1\n");
    bench.write("pod.yaml", POD);
    bench.write("tool.sh", "true\n");
    let image = bench.build(
        "t:1",
        "FROM scratch\nCOPY imageList manifests\nCOPY tool.sh /scripts\nADD tool.sh ./etc/kubernetes\nCOPY pod.yaml \
         etc/kubernetes/manifests\nCOPY tool.sh application/apps/web\nCOPY tool.sh other\nIMAGE a.b/web:v1 FROM web\n",
    );
    for path in [
        "manifests/imageList",
        "scripts/tool.sh",
        "etc/kubernetes/tool.sh",
        "etc/kubernetes/manifests/pod.yaml",
        "application/apps/web/tool.sh",
        "other",
    ] {
        assert!(!text(&image, path).is_empty(), "{path}");
    }
    let named = &image.config.lock.as_ref().unwrap().images;
    let places = format!("{:?}", named[&"a.b/web:v1".parse().unwrap()].named);
    assert!(places.contains("imageList"), "the list is read: {places}");
    bench.write("imageList", "a.b/other:v1\n");
    let refused = bench.refusal("FROM scratch\nCOPY imageList manifests\n");
    assert!(
        refused.starts_with("imageList:1: the image a.b/other:v1 is not carried"),
        "{refused}"
    );
}

#[test]
fn whatever_makes_a_file_of_such_a_folder_is_refused_with_its_line() {
    let bench = Bench::new();
    put(&bench, "f.tar", &tar(&[("manifests", 0o644, b"x")]));
    bench.write("plugins", "x");
    for (line, expected) in [
        ("RUN echo x > charts", "Kubefile:2:14: charts: it must be a folder"),
        ("ADD f.tar .", "Kubefile:2:1: manifests: it must be a folder"),
        ("COPY plugins .", "Kubefile:2:6: plugins: it must be a folder"),
        ("RUN ln -s nowhere etc", "Kubefile:2:19: etc: it must be a folder"),
    ] {
        let refused = bench.refusal(&format!("FROM scratch\n{line}\n"));
        assert!(refused.starts_with(expected), "{line}: {refused}");
    }
    let image = bench.build("t:2", "FROM scratch\nRUN mkdir m && echo x > m/a && ln -s m charts\n");
    assert_eq!(text(&image, "m/a"), "x\n");
}
