//! Planted secrets are not found again, and what is no secret stays.

use super::*;
use crate::testing;
use serde_json::json;

const PEM: &str = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIAbc\nDefGhi==\n-----END EC PRIVATE KEY-----";
const PLANTED: &str = "Pl4nted";

fn redact(text: &str) -> String {
    Redactor::default().text(text).into_owned()
}

#[test]
fn nothing_is_left_of_a_planted_secret() {
    let planted = [
        "password=Pl4nted",
        "password: Pl4nted",
        "passwd: 'Pl4nted with blanks'",
        "  DB_PASSWORD=Pl4nted rest",
        "\"password\": \"Pl4nted\"",
        r#"{"client_secret":"Pl4nted","a":1}"#,
        r#"{\"token\":\"Pl4nted\"}"#,
        r#""{\\\"token\\\":\\\"Pl4nted\\\"}""#,
        "helm --set db.password=Pl4nted",
        "mysql --password Pl4nted -h db",
        "Authorization: Bearer Pl4nted.0123456789",
        "authorization: basic Pl4nted0123456789==",
        "https://admin:Pl4nted@registry.example/v2/",
        "admin:$2y$10$Pl4ntedabcdefghijklmno",
        "root:$6$salt$Pl4ntedabcdefghijklmno:19000:0",
        "root:$y$j9T$Pl4nted/abcd$efghijkl:19000:0",
        "token eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJQbDRudGVkIn0.Pl4ntedPl4nted",
        "client-key-data: Pl4nted",
        "pkPasswd: Pl4nted",
        "sudoPasswd: Pl4nted",
        "apiKey = Pl4nted",
        "PRIVATE_KEY=Pl4nted",
        r#"{"name":"DB_PASSWORD","value":"Pl4nted"}"#,
        r#"{\"name\":\"DB_PASSWORD\",\"value\":\"Pl4nted\"}"#,
        "-----BEGIN RSA PRIVATE KEY-----\\nPl4nted\\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nPl4nted",
        "Pl4nted\nabc\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nPl4nted\n-----END PRIVATE KEY-----\n-----BEGIN PRIVATE KEY-----\nPl4nted",
    ];
    for text in planted {
        let left = redact(text);
        assert!(!left.contains(PLANTED), "{text} became {left}");
        assert!(left.contains("redacted"), "{text} became {left}");
        assert!(
            !redact(&format!("before\n{text}\nafter")).contains(PLANTED),
            "{text} within others"
        );
    }
    assert!(!redact("joining with abcdef.0123456789abcdef now").contains("0123456789abcdef"));
}

#[test]
fn keys_in_base64_go_and_certificates_stay() {
    let key = STANDARD.encode(PEM);
    let cert = STANDARD.encode("-----BEGIN CERTIFICATE-----\nMIIBabc\n-----END CERTIFICATE-----\n");
    let left = redact(&format!("key: {key}\ncert: {cert}\ncut: {}", &key[..50]));
    assert!(!left.contains(&key[..50]), "{left}");
    assert!(left.contains(&cert), "{left}");
}

#[test]
fn what_is_no_secret_stays_as_it_is() {
    for text in [
        "-----BEGIN CERTIFICATE-----\nMIIBabc\n-----END CERTIFICATE-----",
        "secretName: web-tls",
        "automountServiceAccountToken",
        "--token-auth-file /etc/x",
        "reading /etc/kubernetes/pki/ca.key: no such file",
        "10.0.0.1:6443 sha256:8ac6d3f1 100.64.0.0/16",
        "pod kube-system/dns-7d9f is not Ready",
        "https://10.0.0.1:6443/api/v1",
        "the passwords of all hosts differ",
    ] {
        assert_eq!(redact(text), text);
        assert!(
            matches!(Redactor::default().text(text), Cow::Borrowed(_)),
            "{text} is not copied"
        );
    }
}

#[test]
fn secrets_of_the_clusterfile_go_wherever_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pw");
    std::fs::write(&file, "fr0mAFile\n").unwrap();
    let clusterfile = testing::clusterfile(&format!(
        "  env: [ADMIN_PASSWORD=envS3cret, PLAIN=harmless]\n  ssh: {{user: ann, passwd: \"hunt\\\"er2\", sudoPasswdFile: {}}}\n  registry: {{localRegistry: {{username: u, password: reg1stry}}}}\n",
        file.display()
    ));
    let redactor = Redactor::of(&clusterfile);
    let text = format!(
        "sudo said hunt\"er2; in JSON \"hunt\\\"er2\"; {}; fr0mAFile! reg1stry? envS3cret. harmless",
        STANDARD.encode("hunt\"er2")
    );
    let left = redactor.text(&text);
    for secret in [
        "er2",
        "fr0mAFile",
        "reg1stry",
        "envS3cret",
        &STANDARD.encode("hunt\"er2"),
    ] {
        assert!(!left.contains(secret), "{secret} is left in {left}");
    }
    assert!(left.contains("harmless"));
}

#[test]
fn a_secret_within_another_leaves_no_rest_and_a_tiny_one_spoils_nothing() {
    let mut redactor = Redactor::default();
    redactor.add("abcd");
    redactor.add("abcdefgh");
    redactor.add("e");
    assert_eq!(redactor.text("abcdefgh abcd else"), "(redacted) (redacted) else");
}

#[test]
fn documents_lose_secrets_by_name_and_by_place() {
    let pod = json!({
        "metadata": {"name": "web", "annotations": {
            "kubectl.kubernetes.io/last-applied-configuration": "{\"x\":\"Pl4nted\"}",
            "note": "token=Pl4nted",
        }},
        "spec": {"containers": [{
            "name": "web",
            "args": ["--db-password", "Pl4nted", "--verbose", "--api-key=Pl4nted", "plain"],
            "env": [
                {"name": "DB_PASSWORD", "value": "Pl4nted"},
                {"name": "LEVEL", "value": "info"},
                {"name": "X_TOKEN", "valueFrom": {"secretKeyRef": {"name": "web", "key": "token"}}},
            ],
        }], "volumes": [{"secret": {"secretName": "web-tls"}}]},
        "password": "Pl4nted", "pin_secret": 1234,
    });
    let left = Redactor::default().json(pod);
    let text = left.to_string();
    assert!(!text.contains(PLANTED) && !text.contains("1234"), "{text}");
    assert_eq!(left["spec"]["containers"][0]["env"][1]["value"], "info");
    assert_eq!(
        left["spec"]["containers"][0]["env"][2]["valueFrom"]["secretKeyRef"]["name"],
        "web"
    );
    assert_eq!(left["spec"]["volumes"][0]["secret"]["secretName"], "web-tls");
    assert_eq!(left["spec"]["containers"][0]["args"][4], "plain");
    assert_eq!(left["metadata"]["name"], "web");
}

proptest::proptest! {
    #[test]
    fn a_known_secret_is_never_left(before in ".{0,20}", secret in "[A-Z]{4}[!-~]{8,20}", after in ".{0,20}") {
        let mut redactor = Redactor::default();
        redactor.add(&secret);
        let left = redactor.text(&format!("{before}{secret}{after}")).into_owned();
        proptest::prop_assert!(!left.contains(&secret));
    }

    #[test]
    fn any_text_is_borne(text in "(?s).{0,200}") {
        let once = redact(&text);
        // A private key that was cut off takes everything after it; else what is left has nothing left to take.
        proptest::prop_assert_eq!(redact(&once), once);
    }
}
