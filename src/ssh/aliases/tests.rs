//! What files mean, by their text.

use super::*;

fn load(text: &str) -> Result<(Aliases, Vec<String>), String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    fs::write(&path, text).unwrap();
    let prefix = format!("{}/", dir.path().display());
    Aliases::load(&path).map_err(|e| e.to_string().replace(&prefix, ""))
}

fn lookup(text: &str, name: &str) -> Alias {
    load(text).unwrap().0.lookup(name, None)
}

/// `user@host:port via hop,hop`, as far as it is said.
fn shown(alias: &Alias) -> String {
    let user = alias.user.as_ref().map(|u| format!("{u}@")).unwrap_or_default();
    let port = alias.port.map(|p| format!(":{p}")).unwrap_or_default();
    let hop = |hop: &Hop| format!("{:?} {} {:?}", hop.user, hop.host, hop.port);
    let via = match &alias.jumps {
        None => String::new(),
        Some(hops) => format!(" via {}", hops.iter().map(hop).collect::<Vec<_>>().join(", ")),
    };
    format!("{user}{}{port}{via}", alias.host_name)
}

#[test]
fn the_first_value_of_all_blocks_that_match_counts() {
    let text = "\
# a comment
Port 2200
Host web* !web9 10.0.0.?
  HostName = %h.example
\tUser=ann
  Port 22
Host 10.0.0.*
  HostName 192.0.2.7
  USER bob # he
  ForwardAgent yes
Match all
  User \"carl the great\"
";
    for (name, expected) in [
        ("web1", "ann@web1.example:2200"),
        ("web9", "carl the great@web9:2200"),
        ("10.0.0.5", "ann@10.0.0.5.example:2200"),
        ("10.0.0.15", "bob@192.0.2.7:2200"),
        ("x", "carl the great@x:2200"),
    ] {
        assert_eq!(shown(&lookup(text, name)), expected);
    }
    let (aliases, _) = load(text).unwrap();
    assert_eq!(aliases.lookup("web1", Some("dora")).user.as_deref(), Some("dora"));
}

#[test]
fn ways_around_are_read_and_the_one_said_first_counts() {
    for (text, name, expected) in [
        (
            "ProxyJump me@b1:2200,b2",
            "h",
            "h via Some(\"me\") b1 Some(2200), None b2 None",
        ),
        (
            "ProxyJump ssh://me@[2001:db8::1]:22",
            "h",
            "h via Some(\"me\") 2001:db8::1 Some(22)",
        ),
        ("ProxyJump 2001:db8::1", "h", "h via None 2001:db8::1 None"),
        ("Host h\nProxyJump none\nHost *\nProxyJump b", "h", "h via "),
        ("Host h\nProxyCommand none\nHost *\nProxyJump b", "h", "h via "),
        ("Host *\nProxyJump b", "b", "b"),
    ] {
        assert_eq!(shown(&lookup(text, name)), expected, "{text}");
    }
    let alias = lookup("ProxyCommand nc %h %p\nProxyJump b", "h");
    assert!(alias.jumps.is_none() && alias.command.is_some_and(|place| place.ends_with("config:1")));
    let alias = lookup("ProxyJump b\nProxyCommand nc %h %p", "h");
    assert!(alias.jumps.is_some() && alias.command.is_none());
}

#[test]
fn files_are_gathered_and_their_tokens_replaced() {
    let text = "\
Host h
  HostName real
  User ann
  IdentityFile /k/%r-%h-%n-%p%%-%z
  IdentityFile \"/k/with blank\"
  IdentityFile none
  UserKnownHostsFile /dev/null /kh/%h '/kh/two'
Host *
  IdentityFile /k/all
  UserKnownHostsFile /kh/other
";
    let alias = lookup(text, "h");
    let path = |text: &str| PathBuf::from(text);
    assert_eq!(
        alias.identity_files,
        [path("/k/ann-real-h-22%-%z"), path("/k/with blank"), path("/k/all")]
    );
    assert_eq!(alias.known_hosts, [path("/kh/real"), path("/kh/two")]);
}

#[test]
fn variables_of_the_environment_are_replaced_where_they_are_set() {
    let home = std::env::var("HOME").unwrap();
    for (text, expected) in [
        ("${HOME}/.ssh/%r", format!("{home}/.ssh/ann")),
        ("/a/${HOME}${HOME}", format!("/a/{home}{home}")),
        ("${NO_SUCH_VARIABLE_HERE}/id", "${NO_SUCH_VARIABLE_HERE}/id".to_owned()),
        ("/a/${/$HOME}", "/a/${/$HOME}".to_owned()),
        ("/a/%i", format!("/a/{}", rustix::process::getuid().as_raw())),
    ] {
        let alias = lookup(
            &format!("User ann\nIdentityFile {text}\nUserKnownHostsFile {text}\n"),
            "h",
        );
        assert_eq!(alias.identity_files, [PathBuf::from(&expected)]);
        assert_eq!(alias.known_hosts, [PathBuf::from(&expected)]);
    }
}

#[test]
fn included_files_say_something_within_the_block_that_includes_them() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/1.conf"), "Port 1\nHost b\nUser only-b\n").unwrap();
    fs::write(at("d/2.conf"), "Port 2\nUser late\n").unwrap();
    fs::write(at("d/.hidden.conf"), "Port 3\n").unwrap();
    fs::write(at("loop"), format!("Include {}\n", at("loop").display())).unwrap();
    let text = format!(
        "Host a b\nInclude {0}/d/*.conf {0}/absent\nHostName after-{1}h\n",
        dir.path().display(),
        '%'
    );
    fs::write(at("config"), text).unwrap();
    let (aliases, warnings) = Aliases::load(&at("config")).unwrap();
    assert!(warnings.is_empty());
    for (name, expected) in [("a", "late@after-a:1"), ("b", "only-b@after-b:1"), ("c", "c")] {
        assert_eq!(shown(&aliases.lookup(name, None)), expected);
    }
    let error = Aliases::load(&at("loop")).unwrap_err().to_string();
    assert!(error.contains("include each other"), "{error}");
    let error = Aliases::load(&at("absent")).unwrap_err().to_string();
    assert!(error.contains("absent") && error.contains("--ssh-config"), "{error}");
}

#[test]
fn blocks_that_are_not_understood_are_passed_over_and_told() {
    let text = "Host h\nUser ann\nMatch exec \"test -f x\"\nPort 7\nInclude /etc/passwd\nHost *\nHostName real\n";
    let (aliases, warnings) = load(text).unwrap();
    assert_eq!(shown(&aliases.lookup("h", None)), "ann@real");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("config:3: Match exec test -f x"), "{warnings:?}");
}

#[test]
fn lines_that_make_no_sense_are_named() {
    for (text, expected) in [
        ("Port 0", "config:1: port must be"),
        ("\nPort ssh", "config:2: port must be"),
        ("User", "config:1: User has no value"),
        ("User a b", "config:1: user takes one value"),
        ("User \"a", "config:1: a quotation mark"),
        ("ProxyJump @b", "config:1: proxyjump: \"@b\" is not"),
        ("ProxyJump a:0", "is not of the form"),
    ] {
        let error = load(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "(?s)([a-zA-Z]{0,12}[ =\"'#%!*,@:\\[\\]\\\\\n]{0,3}){0,30}", name in ".{0,8}") {
        let _ = split(&text).map(|_| hops(&text));
        // Files are not to be read here.
        if !text.to_lowercase().contains("include") && let Ok((aliases, _)) = load(&text) {
            aliases.lookup(&name, None);
        }
    }
}
