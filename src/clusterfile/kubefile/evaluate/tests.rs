//! Lines understood, and what is said about those that are not.

use super::*;
use crate::kubefile::{AddFlags, CopyFlags, ImageSource, lines};

fn evaluated(text: &str, dialect: Dialect) -> (Vec<Option<Instruction>>, Vec<String>) {
    let found = lines(text, "F", dialect);
    let build_args = Variables::from([("V".to_string(), "v9".to_string())]);
    let given = Variables::from([("TARGETARCH".to_string(), "arm64".to_string())]);
    let mut evaluator = Evaluator::new("F", dialect, &build_args).with_given(&given);
    let instructions = found.lines.iter().map(|line| evaluator.instruction(line)).collect();
    let problems = found.problems.into_iter().chain(evaluator.take_problems());
    (instructions, problems.map(|problem| problem.to_string()).collect())
}

fn last(text: &str, dialect: Dialect) -> Result<Instruction, String> {
    match evaluated(text, dialect) {
        (mut instructions, problems) if problems.is_empty() => Ok(instructions.pop().flatten().unwrap()),
        (_, problems) => Err(problems.join("\n")),
    }
}

fn kube(rest: &str) -> Instruction {
    last(&format!("FROM scratch\n{rest}"), Dialect::Kubefile).unwrap()
}

const SUM: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn files_and_images_are_understood() {
    let copy = kube("COPY --from=bin --chmod=0755 a b bin/");
    let flags = CopyFlags {
        from: Some("bin".into()),
        chmod: Some(0o755),
    };
    assert_eq!(
        copy,
        Instruction::Copy {
            flags,
            sources: vec!["a".into(), "b".into()],
            destination: "bin/".into()
        }
    );
    let flags = AddFlags {
        checksum: Some(SUM.into()),
        unpack: Some(true),
        chmod: None,
    };
    assert_eq!(
        kube(&format!(
            "ADD --checksum={} --unpack https://a.b/c.tgz d/",
            SUM.to_uppercase().replace("SHA", "sha")
        )),
        Instruction::Add {
            flags,
            sources: vec!["https://a.b/c.tgz".into()],
            destination: "d/".into()
        }
    );
    let image = |source| Instruction::Image {
        reference: "a.b/c:v9".into(),
        source,
        from: None,
    };
    let (file, name) = ("x.tar".to_string(), Some("a.b/c:1".to_string()));
    for (text, source) in [
        ("", ImageSource::Registry),
        ("FROM images/c", ImageSource::Folder("images/c".into())),
        ("FROM docker://d.e/f", ImageSource::Docker("d.e/f".into())),
        (
            "FROM oci:lay",
            ImageSource::OciFolder {
                folder: "lay".into(),
                name: None,
            },
        ),
        (
            "from oci-archive:x.tar:a.b/c:1",
            ImageSource::OciArchive {
                file: file.clone(),
                name: name.clone(),
            },
        ),
        (
            "FROM docker-archive:x.tar:a.b/c:1",
            ImageSource::DockerArchive { file, name },
        ),
    ] {
        assert_eq!(
            kube(&format!("ARG V=v1\nIMAGE a.b/c:$V {text}")),
            image(source),
            "{text}"
        );
    }
}

#[test]
fn applications_and_commands_are_understood() {
    assert_eq!(
        kube("APP web local://chart --values a.yaml --values=b.yaml.tmpl"),
        Instruction::App {
            name: "web".into(),
            sources: vec!["chart".into()],
            values: vec!["a.yaml".into(), "b.yaml.tmpl".into()],
            checksum: None,
        }
    );
    assert_eq!(
        kube("CSI disk a b"),
        Instruction::Csi {
            name: "disk".into(),
            sources: vec!["a".into(), "b".into()],
        }
    );
    assert_eq!(
        kube("CMDS [\"a b\", \"c\"]"),
        Instruction::Commands(vec!["a b".into(), "c".into()])
    );
    assert_eq!(kube("CMD a b"), Instruction::OneCommand(vec!["a b".into()]));
    assert_eq!(
        kube("RUN [ -f x ] && y"),
        Instruction::Run(Command::Shell("[ -f x ] && y".into()))
    );
    assert_eq!(kube("ENV A b c"), Instruction::Env(vec![("A".into(), "b c".into())]));
    assert_eq!(
        kube("LAUNCH web db"),
        Instruction::Launch(vec!["web".into(), "db".into()])
    );
    assert_eq!(
        kube("KUBEVERSION '>=1.30 <1.38'"),
        Instruction::KubeVersion(">=1.30 <1.38".parse().unwrap())
    );
    let contained = last("FROM scratch\nENTRYPOINT [\"/a\"]", Dialect::Containerfile).unwrap();
    assert_eq!(contained, Instruction::Entrypoint(Command::Exec(vec!["/a".into()])));
}

#[test]
fn what_the_build_is_for_is_there_and_cannot_be_changed() {
    let expected = Instruction::Env(vec![("A".into(), "arm64".into())]);
    for text in [
        "ENV A=$TARGETARCH",
        "ARG TARGETARCH\nENV A=$TARGETARCH",
        "ARG TARGETARCH=x\nENV A=${TARGETARCH}",
    ] {
        assert_eq!(kube(text), expected, "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        ("FROM a b", "F:1:1: FROM: exactly one image"),
        ("FROM a AS b", "F:1:8: FROM: AS names a build stage"),
        (
            "FROM --platform=x a",
            "F:1:6: FROM: the flag --platform=x is not supported",
        ),
        ("FROM scratch\nCOPY a", "F:2:1: COPY: needs sources and a destination"),
        (
            "FROM scratch\nCOPY a b c",
            "F:2:10: COPY: with several sources the destination must end with /, as in c/",
        ),
        (
            "FROM scratch\nCOPY --form=x a b",
            "F:2:6: COPY: unknown flag --form, did you mean \"--from\"?",
        ),
        (
            "FROM scratch\nCOPY --chown=1 a b",
            "F:2:6: COPY: unknown flag --chown; every file",
        ),
        (
            "FROM scratch\nCOPY --chmod=u+x a b",
            "F:2:6: COPY: --chmod takes an octal",
        ),
        (
            "FROM scratch\nCOPY http://x y",
            "F:2:6: COPY: COPY takes files of the context",
        ),
        ("FROM scratch\nCOPY '' y", "F:2:6: COPY: a path is empty"),
        (
            "FROM scratch\nARG X",
            "F:2:5: ARG: X has no default, so --build-arg X=VALUE is needed",
        ),
        (
            "FROM scratch\nENV A=1\nLABEL a=$AA",
            "F:3:9: LABEL: the variable \"AA\" is not set",
        ),
        (
            "FROM scratch\nCOPY a \\\n  $AA",
            "F:3:3: COPY: the variable \"AA\" is not set",
        ),
        (
            "FROM scratch\nADD http://x y",
            "F:2:5: ADD: a URL needs --checksum=sha256:",
        ),
        (
            "FROM scratch\nADD http://u:p@x/z y",
            "F:2:5: ADD: a URL with a user or password",
        ),
        (
            "FROM scratch\nADD git://x y",
            "F:2:5: ADD: \"git://x\" is not supported",
        ),
        (
            "FROM scratch\nADD --checksum=md5:1 x y",
            "F:2:5: ADD: --checksum takes sha256:",
        ),
        (
            "FROM scratch\nADD --unpack=yes x y",
            "F:2:5: ADD: --unpack is true or false",
        ),
        ("FROM scratch\nRUN <<EOF", "F:2:5: RUN: here-documents"),
        ("FROM scratch\nCOPY <<EOF x", "F:2:6: COPY: here-documents"),
        (
            "FROM scratch\nIMAGE a b",
            "F:2:7: IMAGE: this is not understood; the form is IMAGE [--from=NAME] REFERENCE",
        ),
        (
            "FROM scratch\nIMAGE a FROM ftp:x",
            "F:2:14: IMAGE: the source \"ftp\" is unknown",
        ),
        (
            "FROM scratch\nIMAGE a FROM oci:",
            "F:2:14: IMAGE: a path is missing after oci:",
        ),
        ("FROM scratch\nIMAGE --from=x a", "F:2:7: IMAGE: --from is for files"),
        (
            "FROM scratch\nAPP web",
            "F:2:1: APP: sources are missing after the name; the form is APP NAME SOURCE",
        ),
        (
            "FROM scratch\nAPP Web x",
            "F:2:5: APP: \"Web\" can't be an application's name",
        ),
        (
            "FROM scratch\nAPP web x --vales y",
            "F:2:11: APP: unknown flag --vales, did you mean \"--values\"?",
        ),
        (
            "FROM scratch\nAPP web x --values",
            "F:2:11: APP: --values needs a value",
        ),
        (
            "FROM scratch\nAPP web https://x/y",
            "F:2:9: APP: a URL needs --checksum",
        ),
        (
            "FROM scratch\nCNI x https://x/y",
            "F:2:7: CNI: \"https://x/y\": only files of the context",
        ),
        (
            "FROM scratch\nKUBEVERSION latest",
            "F:2:13: KUBEVERSION: \"latest\" is no version",
        ),
        ("FROM scratch\nCMDS [\"a\"", "F:2:1: CMDS: the list must look like"),
        ("FROM scratch\nFROM scratch", "F:2:1: FROM: a second FROM"),
        (
            "FROM scratch\nRUN",
            "F:2:1: RUN: arguments are missing; the form is RUN COMMAND",
        ),
        (
            "FROM scratch\nIMAGE",
            "F:2:1: IMAGE: arguments are missing; the form is IMAGE [",
        ),
        (
            "FROM scratch\nCNI calico",
            "F:2:1: CNI: sources are missing after the name; the form is CNI NAME SOURCE",
        ),
        (
            "FROM scratch\nAPPENV web 1a=b",
            "F:2:12: APPENV: \"1a\" can't be a variable's name",
        ),
    ] {
        let error = last(text, Dialect::Kubefile).unwrap_err();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
    let two = format!("FROM scratch\nADD --checksum={SUM} a b c/");
    assert!(last(&two, Dialect::Kubefile).unwrap_err().starts_with("F:2:"));
}

/// Values as Dockerfiles have them: each is what buildkit makes of it.
#[test]
fn the_values_of_env_are_those_of_dockerfiles() {
    for (text, name, value) in [
        ("ENV NAME=${NAME:-\"kibana\"}", "NAME", "kibana"),
        ("ENV MIX=a${X:-'b c'}d", "MIX", "ab cd"),
        ("ENV E=${H:-'$HOME'}", "E", "$HOME"),
        ("ENV A  some   text", "A", "some   text"),
        ("ENV A \"some  text\"", "A", "some  text"),
        ("ENV A TWO= THREE=x", "A", "TWO= THREE=x"),
        ("ENV A='b=c d'", "A", "b=c d"),
        ("ENV A=\"b=c d\"", "A", "b=c d"),
        ("LABEL \"a b\"=c", "a b", "c"),
    ] {
        let expected = vec![(name.to_string(), value.to_string())];
        match kube(text) {
            Instruction::Env(pairs) | Instruction::Label(pairs) => assert_eq!(pairs, expected, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let container = |text: &str| last(&format!("FROM scratch\n{text}"), Dialect::Containerfile).unwrap();
    assert_eq!(container("WORKDIR \"/a b\""), Instruction::WorkDir("/a b".into()));
    assert_eq!(container("USER ${U:-\"me\"}"), Instruction::User("me".into()));
    assert_eq!(
        kube("LAUNCH [\"${X:-'web'}\", \"it's\"]"),
        Instruction::Launch(vec!["web".into(), "it's".into()])
    );
}

#[test]
fn all_mistakes_are_told_at_once_and_none_that_only_follows() {
    let text = "FROM scratch\nIMAGE\nCPOY a b\nARG X\nCOPY a $X\nENV 1=2 B=${C\nENV D=$B\nLABEL a=$D b=${E}\nEXPOSE 80\nCOPY a\n";
    let (instructions, problems) = evaluated(text, Dialect::Kubefile);
    assert_eq!(instructions.iter().flatten().count(), 1);
    let begins = |line: &String| line.split(": ").take(2).collect::<Vec<_>>().join(": ");
    let mut told: Vec<String> = problems.iter().map(begins).collect();
    told.sort();
    assert_eq!(
        told,
        [
            "F:10:1: COPY",
            "F:2:1: IMAGE",
            "F:3:1: unknown instruction \"CPOY\", did you mean \"COPY\"?",
            "F:4:5: ARG",
            "F:6:11: ENV",
            "F:9:1: EXPOSE belongs in a Containerfile, not in a Kubefile",
        ],
        "{problems:?}"
    );
    assert!(problems.iter().all(|problem| !problem.contains("\"X\" is not set")));
    // A FROM that can't be understood may have brought any variable.
    let (_, problems) = evaluated("FROM a b\nCOPY a $B\nCOPY a\n", Dialect::Kubefile);
    assert_eq!(problems.len(), 2, "{problems:?}");
}
