//! Whole builds: what recipes of other tools say, and what is told about it.

use oci::Descriptor;

use crate::build_tests::{put, tar};
use crate::tests::{Bench, text};
use crate::{Carried, NoProgress, host_platform, verify};

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

#[test]
fn a_blank_line_in_a_continued_instruction_is_joined_and_told() {
    let bench = Bench::new();
    let (image, warnings) = bench.build_warned("FROM scratch\nRUN echo a > x \\\n\n  && echo b >> x\n");
    assert_eq!(text(&image, "x"), "a\nb\n");
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("Kubefile:3:1: the empty line does not end"),
        "{warnings:?}"
    );
}

#[test]
fn a_variable_that_a_launch_command_runs_as_a_program_is_told_with_its_line() {
    let bench = Bench::new();
    let recipe = "FROM scratch\nENV NAME=x\nAPP web app.yaml\nAPPENV web Place=y\nAPPCMDS web [\"echo $(Place)\"]\n\
                  CMDS [\"echo name=$(NAME)\", \"echo $NAME $(hostname)\"]\n";
    let (image, warnings) = bench.build_warned(recipe);
    assert_eq!(image.config.commands[0], "echo name=$(NAME)", "nothing is replaced");
    assert_eq!(
        warnings,
        [
            "Kubefile:5:20: APPCMDS: the shell runs $(Place) as a program, and puts what that prints in its place; the variable is \
             written ${Place}",
            "Kubefile:6:18: CMDS: the shell runs $(NAME) as a program, and puts what that prints in its place; the variable is \
             written ${NAME}",
        ]
    );
}

#[test]
fn a_script_as_a_plugin_is_refused_with_what_to_write() {
    let bench = Bench::new();
    bench.write("calico.sh", "kubectl apply -f x\n");
    bench.write("net/a.yaml", "apiVersion: v1\nkind: ConfigMap\n");
    bench.write("net/setup/run.sh", "true\n");
    bench.write("words/README.md", "words\n");
    for (line, expected) in [
        (
            "CNI calico local://calico.sh",
            "Kubefile:2:1: calico.sh: it is a script, and nobody runs what CNI brings: bring the manifests that it applies; or \
             make it an application that is launched when the cluster is up (APP calico calico.sh, LAUNCH [\"calico\"])",
        ),
        (
            "CSI disk net",
            "Kubefile:2:10: net: setup/run.sh in it is a script, and nobody runs what CSI",
        ),
        ("CNI calico words", "Kubefile:2:12: words: CNI brings manifests"),
        (
            "CNI calico net/a.yaml words/README.md",
            "Kubefile:2:23: words/README.md: CNI brings manifests",
        ),
    ] {
        let refused = bench.refusal(&format!("FROM scratch\n{line}\n"));
        assert!(refused.starts_with(expected), "{line}: {refused}");
    }
    let (_, warnings) = bench.build_warned("FROM scratch\nCNI calico net/a.yaml\nCOPY calico.sh manifests\n");
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with("manifests/calico.sh: nobody runs scripts"),
        "{warnings:?}"
    );
}

#[test]
fn the_mistakes_of_a_recipe_are_told_at_once() {
    let bench = Bench::new();
    bench.write("broken/Containerfile", "FROM scratch\nCOPY a\nFROM x\nEXPOSE z\n");
    let refused = bench.refusal(
        "FROM gone:1\nIMAGE\nCOPY nowhere x/\nFOO\nAPPENV web A=1\nCOPY $UNSET x\nLAUNCH [\"a\"]\nLAUNCH [\"b\"]\nIMAGE A.b/C\n\
         IMAGE a.b/c:1 FROM broken\nRUN make later\nCOPY later x/\n",
    );
    let places: Vec<&str> = refused.lines().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(
        places,
        [
            "Kubefile:1:6",
            "Kubefile:2:1",
            "Kubefile:3:6",
            "Kubefile:4:1",
            "Kubefile:8:1",
            "Kubefile:9:7",
            "broken/Containerfile:2:1",
            "broken/Containerfile:3:1",
            "broken/Containerfile:4:8",
        ],
        "{refused}"
    );
    assert!(
        refused.contains("IMAGE: arguments are missing; the form is IMAGE ["),
        "{refused}"
    );
    let refused = bench.refusal("FROM scratch\nAPP web app.yaml\nAPPENV wbe A=1\nAPPCMDS x [\"a\"]\n");
    assert_eq!(refused.lines().count(), 2, "{refused}");
    bench.write("run.sh", "true\n");
    let refused = bench.refusal("FROM scratch\nLAUNCH [\"a\", \"net\"]\nCNI net run.sh\nIMAGE a.b/c:1 FROM oci-archive:gone.tar\nAPP b app.yaml\n");
    let told: Vec<&str> = refused.lines().collect();
    assert_eq!(told.len(), 4, "{refused}");
    assert!(
        told[0].starts_with("Kubefile:2:1: LAUNCH: net is a network or storage plugin"),
        "{refused}"
    );
    assert!(
        told[1].starts_with("Kubefile:2:1: LAUNCH: the image has no APP \"a\""),
        "{refused}"
    );
    assert!(
        told[2].starts_with("Kubefile:3:9: run.sh: it is a script") && told[3].contains("gone.tar"),
        "{refused}"
    );
    let refused = bench.refusal("FROM scratch\nAPP web app.yaml\nAPPENV wbe A=1\nAPPCMDS x [\"a\"]\n");
    assert!(refused.contains("Kubefile:3:1: there is no APP \"wbe\" before this line, did you mean \"web\"?"));
}

#[test]
fn what_looks_like_an_image_and_is_not_carried_is_told_with_its_line() {
    let bench = Bench::new();
    let pod = "apiVersion: apps/v1\nkind: Deployment\nspec:\n  template:\n    spec:\n      containers:\n      - image: a.b/web:v1\n        args:\n        \
               - --reloader=quay.io/a/reloader:v0.1\n        - --web=a.b/web:v1\n        env:\n        - name: HELPER_IMAGE\n          value: busybox:1\n";
    bench.write("manifests/pod.yaml", pod);
    let recipe = "FROM scratch\nCOPY manifests manifests\nIMAGE a.b/web:v1 FROM web\n";
    let (_, warnings) = bench.build_warned(recipe);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        warnings[0],
        "manifests/pod.yaml:13: the variable HELPER_IMAGE looks like the image busybox:1, which is not carried; if a program asks for \
         it in the cluster, say so with the annotation installer.internal/image-env: \"HELPER_IMAGE\""
    );
    assert!(
        warnings[1]
            .starts_with("manifests/pod.yaml:9: the argument --reloader looks like the image quay.io/a/reloader:v0.1"),
        "{warnings:?}"
    );
    let (_, warnings) = bench.build_warned(&format!(
        "{recipe}IMAGE quay.io/a/reloader:v0.1 FROM web\nIMAGE busybox:1 FROM web\n"
    ));
    assert_eq!(warnings, Vec::<String>::new(), "what is carried is no reason to warn");
}

/// Writes the folder `saved` and the archive `saved.tar` of the image as Docker 25 and later does; gives its index, which lists
/// an attestation and another platform that are not there.
fn docker_saves(bench: &Bench, image: &Carried) -> Descriptor {
    let layout = oci::Layout::create(bench.path("saved")).unwrap();
    for blob in &image.blobs {
        let bytes = bench.store.blobs().read(&blob.digest, 1 << 20).unwrap();
        layout.blobs().put(&bytes).unwrap();
    }
    let absent = |content: &str, os: &str, architecture: &str| {
        let mut entry = Descriptor::of(oci::media_type::MANIFEST, content.as_bytes());
        entry.platform = Some(oci::Platform {
            architecture: architecture.into(),
            os: os.into(),
            variant: None,
        });
        entry
    };
    let mut here = Descriptor::new(
        oci::media_type::MANIFEST,
        image.manifest.digest.clone(),
        image.manifest.size,
    );
    here.platform = Some(host_platform());
    let list = oci::Index {
        manifests: vec![absent("a", "linux", "s390x"), here, absent("b", "unknown", "unknown")],
        ..oci::Index::default()
    };
    let list = serde_json::to_vec_pretty(&list).unwrap();
    layout.blobs().put(&list).unwrap();
    let index = Descriptor::of(oci::media_type::INDEX, &list);
    let manifests = vec![index.clone()];
    layout
        .write_index(&oci::Index {
            manifests,
            ..oci::Index::default()
        })
        .unwrap();
    let path = |blob: &Descriptor| format!("blobs/sha256/{}", blob.digest.hex());
    let list = serde_json::json!([{
        "Config": path(&image.blobs[1]), "RepoTags": null, "Layers": [path(&image.blobs[2])],
    }]);
    std::fs::write(bench.path("saved/manifest.json"), list.to_string()).unwrap();
    let mut tar = tar::Builder::new(std::fs::File::create(bench.path("saved.tar")).unwrap());
    tar.append_dir_all(".", bench.path("saved")).unwrap();
    tar.into_inner().unwrap();
    index
}

#[test]
fn an_image_pinned_to_an_index_comes_out_of_what_docker_saves() {
    let bench = Bench::new();
    let web = bench.build("web:1", "FROM scratch\nIMAGE a.b/web:v1 FROM web\n");
    let index = docker_saves(&bench, &web.carried[0]);
    let name = format!("a.b/web@{}", index.digest);
    bench.write("manifests/pod.yaml", &POD.replace("a.b/web:v1", &name));
    for source in ["oci-archive:saved.tar", "oci:saved", "saved"] {
        let recipe = format!("FROM scratch\nCOPY manifests manifests\nIMAGE {name} FROM {source}\n");
        let image = bench.build("t:1", &recipe);
        let carried = &image.carried[0];
        assert_eq!(carried.manifest.digest, web.carried[0].manifest.digest, "{source}");
        assert_eq!(carried.served().digest, index.digest, "{source}");
        assert!(verify(&bench.store, "t:1", &NoProgress).unwrap().is_good(), "{source}");
        bench.store.remove("t:1").unwrap();
    }
    let refused = bench.refusal(&format!("FROM scratch\nIMAGE {name} FROM docker-archive:saved.tar\n"));
    assert!(
        refused.starts_with("Kubefile:2:1: saved.tar is refused: a docker archive does not keep digests")
            && refused.contains("say oci-archive: instead of docker-archive:"),
        "{refused}"
    );
}
